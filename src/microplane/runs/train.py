"""One run: one configuration in, one folder out. The stages of it, in their order."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microplane.adapters.card import card_run
from microplane.checkpoints.adapter import weights_name
from microplane.config.build import to_yaml
from microplane.config.knobs import RunKnobs
from microplane.data.progress import Calling, Silent, Watcher
from microplane.device import PeakDeviceMemory
from microplane.errors import MicroplaneError, check_type, notices_to
from microplane.evaluation.evaluate import describe_scores, measure
from microplane.evaluation.text_metrics import lower_is_better
from microplane.evaluation.trivial import Trivial, beaten_by, trivial_predictions
from microplane.files import write_aside
from microplane.inference.pipeline import Pipeline, load
from microplane.methods import Method, make_method, trainable_parameters
from microplane.models.contract import Model
from microplane.objectives.base import Measured
from microplane.report.page import write_report
from microplane.runs import method_search, others
from microplane.runs.baseline import forgotten, measure_base, measure_few_shot, measure_general
from microplane.runs.continued import continued
from microplane.runs.describe import describe
from microplane.runs.fit import Fitted, attach, fit
from microplane.runs.folder import find_run, run_folder
from microplane.runs.inline_data import InlineData, configuration, with_data
from microplane.runs.lr_search import refuse_many, searched
from microplane.runs.own_forecast import own_forecast, try_again_if_far_off
from microplane.runs.prepare import Prepared, check_config, open_base, prepare
from microplane.runs.result import (
    MetricsSection,
    Result,
    Sample,
    course_checks,
    earlier_seconds,
    keep_answers,
    moved_check,
    train_section,
)
from microplane.runs.resumed import going_on
from microplane.runs.room import lacking, without_holes
from microplane.runs.trackers import tracked
from microplane.runs.used_speed import used_speed
from microplane.runs.verify import reopen, verify
from microplane.training.context import PeakMemory, run_context
from microplane.training.log import Record, read_log
from microplane.training.ranks import Ranks
from microplane.training.resume import check_resumable, prune

SAMPLES = 10  # held-out rows shown in the report, those first that are not answered as they should be


@dataclass(frozen=True)
class Run:
    """A run that has ended, well or not.

    Attributes:
        folder: holds run.yaml, metrics.jsonl, speed.jsonl, result.json, answers.jsonl, report.html, adapter/, resume/.
        result: what result.json holds. `status` (success, stopped), `metrics` (scores `before` and `after` on held-out
            rows), `train` (steps, best_step, losses in nats per token, tokens per second, peak memory in bytes),
            `checks` (each with name, passed, value, detail), `samples` (held-out rows with both answers), `data`,
            `method`, `model`, `environment`, `run` (the whole configuration), `seconds`.

    Examples:
        >>> run = microplane.train("smollm2", "commands.jsonl", method="lora", set={"method.rank": 8})
        >>> run.metrics["after"]["exact_match"]
        0.917
        >>> run.load().generate("turn on the kitchen light")
        '{"intent": "HassTurnOn", "area": "kitchen", "domain": "light"}'
    """

    folder: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """`rows`, `split`, and the scores `before` and `after`."""
        scores: dict[str, Any] = self.result["metrics"]
        return scores

    def load(self) -> Pipeline:
        """The tuned model, ready for use."""
        return load(self.folder)


def train(
    model: str | Path | None = None,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    method: str | None = None,
    set: Mapping[str, Any] | None = None,
    knobs: RunKnobs | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
    callback: Callable[[Record], None] | None = None,
    started: float | None = None,
) -> Run:
    """Adapt `model` to `data`: the whole job, from the names to the report.

    Args:
        model: a short name, a folder in Hugging Face layout, a .gguf file, or a Hub name.
        data: a file of rows, a folder with train/validation/test files, or a mixture; or the rows themselves, as
            `[{"prompt": ..., "completion": ...}]`, which the run's folder then holds as rows.jsonl; "-" for rows on
            standard input.
        method: how to adapt; `microplane methods` lists them.
        set: more knobs by dotted name, as `{"train.lr": 5e-4}`; `microplane knobs` lists them.
        knobs: all of them at once, instead of the four above.
        resume: go on with the run of this name from its last checkpoint, bit for bit.
        watch: is told what happens; nothing is printed without one.
        callback: is called with each step and each validation, as metrics.jsonl and speed.jsonl have them; what it
            raises ends the run, as Ctrl-C twice.
        started: when the run began, in seconds as `time.time` gives them, if that was before this call.

    Raises:
        MicroplaneError: anything that is wrong; what was done so far stays in the run's folder.

    Examples:
        >>> microplane.train("minilm", "reviews.csv", method="head-only", set={"train.epochs": 5}).metrics["after"]
        {'loss': 0.46, 'accuracy': 0.781, 'macro_f1': 0.765}
    """
    config, inline = configuration(model, data, method, set, knobs)
    return train_run(config, inline, resume=resume, watch=watch, callback=callback, started=started)


def train_run(
    config: RunKnobs,
    inline: InlineData | None = None,
    *,
    resume: bool = False,
    rehearsal: bool = False,
    watch: Watcher | None = None,
    callback: Callable[[Record], None] | None = None,
    started: float | None = None,
) -> Run:
    """`train` with all knobs in `config`.

    Args:
        inline: the rows, where they stand in no file.
        rehearsal: nobody will go on from this run or take its weights, see `runs.fit.fit`.
    """
    config = config if resume or method_search.left_open(config) else continued(config)
    if others.world()[0]:  # who is not the first says nothing
        watch = callback = None
    say = getattr(watch, "say", None)
    watch = Calling(watch or Silent(), callback)
    with others.joined(config.model.device, inline is not None) as ranks, run_context(config.train):
        method_search.refuse(config, ranks)
        checked = check_config(method_search.stand_in(config), watch, begun=resume)
        refuse_many(config, ranks)
        for line in others.check_knobs(config.train, checked, ranks, resume):
            watch.say(line)
        if not ranks.is_first:
            return _follow(config, checked, resume, ranks)
        with _folder(config, checked, resume) as folder, notices_to(say):
            if inline is not None:
                config = with_data(config, inline.write(folder))
            job = _Lifetime(folder, resume, started or time.time(), rehearsal)
            with tracked(config.track, folder, watch) as told:
                try:
                    _run(job, config, checked, told, ranks)
                except BaseException as error:
                    job.fail(error)
                    raise
    return Run(job.folder, job.result.to_dict())


def _follow(config: RunKnobs, method: Method, resume: bool, ranks: Ranks) -> Run:
    """A process that trains along with the first one, which makes the folder, measures and writes."""
    folder = Path(ranks.first_says(""))
    prepared = others.prepared_alike(ranks, lambda: prepare(config, method, Silent(), resume))
    model = open_base(prepared, folder if resume else None)[0].model  # without what else an opened base holds
    attach(prepared, model, folder, resume, lambda line: None)
    fitted = fit(prepared, model, folder, Silent(), lambda record: None, lambda size: None, resume, ranks)
    status = "stopped" if fitted.outcome.interrupted else "success"
    return Run(folder, {"status": status, "process": ranks.rank})


def _run(job: _Lifetime, config: RunKnobs, method: Method, watch: Watcher, ranks: Ranks) -> None:
    result, folder = job.result, job.folder
    ranks.first_says(str(folder.resolve()))
    if (left := method_search.chosen(config, folder, watch)) is None:
        return job.finish("stopped")
    config, result.choice = left.config, left.choice
    if result.choice:
        method = make_method(config.method)
        job.memory = PeakMemory(left.held_bytes)
    if left.trained:
        job.take_over(watch)
    prepared = others.prepared_alike(ranks, lambda: prepare(config, method, watch, job.resume))
    lacks = lacking(prepared)
    for line in lacks:
        watch.say(f"warning   {line}")
    result.forecast = own_forecast(without_holes(prepared))
    watch.say(f"forecast  {result.forecast.line()}")
    job.device_memory = PeakDeviceMemory(prepared.form.device)
    base, head_notice = open_base(prepared, job.folder if job.resume else None)
    model = base.model
    describe(result, prepared, model, watch)
    result.advice = [*lacks, *(result.advice or ())]
    result.environment = (result.environment or {}) | {"processes": ranks.size}
    if head_notice:
        watch.say(head_notice)
    if job.resume:
        for line in check_resumable(folder, prepared.identity(), prepared.steps_asked):
            watch.say(line)
    write_aside(folder / "run.yaml", to_yaml(prepared.config).encode())

    def measured(model: Model, whose: str) -> Measured:
        return _measure(prepared, model, whose, watch)

    before, general = measure_base(prepared, base, measured, watch), measure_general(prepared, base, watch)
    few_shot = measure_few_shot(prepared, base, watch)
    attach(prepared, model, folder, job.resume, watch.say)
    prepared, result.lr_search = searched(prepared, model, folder, watch)
    result.run = prepared.config.model_dump(mode="json")
    assert result.method is not None
    result.method.trainable_parameters = trainable_parameters(model)
    base.keep(whole=not prepared.config.train.shard)
    with notices_to((lambda line: None) if left.trained else None):  # that nothing is left to train
        fitted = fit(prepared, model, folder, *job.told(watch), ranks, rehearsal=job.rehearsal)
    outcome = fitted.outcome
    _note_training(job, prepared, fitted, watch)
    result.checks = [moved_check(outcome)]
    if outcome.interrupted:  # whoever pressed Ctrl-C does not want to wait for the evaluation
        return job.finish("stopped")
    base.let_go()
    del model
    saved = reopen(prepared, base, folder)
    began = time.monotonic()
    after = measured(saved, "tuned model")
    result.measuring_seconds = time.monotonic() - began
    result.metrics, result.samples = _compared(prepared, before, after, _trivial(prepared, watch) | few_shot, folder)
    result.general = forgotten(prepared, general, saved, watch)
    result.checks += [*verify(prepared, saved, folder), *course_checks(outcome)]
    result.speed = used_speed(prepared, folder)
    return job.finish("success")


def _note_training(job: _Lifetime, prepared: Prepared, fitted: Fitted, watch: Watcher) -> None:
    """What training came to, beside what was forecast of it."""
    result, outcome, speed = job.result, fitted.outcome, job.folder / "speed.jsonl"
    assert result.method is not None
    result.method.trainable_parameters = fitted.trainable_parameters  # the method may have changed its ranks
    job.note_bytes(prepared.method)
    row_tokens = int(prepared.splits.train.lengths.sum())
    result.train = train_section(outcome, row_tokens, speed, job.memory.bytes(), fitted.feature_cache)
    assert result.forecast is not None
    result.forecast = result.forecast.beside(outcome.totals.step, result.train.seconds, result.train.peak_memory_bytes)
    if came := result.forecast.off_line():
        watch.say(f"forecast  {came}")
    try_again_if_far_off(prepared, result.forecast, outcome.totals.step)


def _measure(prepared: Prepared, model: Model, whose: str, watch: Watcher) -> Measured:
    config, rows = prepared.config, prepared.answer_rows
    how = (config.eval, config.data.template, whose, watch.progress, config.data.system)
    found = measure(prepared.objective, model, prepared.tokenizer, prepared.held_out, rows, *how)
    watch.say(f"{whose}: {describe_scores(found['scores'])}")
    return found


def _trivial(prepared: Prepared, watch: Watcher) -> dict[str, Trivial]:
    splits, metrics = prepared.splits, prepared.config.eval.metrics
    sets, rows = (splits.train, prepared.held_out), prepared.answer_rows
    found = trivial_predictions(prepared.objective, *sets, rows, prepared.tokenizer, splits.summary.labels, metrics)
    for name, trivial in found.items():
        watch.say(f"{name}: {describe_scores(trivial.scores)}")
    return found


def _compared(
    prepared: Prepared, before: Measured, after: Measured, trivial: dict[str, Trivial], folder: Path
) -> tuple[MetricsSection, list[Sample]]:
    """The figures, some samples, and all answers in answers.jsonl."""
    rows, where = prepared.answer_rows, prepared.held_out.where
    answers = zip(before["prompts"], before["targets"], before["texts"], after["texts"], rows, strict=True)
    samples = [Sample(prompt, target, old, new, where(row)) for prompt, target, old, new, row in answers]
    keep_answers(folder, samples, {name: one.texts for name, one in trivial.items()})
    split = "test" if prepared.splits.test else "validation"
    beaten, trivial_scores = None, {name: one.scores for name, one in trivial.items()}
    if found := beaten_by(after["scores"], trivial_scores):
        name, metric, best = found
        own, theirs = (describe_scores({metric: value}) for value in (after["scores"][metric], best))
        beaten = f"{name} does better on the same rows: {theirs}, the tuned model {own}"
    measured = len(rows) if rows and not prepared.objective.needs_head else len(prepared.held_out)
    wrong_first = sorted(samples, key=lambda sample: sample.after.strip() == sample.target.strip())
    metrics = MetricsSection(
        rows=measured,
        split=split,
        before=before["scores"],
        after=after["scores"],
        lower_is_better=lower_is_better(before["scores"] | after["scores"]),
        by_class=after["by_class"],
        trivial=trivial_scores,
        beaten=beaten,
    )
    return metrics, wrong_first[:SAMPLES]


class _Lifetime:
    """A run's folder and result, from its first second to its last."""

    def __init__(self, folder: Path, resume: bool, started: float, rehearsal: bool = False):
        self.folder, self.resume, self.started, self.rehearsal = folder, resume, started, rehearsal
        self.result, self.memory, self.begun = Result(folder.name), PeakMemory(), False
        self.earlier = earlier_seconds(folder) if resume else 0.0
        self.device_memory: PeakDeviceMemory | None = None  # once it is known where the run computes

    def told(self, watch: Watcher) -> tuple[Watcher, Callable[[Record], None], Callable[[int], None], bool]:
        """Who is told of training, and whether it goes on, as `fit` takes it."""
        return watch, self.on_record(watch), self.on_saved, self.resume

    def on_record(self, watch: Watcher) -> Callable[[Record], None]:
        def record(line: Record) -> None:
            self.begun = True
            watch.record(line)

        return record

    def take_over(self, watch: Watcher) -> None:
        """What lies in the folder was trained by a trial, of whose steps and validations nobody has heard yet."""
        self.resume, record = True, self.on_record(watch)
        for line in read_log(self.folder):
            record(line)

    def note_bytes(self, method: Method) -> None:
        """Of weights that were saved before this sitting."""
        if (weights := self.folder / "adapter" / weights_name(method)).is_file():
            self.on_saved(weights.stat().st_size)

    def on_saved(self, adapter_bytes: int) -> None:
        """Noted at once, so that a run that fails later has it too."""
        assert self.result.method is not None
        self.result.method.adapter_bytes = adapter_bytes

    def finish(self, status: str) -> None:
        self._end(status)
        if status == "success":
            prune(self.folder / "resume")
            card_run(self.folder)
        write_report(self.folder)

    def fail(self, error: BaseException) -> None:
        """Keep what is known of a run that failed."""
        if not (self.folder / "run.yaml").is_file():
            return
        if isinstance(error, KeyboardInterrupt) and not self.rehearsal:
            error.add_note(f"go on with: microplane train --resume {self.folder}")
        if self.resume and not self.begun:
            return  # what stands there is of more worth than that it could not be continued
        known = isinstance(error, MicroplaneError)
        self.result.error = str(error) if known else "".join(traceback.format_exception_only(error)).strip()
        with suppress(Exception):  # the first error is the one to be told
            self._end("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            write_report(self.folder)

    def _end(self, status: str) -> None:
        self.result.status, self.result.seconds = status, self.earlier + time.time() - self.started
        self.result.peak_memory_bytes = self.memory.bytes()
        self.result.peak_device_memory_bytes = self.device_memory.bytes() if self.device_memory else None
        self.result.write(self.folder)


def resume(
    folder: str | Path,
    watch: Watcher | None = None,
    set: Mapping[str, Any] | None = None,
    started: float | None = None,
) -> Run:
    """Go on with a run from its last checkpoint, as if it had never been interrupted.

    Args:
        set: knobs to change, as `{"train.epochs": 3}` for more of a run that is finished, or
            `{"model.name": "/new/place"}` where its base lies elsewhere by now.

    Raises:
        CheckpointError: if the folder is not a run, or something it depends on has changed since.
    """
    check_type(folder, "the run", (str, Path), "the path of its folder")
    here = going_on(find_run(Path(folder)), set or {})
    return train(knobs=here, resume=True, watch=watch, started=started)


def _folder(config: RunKnobs, method: Method, again: bool) -> AbstractContextManager[Path]:
    whose = "auto" if method_search.left_open(config) == "method.name" else method.name
    parts = config.model.name, whose, config.data.train
    return run_folder(Path(config.runs), config.name or "", [Path(part).stem for part in parts], again=again)
