"""What requests may say, in the form of OpenAI's API. What is unknown or cannot be honoured is refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from microplane.config.build import build
from microplane.config.knobs import GenerateKnobs
from microplane.config.section import is_utf8
from microplane.data.reading.conversations import tool_calls
from microplane.data.reading.example import Message
from microplane.errors import nearest
from microplane.serving.batch import MOST_LIKELY

NO_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
"""Said to OpenAI about the client, its bills and records: they have no part in an answer."""
ONLY: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "parallel_tool_calls": (None,),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "dimensions": (None,),
}
"""Options of OpenAI's that are not supported here, and with which values they change nothing."""
INSTEAD = {
    "frequency_penalty": "repetition_penalty is supported",
    "presence_penalty": "repetition_penalty is supported",
    "dimensions": "the model's own width is what is given",
}


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 408: "timeout_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: StrictStr


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: StrictBool = False
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "json_object"] = "text"


Number = StrictFloat | StrictInt
Stop = Annotated[StrictStr, Field(min_length=1)]
ONE = Field(fail_fast=True)  # a list is read to its first fault: a million of them are no help


def _as_knob(name: str) -> Any:
    """The bounds of a knob of generation, which are declared there."""
    bounds = GenerateKnobs.model_fields[name].metadata
    return Field(**{key: value for bound in bounds for key, value in asdict(bound).items()})


class _Writing(_Request):
    """What both kinds of answers have in common."""

    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, _as_knob("top_p")] | None = None
    top_k: Annotated[StrictInt, _as_knob("top_k")] | None = None
    min_p: Annotated[Number, _as_knob("min_p")] | None = None
    repetition_penalty: Annotated[Number, _as_knob("repetition_penalty")] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @property
    def as_json(self) -> bool:
        return self.response_format is not None and self.response_format.type == "json_object"

    @property
    def count(self) -> int:
        return self.n or 1

    @property
    def answers(self) -> int:
        """How many it asks for in all."""
        return self.count

    @property
    def most(self) -> int | None:
        return self.max_tokens

    def knobs(self, most: int, number: int, seed: int) -> GenerateKnobs:
        """The settings of answer `number`, counted over all of the request.

        Without a temperature the likeliest token is taken, as by `microplane generate`; with top_p, top_k or min_p
        alone it is 1, as in OpenAI's API. At temperature 0 these decide nothing: the likeliest is always among theirs.
        """
        narrowed = any(value is not None for value in (self.top_p, self.top_k, self.min_p))
        temperature = self.temperature if self.temperature is not None else 1.0 if narrowed else 0.0
        values: dict[str, Any] = {"max_new_tokens": most, "repetition_penalty": self.repetition_penalty or 1.0}
        values["stop"] = tuple([self.stop] if isinstance(self.stop, str) else self.stop or ())
        if temperature > 0:
            narrow = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
            values |= {name: value for name, value in narrow.items() if value is not None}
            values |= {"temperature": max(temperature, 1e-3), "seed": seed + number}
        return build(GenerateKnobs, values)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: StrictStr


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | Annotated[list[TextPart], ONE] | None = None
    name: StrictStr | None = None
    tool_calls: Annotated[list[dict[str, Any]], ONE] | None = None
    tool_call_id: StrictStr | None = None
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None

    def message(self, place: str = "messages") -> Message:
        """As it stands in a conversation.

        Args:
            place: what it is called in an error.

        Raises:
            DataError: for calls of tools that are none.
        """
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        role = "system" if self.role == "developer" else self.role
        more = {"name": self.name, "tool_call_id": self.tool_call_id}
        extra: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
        if calls := tool_calls(self.tool_calls, role, place):
            extra["tool_calls"] = calls
        return Message(role, text, extra=extra)


class ChatRequest(_Writing):
    """/v1/chat/completions"""

    ASKED: ClassVar[str] = "messages"

    messages: Annotated[list[ChatMessage], Field(min_length=1), ONE]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_LIKELY)] | None = None

    @property
    def scores(self) -> int | None:
        """How many likely tokens are asked for beside each; None: no scores."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Writing):
    """/v1/completions"""

    ASKED: ClassVar[str] = "prompt"

    prompt: (
        StrictStr
        | Annotated[list[StrictStr], ONE]
        | Annotated[list[StrictInt], ONE]
        | Annotated[list[Annotated[list[StrictInt], ONE]], ONE]
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_LIKELY)] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str] | list[list[int]], self.prompt)

    @property
    def answers(self) -> int:
        return len(self.prompts) * self.count


class EmbeddingRequest(_Request):
    """/v1/embeddings"""

    input: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class ClassifyRequest(_Request):
    """/v1/classify"""

    input: StrictStr | Annotated[list[StrictStr | tuple[StrictStr, StrictStr]], Field(min_length=1, max_length=2048)]

    @property
    def texts(self) -> list[str | tuple[str, str]]:
        return [self.input] if isinstance(self.input, str) else self.input


class AdapterRequest(BaseModel):
    """/v1/adapters"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: StrictStr
    name: StrictStr | None = None


R = TypeVar("R", bound=BaseModel)


def read(kind: type[R], body: Mapping[str, Any]) -> R:
    """A request out of a JSON object.

    Raises:
        ApiError: for the first thing in it that cannot be honoured, with its name.
    """
    known, given = kind.model_fields, dict(body)
    for name in list(given):
        if not is_utf8(name):
            raise ApiError(400, "a name in the request is no valid text")
        if name in known:
            continue
        if name in NO_EFFECT:
            given.pop(name)
        elif name in ONLY:
            if not any(_is(given[name], value) for value in ONLY[name]):
                way = f"; {INSTEAD[name]}" if name in INSTEAD else ""
                raise ApiError(
                    400, f"{name} = {given[name]!r:.80} is not supported here{way}", name, "unsupported_parameter"
                )
            given.pop(name)
        else:
            raise ApiError(400, f"unknown option: {name:.80}.{nearest(name, known)}", name[:80], "unknown_parameter")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = max(error.errors(), key=lambda one: (len(_path(one["loc"])), not one["type"].endswith("_type")))
        param = ".".join(_path(first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        missing = first["type"] == "missing"
        text = (
            f"{param} is missing" if missing else f"{param} = {first.get('input')!r:.80}: {said[:1].lower()}{said[1:]}"
        )
        raise ApiError(400, text, param, "missing_required_parameter" if missing else "invalid_value") from None


def _is(given: Any, value: Any) -> bool:
    """Whether two values of JSON are the same: false is not 0."""
    return bool(given == value) and isinstance(given, bool) == isinstance(value, bool)


def _path(place: Sequence[str | int]) -> list[str]:
    """A place in a request, without the names of the types of which one was tried there."""
    types = ("str", "int", "float", "constrained-str", "TextPart")
    return [str(part) for part in place if isinstance(part, int) or (part not in types and "[" not in part)]
