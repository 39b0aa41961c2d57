"""Data parallel: several processes, called ranks as torch calls them, that train the same model on shares of each step.

Every rank holds the whole model. Of each step's rows it computes a share, the gradients are summed over all ranks in
float32, and each makes the same step from the same sum, so all hold the same bits. What decides is computed from
numbers that all have. Rank 0 alone writes.

torch's own launcher (torchrun), or `microplane train --processes N`, starts the processes and tells each by the
environment which one it is. Sums go by nccl where the model is on CUDA devices, else by gloo; all else goes by gloo.
"""

from __future__ import annotations

import heapq
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from microplane.errors import ConfigError, MicroplaneError, TrainingError
from microplane.training.heartbeat import Heartbeat

T = TypeVar("T")
BUCKET = 1 << 23  # numbers that are summed at once: 32 MB in float32
PATIENCE = timedelta(minutes=30)  # with one whose threads live (training/heartbeat.py) and that does not answer
MEETING = timedelta(minutes=10)  # with those that have not started yet
NAMED = 60.0  # seconds for the first process's machine to get its name
REASON = "microplane/reason"  # of the first process that ended, in the store that all share


class LeftError(TrainingError):
    """Another process has ended, so that this one cannot go on.

    Args:
        told: whether that one could say why, which the first process tells then.
    """

    def __init__(self, text: str, told: bool = False):
        super().__init__(text)
        self.told = told


def world() -> tuple[int, int]:
    """(number of this process, number of processes) as the launcher says; (0, 1) without one."""
    try:
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        return 0, 1
    return (rank, size) if size > 1 else (0, 1)


@dataclass(eq=False)
class Ranks:
    """The processes of a run, as one of them sees them. A run of one process has them too: `ALONE`.

    Args:
        rank: which one this is.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1
    summed_numbers: int = 0  # that gradients were summed of so far
    sharded: bool = False  # each holds a part of the model alone: see training/sharding.py
    heartbeat: Heartbeat | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """This rank's rows of a step, in the order of the step: all ranks get about as many tokens. The longest row
        goes to who has least, and so on."""
        if self.size == 1:
            return rows
        loads = [(0, 0, rank) for rank in range(self.size)]
        mine = []
        for place in np.argsort(-lengths[rows], kind="stable").tolist():
            tokens, count, rank = heapq.heappop(loads)
            heapq.heappush(loads, (tokens + int(lengths[rows[place]]), count + 1, rank))
            if rank == self.rank:
                mine.append(place)
        return rows[sorted(mine)]

    def each(self, value: T, patient: bool = False) -> list[T]:
        """What all ranks hand in, in their order; `patient` where one of them may come hours later."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _others_may_leave():
            dist.all_gather_object(found, value, group=_waiting_room() if patient else None)
        return found

    def joined_lists(self, values: list[T]) -> list[T]:
        """The lists of all ranks one after the other."""
        return [value for theirs in self.each(values) for value in theirs]

    def first_says(self, value: T) -> T:
        """What rank 0 hands in."""
        return self.each(value, patient=True)[0]

    def any(self, value: bool) -> bool:
        """Whether one of the ranks says so."""
        return any(self.each(value))

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Rank 0 is inside before the others are: what it puts into a cache is there for them."""
        if not self.is_first:
            self.each(None, patient=True)
        yield
        if self.is_first:
            self.each(None, patient=True)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each gradient becomes the sum over all ranks, the same bits on all. Summed in float32, whatever its format:
        gloo's sum of bfloat16 depends on a number's place. Who has no gradient, of a step with few rows, adds nothing;
        where no rank has one there is none afterwards. Of a sharded model the backward pass has summed them."""
        if self.size == 1 or self.sharded:
            return
        held = [parameter.grad is not None for parameter in parameters]
        used = np.any(self.each(held), axis=0)
        bucket: list[nn.Parameter] = []
        for parameter, is_used in zip(parameters, used, strict=True):
            if not is_used:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and sum(one.numel() for one in bucket) + parameter.numel() > BUCKET:
                self._sum(bucket)
                bucket = []
            bucket.append(parameter)
        if bucket:
            self._sum(bucket)

    def _sum(self, parameters: Sequence[nn.Parameter]) -> None:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        exact = torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32
        flat = torch.cat([grad.reshape(-1).to(exact) for grad in grads])
        with _others_may_leave():
            dist.all_reduce(flat)
        self.summed_numbers += flat.numel()
        for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def norm(self, share: Tensor) -> Tensor:
        """The norm of what all ranks hold parts of, from that of this rank's."""
        if not self.sharded:
            return share
        total = share.double().square()
        with _others_may_leave():
            dist.all_reduce(total)
        return total.sqrt().to(share.dtype)

    def check_same(self, what: str, mine: Mapping[str, Any], error: type[MicroplaneError] = ConfigError) -> None:
        """Raises: `error` on all ranks, where one of them has something else than rank 0."""
        every = self.each(dict(mine))
        for rank, theirs in enumerate(every[1:], start=1):
            names = [name for name in every[0].keys() | theirs.keys() if every[0].get(name) != theirs.get(name)]
            if names:
                name = sorted(names)[0]
                more = f", and {len(names) - 1} more" if len(names) > 1 else ""
                raise error(
                    f"the processes do not have the same {what}: {name} is {_brief(every[0].get(name))} in process 0 "
                    f"and {_brief(theirs.get(name))} in process {rank}{more}. Give all the same files and versions"
                )

    def leave(self) -> None:
        """From here on this process goes on alone."""
        if self.size > 1:
            self.stop_heartbeat()
            dist.destroy_process_group()
            self.size = 1

    def stop_heartbeat(self) -> None:
        if self.heartbeat is not None:
            self.heartbeat.stop()


