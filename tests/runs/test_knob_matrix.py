"""Every knob of a run does something, or is refused: none is ignored in silence.

Each knob is changed from its default on a tiny run. Its value comes from its own declaration, so a new knob is tested
from its first day; the table holds those that need another value, another model or a partner. What is refused is tried
with the checks taken out, too: then the run must come out the same, or the refusal would be wrong.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch

import microplane
from microplane.config.build import build, fields, place, read_yaml
from microplane.config.knobs import EvalKnobs, GenerateKnobs, RunKnobs, TrainKnobs
from microplane.data.progress import Silent
from microplane.errors import ConfigError, DataError, ModelError
from microplane.files import cache_dir
from microplane.inference.pipeline import Pipeline
from microplane.nn.ops import native
from microplane.nn.quantised import Int8Linear
from microplane.runs import prepare as prepare_module
from microplane.runs import train as run_module
from microplane.runs.evaluate import measure_file
from microplane.runs.trackers import TRACKERS
from microplane.training import activation_checkpointing
from tests.knob_values import NoValueError, another
from tests.labels import encoder_folder, reviews, tags, write
from tests.languages import translation_folder
from tests.runs.test_seq2seq import pair_folder, shout
from tests.tiny import SHALLOW, save_tiny_folder

DERIVED: Any = object()


@dataclass(frozen=True)
class Case:
    """How a knob is tried: its value, the tiny run, and what else is set with the knob and without it."""

    value: Any = DERIVED  # from the declaration
    where: str = "decoder"
    beside: dict[str, Any] = field(default_factory=dict)


FULL, HEAD_ONLY = {"method.name": "full"}, {"method.name": "head-only"}

CASES = {
    "name": Case("other"),
    "runs": Case("elsewhere"),
    "track": Case(("tensorboard",)),
    "model.name": Case("other-model"),
    "model.dtype": Case("int8"),
    "model.compute": Case("int8", beside={"model.dtype": "int8"}),
    "model.cache_dequantised": Case(beside={"model.dtype": "int8", "model.compute": "float32"}),
    "model.init": Case(beside={"train.seed": 1}),
    "model.pooling": Case("mean", where="encoder"),
    "method": Case({"name": "ia3"}),
    "data.train": Case("other.jsonl"),
    "data.validation": Case("other.jsonl"),
    "data.test": Case("other.jsonl"),
    "data.format": Case("text"),
    "data.fields": Case({"prompt": "completion", "completion": "prompt"}),
    "data.template": Case("plain"),
    "data.system": Case("Be brief."),
    "data.max_length": Case(24),
    "data.max_target_length": Case(2, where="pairs"),
    "data.max_unknown": Case(0.0, where="encoder"),
    "data.source_language": Case("fra_Latn", where="translation"),
    "data.target_language": Case("vie_Latn", where="translation"),
    "data.unicode": Case("as-is", where="marks apart"),
    "data.segment": Case("vi", where="words"),
    "data.date": Case("2001-02-03", where="dated"),
    "data.task": Case("classification", where="text/label"),
    "data.no_label": Case(("O",), where="tags"),
    "data.long_rows": Case("windows", where="encoder", beside={"data.max_length": 8}),
    "data.objective": Case("prefix_lm", where="denoising", beside={"data.max_length": 40}),
    "data.validation_share": Case(0.5),
    "data.validation_rows": Case(1, beside={"data.validation_share": 0.5}),
    "data.limit": Case(8),
    "data.skip_bad_rows": Case(where="bad rows"),
    "train.micro_tokens": Case(40),
    "train.epochs": Case(2.0),
    "train.on_divergence": Case(
        "lower_lr", beside={"train.lr": 1e4, "train.eval_every": 1, "train.epochs": 3.0, **FULL}
    ),
    "train.lr": Case(1e-3),
    "train.warmup": Case(2),
    "train.scale_parameter": Case(beside={"method.name": "full", "train.optimizer": "adafactor", "train.lr": 1e-3}),
    "train.betas": Case((0.5, 0.9)),
    "train.clip": Case(0.01),
    "train.class_weights": Case({"positive": 3.0}, where="encoder"),
    "train.threads": Case(2),
    "train.eval_every": Case(4),
    "train.patience": Case(1, beside={"train.lr": 1.0, "train.eval_every": 1, "train.epochs": 3, **FULL}),
    "train.save_every": Case(1, beside={"train.eval_every": 100}),
    "train.recompute": Case("blocks"),
    "train.feature_cache": Case(where="encoder", beside={"method.name": "head-only", "train.epochs": 3}),
    "train.layer_decay": Case(beside={"method.name": "full"}),
    "train.unfreeze_every": Case(beside={"method.name": "full"}),
    "eval.metrics": Case(("chrf",)),
    "eval.rows": Case(1),
    "eval.general": Case("default"),
    "eval.speed": Case(),
    "eval.shots": Case(1, beside={"eval.max_new_tokens": 3}),
}
ELSEWHERE = {  # only a Hub has any: tests/models/files/test_hub.py; another run: test_edges.py
    "eval.batch_tokens",  # bounds batches that are small here, for there are ten at least: test_evaluate.py
    "model.revision",
    "model.adapter",
    "train.deterministic",  # a CPU gives the same bits without it: test_stages.py
    "train.shard",  # needs several processes: tests/training/test_ranks.py, test_sharding.py
    "model.device",  # a machine has one, or a pretended one: tests/devices
}

MORE = [  # the other choices of a knob of which the first is in the table
    ("train.recompute", Case("cheap")),
    ("train.optimizer", Case("adafactor", beside={"method.name": "full", "train.lr": 1e-3})),
    ("train.optimizer", Case("adamw_8bit", beside={"method.name": "full", "train.lr": 1e-3})),
    ("train.layer_decay", Case(0.5, "encoder", {"method.name": "last-n", "method.n": 1})),
    ("eval.rows", Case(1, "encoder")),
    ("data.limit", Case(8, "encoder")),
]

REFUSED: list[tuple[str, dict[str, Any], str, Any]] = [  # the run, what is set beside, the knob, its value
    ("decoder", {}, "model.pooling", "mean"),
    ("decoder", {}, "data.max_target_length", 2),
    ("decoder", {}, "data.no_label", ("a",)),
    ("decoder", {}, "data.long_rows", "windows"),
    ("decoder", {}, "data.segment", "vi"),
    ("decoder", {}, "data.date", "2001-02-03"),
    ("decoder", {}, "train.class_weights", "balanced"),
    ("decoder", {"data.validation": "other.jsonl"}, "data.validation_share", 0.5),
    ("decoder", {"data.validation": "other.jsonl"}, "data.validation_rows", 1),
    ("decoder", {"train.optimizer": "adafactor"}, "train.betas", (0.5, 0.9)),
    ("decoder", {"train.optimizer": "adafactor"}, "train.eps", 1e-2),
    ("decoder", {"method.name": "ia3"}, "train.weight_decay", 0.5),
    ("decoder", {"data.format": "text"}, "data.system", "Be brief."),
    ("decoder", {"data.format": "text"}, "data.template", "chat"),
    ("folder", {}, "data.validation_share", 0.5),
    ("pairs", {}, "data.template", "chat"),
    ("denoising", {"data.max_length": 40}, "data.max_target_length", 4),
    ("denoising", {"data.max_length": 40}, "data.system", "Be brief."),
    ("encoder", {}, "data.format", "text"),
    ("encoder", {}, "data.max_target_length", 2),
    ("encoder", {}, "data.template", "chat"),
    ("encoder", {}, "data.system", "Be brief."),
    ("encoder", {}, "train.label_smoothing", 0.5),
    ("encoder", {}, "eval.metrics", ("chrf",)),
    ("encoder", {}, "eval.max_new_tokens", 2),
    ("encoder", {}, "eval.general", "default"),
    ("encoder", {}, "eval.shots", 2),
    ("decoder", {"data.format": "text"}, "eval.shots", 2),
    ("tags", {}, "model.pooling", "cls"),
    ("encoder", HEAD_ONLY, "train.recompute", "blocks"),
    ("encoder", HEAD_ONLY, "train.layer_decay", 0.5),
    ("encoder", HEAD_ONLY, "train.unfreeze_every", 1),
]

UNKNOWN = ("encoder", "tags", "words", "translation")  # where letters are unknown
SETS = {"name": "run", "model.dtype": "float32", "train.lr": 1e-2, "train.eval_every": 3}
RUNS = {  # model and data of each kind of run, as files of the place
    "decoder": ("model", "rows.jsonl"),
    "folder": ("model", "splits"),
    "bad rows": ("model", "bad.jsonl"),
    "marks apart": ("model", "apart.jsonl"),
    "words": ("encoder", "words.jsonl"),
    "dated": ("dated-model", "rows.jsonl"),
    "text/label": ("model", "reviews.jsonl"),
    "pairs": ("pair-model", "data.jsonl"),
    "translation": ("translation-model", "data.jsonl"),
    "denoising": ("pair-model", "text.jsonl"),
    "encoder": ("encoder", "reviews.jsonl"),
    "tags": ("encoder", "tags.jsonl"),
}


def sayings(letters: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"prompt": f"say {letters[n % 7] * 2}", "completion": letters[n % 7], "text": f"{letters[n % 7]} as in {n}"}
        for n in range(24)
    ]


class Place:
    """The files of all runs, and what each run left, computed once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.numbers, self.calls = count(), Counter[str]()
        self.left: dict[str, dict[str, Any]] = {}
        self.folders: dict[str, Path] = {}
        save_tiny_folder(folder / "model", max_position_embeddings=64, **SHALLOW)
        save_tiny_folder(folder / "other-model", intermediate_size=40, **SHALLOW)
        save_tiny_folder(folder / "dated-model", **SHALLOW)
        config = folder / "dated-model" / "tokenizer_config.json"
        told = json.loads(config.read_text())
        template = "{{ strftime_now('%d %b %Y') }}" + told["chat_template"]
        config.write_text(json.dumps(told | {"chat_template": template}))
        pair_folder(folder / "pair-model")
        translation_folder(folder / "translation-model", "nllb")
        config = folder / "translation-model" / "tokenizer_config.json"
        told = json.loads(config.read_text())
        config.write_text(json.dumps(told | {"src_lang": "eng_Latn", "tgt_lang": "fra_Latn"}))
        encoder_folder(folder / "encoder")
        write(folder / "rows.jsonl", sayings("abcdefg"))
        write(folder / "other.jsonl", sayings("hijklmn")[:8])
        write(folder / "apart.jsonl", sayings(["a\u0301", *"bcdefg"]))
        write(folder / "splits" / "train.jsonl", sayings("abcdefg"))
        write(folder / "splits" / "validation.jsonl", sayings("hijklmn")[:8])
        (folder / "bad.jsonl").write_text((folder / "rows.jsonl").read_text() + '{"prompt": 3}\n')
        write(folder / "reviews.jsonl", [row | {"text": f"{row['text']} \u2603"} for row in reviews(24)])
        write(folder / "words.jsonl", [row | {"text": f"{row['text']} uống cà phê"} for row in reviews(24)])
        write(folder / "tags.jsonl", tags(24))
        write(folder / "text.jsonl", [{"text": f"the quick fox number {n} jumps over dogs"} for n in range(20)])
        shout(folder, 24)

    def tracker(self, run: Any) -> MagicMock:
        self.calls.update(["a tracker"])
        return MagicMock(known="a run")

    def knobs(self, where: str, sets: dict[str, Any]) -> RunKnobs:
        """Those of the tiny run with these set; names of files are those of the place."""
        model, data = RUNS[where]
        values: dict[str, Any] = {"data": {"max_unknown": 0.5}} if where in UNKNOWN else {}
        sets = {"model.name": model, "data.train": data, **sets}
        for name in ("model.name", "data.train", "data.validation", "data.test"):
            sets |= {name: str(self.folder / sets[name])} if name in sets else {}
        for name, value in sets.items():
            place(values, name, value)
        return build(RunKnobs, values)

    def run(self, where: str, sets: dict[str, Any]) -> dict[str, Any]:
        """What a run leaves: all that it measured and made, and how often each part of the model worked.

        Not what it was told: run.yaml, the configuration in result.json and in the adapter's files.
        """
        runs = self.folder / f"runs-{next(self.numbers)}"
        sets = sets | {"runs": str(runs / sets.get("runs", "runs"))}
        for kept in ("baseline", "starts"):  # or what is known already would not be measured
            shutil.rmtree(cache_dir() / kept, ignore_errors=True)
        self.calls.clear()
        with patch("microplane.runs.train.prune"):  # or one checkpoint would be left, however many there were
            done = microplane.train(knobs=self.knobs(where, sets))
        self.last = done.folder
        result, adapter = done.result, sorted((done.folder / "adapter").glob("*.safetensors"))
        clock = ("seconds", "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes", "feature_cache")
        facts = ("rows", "tokens", "trained_tokens", "bad")
        return {
            "folder": str(done.folder.relative_to(runs)),
            "log": (done.folder / "metrics.jsonl").read_text(),
            "tensors": {file.name: sha256(file.read_bytes()).hexdigest() for file in adapter},
            "checkpoints": sorted(path.name for path in (done.folder / "resume").iterdir()),
            "metrics": result["metrics"],
            "samples": result["samples"],
            "train": {name: value for name, value in result["train"].items() if name not in clock},
            "data": {name: result["data"][name] for name in facts},
            "trainable": result["method"]["trainable_parameters"],
            "base": result["model"]["base_bytes"],
            "calls": dict(self.calls),
        }

    @staticmethod
    def key(where: str, sets: dict[str, Any]) -> str:
        return json.dumps([where, sets], sort_keys=True)

    def once(self, where: str, sets: dict[str, Any]) -> dict[str, Any]:
        key = self.key(where, sets)
        if key not in self.left:
            self.left[key] = self.run(where, sets)
            self.folders[key] = self.last
        return self.left[key]

    def folder_of(self, where: str, sets: dict[str, Any]) -> Path:
        self.once(where, sets)
        return self.folders[self.key(where, sets)]


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("matrix")
    made = Place(folder)
    native.library()  # found before the cache moves
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROPLANE_CACHE", str(folder / "cache"))
        patch.setattr(run_module, "write_report", lambda folder: None)  # these two see no knob, and take their time
        patch.setattr("microplane.runs.verify._merge", lambda *given: [])
        patch.setitem(TRACKERS, "tensorboard", (made.tracker, ()))
        patch.setattr(torch, "set_num_threads", lambda count: made.calls.update([f"{count} threads"]))
        for owner, name in ((Int8Linear, "dequantise"), (activation_checkpointing, "selective_recompute")):
            patch.setattr(owner, name, counted(made.calls, getattr(owner, name)))
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, given: made.calls.update([type(module).__name__])
        )
        yield made
        hook.remove()


