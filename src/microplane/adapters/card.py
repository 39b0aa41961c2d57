"""A model card (README.md): what a folder holds, what it was trained on, how good it is, and how it is opened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.repocard_data import EvalResult, ModelCardData

from microplane.adapters.asked import asked_in_card, stops_in_peft, written_otherwise
from microplane.checkpoints.adapter import read_method
from microplane.errors import ModelError
from microplane.files import object_in, write_aside
from microplane.methods import METHODS
from microplane.models.configs.head import FORMS, OWN, PER_TOKEN
from microplane.models.files.gguf_format import read_header
from microplane.models.files.packaged import hub_name, packaged_as
from microplane.report.words import is_number, name_of, say

NAME = "README.md"
OURS = "<!-- Microplane wrote this card, and writes it again. Remove this line to keep your own. -->"
POOLED = {"cls": "its first token", "mean": "the mean of its tokens that are no pad", "last": "its last token"}
HEAD_TENSORS = f"{OWN}.out.weight plus {OWN}.out.bias"
PADDED = "transformers says something else of a row that is padded: there, give this model one row at a time"
TASKS = {
    "classification": "text-classification",
    "multilabel": "text-classification",
    "regression": "text-classification",
}
TASKS |= {"tokens": "token-classification"}
LIBRARIES = {"hf": "transformers", "peft": "peft", "adapter": "microplane", "gguf": "gguf", "gguf-lora": "gguf"}
LIBRARIES |= {"ollama": "gguf", "ctranslate2": "ctranslate2", "onnx": "onnx"}
LIBRARIES |= {"sentence-transformers": "sentence-transformers"}
OPENED = {  # form -> what opens it
    "hf": 'transformers: `AutoModel.from_pretrained("FOLDER")`, or the Auto class of its task',
    "peft": 'peft: `PeftModel.from_pretrained(base, "FOLDER")`',
    "gguf": "llama.cpp: `llama-cli -m model.gguf --jinja`",
    "gguf-lora": "llama.cpp: `llama-cli -m base.gguf --lora adapter.gguf --jinja`",
    "ollama": "Ollama: `ollama create NAME -f Modelfile`",
    "ctranslate2": "CTranslate2: the call is in export.json",
    "onnx": 'onnxruntime: `InferenceSession("model.onnx")`',
    "sentence-transformers": 'sentence-transformers: `SentenceTransformer("FOLDER").encode(texts)`',
}
LIMITS = (
    "The figures are of rows like those it was trained on; of anything else nothing is known. Few rows, many passes or "
    "a high rate teach the rows themselves and not the task (overfitting): compare the figures before and after, and "
    "those without a model. What the base knows, favours and gets wrong, it still does (Bender et al. 2021, *On "
    "the Dangers of Stochastic Parrots*; Weidinger et al. 2021, arXiv 2112.04359). Have people look at answers that "
    "matter."
)


def base_in_peft(about: Mapping[str, Any]) -> str:
    """How the base of an adapter with a head is opened for peft, as code; empty of one without. The base's own
    config.json may say another number of labels, and another way to pool."""
    opened = about.get("opened_by")
    if not isinstance(opened, dict) or "class" not in opened:
        return ""
    fields = "".join(f", {name}={value!r}" for name, value in opened.items() if name != "class")
    return f"base = transformers.{opened['class']}.from_pretrained(BASE{fields})"


def head_in_peft(about: Mapping[str, Any]) -> str:
    """How the scores of an adapter's head are computed that transformers has no class for: peft leaves it out. Empty of
    an adapter without such a head."""
    head = about.get("head")
    if not isinstance(head, dict) or "opened_by" in about:
        return ""
    what = "each token" if head.get("task") == PER_TOKEN else POOLED.get(str(head.get("pooling")), "a row")
    tensors = f"{HEAD_TENSORS} of adapter_model.safetensors"
    return (
        f"peft leaves this head out. There: of the last states {what}, times {tensors}; a base that writes is "
        "opened by AutoModelForCausalLM or AutoModelForSeq2SeqLM, whose states output_hidden_states=True gives"
    )


def told_for_peft(about: Mapping[str, Any], method: str | None) -> Iterator[str]:
    """What users are to know where peft opens an adapter, and its files have no place for."""
    opened = about.get("opened_by")
    form = FORMS.get(str(opened.get("class"))) if isinstance(opened, dict) else None
    padded = PADDED if form is not None and form.minds_padding else ""
    trained_by = METHODS.get(method or "")
    caution = trained_by.caution_in_peft if trained_by is not None else ""
    writing = written_otherwise(about.get("generation") or {})
    yield from filter(None, (head_in_peft(about), padded, stops_in_peft(about.get("stops") or ()), writing, caution))


def write_card(folder: Path, text: str) -> bool:
    """Put the card into a folder; a README.md that somebody else wrote stays.

    Returns:
        Whether it was written.
    """
    file = folder / NAME
    if file.exists() and OURS not in file.read_text(encoding="utf-8", errors="replace"):
        return False
    write_aside(file, text.encode())
    return True


def card_run(run: Path) -> None:
    """Write the card beside the adapter of a run that has ended well."""
    adapter = run / "adapter"
    method, about = read_method(adapter)
    write_card(adapter, card_of(adapter, form_of(adapter, method.whole_model), about, method.name))


def form_of(adapter: Path, whole: bool) -> str:
    """As what others open a run's own adapter folder."""
    return "hf" if whole else "peft" if (adapter / "adapter_config.json").is_file() else "adapter"


