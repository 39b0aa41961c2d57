"""One thread that computes everything: answers in batches that requests join and leave, texts to embed or to label, and
changes of the models. Between two steps of a batch it looks who came, who went away, and whose time is over."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from microplane.config.serving import ServeKnobs
from microplane.errors import MicroplaneError
from microplane.serving.batch import Batch, Engine, Generation
from microplane.serving.metrics import Metrics

PREFILL_TOKENS = 2048  # of prompts read between two steps, so that those who are being answered do not wait long


class BusyError(MicroplaneError):
    """The queue is full."""


class EndingError(BusyError):
    """The server takes nothing on any more."""


class TooLateError(MicroplaneError):
    """A request has taken longer than it may."""


@dataclass(eq=False)
class Texts:
    """Texts for which one pass is enough; those of a kind that wait together are computed together."""

    engine: Engine
    adapter: int | None
    what: str  # is done with them: with others of the same kind in one go
    texts: Sequence[Any]
    compute: Callable[[Sequence[Any]], Sequence[Any]]
    done: Future[Sequence[Any]]
    deadline: float

    @property
    def kind(self) -> tuple[int, int | None, str]:
        return id(self.engine.model), self.adapter, self.what


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
        how: Callable[[Sequence[Any]], Sequence[Any]],
    ) -> Future[Sequence[Any]]:
        """Queue texts; the future gives what `how` gives of them.

        Raises:
            BusyError: if there is no room for them.
        """
        with self._changed:
            self._take_on(1)
            work = Texts(engine, adapter, what, texts, how, Future(), time.monotonic() + self.limits.timeout)
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
        room = self.limits.max_batch + self.limits.queue - self.running - self.waiting
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
        """Those of the first one's kind, together; if that fails, each by itself, for one of them may be to blame."""
        with self._changed:
            first = self._texts[0]
            work = [one for one in self._texts if one.kind == first.kind]
            self._texts = deque(one for one in self._texts if one.kind != first.kind)
        now = time.monotonic()
        for one in work:
            if now > one.deadline:
                one.done.set_exception(TooLateError(f"the request took longer than {self.limits.timeout:g} seconds"))
        work = [one for one in work if not one.done.done()]
        try:
            results = list(first.compute([text for one in work for text in one.texts])) if work else []
        except Exception:
            for one in work:
                _fulfil(one.done, lambda one=one: one.compute(one.texts))  # type: ignore[misc]
            return
        for one in work:
            own, results = results[: len(one.texts)], results[len(one.texts) :]
            if not one.done.cancelled():
                one.done.set_result(own)

    def _give_up_all(self, error: Exception) -> None:
        for batch in self._batches.values():
            batch.give_up(error)
        for queue in self._waiting.values():
            for one in queue:
                one.give_up(error)
        for done in [*(one.done for one in self._texts), *(done for _, done in self._calls)]:
            if not done.done():
                done.set_exception(error)


def _fulfil(done: Future[Any], function: Callable[[], Any]) -> None:
    if done.cancelled():
        return
    try:
        done.set_result(function())
    except Exception as error:
        done.set_exception(error)
