"""`--to peft`: an adapter's folder in peft's format, copied, and compared in peft on its base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from microplane.adapters.asked import asked_as, settings_of_writing, stops_apart, without_chat
from microplane.adapters.card import PADDED, base_in_peft, told_for_peft
from microplane.adapters.export import export as export_base
from microplane.adapters.export import minds_padding
from microplane.adapters.merge import source_of
from microplane.data.tokenizers.folder import TokenizerFolder
from microplane.errors import AdapterError
from microplane.exports.compare import Comparison, compare
from microplane.exports.engines import usable
from microplane.exports.source import Source
from microplane.exports.transformers import Transformers, writes_text
from microplane.exports.written import Written
from microplane.files import scratch_folder, write_aside
from microplane.methods.method import USED

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(source: Source, folder: Path, dtype: str) -> Written:
    """Copy the files.

    Raises:
        AdapterError: for a method that has no format of peft's.
    """
    own, method = source_of(source.name), source.pipeline.method
    assert method is not None
    if method.whole_model:
        raise AdapterError(f"{source.name} was trained as a whole, and is no adapter: --to hf writes it")
    if not (own / CONFIG).is_file():
        why = method.not_convertible or ("adds what is no change of a weight" if not method.mergeable else None)
        here = "" if method.mergeable else f". It is used here: {USED}"
        way = f"the method {method.name} {why}{here}" if why else f"microplane convert {source.name} writes it as LoRA"
        raise AdapterError(f"peft has no format for an adapter of the method {method.name} on this model; {way}")
    for file in sorted(own.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            write_aside(folder / file.name, file.read_bytes())
    checked = tuple(_checks(source, folder))
    base = TokenizerFolder.read(source.pipeline.path) if source.pipeline.path.is_dir() else None
    about = {**source.about, "stops": stops_apart(source.pipeline.stop_ids, base)}
    about["generation"] = settings_of_writing(source.pipeline)
    notices = (*without_chat(source.pipeline), *asked_as(source.pipeline), *told_for_peft(about, method.name))
    notices += (PADDED,) if minds_padding(source.pipeline.model) and PADDED not in notices else ()
    if not checked and usable("peft"):
        notices += ("labels are not compared in peft; the files were opened here",)
    how = f"PeftModel.from_pretrained(base, FOLDER), base being {source.about.get('base')}"
    before = [told] if (told := base_in_peft(source.about)) else []
    return Written((CONFIG, WEIGHTS), notices, checked, (*before, how))


def _checks(source: Source, folder: Path) -> Iterator[Comparison]:
    """On the base as a folder of safetensors, written for as long as that takes."""
    if not (usable("peft") and usable("transformers") and writes_text(source.pipeline.model)):
        return
    with scratch_folder(folder / "base") as beside:
        export_base(source.pipeline.path, beside / "base")
        yield compare(source, Transformers(beside / "base", source, folder))