def counted(calls: Counter[str], function: Any) -> Any:
    def call(*given: Any, **named: Any) -> Any:
        calls.update([function.__name__])
        return function(*given, **named)

    return call


def without_knob(name: str, where: str, beside: dict[str, Any]) -> dict[str, Any]:
    """What is set in the run to compare with: all but the knob that is tried."""
    answers = where not in ("encoder", "tags", "words", "text/label")
    short = {"eval.max_new_tokens": 3} if answers else {}
    return {knob: value for knob, value in (SETS | short | beside).items() if knob != name}


KNOBS = dict(fields(RunKnobs))
TRIED = [(name, CASES.get(name, Case())) for name in KNOBS if name not in ELSEWHERE] + MORE


@pytest.mark.parametrize(("name", "case"), TRIED, ids=lambda given: given if isinstance(given, str) else given.where)
def test_a_knob_changes_what_a_run_does(name, case, there):
    beside = without_knob(name, case.where, case.beside)
    value = another(name, KNOBS[name]) if case.value is DERIVED else case.value
    try:
        without: Any = there.once(case.where, beside)
    except DataError as error:
        without = str(error)
    if name == "data.max_unknown":  # a bound: it does nothing until it is reached
        with pytest.raises(DataError, match=r"data\.max_unknown = 0"):
            there.run(case.where, beside | {name: value})
        return
    assert there.run(case.where, beside | {name: value}) != without, f"{name} = {value} is ignored in silence"


