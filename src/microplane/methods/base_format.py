"""In which number format a base is opened: what the knobs ask for, the method needs and the files have."""

from __future__ import annotations

import torch

from microplane.config.knobs import ModelKnobs
from microplane.device import CPU, choose
from microplane.errors import ConfigError
from microplane.methods import Method
from microplane.nn.gguf_linear import GGUFLinear
from microplane.nn.number_format import NumberFormat, fastest_dtype
from microplane.nn.quantised import QUANTISED


def number_format(name: str, compute: str = "auto", cached: bool = False, device: torch.device = CPU) -> NumberFormat:
    """The format that the knobs `model.dtype`, `model.compute` and `model.cache_dequantised` ask for; and gguf, in
    which models are opened but not trained.

    Raises:
        ConfigError: if the last two are set for a base that is not quantised, or for products that a device has not.
    """
    if name == GGUFLinear.kind:
        return NumberFormat(_dtype(compute, device), name, cached, device=device)
    if name in QUANTISED:
        in_8_bits = compute == "int8"
        if in_8_bits and device.type not in ("cpu", "cuda"):
            raise ConfigError(f"model.compute = int8: {device} has no products of 8 bits here; leave it at auto")
        return NumberFormat(_dtype("auto" if in_8_bits else compute, device), name, cached, in_8_bits, device=device)
    if compute != "auto" or cached:
        knob = "model.cache_dequantised" if cached else f"model.compute = {compute}"
        raise ConfigError(f"{knob} is for a quantised base, and model.dtype = {name}; choose {' or '.join(QUANTISED)}")
    return NumberFormat(_dtype(name, device), device=device)


def base_format(model: ModelKnobs, method: Method, stored: str = "") -> NumberFormat:
    """The format of the base that `method` is to be trained on; auto leaves in nf4 what is stored so.

    Raises:
        ConfigError: for a format in which the method cannot work, or new weights cannot be held, or a device that is
            not there.
    """
    form = _format_for(model, method, stored)
    if form.quantised and model.init == "random":
        raise ConfigError(
            f"model.init = random with a base in {form.quantised}: new weights are to be trained, and a quantised base "
            "stays as it is; choose model.dtype=float32 or bfloat16, and a method that trains the base, such as full"
        )
    return form


def _format_for(model: ModelKnobs, method: Method, stored: str) -> NumberFormat:
    device = choose(model.device)
    asked = f"model.dtype = {model.dtype}: the method {method.name}"
    if method.quantize and model.dtype not in ("auto", method.quantize):
        raise ConfigError(f"{asked} is for a base in {method.quantize}; leave it at auto, or choose another method")
    if method.needs_float32:
        if model.dtype not in ("auto", "float32"):
            raise ConfigError(f"{asked} {method.needs_float32}; leave it at auto, or choose float32")
        return number_format("float32", model.compute, model.cache_dequantised, device)
    if method.trains != "weights":
        kept = stored if model.dtype == "auto" and stored in QUANTISED else model.dtype
        return number_format(method.quantize or kept, model.compute, model.cache_dequantised, device)
    if model.dtype in QUANTISED:
        raise ConfigError(
            f"{asked} trains the model's own weights, and in {model.dtype} small updates would be lost; "
            "leave it at auto, or choose float32 or bfloat16 for what is multiplied"
        )
    form = number_format(model.dtype, model.compute, model.cache_dequantised, device)
    return form._replace(weights=torch.float32)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return fastest_dtype(device=device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