def card_of(name: str | Path, form: str, about: Mapping[str, Any] | None = None, method: str | None = None) -> str:
    """The card of what is made of `name`.

    Args:
        name: a base, a run's folder, or an adapter's.
        form: a format of `microplane export`; `adapter` for one that no other tool opens.
        about: what the adapter says of its making.
        method: by which it was trained; none of a base.
    """
    path = Path(name).expanduser()
    record = object_in(path / "result.json") or (
        object_in(path.parent / "result.json") if path.name == "adapter" else {}
    )
    about = about or {}
    base = str(about.get("base") or record.get("model", {}).get("name") or name)
    title = path.parent.name if path.name == "adapter" else path.name
    header = _header(base, form, record, method, title)
    body = "\n".join(_body(title, base, form, record, about, method))
    return f"---\n{header.to_yaml()}\n---\n{OURS}\n\n{body}\n"


def _header(base: str, form: str, record: Mapping[str, Any], method: str | None, title: str) -> ModelCardData:
    results = list(_results(record))
    return ModelCardData(
        base_model=_public(base),
        library_name=LIBRARIES[form],
        license=licence_of(base),
        tags=[tag for tag in ("microplane", method, "gguf" if form in ("gguf", "ollama") else None) if tag],
        model_name=title if results else None,
        eval_results=results or None,
    )


def _public(base: str) -> str | None:
    """The Hub's name of a base; none of a folder on somebody's machine."""
    found = hub_name(base)
    return found if found.count("/") == 1 and not Path(base).expanduser().exists() and found[0] not in "/.~" else None


def licence_of(base: str) -> str | None:
    """As the base's own files say it; None where they do not."""
    packaged, path = packaged_as(base), Path(base).expanduser()
    if packaged is not None and not path.exists():
        return "apache-2.0" if "Apache-2.0" in packaged.title else None
    with suppress(OSError, ValueError, ModelError):
        if path.suffix == ".gguf":
            told = read_header(path).metadata.get("general.license")
            return told if isinstance(told, str) else None
        if (card := path / NAME).is_file():
            from huggingface_hub import ModelCard  # with all of the Hub's client, half a second of each run

            told = ModelCard.load(card, ignore_metadata_errors=True).data.license
            return told if isinstance(told, str) else None
    return None


