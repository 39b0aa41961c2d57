"""A model ready to use: the base, the adapter on it if any, the tokenizer, and the template it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args, overload

import torch

from microplane.checkpoints.adapter import read_method
from microplane.checkpoints.attach_saved import adapter_folder, attach_saved_adapter, base_of, trained_on
from microplane.config.build import build, shown
from microplane.config.knobs import GenerateKnobs, ModelKnobs
from microplane.config.section import is_utf8
from microplane.data.reading.example import Message
from microplane.data.rendering.causal import causal_renderer
from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.device import choose
from microplane.errors import ConfigError, DataError, ModelError, check_type
from microplane.inference.check_ids import check_ids
from microplane.inference.generate import Answer, generate
from microplane.inference.languages import in_languages, write_in
from microplane.inference.predict import classify, embed_texts
from microplane.methods import Method
from microplane.methods.base_format import base_format, number_format
from microplane.models.configs.head import POOLINGS
from microplane.models.contract import Model
from microplane.models.files.hub import resolve
from microplane.models.files.load import load_model, open_checkpoint
from microplane.nn.gguf_linear import GGUFLinear
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import QUANTISED, first_not_finite
from microplane.objectives import AnyObjective
from microplane.objectives.head import Prediction, Text
from microplane.objectives.select import objective_of


@dataclass
class Pipeline:
    """What `microplane.load` gives."""

    model: Model
    tokenizer: Tokenizer
    path: Path  # of the base model
    template: str = "auto"
    system: str | None = None
    method: Method | None = None  # of the adapter, if there is one
    about: dict[str, Any] | None = None  # what the adapter says of its making
    prefix: str = ""  # what every prompt of its training began with, as "Convert the command to JSON."
    frame: tuple[str, str] | None = None  # of a run of plain text: what stood before and behind a question, if anything
    pairs: bool = True  # whether a text to be labelled may be two texts

    def prompt(self, text: str | Sequence[Message]) -> list[int]:
        """Token ids that generation starts from: a user's text behind the prefix, or a whole conversation as it is.

        Of a run of plain text, what is to be continued: the text as it stands, with its special tokens. Where its rows
        followed the chat template, a question is put into what stood around questions there.
        """
        in_form = self.tokenizer.in_form
        _check_prompt(text)
        self.check_writes()
        self.check_languages()
        given = [self.asked(in_form(text))] if isinstance(text, str) else list(text)
        messages = [message.rewritten(in_form) for message in given]
        for part in [self.system or "", *(message.content for message in messages)]:
            if not is_utf8(part):
                raise DataError(f"the prompt {shown(part)} holds bytes that are not UTF-8; give it in that encoding")
        if self.frame is not None:
            ids = self._continued(messages, self.frame)
        else:
            ids = self.objective.prompt(messages, self.tokenizer, self.template, self.system)
        check_ids(self.model, self.tokenizer, ids)
        return ids

    def between(self, source: str | None = None, target: str | None = None) -> Pipeline:
        """The same for texts of these languages, which its model is told of; what is None stays as it is.

        Raises:
            ConfigError: for a code that the vocabulary lacks.
        """
        if (old := self.tokenizer.languages) is not None:
            source, target = source or old.source, target or old.target
        self.tokenizer = in_languages(self.tokenizer, self.model, source, target)
        write_in(self.model, self.tokenizer)
        return self

    def check_writes(self) -> None:
        """Raises: ModelError, for an encoder without a task head, whose tokenizer need not have an end token either."""
        if self.model.KIND == "encoder" and self.model.task_head is None:
            self.model.start_generation([])

    def check_languages(self) -> None:
        """Raises: ConfigError, where a translation model would read or write in a language that nobody said."""
        if self.tokenizer.languages is not None:
            self.tokenizer.languages.need("source")
            if self.model.task_head is None:
                self.tokenizer.languages.need("target")

    def _continued(self, messages: Sequence[Message], frame: tuple[str, str]) -> list[int]:
        """What a run of plain text continues."""
        before, behind = frame
        if behind and len(messages) > 1:
            return self.objective.prompt(messages, self.tokenizer, "chat", self.system)
        text = "".join(message.content for message in messages)
        if behind and behind.strip() not in text and not text.startswith(before):
            text = f"{before}{text}{behind}"
        return causal_renderer(self.tokenizer, "plain").text_ids(text)

    def asked(self, text: str) -> Message:
        """A user's first text as the model was trained to be asked."""
        return Message("user", text if text.startswith(self.prefix) else self.prefix + text)

    @property
    def window(self) -> int | None:
        """Tokens of a row, of a run that read longer texts with labels in windows."""
        about = self.about or {}
        return about["max_length"] if about.get("long_rows") == "windows" else None

    @property
    def objective(self) -> AnyObjective:
        """What the model answers by: its task head, else its text."""
        return objective_of(self.model)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return stops_of(self.objective, self.tokenizer, self.template, self.frame)

    def answers(
        self,
        prompts: Sequence[str | Sequence[Message]],
        knobs: GenerateKnobs | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        check_type(prompts, "prompts", (list, tuple), "a list of texts or conversations")
        self.check_writes()
        ids = [self.prompt(prompt) for prompt in prompts]
        tokenizer, knobs = self.tokenizer.for_targets, knobs or GenerateKnobs()
        knobs = knobs.model_copy(update={"stop": tuple(map(tokenizer.in_form, knobs.stop))})
        return generate(self.model, tokenizer, ids, knobs, self.stop_ids, on_text=on_text)

    @overload
    def generate(self, prompt: str, **knobs: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], **knobs: Any) -> list[str]: ...

    def generate(self, prompt: str | Sequence[str], **knobs: Any) -> str | list[str]:
        """The answer to one prompt, or those to several, which are answered together; knobs are those of
        `GenerateKnobs` (temperature, max_new_tokens, ...).

        Raises:
            ConfigError: for a knob that does not exist, or a prompt that is no text.
        """
        several = not isinstance(prompt, str)
        if several:
            check_type(prompt, "prompt", (list, tuple), "a text, or a list of texts")
            for one in prompt:
                check_type(one, "prompt", str, "a text, or a list of texts")
        answers = self.answers(list(prompt) if several else [str(prompt)], build(GenerateKnobs, knobs))
        return [answer.text for answer in answers] if several else answers[0].text

    def classify(self, texts: Sequence[Text]) -> list[Prediction]:
        """What the task head says of each text (or pair of texts): labels with their probabilities, or numbers.

        Raises:
            ConfigError: if the model has no task head, or for what is no list of texts.
        """
        _check_texts(texts)
        return classify(self.model, self.tokenizer, texts, self.window)

    def embed(self, texts: Sequence[Text], pooling: str | None = None) -> torch.Tensor:
        """Sentence embeddings (texts, model width), float32 of length 1; `pooling` is mean, cls or last.

        Raises:
            ConfigError: for another pooling, or what is no list of texts.
        """
        _check_texts(texts)
        if pooling not in (None, *POOLINGS):
            raise ConfigError(f"pooling = {pooling!r}: possible are {', '.join(POOLINGS)}")
        return embed_texts(self.model, self.tokenizer, texts, pooling)