def test_a_revision_of_what_is_on_this_machine_is_refused(there):
    with pytest.raises(ModelError, match=r"model\.revision = 'main' is only for Hub names"):
        there.run("decoder", without_knob("", "decoder", {"model.revision": "main"}))


def test_a_new_knob_whose_values_nobody_knows_needs_an_entry():
    class More(TrainKnobs):
        words: tuple[str, ...] = ()

    with pytest.raises(NoValueError, match=r"train\.words: .* give it an entry in the test's table"):
        another("train.words", dict(fields(More))["words"])


def test_the_same_run_leaves_the_same(there):
    """Or the test above would prove nothing."""
    for where in ("decoder", "encoder", "pairs"):
        sets = without_knob("", where, {})
        assert there.run(where, sets) == there.once(where, sets)


@pytest.mark.parametrize(("where", "beside", "name", "value"), REFUSED)
def test_a_knob_that_would_change_nothing_is_refused(where, beside, name, value, there, monkeypatch):
    beside = without_knob(name, where, beside)
    with pytest.raises(ConfigError, match=rf"would change nothing in this run:\n  {name} = "):
        there.run(where, beside | {name: value})
    for check in ("check_knobs_for_data", "check_knobs_for_model"):
        monkeypatch.setattr(prepare_module, check, lambda *given: None)
    monkeypatch.setattr(prepare_module, "check_knobs", lambda *given: [])
    with_it, without = there.run(where, beside | {name: value}), there.once(where, beside)
    if name == "train.recompute":  # it is tried, but nothing of a block is kept, so nothing is won
        with_it = with_it | {"calls": without["calls"]}
    assert with_it == without, f"{name} = {value} does something here; it is refused wrongly"


