"""A device that is not there: tensors that torch takes for an accelerator's, and whose numbers lie on the CPU.

torch lets a backend be written in Python. This one keeps each tensor's numbers in a CPU tensor and computes there, but
refuses what a real device refuses: an operation on tensors of two devices. And it counts what a real device would have
to be waited for: reading a number, copying to the host, shapes that follow from the numbers.

It is for a whole process: once registered, torch takes it for the accelerator of this machine. So tests run it in a
process of its own.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
DEVICE = torch.device("privateuseone", 0)
SOURCE = str(Path(__file__).parents[2] / "src" / "microplane")
aten = torch.ops.aten
WAITS = {  # operations after which a real device's host has waited for it
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("repeat_interleave", "_linalg_check_errors", "bincount", "_linalg_eigh", "_linalg_svd", "linalg_qr"),
}
BETWEEN = {"copy_", "_to_copy", "_copy_from"}  # operations that may take tensors of two devices


class DeviceError(Exception):
    """An operation on tensors of two devices."""


class Waits(Counter[str]):
    """How often the host has waited for the device, by place in our code."""

    counting = False

    def note(self, operation: str) -> None:
        if self.counting:
            self[f"{_place()} {operation}"] += 1


waits = Waits()


@contextmanager
def counted() -> Iterator[Waits]:
    """What the host waits for inside."""
    waits.clear()
    waits.counting = True
    try:
        yield waits
    finally:
        waits.counting = False


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(SOURCE):
            return f"{frame.filename[len(SOURCE) + 1 :]}:{frame.lineno} {frame.name}"
    return "torch"


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        assert type(held) is not OnDevice
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self, **kwargs: Any) -> str:
        return f"OnDevice({self.held!r})"

    @property
    def data(self) -> Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, new: OnDevice) -> None:
        torch.Tensor.data.__set__(self, new)
        self.held = new.held

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        waits.note("tolist")
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} tensor to numpy, at {_place()}")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # operations come whole there
            parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, done on the CPU."""
    name = func.overloadpacket.__name__
    given = list(_tensors([*args, *kwargs.values()]))
    raw = {id(x.held): x for x in given if isinstance(x, OnDevice)}
    astray = [x for x in given if not isinstance(x, OnDevice) and x.dim() > 0] if raw else []
    if astray and name not in BETWEEN:
        raise DeviceError(f"{func} on tensors of two devices; on the CPU {tuple(astray[0].shape)} at {_place()}")
    wanted = kwargs.get("device")
    to_host = bool(raw) and wanted is not None and torch.device(wanted).type == "cpu"
    from_device = name == "copy_" and not isinstance(args[0], OnDevice)
    if name in WAITS or to_host or from_device:
        waits.note(name)
    if name in ("index", "index_put", "index_put_") and any(x.dtype in (torch.bool, torch.uint8) for x in given[1:2]):
        waits.note(f"{name} by a mask")
    options = {key: _held(value) for key, value in kwargs.items() if key != "pin_memory"}
    if "device" in options:
        options["device"] = torch.device("cpu")
    result = func(*map(_held, args), **options)
    if to_host or from_device or name == "_local_scalar_dense":
        return result
    if isinstance(result, tuple | list):
        return type(result)(_wrapped(x, raw) for x in result)
    return _wrapped(result, raw)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _held(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.held
    return type(value)(map(_held, value)) if type(value) in (tuple, list) else value


def _wrapped(x: Any, known: dict[int, OnDevice]) -> Any:
    if not isinstance(x, Tensor):
        return x
    if id(x) in known:
        return known[id(x)]
    with torch.inference_mode(False):  # a wrapper cannot be made inside
        return OnDevice(x)


class Module(_DummyBackendModule):
    """What torch calls `torch.pretend`. Random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield


def _made_there(make: Any) -> Any:
    """`torch.tensor`, which torch cannot make on a device that is written in Python."""

    def tensor(numbers: Any, *, device: Any = None, **options: Any) -> Tensor:
        made: Tensor = make(numbers, **options)
        return made if device is None else made.to(device)

    return tensor


def register() -> torch.device:
    """Make the device known to torch; from then on it is this machine's accelerator."""
    global library
    torch.tensor = _made_there(torch.tensor)
    _setup_privateuseone_for_python_backend(NAME, Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: computed(func, args, kwargs), "PrivateUse1")
    return DEVICE
