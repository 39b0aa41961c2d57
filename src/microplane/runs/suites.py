"""Public suites of tasks (arc_easy, hellaswag, ...) on a model or a run: what `microplane eval MODEL --suite` does.

lm-eval (`microplane[suites]`) reads the tasks, makes their prompts and counts; the model is asked here, as it is loaded
for everything else, with its adapter and its own tokenizer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from microplane.data.progress import Silent, Watcher
from microplane.errors import ConfigError, MicroplaneError, check_type, first_line, nearest
from microplane.files import write_aside
from microplane.inference.pipeline import Pipeline, load


@dataclass(frozen=True)
class SuiteScore:
    """One figure of one task, or of a group of tasks.

    Attributes:
        error: its standard error; None where lm-eval gives none.
        higher_is_better: None where lm-eval does not say.
        rows: that were asked; None of a group.
    """

    task: str
    metric: str
    value: float
    error: float | None
    higher_is_better: bool | None
    rows: int | None
    shots: int | None
    version: str


@dataclass(frozen=True)
class SuiteResult:
    """All figures, and what each row was asked and what the model said."""

    scores: list[SuiteScore]
    samples: list[dict[str, Any]]
    lm_eval: str  # its version

    def to_dict(self) -> dict[str, Any]:
        """The figures alone, for JSON."""
        return {"lm_eval": self.lm_eval, "scores": [asdict(score) for score in self.scores]}

    def write_samples(self, out: Path) -> None:
        """A line of JSON for each row: task, its number, what was asked, what came, what was right, its scores."""
        lines = [json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in self.samples]
        write_aside(out, "".join(lines).encode())


def evaluate_suites(
    model: str | Path | Pipeline,
    suites: Sequence[str],
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    watch: Watcher | None = None,
) -> SuiteResult:
    """Ask a model or a run the tasks of public suites, as lm-eval has them.

    Args:
        model: the folder of a run or an adapter, whatever `load` takes, or what it gave.
        suites: names of lm-eval's tasks, groups or tags.
        folder: with tasks of one's own (YAML files of lm-eval's form), beside those that lm-eval brings.
        limit: rows of each task at most; the figures are then of these alone.
        shots: examples before each question; what the task says otherwise.
        chat: whether questions are put into the model's chat template.

    Raises:
        ConfigError: for a name that is no suite, a model that writes no text, rows that cannot be had.

    Examples:
        >>> microplane.evaluate_suites("runs/home", ["arc_easy"], limit=200).scores[0].value
        0.58
    """
    check_type(suites, "suites", (list, tuple), "a list of names")
    installed = _version()
    tasks = _tasks(suites, folder)
    loaded = model if isinstance(model, Pipeline) else load(model)
    _check(loaded, chat)
    asked = import_module("microplane.inference.suite_model").SuiteModel(loaded, (watch or Silent()).progress)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells every default of a task's file
    how = {"limit": limit, "num_fewshot": shots, "apply_chat_template": chat, "bootstrap_iters": 1000}
    try:
        found = import_module("lm_eval.evaluator").simple_evaluate(asked, tasks=list(suites), task_manager=tasks, **how)
    except MicroplaneError:
        raise
    except Exception as error:  # whatever a task's own code, its rows' reader or the network says
        raise ConfigError(
            f"lm-eval cannot run {', '.join(suites)}: {type(error).__name__}: {first_line(error)}. Most suites fetch "
            "their rows from the Hub; tasks of your own with rows in local files need no network: --suite-folder FOLDER"
        ) from error
    return SuiteResult(list(_scores(found)), list(_samples(found)), installed)


def _version() -> str:
    """Of lm-eval, which must be there."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise ConfigError(
            "suites need the package lm-eval, which is not installed: pip install 'microplane[suites]'"
        ) from None


def _tasks(suites: Sequence[str], folder: str | Path | None) -> Any:
    """lm-eval's list of tasks, with one's own; every name is on it."""
    if folder is not None and not Path(folder).expanduser().is_dir():
        raise ConfigError(f"the folder of suites {folder} is not there; give one with YAML files of tasks")
    own = None if folder is None else str(Path(folder).expanduser())
    tasks = import_module("lm_eval.tasks").TaskManager(include_path=own)
    for name in suites:
        if name not in tasks.all_tasks:
            raise ConfigError(
                f"there is no suite {name!r}.{nearest(name, tasks.all_tasks)} lm-eval lists its "
                f"{len(tasks.all_tasks):,} names: lm-eval ls tasks"
            )
    return tasks


def _check(loaded: Pipeline, chat: bool) -> None:
    if loaded.model.task_head is not None or loaded.model.KIND == "encoder":
        raise ConfigError(
            "suites ask for text, and this model gives labels or embeddings; measure it on rows: microplane eval MODEL "
            "DATA"
        )
    if chat and not loaded.tokenizer.chat_template:
        raise ConfigError("--chat: the model has no chat template; leave it out")


def _scores(found: Mapping[str, Any]) -> Iterator[SuiteScore]:
    """lm-eval names a figure `metric,filter` and its error `metric_stderr,filter`."""
    for task, figures in found["results"].items():
        counted = found.get("n-samples", {}).get(task, {}).get("effective")
        for name, value in figures.items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{chosen}")
            yield SuiteScore(
                task=task,
                metric=metric if chosen == "none" else name,
                value=float(value),
                error=float(error) if isinstance(error, int | float) else None,
                higher_is_better=found.get("higher_is_better", {}).get(task, {}).get(metric),
                rows=counted,
                shots=found.get("n-shot", {}).get(task),
                version=str(found.get("versions", {}).get(task, "")),
            )


def _samples(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, samples in found.get("samples", {}).items():
        for sample in samples:
            asked = [list(arguments) for arguments in sample["arguments"]]
            scores = {name: sample[name] for name in sample.get("metrics", []) if name in sample}
            said = sample["filtered_resps"]
            yield {
                "task": task,
                "row": sample["doc_id"],
                "asked": asked,
                "said": said,
                "target": sample["target"],
                **scores,
            }
