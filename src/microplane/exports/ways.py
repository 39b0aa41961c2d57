"""Where what a method trains can be used, from the method's facts and the model's kind."""

from __future__ import annotations

from microplane.exports.formats import DECODERS, FORMATS, Format
from microplane.methods import Method
from microplane.models.contract import Model, module_map_of

VLLM = "vllm"  # which opens a decoder's folder as `hf` writes it
WITH_HEAD = ("hf", "peft", "onnx")  # formats that have a place for a task head


def ways(model: Model, method: Method) -> list[str]:
    """The formats of `microplane export` that have a place for it, and vLLM."""
    found = [name for name, form in FORMATS.items() if _has_place(form, model, method)]
    writes = model.KIND == DECODERS and model.task_head is None
    return found + ([VLLM] if writes and "hf" in found else [])


def _has_place(form: Format, model: Model, method: Method) -> bool:
    if model.task_head is not None and form.name not in WITH_HEAD:
        return False
    if form.name == "peft":
        return method.has_peft_format(model)
    if form.name != "hf" and (model.KIND not in form.kinds or module_map_of(model) is not None):
        return False
    if form.needs_adapter:
        return method.mergeable and not method.whole_model and method.not_convertible is None
    return method.mergeable or method.whole_model