class Listening(Silent):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


GIVING_WAY = [  # what is set, and the line that says which knob decides
    ({"train.steps": 2, "train.epochs": 2.0}, "train.epochs = 2.0 is not used: train.steps = 2 decides"),
    (
        {"train.batch_tokens": 40, "train.batch_size": 4},
        "train.batch_size = 4 is not used: train.batch_tokens = 40 decides",
    ),
    ({"eval.rows": 0, "eval.metrics": ("chrf",)}, "eval.metrics = ['chrf'] is not used: eval.rows = 0 decides"),
    ({"eval.rows": 0, "eval.max_new_tokens": 2}, "eval.max_new_tokens = 2 is not used: eval.rows = 0 decides"),
]


@pytest.mark.parametrize(("sets", "line"), GIVING_WAY)
def test_it_is_said_which_of_two_knobs_decides(sets, line, there):
    watch = Listening()
    microplane.train(knobs=there.knobs("decoder", SETS | sets | {"name": None, "runs": str(there.folder)}), watch=watch)
    assert line in watch.said


@pytest.mark.parametrize(
    ("where", "value", "why"),
    [
        ("decoder", "prefix_lm", "LlamaForCausalLM learns the next token of plain text"),
        ("pairs", "span_corruption", "these rows are inputs/targets, which are pairs already"),
        ("encoder", "prefix_lm", "rows with labels are trained with a task head"),
    ],
)
def test_an_objective_that_does_not_apply_is_refused(where, value, why, there):
    with pytest.raises(ConfigError, match=rf"data.objective = {value} says .* and {why}"):
        there.run(where, without_knob("data.objective", where, {}) | {"data.objective": value})