def stops_of(
    objective: AnyObjective, tokenizer: Tokenizer, template: str, frame: Sequence[str] | None
) -> tuple[int, ...]:
    """The tokens that end an answer, first the one that answers are trained to end with; `frame` as of a `Pipeline`."""
    rendered = frame is not None and frame[1] != ""
    return objective.stop_ids(tokenizer, "chat" if rendered else template)


def _check_prompt(prompt: object) -> None:
    """Raises: ConfigError, for what is neither a text nor a list of messages."""
    wanted = "a text, or a list of microplane.data.reading.example.Message"
    check_type(prompt, "prompt", (str, list, tuple), wanted)
    if not isinstance(prompt, str):
        for message in cast("Sequence[object]", prompt):
            check_type(message, "prompt", Message, wanted)


def _check_texts(texts: object) -> None:
    """Raises: ConfigError, for what is no list of texts or pairs of them; one text alone would be read as letters."""
    wanted = "a list of texts, or of pairs of texts"
    check_type(texts, "texts", (list, tuple), wanted)
    for text in cast("Sequence[object]", texts):
        check_type(text, "texts", (str, list, tuple), wanted)
        if not isinstance(text, str) and [type(one) for one in cast("Sequence[object]", text)] != [str, str]:
            raise ConfigError(f"texts must be {wanted}, and holds {text!r:.80}")


