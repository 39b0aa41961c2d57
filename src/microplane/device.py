"""On which device a run computes, and how tensors get there.

Everything else asks a tensor that is there already for its device. Random numbers are drawn on the CPU and then moved,
so that a seed gives the same ones everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from microplane.errors import ConfigError, MicroplaneError, check_type

CPU = torch.device("cpu")


def present() -> list[torch.device]:
    """The devices that torch sees here, the accelerators first."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if kind is not None else 0
    return [torch.device(kind.type, number) for number in range(count) if kind is not None] + [CPU]


def choose(wanted: str) -> torch.device:
    """The device that the knob `model.device` asks for; `auto` takes an accelerator if there is one.

    Of several processes on one machine, of which the launcher gives each a number in LOCAL_RANK, each takes the
    accelerator of its number, where the knob names none.

    Raises:
        ConfigError: for one that is not there, with those that are.
    """
    check_type(wanted, "device", str, "a name, as 'cpu' or 'cuda:0'")
    there = present()
    if wanted == "cpu" or (wanted == "auto" and there == [CPU]):
        return CPU
    kind, _, number = (there[0].type if wanted == "auto" else wanted).partition(":")
    try:
        device = torch.device(kind, int(number or os.environ.get("LOCAL_RANK", "0")))
    except (RuntimeError, ValueError):  # no name of a device at all
        device = torch.device("meta")
    if device not in there:
        listed = ", ".join(str(one) for one in there)
        built = "" if any(one.type == kind for one in there) else f"; this torch is {torch.__version__}"
        raise ConfigError(
            f"model.device = {wanted}: there is no such device here. There is: {listed}{built}. Choose one of them, or "
            "leave it at auto"
        )
    return device


def name_of(device: torch.device) -> str:
    """What the device calls itself, beside its kind."""
    if device.type in ("cuda", "xpu"):
        own = getattr(torch, device.type).get_device_name(device)
        return f"{device} ({own})"
    return str(device)


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. From the CPU to a CUDA device it goes by pinned memory, so that nobody waits for it."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def drawn(draw: Callable[[Tensor], Tensor], *shape: int, device: torch.device) -> Tensor:
    """A float32 tensor that `draw` fills in place with random numbers, on the CPU whatever the device."""
    return put(draw(torch.empty(*shape, device=device if device.type == "meta" else CPU)), device)


class PeakDeviceMemory:
    """The most bytes that torch held on an accelerator since this was made; None where that is not counted."""

    def __init__(self, device: torch.device):
        self.device = device
        self.counts = device.type in ("cuda", "xpu")
        if self.counts:
            torch.accelerator.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        return torch.accelerator.max_memory_allocated(self.device) if self.counts else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left; torch has none of its own for a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def give_back_device_memory(device: torch.device) -> None:
    """Let go of what torch keeps of an accelerator's memory for later."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()


@contextmanager
def out_of_memory(error: type[MicroplaneError], advice: str) -> Iterator[None]:
    """Inside, memory that is not there ends in `error`, with what can be changed."""
    try:
        yield
    except (RuntimeError, MemoryError) as found:
        if not is_out_of_memory(found):
            raise
        said = (str(found).splitlines() or ["none is left"])[0]
        raise error(f"the device's memory does not hold a step: {said}\n{advice}") from None
