"""One run: one configuration in, one folder out. The only module where model, data, method and loop meet."""

from __future__ import annotations

import itertools
import json
import math
import re
import resource
import shutil
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from microplane import environment
from microplane.config import RunKnobs, build, place, read_yaml, to_yaml
from microplane.data.dataset import Splits, TokenDataset, load_splits
from microplane.data.template import stop_ids
from microplane.data.tokenizer import Tokenizer, load_tokenizer
from microplane.errors import CheckpointError, ConfigError, MicroplaneError
from microplane.loading import Loaded, attach, fingerprint, load, number_format
from microplane.methods import Method, make_method, trainable
from microplane.models.hub import resolve
from microplane.models.load import load_model, open_checkpoint
from microplane.paths import write_aside
from microplane.report.page import write_report
from microplane.train.checkpoint import read_tensors, save_adapter, save_tensors
from microplane.train.evaluate import (
    choose_rows,
    describe_scores,
    evaluate_loss,
    largest_logit_difference,
    measure,
    perplexity,
    probe_logits,
    probe_rows,
)
from microplane.train.loop import Outcome, fit, read_lines

PROBES = 4  # held-out rows whose logits are compared at save, load and merge
SAMPLES = 10  # held-out rows shown in the report
MERGE_TOLERANCE = 1e-3  # largest logit difference in float32; logits are of the order of 10


class Watcher(Protocol):
    """Who is told what a run does. The command line draws it; the default is silent."""

    def say(self, text: str) -> None: ...
    def progress(self, what: str) -> Callable[[int, int], None]: ...
    def record(self, record: dict[str, Any]) -> None: ...


