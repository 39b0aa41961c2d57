"""One run: one configuration in, one folder out. The only module where model, data, method and loop meet."""

from __future__ import annotations

import json
import math
import shutil
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from microplane.checkpoints.adapter import read_method, save_adapter
from microplane.checkpoints.attach_saved import attach_saved_adapter, fingerprint
from microplane.config.build import build, place, read_yaml, to_yaml
from microplane.config.knobs import RunKnobs
from microplane.data.preparing.advice import advise
from microplane.data.preparing.load_splits import load_splits
from microplane.data.progress import Silent, Watcher, counting
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from microplane.errors import ConfigError, MicroplaneError, TrainingError, notices_to
from microplane.evaluation.evaluate import choose_rows, describe_scores, evaluate_loss, measure
from microplane.evaluation.probe import difference_check, probe_logits, probe_rows, read_probe, save_probe
from microplane.files import write_aside
from microplane.inference.check_ids import check_ids
from microplane.inference.pipeline import Loaded, load
from microplane.methods import Method, make_method, trainable_parameters
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.files.hub import resolve
from microplane.models.files.load import load_model, new_model, open_checkpoint, open_config, build_on_meta
from microplane.models.heads import ensure_head, head_metadata, meta_copy
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops import native
from microplane.nn.quantised import bytes_held, weight_count
from microplane.objectives.base import Measured
from microplane.objectives.select import AnySplits, candidates
from microplane.report.page import write_report
from microplane.runs import provenance
from microplane.runs.max_length import cap_max_length
from microplane.runs.prepare import inferred, shared_prefix
from microplane.runs.result import data_figures, finite, moved_check, train_figures
from microplane.runs.verify import merge_checks
from microplane.training.feature_cache import cache_features
from microplane.training.init_from_data import prepare
from microplane.training.loop import Outcome, fit, passes
from microplane.training.optim import peak_lr
from microplane.training.resume import check_resumable, checkpoints

SAMPLES = 10  # held-out rows shown in the report


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
        with notices_to(watch.say if watch else None):
            return job.run()
    except BaseException as error:
        job.fail(error)
        raise


