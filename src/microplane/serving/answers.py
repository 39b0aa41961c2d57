"""Answers to chats and completions: out of a request into the scheduler, and what it writes into OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from microplane.config.section import is_utf8
from microplane.data.rendering.causal import causal_renderer
from microplane.errors import DataError
from microplane.inference.check_ids import check_ids
from microplane.serving.batch import Generation, Piece, TokenScore
from microplane.serving.http import error_of
from microplane.serving.json_text import can_write_json
from microplane.serving.library import Served
from microplane.serving.protocol import ApiError, ChatRequest, CompletionRequest

LEAST = -9999.0  # log p of what cannot come, as OpenAI has it: JSON knows no infinity


@dataclass
class Choice:
    """One answer as it grows on the side of the client."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    finish: str | None = None
    tokens: int = 0


class Asked:
    """The answers to one request, and what comes of them.

    Args:
        prompts: token ids of each; every one is answered `count` times.
        default: tokens of an answer at most, where the request does not say.
        room: tokens of a prompt and its answer that there is room for.

    Raises:
        ApiError, ConfigError: for what cannot be written so.
    """

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        served: Served,
        prompts: Sequence[list[int]],
        default: int,
        room: int,
    ):
        self.request, self.served = request, served
        self.prompt_tokens = sum(map(len, prompts))
        self.pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        seed = request.seed if request.seed is not None else random.getrandbits(31)
        self.answers: list[Generation] = []
        pipeline, scores = served.pipeline, request.scores if isinstance(request, ChatRequest) else request.logprobs
        stops = stops_of(served, chat=isinstance(request, ChatRequest))
        for prompt in prompts:
            most = most_tokens(served, prompt, request.most, default, request.ASKED)
            most = most_in_batch(most, prompt, request.most, room, request.ASKED)
            for _ in range(request.count):
                number = len(self.answers)
                knobs = request.knobs(most, number, seed)
                tokenizer = pipeline.tokenizer.for_targets
                knobs = knobs.model_copy(update={"stop": tuple(map(tokenizer.in_form, knobs.stop))})
                how = served.adapter, scores, request.as_json, bool(request.stream)
                self.answers.append(Generation(prompt, tokenizer, knobs, stops, self._teller(number), *how))
        self.choices = [Choice() for _ in self.answers]

    def _teller(self, number: int) -> Callable[[Piece], None]:
        def tell(piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                self.loop.call_soon_threadsafe(self.pieces.put_nowait, (number, piece))

        return tell

    async def each(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of the answers as they are written. Leaving early stops them.

        Raises:
            Exception: what an answer was given up for.
        """
        try:
            left = len(self.answers)
            while left:
                number, piece = await self.pieces.get()
                if piece.error is not None:
                    raise piece.error
                choice = self.choices[number]
                choice.text += piece.text
                choice.scores += piece.scores
                choice.finish, choice.tokens = piece.finish, piece.tokens
                left -= piece.finish is not None
                yield number, piece
        finally:
            self.cancel()

    async def whole(self) -> None:
        async for _ in self.each():
            pass

    def cancel(self) -> None:
        """Nobody waits for them any more."""
        for one in self.answers:
            one.cancelled = True

    @property
    def usage(self) -> dict[str, int]:
        written = sum(choice.tokens for choice in self.choices)
        total = self.prompt_tokens + written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": total}


def chat_prompt(served: Served, request: ChatRequest) -> list[int]:
    """Token ids of a conversation, begun as the run's training rows began.

    Raises:
        ApiError, DataError: if it cannot be answered.
    """
    messages = [one.message(f"messages[{number}]") for number, one in enumerate(request.messages)]
    if messages[-1].role == "assistant":
        raise ApiError(
            400, "the last message is the assistant's own, which is not continued; end with the user's", "messages"
        )
    first = next((place for place, one in enumerate(messages) if one.role != "system"), None)
    if first is None or not any(one.role == "user" for one in messages):
        raise ApiError(400, "there is no message of the user", "messages")
    pipeline = served.pipeline
    if messages[first].role == "user" and not messages[first].extra:
        messages[first] = pipeline.asked(messages[first].content)
    if pipeline.frame is not None and messages[0].role == "system":
        raise ApiError(400, "this run was trained on plain text, which has no system message; leave it out", "messages")
    return pipeline.prompt(messages)


def completion_prompt(served: Served, prompt: str | list[int]) -> list[int]:
    """Token ids of a text to be continued as it stands; what an encoder-decoder reads; or ids as they are given."""
    pipeline = served.pipeline
    if isinstance(prompt, list):
        size = served.model.config.vocab_size
        if wrong := [token for token in prompt if not 0 <= token < size]:
            raise ApiError(400, f"prompt: the token {wrong[0]} is none of the model's {size:,}", "prompt")
        ids = prompt
    elif not is_utf8(prompt):
        raise DataError("the prompt holds bytes that are not UTF-8; give it in that encoding")
    elif served.model.KIND == "encoder-decoder":
        ids = pipeline.prompt(prompt)
    else:
        ids = causal_renderer(pipeline.tokenizer, "plain").text_ids(pipeline.tokenizer.in_form(prompt))
    if not ids:
        raise ApiError(400, "the prompt has no tokens, so there is nothing to continue. Give it some text", "prompt")
    check_ids(served.model, pipeline.tokenizer, ids)
    return ids


def stops_of(served: Served, chat: bool) -> tuple[int, ...]:
    """What ends an answer: of a plain continuation the model's own ends alone."""
    pipeline = served.pipeline
    return pipeline.stop_ids if chat else pipeline.objective.stop_ids(pipeline.tokenizer, "plain")


def most_tokens(
    served: Served, prompt: Sequence[int], wanted: int | None, default: int, param: str = "messages"
) -> int:
    """How many tokens an answer may have.

    Args:
        param: the part of a request that the prompt is.

    Raises:
        ApiError: for more than the model has room for.
    """
    model = served.model
    context, length = model.max_row_tokens, len(prompt)
    if context is None:
        return wanted or default
    both = model.KIND != "encoder-decoder"
    room = context - length if both else context
    if length > context or room < 1 or (wanted or 1) > room:
        asked = f" and {wanted} were asked for" if wanted else ""
        what = f"the prompt has {length} tokens{asked}, and the model's context is {context}"
        how = " in all" if both else " for each of prompt and answer"
        raise ApiError(400, f"{what}{how}. Shorten the prompt or the answer", param, "context_length_exceeded")
    return wanted or min(default, room)


def most_in_batch(most: int, prompt: Sequence[int], wanted: int | None, room: int, param: str = "messages") -> int:
    """How many of the `most` tokens that an answer may have there is room for: some models know no bound of their own,
    and the memory has one.

    Raises:
        ApiError: for more than that.
    """
    left = room - len(prompt)
    if left < (wanted or 1):
        asked = f" and {wanted} were asked for" if wanted else ""
        raise ApiError(
            400, f"the prompt has {len(prompt)} tokens{asked}, and this server has room for {room} in all "
            "(--batch-tokens). Shorten the prompt or the answer", param, "context_length_exceeded",
        )  # fmt: skip
    return min(most, left)


def prepare(request: ChatRequest | CompletionRequest, served: Served) -> list[list[int]]:
    """The prompts of a request. Takes a while for long ones, so it is done beside the loop."""
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options without stream would change nothing: leave it out", "stream_options")
    if request.as_json and not can_write_json(served.pipeline.tokenizer):
        raise ApiError(400, f"the vocabulary of {served.name} lacks what JSON is written with", "response_format")
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs = true", "top_logprobs")
        if request.max_tokens and request.max_completion_tokens:
            raise ApiError(400, "max_tokens and max_completion_tokens say the same: give one of them", "max_tokens")
        return [chat_prompt(served, request)]
    if not request.prompts:
        raise ApiError(400, "prompt: there is none", "prompt")
    return [completion_prompt(served, prompt) for prompt in request.prompts]


# Into OpenAI's form


class Form:
    """How one kind of answer is written down."""

    def __init__(self, asked: Asked):
        self.asked = asked
        self.is_chat = isinstance(asked.request, ChatRequest)
        self.scored = asked.answers[0].logprobs is not None
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.offsets = [0] * len(asked.answers)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.served.name}

    def whole(self) -> dict[str, Any]:
        """All of it at once."""
        choices = []
        for index, choice in enumerate(self.asked.choices):
            told = {"index": index, "finish_reason": choice.finish, "logprobs": self._scores(choice.scores, index)}
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            choices.append(told | ({"message": message} if self.is_chat else {"text": choice.text}))
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.asked.usage}

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """The next part of one answer."""
        told = {"index": index, "finish_reason": piece.finish, "logprobs": self._scores(piece.scores, index)}
        told |= {"delta": {"content": piece.text}} if self.is_chat else {"text": piece.text}
        return self._chunk([told])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk" if self.is_chat else "text_completion"), "choices": choices}

    async def events(self) -> AsyncIterator[bytes]:
        """The parts as server-sent events."""
        options = self.asked.request.stream_options
        usage = options is not None and options.include_usage
        empty = {"usage": None} if usage else {}
        first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        if self.is_chat:
            for index in range(len(self.asked.answers)):
                yield _event(self._chunk([{"index": index, **first}]) | empty)
        try:
            async for index, piece in self.asked.each():
                yield _event(self.piece(index, piece) | empty)
        except Exception as error:
            yield _event(error_of(error).body)
            return
        if usage:
            yield _event(self._chunk([]) | {"usage": self.asked.usage})
        yield b"data: [DONE]\n\n"

    def _scores(self, scores: Sequence[TokenScore], index: int) -> dict[str, Any] | None:
        if not self.scored:
            return None
        if self.is_chat:
            return {"content": [_token(one) for one in scores], "refusal": None}
        starts = []
        for one in scores:
            starts.append(self.offsets[index])
            self.offsets[index] += len(one.text)
        return {
            "tokens": [one.text for one in scores],
            "token_logprobs": [max(one.logprob, LEAST) for one in scores],
            "top_logprobs": [{text: max(value, LEAST) for text, value in one.likeliest} for one in scores],
            "text_offset": starts,
        }


def _token(score: TokenScore) -> dict[str, Any]:
    likeliest = [_named(text, value) for text, value in score.likeliest]
    return {**_named(score.text, score.logprob), "top_logprobs": likeliest}


def _named(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(value, LEAST), "bytes": list(text.encode("utf-8", "replace"))}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n\n"