def test_all_that_is_wrong_is_said_at_once(there):
    wrong = {"eval.metrics": ("chrf",), "train.label_smoothing": 0.5}
    with pytest.raises(ConfigError) as caught:
        there.run("encoder", without_knob("", "encoder", wrong))
    first, *rest = str(caught.value).splitlines()
    assert first == "These knobs would change nothing in this run:"
    head = "the rows have labels, which a task head learns (classification)"
    assert rest == [
        f"  train.label_smoothing = 0.5: {head}; only the loss of tokens is smoothed. Leave it out",
        f"  eval.metrics = ['chrf']: {head}, and it is measured by all metrics of its task. Leave it at auto",
    ]


def test_a_value_that_says_what_is_so_anyway_is_fine(there):
    """run.yaml of a run with labels has such a template."""
    sets = without_knob("", "encoder", {})
    alike = {"data.template": "plain", "data.system": "", "train.feature_cache": "off", "data.task": "classification"}
    assert there.run("encoder", sets | alike) == there.once("encoder", sets)


@pytest.mark.parametrize("where", [where for where in RUNS if where != "bad rows"])
def test_run_yaml_runs_again_as_it_is(where, there):
    """It holds all knobs, with what was inferred."""
    written = there.folder_of(where, without_knob("", where, {})) / "run.yaml"
    knobs = build(RunKnobs, read_yaml(written)).model_copy(update={"runs": str(there.folder / f"again-{where[:4]}")})
    assert microplane.train(knobs=knobs).result["status"] == "success"


# Generating and measuring


GENERATING = {
    "max_new_tokens": Case(2),
    "top_k": Case(2, beside={"temperature": 1.0}),
    "top_p": Case(0.1, beside={"temperature": 1.0}),
    "min_p": Case(0.9, beside={"temperature": 1.0}),
    "temperature": Case(1.0),
    "repetition_penalty": Case(5.0),
    "beams": Case(4),
    "length_penalty": Case(-20.0, beside={"beams": 4}),
    "seed": Case(beside={"temperature": 1.0}),
}
PROMPTS = ["say aa", "say bb", "say cc, and then all others"]


