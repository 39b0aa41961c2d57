"""A loaded model as the programs of lm-eval's suites ask it. Imported only where `microplane[suites]` is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM

from microplane.config.build import build
from microplane.config.knobs import GenerateKnobs
from microplane.data.progress import Progress
from microplane.data.reading.example import Message
from microplane.data.rendering.chat_template import ChatTemplate
from microplane.errors import ConfigError, notice
from microplane.inference.generate import generate
from microplane.inference.likelihood import log_likelihoods
from microplane.inference.pipeline import Pipeline

MOST_TOKENS = 2048  # of a row, where the model itself knows no bound
T5_TOKENS = 512  # of a source, where the files of a T5 do not say n_positions
NEW_TOKENS = 256  # of an answer, where the suite does not say
KNOBS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "num_beams": "beams"}  # theirs -> ours


class SuiteModel(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Answers what a suite asks: log-likelihoods of continuations, of whole texts, and written answers."""

    def __init__(self, loaded: Pipeline, progress: Callable[[str], Progress]):
        super().__init__()
        self._loaded = loaded
        self._progress = progress
        self.backend = "seq2seq" if loaded.model.KIND == "encoder-decoder" else "causal"
        self.max_length = longest(loaded)

    @property
    def eot_token_id(self) -> int:
        return self._loaded.tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos = self._loaded.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokenizer = self._loaded.tokenizer
        bos = tokenizer.special_tokens["bos_token"]
        special = not (bos and string.startswith(bos)) if add_special_tokens is None else add_special_tokens
        side = tokenizer if special or self.backend == "causal" else tokenizer.for_targets
        return side.encode(string, special)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Its bar of progress makes room for ours."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        self._tell_cut(
            sum(len(own) < len(given[1]) for (own, _), given in zip(pairs, requests, strict=True)), len(pairs)
        )
        return log_likelihoods(self._loaded.model, pairs, self._progress("choices"))

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """As much of the context's end as the model can read; the continuation stays whole."""
        room = self.max_length + 1 - len(continuation) if self.backend == "causal" else self.max_length
        if room < 1:
            raise ConfigError(
                f"a continuation of {len(continuation):,} tokens is longer than the model's context of "
                f"{self.max_length:,}; take a model with a longer one, or another suite"
            )
        return context[-room:], continuation

    def _tell_cut(self, count: int, total: int) -> None:
        if count:
            notice(
                f"{count:,} of {total:,} questions are longer than the {self.max_length:,} tokens that the model can "
                "read: they lost their beginning"
            )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """log p of whole texts, in windows of the model's context that each predict what those before did not."""
        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            rolled = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            own = [utils.make_disjoint_window(window) for window in rolled]
            windows += own
            counts.append(len(own))
        found = iter(log_likelihoods(self._loaded.model, windows, self._progress("texts")))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        texts: dict[int, str] = {}
        progress = self._progress("answers")
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            asked = generate_knobs(requests[numbers[0]].args[1])
            room = self.max_length - (asked.max_new_tokens if self.backend == "causal" else 0)
            if room < 1:
                raise ConfigError(
                    f"the suite asks for {asked.max_new_tokens:,} new tokens, and the model's context is "
                    f"{self.max_length:,}; take a model with a longer one, or another suite"
                )
            whole = [self.tok_encode(requests[number].args[0]) for number in numbers]
            self._tell_cut(sum(len(prompt) > room for prompt in whole), len(whole))
            prompts = [prompt[-room:] for prompt in whole]
            tokenizer, stops = self._loaded.tokenizer, self._loaded.tokenizer.eos_ids
            answers = generate(self._loaded.model, tokenizer.for_targets, prompts, asked, stops)
            texts |= dict(zip(numbers, (answer.text for answer in answers), strict=True))
            progress(len(texts), len(requests))
        return [texts[number] for number in range(len(requests))]

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's own chat template writes it."""
        tokenizer = self._loaded.tokenizer
        special = {name: token for name, token in tokenizer.special_tokens.items() if token is not None}
        template = ChatTemplate(tokenizer.chat_template or "", special, tokenizer.date)
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        return template.text(messages, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._loaded.tokenizer.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return self._loaded.tokenizer.fingerprint


def longest(loaded: Pipeline) -> int:
    """Tokens that a row may have. A T5 knows no bound, and gets the n_positions of its files, as with other tools."""
    context = loaded.model.max_row_tokens or MOST_TOKENS
    if loaded.model.KIND == "encoder-decoder":
        return min(context, int((loaded.model.source_config or {}).get("n_positions") or T5_TOKENS))
    return context


def generate_knobs(asked: Mapping[str, Any]) -> GenerateKnobs:
    """How a suite wants answers, in our words.

    Raises:
        ConfigError: for a setting that is not known here, instead of answers that are written otherwise than asked.
    """
    rest = dict(asked)
    until = rest.pop("until", None) or []
    lengths = [rest.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
    given: dict[str, Any] = {
        "stop": tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        "max_new_tokens": next((length for length in lengths if length is not None), NEW_TOKENS),
    }
    samples = rest.pop("do_sample", None)
    temperature = rest.pop("temperature", None)
    if samples is not False and (samples or temperature):
        given["temperature"] = 1.0 if temperature is None else temperature
    for theirs, ours in KNOBS.items():
        if (value := rest.pop(theirs, None)) is not None:
            given[ours] = value
    if rest:
        raise ConfigError(f"the suite asks for {', '.join(sorted(rest))} of what is generated, which is not known here")
    return build(GenerateKnobs, given)
