"""The formats of `microplane export`, declared once: the help, the refusals and docs/exports.md are made of this."""

from __future__ import annotations

from dataclasses import dataclass

from microplane.errors import AdapterError, ConfigError, check_type

DECODERS, PAIRS, ENCODERS = "decoder", "encoder-decoder", "encoder"
EVERY_KIND = (DECODERS, PAIRS, ENCODERS)


@dataclass(frozen=True)
class Format:
    name: str
    writes: str  # what it is, for the help
    kinds: tuple[str, ...] = EVERY_KIND  # of models that it can hold
    dtypes: tuple[str, ...] = ()  # of the weights, the usual one first; none: there is nothing to choose
    whole: bool = True  # whether it holds a whole model, so that an adapter is merged first
    needs_adapter: bool = False
    suffix: str = ""  # of the one file that it is, which may be written without a folder
    engine: str = ""  # the module that checks it
    package: str = ""  # what brings that module, as pip knows it
    extra: str = ""  # of Microplane, that installs all that the format needs

    def refuse_kind(self, kind: str, what: str) -> None:
        """Raises: AdapterError, if a model of this kind has no place in the format."""
        if kind not in self.kinds:
            fit = [other.name for other in FORMATS.values() if kind in other.kinds and not other.needs_adapter]
            raise AdapterError(f"--to {self.name} holds {' and '.join(self.kinds)} models, and {what} is {_a(kind)}; "
                               f"for that there are {', '.join(fit)}")  # fmt: skip

    def dtype(self, asked: str | None) -> str:
        """Raises: ConfigError, for a number format that it does not have."""
        if asked in (None, "auto") and self.dtypes:
            return self.dtypes[0]
        if asked not in (*self.dtypes, None, "auto"):
            possible = f"possible are {', '.join(self.dtypes)}" if self.dtypes else "it has no choice of one"
            raise ConfigError(f"--dtype {asked} with --to {self.name}: {possible}")
        return asked or "auto"


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


STORED = ("auto", "float32", "bfloat16", "float16")  # auto: as the base is stored

FORMATS = {
    one.name: one
    for one in (
        Format("hf", "a folder of safetensors that transformers opens", dtypes=STORED, engine="transformers",
               package="transformers", extra="transformers"),
        Format("peft", "the adapter's folder in peft's format", whole=False, needs_adapter=True, engine="peft",
               package="peft", extra="export-peft"),
        Format("gguf", "one file for llama.cpp, with tokenizer and chat template", (DECODERS,),
               ("float32", "float16", "bfloat16", "q8_0", "q4_0"), suffix=".gguf", engine="llama_cpp",
               package="llama-cpp-python", extra="export-gguf"),
        Format("gguf-lora", "an adapter by itself for llama.cpp, to put on its base", (DECODERS,),
               ("float32", "float16"), whole=False, needs_adapter=True, suffix=".gguf", engine="llama_cpp",
               package="llama-cpp-python", extra="export-gguf"),
        Format("ollama", "a GGUF file and a Modelfile that asks and stops as in training", (DECODERS,),
               ("float32", "float16", "bfloat16", "q8_0", "q4_0"), engine="llama_cpp", package="llama-cpp-python",
               extra="export-gguf"),
        Format("ctranslate2", "a folder for CTranslate2's Translator or Generator", (DECODERS, PAIRS),
               ("float32", "int8"), engine="ctranslate2", package="ctranslate2", extra="export-ct2"),
        Format("onnx", "an encoder with its head, or pooling and length 1, in one file", (ENCODERS,), ("float32",),
               suffix=".onnx", engine="onnxruntime", package="onnxruntime", extra="export-onnx"),
        Format("sentence-transformers", "an encoder with modules for pooling and length 1", (ENCODERS,),
               ("float32", "bfloat16", "float16"), engine="sentence_transformers", package="sentence-transformers",
               extra="export-sentences"),
    )
}  # fmt: skip


def format_named(name: str) -> Format:
    """Raises: ConfigError, for a format that is not there."""
    check_type(name, "to", str, "the name of a format")
    if name not in FORMATS:
        raise ConfigError(f"--to {name}: possible are {', '.join(FORMATS)}")
    return FORMATS[name]


def choices() -> str:
    """All formats in one line, for the help."""
    return "; ".join(f"{one.name}: {one.writes}" for one in FORMATS.values())


def table() -> str:
    """The formats in Markdown, for docs/exports.md."""
    head = "| format | writes | models | `--dtype` | checked with |\n|---|---|---|---|---|\n"
    rows = (
        f"| `{one.name}` | {one.writes} | {', '.join(one.kinds) if one.kinds != EVERY_KIND else 'all'} "
        f"| {', '.join(one.dtypes) or '-'} | {one.package or '-'} |\n"
        for one in FORMATS.values()
    )
    return head + "".join(rows)