def _results(record: Mapping[str, Any]) -> Iterator[EvalResult]:
    """The tuned model's figures, as the Hub has them: plain numbers."""
    metrics, data = record.get("metrics") or {}, record.get("data") or {}
    task = TASKS.get(str(data.get("task")), "text-generation")
    for name, value in (metrics.get("after") or {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield EvalResult(task_type=task, dataset_type="own-rows", dataset_name=_data_name(record), metric_type=name,
                             metric_value=float(value), dataset_split=str(metrics.get("split", "validation")),
                             dataset_args={"rows": int(metrics.get("rows") or 0)})  # fmt: skip


def _data_name(record: Mapping[str, Any]) -> str:
    files = (record.get("data") or {}).get("files") or ["rows"]
    return Path(str(files[0])).name


def _body(
    title: str, base: str, form: str, record: Mapping[str, Any], about: Mapping[str, Any], method: str | None
) -> Iterator[str]:
    shown = _public(base) or Path(base).name
    yield f"# {title}\n"
    yield (
        f"{shown}, trained by {method} with Microplane.\n" if method else f"{shown}, written by Microplane as it is.\n"
    )
    if method:
        yield "## Method\n"
        knobs = {**((record.get("run") or {}).get("method") or {}), "name": method}
        train = (record.get("run") or {}).get("train") or {}
        yield "\n".join(f"- `{name}`: {value}" for name, value in knobs.items() if value is not None)
        chosen = {
            name: train[name] for name in ("lr", "epochs", "steps", "batch_size", "seed") if train.get(name) is not None
        }
        yield "\n".join(f"- `train.{name}`: {value}" for name, value in chosen.items()) + "\n"
    yield from _data(record, about)
    yield from _figures(record)
    yield f"## Limits\n\n{LIMITS}\n"
    licence = licence_of(base)
    yield f"The base's licence is {licence}.\n" if licence else "The base's licence is not in its files: look it up.\n"
    if asked := "\n".join(asked_in_card(about)):
        yield f"## How it is asked\n\n{asked}\n"
    yield "## How to open it\n"
    if form in OPENED:
        before = base_in_peft(about) if form == "peft" else ""
        yield f"- {OPENED[form]}" + (f", where `{before}`" if before else "")
        if form == "peft":
            yield from (f"- {line}" for line in told_for_peft(about, method))
        elif form == "hf" and (told := written_otherwise(about.get("generation") or {})):
            yield f"- {told}"
    yield from _ours(form)


def _ours(form: str) -> Iterator[str]:
    if form in ("hf", "peft", "gguf", "adapter", "ollama"):
        file = "FOLDER/model.gguf" if form in ("gguf", "ollama") else "FOLDER"
        yield f'- Microplane: `microplane.load("{file}").generate("...")`, or `.classify`, `.embed`'


def _data(record: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[str]:
    if data := record.get("data"):
        yield "## Data\n"
        files = ", ".join(f"`{Path(str(file)).name}`" for file in data.get("files") or ())
        rows, tokens = data.get("rows") or {}, data.get("tokens") or {}
        yield f"- files: {files} ({data.get('format', 'format not noted')})"
        yield f"- rows: {_counts(rows)}; tokens: {_counts(tokens)}"
        yield f"- hash of the rows as they were trained: `{data.get('fingerprint')}`"
        form = str(about.get("unicode") or "as-is").upper()
        yield f"- Unicode form of the rows: {'as they were typed' if form == 'AS-IS' else form}\n"


def _counts(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in numbers.items() if count) or "none"


def _figures(record: Mapping[str, Any]) -> Iterator[str]:
    if not (metrics := record.get("metrics")) or not metrics.get("after"):
        return
    before, after, trivial = metrics.get("before") or {}, metrics["after"], metrics.get("trivial") or {}
    rows = f"{metrics.get('rows') or 'all'} {metrics.get('split', 'held-out')} rows"
    yield f"## Figures, on {rows} that were not trained\n"
    columns: Sequence[tuple[str, Mapping[str, Any]]] = [("before", before), ("after", after), *trivial.items()]
    yield "| | " + " | ".join(name for name, _ in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for name in after:
        cells = (say(scores[name], name) if is_number(scores.get(name)) else "-" for _, scores in columns)
        yield f"| {name_of(name)} | " + " | ".join(cells) + " |"
    yield ""