ALONE = Ranks()


@contextmanager
def joined(check: Callable[[], None]) -> Iterator[Ranks]:
    """The ranks of this run, until the block ends. What ends it by an error is told to the others.

    Args:
        check: called where there are several; raises what they cannot do.

    Raises:
        ConfigError: if they cannot meet.
        LeftError: if another one ends by an error, or is killed.
    """
    rank, size = world()
    if size == 1:
        yield Ranks()
        return
    ranks = _join(rank, size)
    try:
        _watch(ranks)
        check()
        yield ranks
    except LeftError:
        raise
    except BaseException as error:
        _tell(rank, error)
        raise
    finally:
        ranks.stop_heartbeat()
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _join(rank: int, size: int) -> Ranks:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        _wait_for_name(os.environ.get("MASTER_ADDR", ""))
        store, *_ = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(PATIENCE)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:  # DistError is a RuntimeError
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"process {rank} of {size} cannot meet the others at {where}: {said}. Start all of them with torchrun "
            "(or microplane train --processes), which tells each where"
        ) from None
    _waiting_room()
    return Ranks(rank, size)


def _wait_for_name(machine: str) -> None:
    """Until a machine's name is known; torch would ask for it again and again, where no signal reaches it.

    Raises:
        OSError: if it stays unknown.
    """
    end = time.monotonic() + NAMED
    while machine:
        try:
            socket.getaddrinfo(machine, None)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _watch(ranks: Ranks) -> None:
    """Hear from each other from here on."""
    ranks.heartbeat = Heartbeat(ranks.rank, _leave_reason)
    ranks.heartbeat.start(ranks.each(ranks.heartbeat.address(os.environ["MASTER_ADDR"])))


_groups: dict[str, Any] = {}


def _waiting_room() -> Any:
    """The group by which ranks wait for one that measures the untouched model, say."""
    if _groups.get("of") is not dist.group.WORLD:
        _groups.update(of=dist.group.WORLD, waiting=dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    return _groups["waiting"]


@contextmanager
def _others_may_leave() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and of nccl
        raise _explained() from error


def _tell(rank: int, error: BaseException) -> None:
    """Leave the reason where the others look for it."""
    text = str(error) if isinstance(error, MicroplaneError) else f"{type(error).__name__}: {error}"
    _leave_reason(f"process {rank} ended: {text}")


def _leave_reason(text: str) -> None:
    """The first of them is the reason; none where the store has gone with its process."""
    with suppress(Exception):
        dist.distributed_c10d._get_default_store().compare_set(REASON, "", text)


def _explained() -> LeftError:
    """Why another process has ended, if it could say so."""
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        for _ in range(20):  # it may be about to say so
            if store.check([REASON]):
                return LeftError(store.get(REASON).decode(), told=True)
            time.sleep(0.1)
    return LeftError(
        "another process has ended without a word, killed perhaps. All that was saved is there: go on with "
        "microplane train --resume, with as many processes as you like"
    )


def _brief(value: Any) -> str:
    return f"{value!r:.60}"
