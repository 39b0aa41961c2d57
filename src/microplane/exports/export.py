"""Write a base or a run in the format of another tool, and have that tool say whether it computes the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from microplane.adapters.card import card_of, write_card
from microplane.adapters.export import check_free
from microplane.checkpoints.attach_saved import adapter_folder
from microplane.checkpoints.tensors import disk_errors
from microplane.errors import AdapterError, ConfigError, check_type
from microplane.exports import ctranslate2, gguf, gguf_lora, hf, ollama, onnx, peft, sentence_transformers
from microplane.exports.engines import broken
from microplane.exports.formats import FORMATS, Format, format_named
from microplane.exports.source import Source, opened
from microplane.exports.written import Written
from microplane.files import aside, folder_aside, json_value, scratch_folder, write_json

Writer = Callable[[Source, Path, str], Written]
WRITERS: dict[str, Writer] = {
    "gguf": gguf.write,
    "gguf-lora": gguf_lora.write,
    "ollama": ollama.write,
    "ctranslate2": ctranslate2.write,
    "onnx": onnx.write,
    "peft": peft.write,
    "sentence-transformers": sentence_transformers.write,
}
RECORD = "export.json"


@dataclass(frozen=True)
class Export:
    place: Path
    format: str
    lines: tuple[str, ...]  # what was found, as it is printed


def export(
    name: str | Path,
    out: str | Path,
    to: str = "hf",
    dtype: str | None = None,
    base: str | Path | None = None,
) -> Export:
    """Write `name` in another format; with an adapter, merged where the format holds a whole model.

    Beside it stands export.json: what was compared with what, and how far they lie apart.

    Args:
        name: a base (short name, .gguf file, folder, Hub name), a run's folder, or an adapter's.
        out: the new folder, which must not exist or be empty; of a format that is one file also a file's name.
        to: a name of `microplane.exports.formats.FORMATS`.
        dtype: of the weights, among those of the format; its usual one otherwise.
        base: of an adapter: where its base is, if not where the adapter says.

    Raises:
        ConfigError: for a format or a number format that is not there.
        AdapterError: `out` is taken, or the format has no place for the model or the method.
    """
    check_type(name, "name", (str, Path), "a name or a path")
    check_type(out, "out", (str, Path), "the path of what is written")
    form, place = format_named(to), Path(out)
    kind = form.dtype(dtype)
    _check_place(form, place)
    if form.name == "hf":
        return _plain_folder(name, place, kind, base)
    if form.needs_adapter and adapter_folder(Path(name).expanduser()) is None:
        raise AdapterError(f"--to {to} writes an adapter, and {name} has none: give a run's folder, or an adapter's")
    source = opened(name, form, base)
    if form.suffix and place.suffix == form.suffix:
        written = _one_file(form, source, place, kind)
    else:
        with folder_aside(place) as folder, disk_errors(place):
            written = WRITERS[to](source, folder, kind)
            write_card(folder, card_of(name, to, source.about, source.method))
            write_json(folder / RECORD, _record(form, source, written, kind))
    return Export(place, to, (f"wrote {place} as {to}" + (f", {kind}" if form.dtypes else ""),
                              *_lines(form, source, written)))  # fmt: skip


def _check_place(form: Format, place: Path) -> None:
    if not (form.suffix and place.suffix == form.suffix):
        if others := [other.name for other in FORMATS.values() if place.suffix and place.suffix == other.suffix]:
            raise ConfigError(
                f"{place} is called as a file of --to {' or '.join(others)}, and --to {form.name} writes a folder: "
                "choose one of these, or a name of a folder"
            )
        check_free(place, "export")
    elif place.exists():
        raise AdapterError(f"{place} exists; choose another name to export to")


def _one_file(form: Format, source: Source, place: Path, kind: str) -> Written:
    """The format's file under the name that was asked for, and NAME.export.json beside it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place) as folder, disk_errors(place):
        written = WRITERS[form.name](source, folder, kind)
        if len(written.files) > 1:
            raise AdapterError(
                f"--to {form.name} writes {len(written.files)} files here: name a folder instead of {place}"
            )
        with aside(place) as temporary:
            os.replace(folder / written.files[0], temporary)
    how = tuple(line.replace(written.files[0], place.name) for line in written.how)
    written = replace(written, files=(place.name,), how=how)
    write_json(place.with_name(f"{place.stem}.{RECORD}"), _record(form, source, written, kind))
    return written


def _plain_folder(name: str | Path, place: Path, kind: str, base: str | Path | None) -> Export:
    """A folder of transformers' layout. It stands before it is compared, and stays where that cannot be done."""
    lines = hf.write(name, place, kind, base)
    compared = hf.check(name, place, base)
    if compared is not None:
        lines += compared.lines()
    checked = [] if compared is None else [json_value(asdict(compared))]
    write_json(place / RECORD, {"format": "hf", "source": str(name), "dtype": kind, "checked": checked, "said": lines})
    return Export(place, "hf", tuple(lines))


def _record(form: Format, source: Source, written: Written, kind: str) -> dict[str, object]:
    return {
        "format": form.name,
        "source": source.name,
        "method": source.method,
        "dtype": kind,
        "files": list(written.files),
        "merged_against_unmerged": json_value(source.merged),
        "checked": [json_value(asdict(one)) for one in written.checked],
        "engine": f"not checked: {lacks}" if (lacks := _lacks(form)) else form.package,
        "notices": list(written.notices),
        **written.facts,
    }


def _lines(form: Format, source: Source, written: Written) -> Iterator[str]:
    if source.merged is not None:
        yield f"largest logit difference, merged against unmerged: {source.merged:.2e}"
    yield from written.lines()
    if form.engine and (lacks := _lacks(form)):
        yield f"not checked in {form.package}: {lacks}"


def _lacks(form: Format) -> str | None:
    """Why the engine of a format cannot be asked; None where it can."""
    if not form.engine or find_spec(form.engine) is None:
        return f"pip install {form.package}"
    reason = broken(form.engine)
    return f"it is installed, but cannot be imported ({reason})" if reason else None