def load(
    name: str | Path,
    dtype: str = "auto",
    revision: str | None = None,
    base: str | Path | None = None,
    device: str = "auto",
    source_language: str | None = None,
    target_language: str | None = None,
) -> Pipeline:
    """Open a base model (short name, folder, .gguf, Hub name), a run's folder, or an adapter's folder.

    Args:
        dtype: as the knob `model.dtype`; auto quantises the base of an adapter as it was when the adapter was trained.
            gguf keeps the blocks of a GGUF file (Q4_0, Q4_1, Q8_0; linears of other kinds are rounded to Q8_0).
        base: of an adapter: where its base is now, if not where the adapter says.
        device: as the knob `model.device`.
        source_language: as the knob `data.source_language`, where not as the folder or the run says.
        target_language: as the knob `data.target_language`, the same.

    Raises:
        ModelError, AdapterError: saying what is not there or does not fit.
    """
    check_type(name, "the model", (str, Path), "a name or a path")
    formats = *get_args(ModelKnobs.model_fields["dtype"].annotation), GGUFLinear.kind
    if dtype not in formats:
        possible = ", ".join(formats)
        raise ConfigError(f"dtype = {dtype!r}: possible are {possible}")
    folder = adapter_folder(Path(name).expanduser())
    if folder is None:
        if base is not None:
            raise ConfigError(f"base = {str(base)!r}: {name} is no adapter, which alone has a base of its own")
        path = resolve(str(name), revision)
        stored = open_checkpoint(path).stored
        dtype = stored if dtype == "auto" and stored in QUANTISED else dtype
        plain = load_model(path, number_format(dtype, device=choose(device)))
        check_weights(plain, path)
        return Pipeline(plain, load_tokenizer(path).with_unicode("auto"), path).between(
            source_language, target_language
        )
    method, about = read_method(folder)
    path = folder if method.whole_model else base_of(folder, about, base)
    model = load_model(path, opened_as(method, about, dtype, choose(device)))
    if not method.whole_model:
        about["replaced"] = attach_saved_adapter(model, method, folder, about)
    check_weights(model, folder)
    return asked_as_trained(model, path, folder, method, about).between(source_language, target_language)


def asked_as_trained(model: Model, path: Path, folder: Path, method: Method, about: dict[str, Any]) -> Pipeline:
    """A model with an adapter on it, with what the adapter's folder says of how it was asked in training.

    Args:
        path: of the base.
    """
    template, system, prefix = about.get("template", "auto"), about.get("system"), about.get("prefix", "")
    before_and_behind, pairs = about.get("frame"), bool(about.get("pairs", True))
    frame = (before_and_behind[0], before_and_behind[1]) if before_and_behind else None
    tokenizer = load_tokenizer(path, None if method.whole_model else folder)
    tokenizer = tokenizer.with_unicode(about.get("unicode", "as-is"))  # as earlier versions left texts
    tokenizer = tokenizer.with_segment(about.get("segment", "none")).with_date(about.get("date"))
    pipeline = Pipeline(model, tokenizer, path, template, system, method, about, prefix, frame, pairs)
    return pipeline.between(about.get("source_language"), about.get("target_language"))


def check_weights(model: Model, where: Path) -> None:
    """Raises: ModelError, for weights of which everything that is computed would be NaN."""
    if (name := first_not_finite(model)) is not None:
        raise ModelError(f"{where}: the tensor {name} holds NaN or infinity. Fetch or train the model again")


def opened_as(method: Method, about: dict[str, Any], dtype: str, device: torch.device) -> NumberFormat:
    """The format of the base of an adapter that is opened to be used."""
    if method.needs_float32:
        return base_format(ModelKnobs.model_validate({"dtype": dtype, "device": str(device)}), method)
    own = about.get("base_dtype")
    if dtype == "auto" and own in ("float32", "bfloat16"):  # as in its run, to the bit
        dtype = own
    form = (
        number_format(*trained_on(method, about), device=device)
        if dtype == "auto"
        else number_format(dtype, device=device)
    )
    return form._replace(weights=torch.float32) if method.trains == "weights" and dtype == own else form
