"""`--to ctranslate2`: an encoder-decoder or a decoder, merged, through CTranslate2's own converter.

The converter reads a folder of transformers' layout. What it would get wrong is mended here or refused. Whether the
decoder's output is scaled follows from the model and not from `tie_word_embeddings`, which transformers 5 calls true of
every T5. BART's kind is told where its norms stand, which token is written first, and what its rows are called. Marian
keeps the row that its decoder starts from, and never writes it. Rotary settings and widths of heads that have no effect
in CTranslate2 are refused. A call that gives our answers is printed, for its defaults forbid an empty one.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microplane.adapters.asked import asked_as, without_chat
from microplane.adapters.export import write_folder
from microplane.errors import AdapterError, first_line
from microplane.exports.compare import Comparison, compare
from microplane.exports.engines import lacking
from microplane.exports.source import Source
from microplane.exports.written import Written
from microplane.files import scratch_folder
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.contract import Model
from microplane.models.external.library import quiet
from microplane.nn.position import Rope

MODEL = "model.bin"
USUAL_HEADS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
BEAMS = 4
WINDOWS = ("Gemma3ForCausalLM",)  # whose windows have been compared; of others they are left out there
GEMMA3_ROPES = (Rope(1_000_000.0), Rope(10_000.0))  # of layers without a window, and with one; others have no effect
LOADERS = {  # of what goes through a loader that is mended here: the library's names of its configuration and loader
    "MarianMTModel": ("MarianConfig", "BartLoader"),
    "BartForConditionalGeneration": ("BartConfig", "BartLoader"),
    "MBartForConditionalGeneration": ("MBartConfig", "BartLoader"),
    "M2M100ForConditionalGeneration": ("M2M100Config", "M2M100Loader"),
    "PegasusForConditionalGeneration": ("PegasusConfig", "PegasusLoader"),
}
OVERFLOWS = 5  # times the difference of rounded weights; activations that are rounded too made it 1.4 times
LEAST = 1e-3  # difference of rounded weights that is compared with
NEVER = -1e9  # added to the score of a token that is never written


def write(source: Source, folder: Path, dtype: str) -> Written:
    """Write the folder, and compare what CTranslate2 answers.

    Raises:
        AdapterError: without ctranslate2 and transformers, or for a model that it computes otherwise.
    """
    if needed := lacking("ctranslate2", "transformers"):
        raise AdapterError(f"--to ctranslate2 is written by its own converter, which needs {needed}: pip install "
                           "'microplane[export-ct2]'")  # fmt: skip
    refuse(source.pipeline.model, source.name)
    with scratch_folder(folder / "merged") as merged:
        merged.rmdir()
        notices = write_folder(source.pipeline, merged, torch.float32, source.texts)
        _convert(source, merged, folder, dtype)
    notices += (*without_chat(source.pipeline), *asked_as(source.pipeline))
    source.tokenizer.save(folder)
    if window := _window(source.pipeline.model):
        source.context(window)
        notices += (f"CTranslate2 raises for a prompt beyond the model's attention window of {window:,} tokens",)
    engine = CTranslate2(folder, source, dtype)
    stops = [engine.token(stop) for stop in source.pipeline.stop_ids]
    checked = [compare(source, engine)]
    if dtype == "int8":  # what rounding the weights alone does, whatever the processor makes of products of 8 bits
        engine = CTranslate2(folder, source, "float32")
        engine.name += ", the same file computed in float32"
        checked.append(compare(source, engine))
        notices += overflows(*checked)
    return Written((MODEL,), notices, tuple(checked), tuple(call(source, dtype, stops)))


def overflows(narrow: Comparison, wide: Comparison) -> tuple[str, ...]:
    """What is said where products of 8 bits are further from the model than their rounding explains.

    Without VNNI two products of a byte and 8 bits are added in 16 bits, and what does not fit is cut off.
    """
    times = narrow.difference / max(wide.difference, LEAST)
    if times <= OVERFLOWS:
        return ()
    return (
        f"computed in int8, the largest {narrow.measure} difference is {times:.0f} times that of the rounded weights: "
        "on processors without VNNI CTranslate2's sums overflow; compute_type='float32' reads this file and is near",
    )


def refuse(model: Model, what: str) -> None:
    """Raises: AdapterError, for what CTranslate2 leaves out or computes otherwise."""
    config, reasons = model.config, []
    if model.task_head is not None:
        reasons.append(f"has a head for {model.task_head.config.task}")
    if model.KIND == "decoder":
        if any(rope and rope.kind == "llama3" for rope in config.ropes):
            reasons.append("scales its rotary positions as Llama 3 does, which has no effect there")
        usual = config.hidden_size / config.num_heads
        if config.architecture in USUAL_HEADS and config.head_dim != usual:
            reasons.append(f"has heads of {config.head_dim}, where {usual:g} are taken for granted")
        if config.architecture not in WINDOWS and any(config.windows):
            reasons.append("has an attention window")
        if config.attn_logit_softcapping or config.final_logit_softcapping:
            reasons.append("caps its scores")
        if config.architecture == "Gemma3ForCausalLM" and {rope for rope in config.ropes if rope} - set(GEMMA3_ROPES):
            reasons.append("turns with the position otherwise than the smallest Gemma 3 (rope_theta, or a scaling)")
    if isinstance(getattr(config, "decoder", None), DecoderConfig):
        reasons.append("is made of Gemma's blocks on two sides, which have not been compared there")
    elif model.KIND == "encoder-decoder" and getattr(model, "target_embed", None) is not None:
        reasons.append("reads and writes with two vocabularies")
    if config.architecture == "M2M100ForConditionalGeneration" and config.pad != 1:
        reasons.append(f"counts positions from its token for padding, {config.pad}, where 1 is taken for granted")
    if reasons:
        why = " and ".join(reasons)
        raise AdapterError(f"CTranslate2 would not compute what {what} does, which {why}: --to hf writes it")


def _window(model: Model) -> int | None:
    return next((window for window in getattr(model.config, "windows", ()) if window), None)


def _convert(source: Source, merged: Path, folder: Path, dtype: str) -> None:
    """Through the converter into a folder of its own, and from there."""
    library: Any = importlib.import_module("ctranslate2.converters.transformers")
    try:
        with quiet():
            spec = _converter(library, source)(str(merged))
        with scratch_folder(folder / "converted") as made:
            spec.convert(str(made), quantization=None if dtype == "float32" else dtype, force=True)
            for file in sorted(made.iterdir()):
                os.replace(file, folder / file.name)
    except (ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        name = source.pipeline.model.config.architecture
        reason = first_line(error)[:200] or type(error).__name__
        raise AdapterError(f"CTranslate2's converter does not take a {name} ({reason}): --to hf writes it") from None


def _converter(library: Any, source: Source) -> Any:
    """The library's converter with what has to be otherwise."""
    model = source.pipeline.model
    own = LOADERS.get(model.config.architecture)

    class Converter(library.TransformersConverter):  # type: ignore[misc]
        def _load(self) -> Any:
            kept = dict(library._MODEL_LOADERS)
            if own is not None:
                library._MODEL_LOADERS[own[0]] = _loader(library, own[1], source)
            try:
                spec = super()._load()
            finally:
                library._MODEL_LOADERS.update(kept)
            if hasattr(model.config, "scaled"):
                spec.decoder.scale_outputs = model.config.hidden_size**-0.5 if model.config.scaled else 1.0
            for name in ("bos_token", "eos_token", "unk_token"):
                if getattr(spec.config, name) is None:  # which it writes, and then cannot read
                    setattr(spec.config, name, "")
            return spec

    return Converter