@pytest.fixture(scope="module")
def writer(there) -> Pipeline:
    return microplane.load(save_tiny_folder(there.folder / "writer", max_position_embeddings=64), "float32")


@pytest.mark.parametrize("name", list(GenerateKnobs.model_fields))
def test_a_knob_changes_what_is_generated(name, writer):
    case = GENERATING.get(name, Case())
    beside = {"max_new_tokens": 12} | case.beside
    before = [answer.text for answer in writer.answers(PROMPTS, GenerateKnobs(**beside))]
    if name == "stop":
        value: Any = (before[0][3],)
    else:
        value = another(name, GenerateKnobs.model_fields[name]) if case.value is DERIVED else case.value
    after = writer.answers(PROMPTS, GenerateKnobs(**beside | {name: value}))
    assert [answer.text for answer in after] != before, f"{name} = {value} is ignored in silence"


IDLE = [
    ({"seed": 3}, "seed = 3 changes nothing with temperature = 0. Set temperature above 0"),
    (
        {"top_k": 3, "beams": 2},
        "top_k = 3 changes nothing with temperature = 0. Set beams to 1 and temperature above 0",
    ),
]


@pytest.mark.parametrize(("knobs", "message"), IDLE)
def test_a_knob_that_would_not_change_what_is_generated_is_refused(knobs, message, writer):
    with pytest.raises(ConfigError) as caught:
        writer.answers(PROMPTS, GenerateKnobs(**knobs))
    assert str(caught.value) == message


def test_a_model_with_a_task_head_generates_nothing(there, capsys):
    from microplane.cli.app import app

    head = str(there.folder / "labelled")
    microplane.train(knobs=there.knobs("encoder", SETS | {"name": "labelled", "runs": str(there.folder)}))
    for option in (["--set", "temperature=1"], ["--system", "Be brief."], ["--no-prefix"]):
        with pytest.raises(ConfigError, match=r"this model has a task head.*would change nothing"):
            app(["generate", head, "the film is good", *option], standalone_mode=False)
    with pytest.raises(ConfigError, match=r"  eval\.metrics = \['chrf'\]: the rows have labels"):
        measure_file(there.knobs("encoder", {"model.name": head, "eval.metrics": ("chrf",)}))
    with pytest.raises(ConfigError, match=r"  data\.task = 'regression': the model's head is for classification"):
        measure_file(there.knobs("encoder", {"model.name": head, "data.task": "regression"}))


OF_TRAINING = {"shots", "speed"}  # what only a run asks; it is said not to be used
MEASURED = [name for name in EvalKnobs.model_fields if f"eval.{name}" not in ELSEWHERE and name not in OF_TRAINING]


@pytest.mark.parametrize("name", MEASURED)
def test_a_knob_changes_how_a_model_is_measured(name, there):
    beside = {"model.dtype": "float32"} | ({} if name == "max_new_tokens" else {"eval.max_new_tokens": 3})
    case = CASES.get(f"eval.{name}", Case())
    value = another(name, EvalKnobs.model_fields[name]) if case.value is DERIVED else case.value
    left = []
    for sets in (beside, beside | {f"eval.{name}": value}):
        there.calls.clear()
        left.append((measure_file(there.knobs("decoder", sets)), dict(there.calls)))
    assert left[0] != left[1], f"eval.{name} = {value} is ignored in silence"


def test_what_a_measurement_does_not_use_is_said(there):
    watch = Listening()
    sets = {"train.steps": 3, "train.epochs": 2.0, "method.name": "ia3", "data.validation_rows": 7, "eval.rows": 2}
    sets |= {"eval.shots": 2, "eval.speed": True}
    measure_file(there.knobs("decoder", sets | {"eval.max_new_tokens": 2}), watch)
    unused = "method, data.validation_rows, train.epochs, train.steps, eval.shots, eval.speed"
    assert f"not used to measure a model: {unused}" in watch.said


def test_what_would_change_nothing_in_a_measurement_is_refused(there):
    with pytest.raises(ConfigError, match=r"  data\.max_target_length = 3: prompt and answer are one row here"):
        measure_file(there.knobs("decoder", {"data.max_target_length": 3}))
