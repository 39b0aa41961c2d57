"""One thread that computes everything: answers in batches that requests join and leave, texts to embed or to label, and
changes of the models. Between two steps of a batch it looks who came, who went away, and whose time is over."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from microplane.config.serving import ServeKnobs
from microplane.errors import MicroplaneError
from microplane.serving.batch import Batch, Engine, Generation
from microplane.serving.metrics import Metrics

PREFILL_TOKENS = 2048  # of prompts, or of texts, read between two steps: those who are being answered do not wait long


class BusyError(MicroplaneError):
    """The queue is full."""


class EndingError(BusyError):
    """The server takes nothing on any more."""


class TooLateError(MicroplaneError):
    """A request has taken longer than it may."""


@dataclass(eq=False)
class Texts:
    """Texts of one request for which one pass is enough. Those of a kind that wait are computed together, some at a
    time.

    Attributes:
        what: is done with them: with others of the same kind in one go.
        sizes: tokens of each.
        found: what was computed so far, in their order.
    """

    engine: Engine
    adapter: int | None
    what: str
    texts: Sequence[Any]
    sizes: Sequence[int]
    compute: Callable[[Sequence[Any]], Sequence[Any]]
    done: Future[Sequence[Any]]
    deadline: float
    found: list[Any] = field(default_factory=list)

    @property
    def kind(self) -> tuple[int, int | None, str]:
        return id(self.engine.model), self.adapter, self.what

    @property
    def is_wanted(self) -> bool:
        """Neither over nor given up by whoever waits for it."""
        return not self.done.done()

    def next_texts(self, room: int, at_least: int) -> range:
        """Which of them have at most `room` tokens together, in their order."""
        first = end = len(self.found)
        while end < len(self.texts) and (self.sizes[end] <= room or end - first < at_least):
            room -= self.sizes[end]
            end += 1
        return range(first, end)

    def take(self, found: Sequence[Any]) -> None:
        """What comes next; with the last of it, whoever waits gets all."""
        self.found += found
        if len(self.found) == len(self.texts) and self.is_wanted and self.done.set_running_or_notify_cancel():
            self.done.set_result(self.found)

    def give_up(self, error: Exception) -> None:
        if self.is_wanted and self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class Scheduler:
    """The queue and the thread.

    Args:
        limits: of what is taken on.
        metrics: what is counted.
    """

    def __init__(self, limits: ServeKnobs, metrics: Metrics):
        self.limits, self.metrics = limits, metrics
        self._changed = threading.Condition()
        self._waiting: dict[int, deque[Generation]] = {}
        self._batches: dict[int, Batch] = {}  # by the id of the model
        self._texts: deque[Texts] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._ending = False
        self._joining = 0  # answers whose prompts are being read
        self._thread = threading.Thread(target=self._run, name="microplane-compute", daemon=True)

    # What other threads call

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. What still runs or waits is given up."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return self._joining + sum(len(batch.answers) for batch in list(self._batches.values()))

    @property
    def waiting(self) -> int:
        return sum(map(len, list(self._waiting.values()))) + len(self._texts)

    def write(self, engine: Engine, answers: Sequence[Generation]) -> None:
        """Queue answers of one request: all or none of them.

        Raises:
            BusyError: if there is no room for them.
        """
        with self._changed:
            self._take_on(len(answers))
            number = id(engine.model)
            self._batches.setdefault(number, Batch(engine, self.metrics))
            queue = self._waiting.setdefault(number, deque())
            for one in answers:
                one.deadline = time.monotonic() + self.limits.timeout
                queue.append(one)
            self._changed.notify()

    def compute(
        self,
        engine: Engine,
        adapter: int | None,
        what: str,
        texts: Sequence[Any],
        sizes: Sequence[int],
        how: Callable[[Sequence[Any]], Sequence[Any]],
    ) -> Future[Sequence[Any]]:
        """Queue texts; the future gives what `how` gives of them.

        Args:
            sizes: tokens of each, by which it is decided how many are computed between two steps.

        Raises:
            BusyError: if there is no room for them.
        """
        with self._changed:
            self._take_on(1)
            deadline = time.monotonic() + self.limits.timeout
            work = Texts(engine, adapter, what, texts, sizes, how, Future(), deadline)
            self._texts.append(work)
            self._changed.notify()
            return work.done

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Have a function called between two steps: one that changes the models."""
        with self._changed:
            if self._ending:
                raise EndingError("the server is about to end")
            self._calls.append((function, done := Future[Any]()))
            self._changed.notify()
            return done

    def uses(self, engine: Engine, adapter: int | None) -> bool:
        """Whether anything waits for an adapter of an engine or is written with it; call it on the computing thread."""
        number = id(engine.model)
        batch = self._batches.get(number)
        answers = [*(batch.answers if batch else ()), *self._waiting.get(number, ())]
        texts = [one for one in self._texts if one.engine.model is engine.model]
        return any(one.adapter == adapter for one in [*answers, *texts])

    def forget(self, engine: Engine) -> None:
        """Let go of an engine that nothing waits for; call it on the thread that computes."""
        self._batches.pop(id(engine.model), None)
        self._waiting.pop(id(engine.model), None)

    def _take_on(self, count: int) -> None:
        if self._ending:
            raise EndingError("the server is about to end")
        room = self.limits.at_once - self.running - self.waiting
        if count > room:
            self.metrics.refused += 1
            raise BusyError(
                f"the queue is full: {self.running} answers are being written and {self.waiting} requests wait"
            )

    # What the thread does

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._has_work)
                if self._ending:
                    break
            try:
                self._turn()
            except Exception:  # of those who wait for an answer one cannot be told, as its own thread has ended
                logging.getLogger(__name__).exception("a turn of the computing thread was broken off")
        self._give_up_all(EndingError("the server has ended"))

    @property
    def _has_work(self) -> bool:
        return bool(self._calls or self._texts or self.running or any(self._waiting.values()))

    def _turn(self) -> None:
        """One look at everything that there is to do. What fails takes nothing else with it."""
        while self._calls:
            function, done = self._calls.popleft()
            _fulfil(done, function)
        if self._texts:
            self._read_texts()
        for number in list(self._batches):
            batch, waiting = self._batches[number], self._waiting.setdefault(number, deque())
            try:
                self._end_what_is_over(batch, waiting)
                self._admit(batch, waiting)
                if batch.answers:
                    began, before = time.perf_counter(), len(batch.answers)
                    batch.step()
                    self.metrics.stepped(before, time.perf_counter() - began)
            except Exception as error:  # a defect, or no memory: those who wait are still to be answered
                self.metrics.failed += len(batch.answers)
                batch.give_up(error)

    def _end_what_is_over(self, batch: Batch, waiting: deque[Generation]) -> None:
        now = time.monotonic()
        for one in [*waiting, *batch.answers]:
            if now > one.deadline and not one.over and not one.cancelled:
                one.give_up(TooLateError(f"the request took longer than {self.limits.timeout:g} seconds"))
        with self._changed:
            kept = [one for one in waiting if not one.over and not one.cancelled]
            self.metrics.cancelled += sum(one.cancelled and not one.over for one in waiting)
            if len(kept) < len(waiting):
                waiting.clear()
                waiting.extend(kept)
        batch.tidy()

    def _admit(self, batch: Batch, waiting: deque[Generation]) -> None:
        """Let those join for whom there is room, in the order in which they came."""
        new, tokens = list[Generation](), 0
        limits = self.limits
        while waiting and batch.is_open and len(batch.answers) + len(new) < limits.max_batch:
            one = waiting[0]
            others = [*batch.answers, *new]
            longest = max(other.most_tokens for other in [*others, one])
            crowded = (len(others) + 1) * longest > limits.batch_tokens
            if others and (crowded or (new and tokens + len(one.row.prompt) > PREFILL_TOKENS)):
                break
            with self._changed:
                waiting.popleft()
                self._joining += 1
            new.append(one)
            tokens += len(one.row.prompt)
        if not new:
            return
        new.sort(key=lambda one: -1 if one.adapter is None else one.adapter)  # an adapter's rows lie side by side
        try:
            batch.join(new)
            self.metrics.prompt_tokens += tokens
        except Exception as error:  # those who were being answered go on
            self.metrics.failed += len(new)
            for one in new:
                one.give_up(error)
        finally:
            self._joining = 0

    def _read_texts(self) -> None:
        """Some of those of the first one's kind, together; if that fails, those of each request by themselves, for one
        of them may be to blame. What is left stands behind all others then."""
        parts = self._next_texts()
        if parts:
            compute = parts[0][0].compute
            try:
                results = list(compute([text for _, texts in parts for text in texts]))
            except Exception:
                for one, texts in parts:
                    _take_alone(one, texts)
            else:
                for one, texts in parts:
                    one.take(results[: len(texts)])
                    results = results[len(texts) :]
        served = {id(one) for one, _ in parts}
        with self._changed:
            left = [one for one in self._texts if one.is_wanted]
            self._texts = deque(sorted(left, key=lambda one: id(one) in served))

    def _next_texts(self) -> list[tuple[Texts, Sequence[Any]]]:
        """Which are computed now, of each request some: as many as may be read between two steps, and at least one."""
        now = time.monotonic()
        with self._changed:
            waiting = list(self._texts)
        for one in waiting:
            if now > one.deadline:
                one.give_up(TooLateError(f"the request took longer than {self.limits.timeout:g} seconds"))
        wanted = [one for one in waiting if one.is_wanted]
        parts, room = list[tuple[Texts, Sequence[Any]]](), PREFILL_TOKENS
        for one in wanted:
            if one.kind == wanted[0].kind and (places := one.next_texts(room, at_least=0 if parts else 1)):
                parts.append((one, [one.texts[place] for place in places]))
                room -= sum(one.sizes[place] for place in places)
        return parts

    def _give_up_all(self, error: Exception) -> None:
        for batch in self._batches.values():
            batch.give_up(error)
        for queue in self._waiting.values():
            for one in queue:
                one.give_up(error)
        for texts in self._texts:
            texts.give_up(error)
        for _, done in self._calls:
            if done.set_running_or_notify_cancel():
                done.set_exception(error)


def _take_alone(one: Texts, texts: Sequence[Any]) -> None:
    try:
        one.take(one.compute(texts))
    except Exception as error:
        one.give_up(error)


def _fulfil(done: Future[Any], function: Callable[[], Any]) -> None:
    if not done.set_running_or_notify_cancel():  # whoever asked for it has gone; from here on nobody can
        return
    try:
        done.set_result(function())
    except Exception as error:
        done.set_exception(error)