def _loader(library: Any, base: str, source: Source) -> Any:
    """The library's loader of BART's kind, with what our model says of itself: where its norms stand, what it never
    writes, and what each row of its tables is called. The row that the decoder starts from is kept, which full training
    changes."""
    model, tokenizer = source.pipeline.model, source.tokenizer
    parent, config = getattr(library, base), model.config

    def spec_of(self: Any, theirs: Any) -> Any:
        theirs.config.normalize_before, theirs.config.normalize_embedding = (
            config.spec.pre_norm,
            config.spec.embedding_norm,
        )
        spec = parent.get_model_spec(self, theirs)
        bias = torch.zeros(config.vocab_size) if model.head_bias is None else model.head_bias.detach().float().clone()
        bias[list(model.generation_rules.bad_tokens)] += NEVER
        if bias.any():
            spec.decoder.projection.bias = bias
        return spec

    def tokens_of(self: Any, theirs: Any, _: Any) -> list[str]:
        found = (tokenizer.backend.id_to_token(number) for number in range(config.vocab_size))
        named = [token and token.removeprefix(tokenizer.unmatchable_prefix) for token in found]
        return [f"madeupword{number}" if token is None else token for number, token in enumerate(named)]

    made = {"architecture_name": config.architecture, "get_model_spec": spec_of}
    made |= {} if config.spec.apart else {"get_vocabulary": tokens_of}
    return type("Loader", (parent,), made)()


