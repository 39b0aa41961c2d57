"""What will be done, noted in the result and said, once the base is there."""

from __future__ import annotations

from microplane.cpu_memory import can_cache
from microplane.data.preparing.advice import advise
from microplane.data.progress import Watcher
from microplane.device import name_of
from microplane.exports.ways import ways
from microplane.models.contract import Model
from microplane.nn.ops import native
from microplane.nn.quantised import bytes_held, weight_count
from microplane.report.places import shown_path
from microplane.runs import provenance
from microplane.runs.prepare import Prepared
from microplane.runs.result import MethodSection, ModelSection, Result, data_figures


def describe(result: Result, prepared: Prepared, model: Model, watch: Watcher) -> None:
    """Note and say what will be done."""
    total, form, summary = weight_count(model), prepared.form, prepared.splits.summary
    name, stored = prepared.config.model.name, prepared.checkpoint.stored
    architecture = (prepared.checkpoint.config.get("architectures") or ["?"])[0]
    result.run = prepared.config.model_dump(mode="json")
    result.method = MethodSection(prepared.method.name, prepared.method.facts(), total)
    result.method.ways = ways(model, prepared.method)
    result.model = ModelSection(
        name=name,
        path=shown_path(prepared.path),
        architecture=architecture,
        parameters=total,
        stored=stored,
        dtype=form.name,
        compute=form.compute,
        base_bytes=bytes_held(model),
        fingerprint=prepared.fingerprint,
    )
    result.data = data_figures(prepared.splits)
    compiled = {"compiled_operations": native.library() is not None, "caching_allocator": can_cache()}
    result.environment = provenance.describe() | compiled
    result.environment["device"] = name_of(form.device)
    near = ((result.choice or {}).get("near") or {}).get("share")
    result.advice = advise(summary, prepared.method.name, prepared.config.model.init == "random", near)
    held = f"kept in {form.quantised}, " if form.quantised else ""
    watch.say(
        f"{name}: {architecture}, {total / 1e6:.1f} million parameters, "
        f"stored as {stored}, {held}computed in {form.compute}"
    )
    for line in [*summary.lines(), *(f"advice    {line}" for line in result.advice)]:
        watch.say(line)