class Silent:
    def say(self, text: str) -> None:
        pass

    def progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: None

    def record(self, record: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """A run that has ended, well or not."""

    folder: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.result["metrics"]

    def load(self) -> Loaded:
        return load(self.folder)


def train(
    model: str | None = None,
    data: str | None = None,
    *,
    method: str | None = None,
    set: dict[str, Any] | None = None,
    knobs: RunKnobs | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
) -> Run:
    """Adapt `model` to `data`: the whole job, from the names to the report.

    Args:
        set: more knobs by dotted name, as `{"train.lr": 5e-4}`.
        knobs: all of them at once, instead of the four above.
        resume: go on with the run of this name from its last checkpoint, bit for bit.

    Raises:
        MicroplaneError: anything that is wrong; what was done so far stays in the run's folder.
    """
    if knobs is None:
        values: dict[str, Any] = {"model": {"name": model or "smollm2"}, "data": {"train": data or ""}}
        if method:
            values["method"] = {"name": method}
        for name, value in (set or {}).items():
            place(values, name, value)
        knobs = build(RunKnobs, values)
    job = _Job(knobs, watch or Silent(), resume)
    try:
        return job.run()
    except BaseException as error:
        job.fail(error)
        raise


class _Job:
    def __init__(self, knobs: RunKnobs, watch: Watcher, resume: bool):
        self.watch, self.resume = watch, resume
        self.method = make_method(knobs.method)
        if not knobs.data.train:
            raise ConfigError("data.train is not set: which file shall be trained on?")
        self.knobs, self.folder = knobs, choose_folder(knobs, self.method, resume)
        self.result: dict[str, Any] = {"schema": 1, "status": "running", "error": None, "name": self.folder.name}
        self.started = time.time()

    def run(self) -> Run:
        knobs, watch = self.knobs, self.watch
        if knobs.train.threads:
            torch.set_num_threads(knobs.train.threads)
        path = resolve(knobs.model.name, knobs.model.revision)
        tokenizer = load_tokenizer(path)
        dtype = torch.float32 if self.method.trains_base else number_format(knobs.model.dtype)
        splits = load_splits(knobs.data, tokenizer, lambda what, done, total: watch.progress(what)(done, total or 0))
        self.knobs = knobs = self._resolve(dtype, splits)
        write_aside(self.folder / "run.yaml", to_yaml(knobs).encode())
        model = load_model(path, dtype)
        self._describe(path, model, dtype, splits)
        held_out = splits.test or splits.validation
        rows = choose_rows(held_out, knobs.eval.rows)
        before = self._before(model, tokenizer, splits, held_out, rows)
        torch.manual_seed(knobs.train.seed)
        self.method.attach(model)
        self.result["method"] |= {
            "trainable_parameters": sum(tensor.numel() for tensor in trainable(model).values()),
        }
        outcome = self._fit(model, tokenizer, path, splits)
        self.result["status"] = "stopped" if outcome.interrupted else "success"
        del model
        self._after(path, dtype, tokenizer, held_out, rows, before, outcome, splits)
        return self._finish()

    def _resolve(self, dtype: torch.dtype, splits: Splits) -> RunKnobs:
        """The knobs with everything that was inferred filled in, so that run.yaml says what was done."""
        knobs = self.knobs
        method = {"name": self.method.name, **self.method.model_dump(mode="json")}
        return knobs.model_copy(
            update={
                "name": self.folder.name,
                "method": method,
                "model": knobs.model.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}),
                "train": knobs.train.model_copy(update={"lr": knobs.train.lr or self.method.default_lr}),
                "data": knobs.data.model_copy(update=_inferred(splits)),
            }
        )

    def _describe(self, path: Path, model: nn.Module, dtype: torch.dtype, splits: Splits) -> None:
        checkpoint = open_checkpoint(path)
        total = sum(parameter.numel() for parameter in model.parameters())
        self.result |= {
            "run": self.knobs.model_dump(mode="json"),
            "method": {"name": self.method.name, "facts": self.method.facts(), "total_parameters": total},
            "model": {
                "name": self.knobs.model.name,
                "path": str(path),
                "architecture": (checkpoint.config.get("architectures") or ["?"])[0],
                "parameters": total,
                "stored": checkpoint.stored,
                "dtype": str(dtype).removeprefix("torch."),
                "fingerprint": fingerprint(path),
            },
            "data": data_figures(splits),
            "environment": environment.describe(),
        }
        self.watch.say(
            f"{self.knobs.model.name}: {self.result['model']['architecture']}, {total / 1e6:.1f} million parameters, "
            f"stored as {checkpoint.stored}, computed in {self.result['model']['dtype']}"
        )
        for line in splits.summary.lines():
            self.watch.say(line)

    def _before(
        self, model: nn.Module, tokenizer: Tokenizer, splits: Splits, held_out: TokenDataset, rows: list[int]
    ) -> dict[str, Any]:
        """What the untouched model does; remembered, so that a resumed run need not ask again."""
        place = self.folder / "resume" / "before.json"
        key = {"data": held_out.fingerprint, "model": self.result["model"]["fingerprint"], "rows": rows}
        if place.is_file():
            saved = json.loads(place.read_text())
            if saved["key"] == key:
                return saved
        measured = self._measure(model, tokenizer, held_out, rows, "untouched model")
        write_aside(place, json.dumps({"key": key, **measured}, ensure_ascii=False).encode())
        return measured

    def _measure(
        self, model: nn.Module, tokenizer: Tokenizer, held_out: TokenDataset, rows: list[int], whose: str
    ) -> dict[str, Any]:
        stops = stop_ids(tokenizer, self.knobs.data.template)
        measured = measure(model, tokenizer, held_out, rows, self.knobs.eval, stops, whose, self.watch.progress)
        self.watch.say(f"{whose}: {describe_scores(measured['scores'])}")
        return measured

    def _fit(self, model: nn.Module, tokenizer: Tokenizer, path: Path, splits: Splits) -> Outcome:
        knobs, watch = self.knobs, self.watch
        data, about, rows = splits.validation, self._about(path), probe_rows(splits.validation, PROBES)

        def save_best(step: int, loss: float) -> None:
            size = save_adapter(self.folder / "adapter", model, self.method, {**about, "step": step})
            self.result["method"]["adapter_bytes"] = size
            save_probe(self.folder, rows, probe_logits(model, rows))

        if self.method.whole_model:
            (self.folder / "adapter").mkdir(parents=True, exist_ok=True)
            tokenizer.save(self.folder / "adapter")
        return fit(
            model,
            self.method,
            splits.train,
            knobs.train,
            self.folder,
            validate=lambda m: evaluate_loss(m, data, knobs.eval.batch_tokens),
            save_best=save_best,
            identity=self._identity(splits, tokenizer),
            resume=self.resume,
            on_record=watch.record,
        )

    def _about(self, path: Path) -> dict[str, Any]:
        data = self.knobs.data
        # A local model is found again from any folder; a short name or a Hub name stays what it is.
        name = self.knobs.model.name
        base = str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else name
        return {
            "base": base,
            "revision": self.knobs.model.revision,
            "base_fingerprint": fingerprint(path),
            "template": data.template,
            "system": data.system,
        }

    def _identity(self, splits: Splits, tokenizer: Tokenizer) -> dict[str, Any]:
        """What a resumed run must have in common with the run that it continues."""
        return {
            "train rows": splits.train.fingerprint,
            "validation rows": splits.validation.fingerprint,
            "model": self.result["model"]["fingerprint"],
            "model.dtype": self.result["model"]["dtype"],
            "tokenizer": tokenizer.fingerprint,
            "method": {"name": self.method.name, **self.method.model_dump(mode="json")},
            "train": self.knobs.train.model_dump(mode="json"),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _after(
        self,
        path: Path,
        dtype: torch.dtype,
        tokenizer: Tokenizer,
        held_out: TokenDataset,
        rows: list[int],
        before: dict[str, Any],
        outcome: Outcome,
        splits: Splits,
    ) -> None:
        """Open what was saved as a stranger would, compare it with what was trained, and measure it."""
        folder = self.folder / "adapter"
        model = load_model(folder if self.method.whole_model else path, dtype)
        if not self.method.whole_model:
            attach(model, self.method, folder)
        probes, trained = read_probe(self.folder)
        saved = probe_logits(model, probes)
        after = self._measure(model, tokenizer, held_out, rows, "tuned model")
        del model
        self.result["train"] = self._train_figures(outcome)
        self.result["metrics"] = {
            "rows": len(rows),
            "split": "test" if splits.test else "validation",
            "before": before["scores"],
            "after": after["scores"],
        }
        self.result["samples"] = [
            {"prompt": prompt, "target": target, "before": old, "after": new, "where": held_out.where(row)}
            for prompt, target, old, new, row in zip(
                before["prompts"], before["targets"], before["texts"], after["texts"], rows, strict=True
            )
        ][:SAMPLES]
        self.result["checks"] = [
            _moved_check(outcome),
            _difference_check("saved = trained", trained, saved, 0.0),
            *self._merge_check(path, probes),
        ]

    def _merge_check(self, path: Path, probes: list[list[int]]) -> list[dict[str, Any]]:
        """Merge in float32, where it is exact but for the order of sums."""
        if self.method.whole_model or not self.method.mergeable:
            return []
        parameters = self.result["model"]["parameters"]
        if 4 * parameters > environment.free_memory() / 2:
            need = f"{4 * parameters / 1e9:.0f} GB for the model in float32 are not free here; see microplane merge"
            return [{"name": "merged = unmerged", "passed": None, "value": None, "detail": f"not checked: {need}"}]
        model = load_model(path, torch.float32)
        attach(model, self.method, self.folder / "adapter")
        unmerged = probe_logits(model, probes)
        self.method.merge(model)
        merged = probe_logits(model, probes)
        return [_difference_check("merged = unmerged", unmerged, merged, MERGE_TOLERANCE)]

    def _train_figures(self, outcome: Outcome) -> dict[str, Any]:
        clock = read_lines(self.folder / "speed.jsonl")
        seconds = sum(line["seconds"] for line in clock)
        totals = outcome.totals
        return {
            "steps": totals.step,
            "steps_planned": outcome.steps_planned,
            "best_step": outcome.best_step,
            "epochs": round(totals.tokens / max(1, self.result["data"]["train_tokens"]), 3),
            "stopped_early": outcome.stopped_early,
            "overfitting": outcome.overfitting,
            "seconds": seconds,
            "tokens": totals.tokens,
            "trained_tokens": totals.trained_tokens,
            "tokens_per_second": _median(clock, "tokens_per_second"),
            "trained_tokens_per_second": _median(clock, "trained_tokens_per_second"),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "train_loss": outcome.train_loss if math.isfinite(outcome.train_loss) else None,
            "validation_loss": outcome.validation_loss,
            "validation_perplexity": perplexity(outcome.validation_loss),
        }

    def _finish(self) -> Run:
        self.result["seconds"] = time.time() - self.started
        self._write()
        write_report(self.folder)
        return Run(self.folder, self.result)

    def fail(self, error: BaseException) -> None:
        """Keep what is known of a run that failed."""
        if not (self.folder / "run.yaml").is_file():
            shutil.rmtree(self.folder, ignore_errors=True) if not any(self.folder.glob("*")) else None
            return
        known = isinstance(error, MicroplaneError)
        text = str(error) if known else "".join(traceback.format_exception_only(error)).strip()
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        self.result |= {"status": status, "error": text, "seconds": time.time() - self.started}
        with suppress(Exception):  # the first error is the one to be told
            self._write()
            write_report(self.folder)

    def _write(self) -> None:
        text = json.dumps(finite(self.result), indent=2, ensure_ascii=False, allow_nan=False)
        write_aside(self.folder / "result.json", text.encode() + b"\n")


def resume(folder: str | Path, watch: Watcher | None = None) -> Run:
    """Go on with a run from its last checkpoint, as if it had never been interrupted.

    Raises:
        CheckpointError: if the folder is not a run, or something it depends on has changed since.
    """
    path = Path(folder)
    if not (path / "run.yaml").is_file():
        raise CheckpointError(f"{path} is not a run that can be continued: it has no run.yaml")
    knobs = build(RunKnobs, read_yaml(path / "run.yaml"), where=str(path / "run.yaml"))
    here = knobs.model_copy(update={"name": path.name, "runs": str(path.parent)})
    return train(knobs=here, resume=True, watch=watch)


def choose_folder(knobs: RunKnobs, method: Method, resume: bool) -> Path:
    """The run's folder; a name that was made up gets a number where it is taken."""
    runs = Path(knobs.runs)
    if knobs.name:
        folder = runs / knobs.name
        if (
            not resume
            and folder.exists()
            and not (folder.is_dir() and all(_is_leftover(path) for path in folder.iterdir()))
        ):
            raise ConfigError(
                f"the run {folder} exists. Continue it with `microplane train --resume {folder}`, "
                "give this one another --name, or delete that folder."
            )
    else:
        base = "-".join(re.sub(r"[^\w.]+", "-", Path(part).stem).strip("-.") for part in _parts(knobs, method)).lower()
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        folder = next(runs / name for name in names if not (runs / name).exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the run's folder {folder} cannot be made: {error.strerror}. Set --set runs=FOLDER"
        ) from None
    return folder


def _is_leftover(path: Path) -> bool:
    """A file that was being written aside when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _parts(knobs: RunKnobs, method: Method) -> tuple[str, str, str]:
    return Path(knobs.model.name).name, method.name, Path(knobs.data.train).name


def _inferred(splits: Splits) -> dict[str, Any]:
    summary = splits.summary
    return {
        "format": summary.format.split(" ")[0],
        "template": summary.template if summary.template != "none" else "plain",
    }


def data_figures(splits: Splits) -> dict[str, Any]:
    """What result.json says of the data."""
    summary = splits.summary.to_dict()
    held_out = {f"{name}_rows": summary["rows"].get(name, 0) for name in ("train", "validation", "test")}
    return (
        summary
        | held_out
        | {
            "train_tokens": summary["tokens"]["train"],
            "trained_tokens": summary["trained_tokens"]["train"],
            "truncated": sum(summary["truncated"].values()),
            "overlap": sum(summary["overlap"].values()),
            "files": [file for files in summary["files"].values() for file in files],
        }
    )


def save_probe(folder: Path, rows: list[list[int]], logits: list[Tensor]) -> None:
    """Remember what the best weights answer to a few rows, to compare with what is read back."""
    tensors = {f"ids/{i}": torch.tensor(row) for i, row in enumerate(rows)}
    tensors |= {f"logits/{i}": x for i, x in enumerate(logits)}
    save_tensors(folder / "resume" / "probe.safetensors", tensors)


def read_probe(folder: Path) -> tuple[list[list[int]], list[Tensor]]:
    tensors = read_tensors(folder / "resume" / "probe.safetensors", CheckpointError)
    count = len(tensors) // 2
    return [tensors[f"ids/{i}"].tolist() for i in range(count)], [tensors[f"logits/{i}"] for i in range(count)]


def _moved_check(outcome: Outcome) -> dict[str, Any]:
    if outcome.moved is None:
        value, detail = None, "too few steps to tell"
    else:
        value, detail = f"{outcome.moved} of {outcome.tensors}", "checksums of all trainable tensors, start against end"
    passed = None if outcome.moved is None else outcome.moved == outcome.tensors
    return {"name": "every trainable tensor moved", "passed": passed, "value": value, "detail": detail}


def _difference_check(name: str, one: list[Tensor], other: list[Tensor], tolerance: float) -> dict[str, Any]:
    difference = largest_logit_difference(one, other)
    detail = f"largest logit difference on {len(one)} stored rows; at most {tolerance:g} passes"
    return {"name": name, "passed": difference <= tolerance, "value": difference, "detail": detail}


def _median(records: list[dict[str, Any]], name: str) -> float | None:
    return statistics.median(record[name] for record in records) if records else None


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