class CTranslate2:
    """CTranslate2 with the folder opened."""

    def __init__(self, folder: Path, source: Source, dtype: str):
        library: Any = importlib.import_module("ctranslate2")
        self.name = f"CTranslate2 {library.__version__}"
        self.pairs = source.pipeline.model.KIND == "encoder-decoder"
        self.measure = "log-probability" if self.pairs else "logit"
        self.source, self.vocabulary = source, _vocabulary(folder)
        kind = library.Translator if self.pairs else library.Generator
        self.engine = kind(str(folder), device="cpu", compute_type=dtype, inter_threads=1, intra_threads=1)
        self.ends = [self.token(stop) for stop in source.pipeline.stop_ids]
        self.library = library

    def token(self, number: int) -> str:
        return self.vocabulary[number]

    @property
    def numbers(self) -> dict[str, int]:
        """Of each token; the first where two are called alike, as CTranslate2 has it."""
        return {token: number for number, token in reversed(list(enumerate(self.vocabulary)))}

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.token(number) for number in ids]

    def ids(self, text: str) -> list[int]:
        """It has no tokenizer: ids come from the files beside it, which are the run's own."""
        numbers = self.numbers
        return [numbers[token] for token in self.tokens(self.source.tokenizer.encode(text))]

    def logits(self, ids: Sequence[int]) -> Tensor:
        found = self.engine.forward_batch([self.tokens(ids)], return_log_probs=False)
        return torch.from_numpy(np.array(found)[0].astype(np.float32))

    def scores(self, prompt: Sequence[int], target: Sequence[int]) -> Tensor:
        """Log p of each token of an answer: (T,)."""
        [found] = self.engine.score_batch([self.tokens(prompt)], [self.tokens(target)])
        return torch.tensor(found.log_probs[: len(target)])

    def greedy(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        return [self._continued(prompt, most) for prompt in prompts]

    def _continued(self, prompt: Sequence[int], most: int) -> list[int]:
        given, ends = [self.tokens(prompt)], {"end_token": self.ends, "return_end_token": True}
        if self.pairs:
            forced = self.source.pipeline.model.generation_rules.forced_bos
            first = {} if forced is None else {"target_prefix": [[self.token(forced)]]}
            [found] = self.engine.translate_batch(
                given, beam_size=1, max_decoding_length=most, min_decoding_length=0, **first, **ends
            )
            said = found.hypotheses[0]
        else:
            [found] = self.engine.generate_batch(given, beam_size=1, sampling_topk=1, max_length=most, min_length=0,
                                                 include_prompt_in_result=False, **ends)  # fmt: skip
            said = found.sequences[0]
        numbers = self.numbers
        ids = [numbers[token] for token in said]
        return [*ids[:-1], -1] if ids and said[-1] in self.ends else ids


def _vocabulary(folder: Path) -> list[str]:
    name = "shared_vocabulary.json" if (folder / "shared_vocabulary.json").is_file() else "vocabulary.json"
    found: list[str] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def call(source: Source, dtype: str, stops: Sequence[str]) -> Iterator[str]:
    """The call that answers as the run does."""
    ends = f"end_token={list(stops)!r}"
    if source.pipeline.model.KIND == "encoder-decoder":
        forced = source.pipeline.model.generation_rules.forced_bos
        first = "" if forced is None else f"target_prefix=[[{source.tokenizer.backend.id_to_token(forced)!r}]], "
        yield (f"ctranslate2.Translator(FOLDER, compute_type={dtype!r}).translate_batch([TOKENS], beam_size=1, "
               f"min_decoding_length=0, {first}{ends})")  # fmt: skip
        yield (f"by {BEAMS} beams as here: beam_size={BEAMS}, return_end_token=True (the end counts in a length), and "
               "patience=max_decoding_length (a search ends there before a likelier answer does)")  # fmt: skip
    else:
        yield (f"ctranslate2.Generator(FOLDER, compute_type={dtype!r}).generate_batch([TOKENS], sampling_topk=1, "
               f"include_prompt_in_result=False, {ends})")  # fmt: skip
    yield "TOKENS is tokenizer.convert_ids_to_tokens(ids), of ids that microplane.load(RUN).prompt(question) gives"