class _Job:
    def __init__(self, knobs: RunKnobs, watch: Watcher, resume: bool):
        self.watch, self.resume = watch, resume
        self.method = make_method(knobs.method)
        for line in check_knobs(knobs, self.method):
            self.watch.say(line)
        if not knobs.data.train:
            raise ConfigError("data.train is not set: give the rows to train on, as in microplane train MODEL DATA")
        self.knobs, self.folder = knobs, _folder(knobs, self.method, resume)
        self.result: dict[str, Any] = {"schema": 1, "status": "running", "error": None, "name": self.folder.name}
        self.started, self.begun = time.time(), False

    def run(self) -> Run:
        knobs, watch = self.knobs, self.watch
        if knobs.train.threads:
            torch.set_num_threads(knobs.train.threads)
        watch.say(f"opening {knobs.model.name}, reading {knobs.data.train}")
        path = resolve(knobs.model.name, knobs.model.revision)
        checkpoint = open_config(path) if knobs.model.init == "random" else open_checkpoint(path)
        tokenizer = load_tokenizer(path)
        self.method = self.method.with_tokens(lambda text: tokenizer.encode(text, special=False))
        form = base_format(knobs.model, self.method, checkpoint.stored)
        self.knobs = knobs = cap_max_length(knobs, checkpoint, self.method.places, watch)
        plain = build_on_meta(checkpoint)
        watch.say(plain.note) if plain.note else None
        splits = load_splits(knobs.data, tokenizer, candidates(plain, knobs.data), counting(watch), knobs.train.seed)
        self.objective = splits.objective
        self.knobs = knobs = self._resolve(form, splits)
        model = self._open(path, form)
        note = ensure_head(model, splits.summary.task, splits.summary.labels, knobs.model.pooling, knobs.train.seed)
        self._try(model, tokenizer, splits)
        self._describe(path, checkpoint, model, form, splits)
        watch.say(note) if note else None
        if self.resume:
            check_resumable(self.folder, self._identity(splits, tokenizer))
        write_aside(self.folder / "run.yaml", to_yaml(knobs).encode())
        held_out = splits.test or splits.validation
        rows = choose_rows(held_out, knobs.eval.rows)
        before = self._before(model, tokenizer, splits, held_out, rows)
        torch.manual_seed(knobs.train.seed)
        attach_method(self.method, model)
        if not (self.resume and checkpoints(self.folder / "resume")):  # which holds what the run started from
            prepare(self.objective, model, self.method, splits.train, knobs.train, checkpoint.tensors, watch.say)
        self.result["method"]["trainable_parameters"] = trainable_parameters(model)
        outcome = self._fit(model, tokenizer, path, splits)
        self.result["method"]["trainable_parameters"] = trainable_parameters(model)  # a checkpoint can have other ranks
        figures = train_figures(outcome, splits, self.folder / "speed.jsonl")
        self.result["train"] = figures | {"feature_cache": self.kept}
        self.result["checks"] = [moved_check(outcome)]
        if outcome.interrupted:  # whoever pressed Ctrl-C does not want to wait for the evaluation
            self.result["status"] = "stopped"
            return self._finish()
        self.result["status"] = "success"
        del model
        self._after(path, form, tokenizer, rows, before, splits)
        return self._finish()

    def _open(self, path: Path, form: NumberFormat) -> Model:
        if self.knobs.model.init == "random":
            return new_model(path, self.knobs.train.seed, form)
        return load_model(path, form)

    def _resolve(self, form: NumberFormat, splits: AnySplits) -> RunKnobs:
        """The knobs with everything that was inferred filled in, so that run.yaml says what was done.

        But for the name: run.yaml lies in the folder of that name, and shall run again as it is, into another one.
        """
        knobs = self.knobs
        method = {"name": self.method.name, **self.method.model_dump(mode="json")}
        base = {"dtype": form.name} | ({"compute": form.compute} if form.quantised else {})
        return knobs.model_copy(
            update={
                "name": None,
                "method": method,
                "model": knobs.model.model_copy(update=base),
                "train": knobs.train.model_copy(update={"lr": peak_lr(self.method, knobs.train)}),
                "data": knobs.data.model_copy(update=inferred(splits)),
            }
        )

    def _try(self, model: Model, tokenizer: Tokenizer, splits: AnySplits) -> None:
        """Refuse at once what would be refused minutes later, when the untouched model has been measured."""
        with torch.device("meta"):
            attach_method(self.method, meta_copy(model))
        for data in (splits.train, splits.validation):
            for row in range(min(len(data), 100)):
                check_ids(model, tokenizer, data[row][0].tolist())

    def _describe(
        self, path: Path, checkpoint: Checkpoint, model: Model, form: NumberFormat, splits: AnySplits
    ) -> None:
        total = weight_count(model)
        self.result |= {
            "run": self.knobs.model_dump(mode="json"),
            "method": {"name": self.method.name, "facts": self.method.facts(), "total_parameters": total},
            "model": {
                "name": self.knobs.model.name,
                "path": str(path),
                "architecture": (checkpoint.config.get("architectures") or ["?"])[0],
                "parameters": total,
                "stored": checkpoint.stored,
                "dtype": form.name,
                "compute": form.compute,
                "base_bytes": bytes_held(model),
                "fingerprint": fingerprint(path),
            },
            "data": data_figures(splits),
            "environment": provenance.describe() | {"compiled_operations": native.library() is not None},
        }
        kept = f"kept in {form.quantised}, " if form.quantised else ""
        self.watch.say(
            f"{self.knobs.model.name}: {self.result['model']['architecture']}, {total / 1e6:.1f} million parameters, "
            f"stored as {checkpoint.stored}, {kept}computed in {form.compute}"
        )
        self.result["advice"] = advise(splits.summary, self.method.name)
        for line in [*splits.summary.lines(), *(f"advice    {line}" for line in self.result["advice"])]:
            self.watch.say(line)

    def _before(
        self, model: Model, tokenizer: Tokenizer, splits: AnySplits, held_out: Dataset, rows: list[int]
    ) -> Measured:
        """What the untouched model does; remembered, so that a resumed run need not ask again."""
        place = self.folder / "resume" / "before.json"
        key = {"data": held_out.fingerprint, "model": self.result["model"]["fingerprint"], "rows": rows}
        with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged: measure again
            saved = json.loads(place.read_text(encoding="utf-8"))
            if saved["key"] == key:
                return cast(Measured, saved)
        measured = self._measure(model, tokenizer, held_out, rows, "untouched model")
        if not math.isfinite(loss := measured["scores"]["loss"]):
            raise TrainingError(
                f"the loss of the untouched model {self.knobs.model.name} is {loss}: its weights hold NaN or infinity, "
                f"or numbers overflow in {self.knobs.model.dtype}. Fetch the model again, or set model.dtype=float32"
            )
        write_aside(place, json.dumps({"key": key, **measured}, ensure_ascii=False).encode())
        return measured

    def _measure(self, model: Model, tokenizer: Tokenizer, held_out: Dataset, rows: list[int], whose: str) -> Measured:
        how = self.knobs.eval, self.knobs.data.template, whose, self.watch.progress
        measured = measure(self.objective, model, tokenizer, held_out, rows, *how)
        self.watch.say(f"{whose}: {describe_scores(measured['scores'])}")
        return measured

    def _fit(self, model: Model, tokenizer: Tokenizer, path: Path, splits: AnySplits) -> Outcome:
        knobs = self.knobs
        about, rows = self._about(path, tokenizer, splits, model), probe_rows(self.objective, splits.validation)
        sets = {"training": splits.train, "validation": splits.validation}
        off, often = knobs.train.feature_cache == "off", passes(splits.train, knobs.train)
        read, self.kept = cache_features(self.objective, model, sets, often, self.watch, off)

        def save_best(step: int, loss: float) -> None:
            size = save_adapter(self.folder / "adapter", model, self.method, {**about, "step": step})
            self.result["method"]["adapter_bytes"] = size
            save_probe(self.folder, rows, probe_logits(self.objective, model, rows))

        if self.method.whole_model:
            (self.folder / "adapter").mkdir(parents=True, exist_ok=True)
            tokenizer.save(self.folder / "adapter")
        return fit(
            model,
            self.method,
            read["training"],
            knobs.train,
            self.folder,
            objective=self.objective,
            validate=lambda m: evaluate_loss(self.objective, m, read["validation"], knobs.eval.batch_tokens),
            save_best=save_best,
            identity=self._identity(splits, tokenizer) | {"features kept": self.kept is not None},
            resume=self.resume,
            on_record=self._record,
        )

    def _record(self, record: dict[str, Any]) -> None:
        self.begun = True
        self.watch.record(record)

    def _about(self, path: Path, tokenizer: Tokenizer, splits: AnySplits, model: Model) -> dict[str, Any]:
        data = self.knobs.data
        asked = [splits.train.prompt_and_target(row)[0] for row in choose_rows(splits.train, 100)]
        prompts = [tokenizer.decode(ids, skip_special=False) for ids in asked]
        # A local model is found again from any folder; a short name or a Hub name stays what it is.
        name = self.knobs.model.name
        base = str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else name
        return {
            "base": base,
            "revision": self.knobs.model.revision,
            "base_fingerprint": fingerprint(path),
            "base_dtype": self.result["model"]["dtype"],
            "base_compute": self.result["model"]["compute"],
            "template": data.template,
            "system": data.system,
            "prefix": shared_prefix(self.objective, prompts, tokenizer, data.template, data.system),
            **head_metadata(model),
        }

    def _identity(self, splits: AnySplits, tokenizer: Tokenizer) -> dict[str, Any]:
        """What a resumed run must have in common with the run that it continues."""
        return {
            "train rows": splits.train.fingerprint,
            "validation rows": splits.validation.fingerprint,
            "model": self.result["model"]["fingerprint"],
            "model.dtype": self.result["model"]["dtype"],
            "model.compute": self.result["model"]["compute"],
            "tokenizer": tokenizer.fingerprint,
            "method": {"name": self.method.name, **self.method.model_dump(mode="json")},
            "train": self.knobs.train.model_dump(mode="json"),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _after(
        self, path: Path, form: NumberFormat, tokenizer: Tokenizer, rows: list[int], before: Measured, splits: AnySplits
    ) -> None:
        """Open what was saved as a stranger would, compare it with what was trained, and measure it."""
        folder, held_out = self.folder / "adapter", splits.test or splits.validation
        if self.method.whole_model:
            model = load_model(folder, form)
        else:
            model = self._open(path, form)
            attach_saved_adapter(model, self.method, folder, read_method(folder)[1])
        probes, trained = read_probe(self.folder)
        saved = probe_logits(self.objective, model, probes)
        after = self._measure(model, tokenizer, held_out, rows, "tuned model")
        del model
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
        self.result["checks"] += [
            difference_check("saved = trained", trained, saved, 0.0),
            *merge_checks(
                self.objective, path, self.method, self.folder, form, self.result["model"]["parameters"], probes, saved
            ),
        ]

    def _finish(self) -> Run:
        self.result["seconds"] = time.time() - self.started
        self._write()
        write_report(self.folder)
        return Run(self.folder, self.result)

    def fail(self, error: BaseException) -> None:
        """Keep what is known of a run that failed."""
        if self.resume and not self.begun:
            return  # what stands there is of more worth than that it could not be continued
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
    path = find_run(Path(folder))
    knobs = build(RunKnobs, read_yaml(path / "run.yaml"), where=str(path / "run.yaml"))
    here = knobs.model_copy(update={"name": path.name, "runs": str(path.parent)})
    return train(knobs=here, resume=True, watch=watch)


def _folder(knobs: RunKnobs, method: Method, resume: bool) -> Path:
    parts = knobs.model.name, method.name, knobs.data.train
    return run_folder(Path(knobs.runs), knobs.name or "", [Path(part).stem for part in parts], again=resume)
