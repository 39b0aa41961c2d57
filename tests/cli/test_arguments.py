"""What is typed arrives where the work is done: arguments and options, as the function behind a command gets them."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from microplane.cli import chat, processes, serve
from microplane.cli.app import app
from microplane.cli.runs import facts
from microplane.cli.terminal import Terminal, clock
from microplane.config.knobs import GenerateKnobs
from microplane.data.reading.example import Message
from microplane.errors import ConfigError
from microplane.forecast import machine
from microplane.inference.generate import Answer
from microplane.report.read import SCHEMA

# Whatever imports `load` is imported before a test patches it: else it would keep what was put in its place.
KEEPERS = (
    *("adapters.convert", "adapters.export", "adapters.merge", "exports.gguf_lora", "exports.source"),
    *("runs.evaluate", "runs.suites", "runs.train", "runs.used_speed", "serving.library"),
)
for module in KEEPERS:
    importlib.import_module(f"microplane.{module}")


class CalledError(Exception):
    """With what a function was called."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__()
        self.given, self.named = given, named


def call(monkeypatch: pytest.MonkeyPatch, function: str, *arguments: str) -> CalledError:
    def called(*given: Any, **named: Any) -> None:
        raise CalledError(*given, **named)

    monkeypatch.setattr(function, called)
    with pytest.raises(CalledError) as found:
        app([*arguments], standalone_mode=False)
    return found.value


PATHS = Path("run"), Path("out")


@pytest.mark.parametrize(
    ("function", "arguments", "given"),
    [
        ("adapters.merge.merge", "merge run out --dtype float16 --base there", (*PATHS, torch.float16, "there")),
        ("adapters.merge.merge", "merge run out", (*PATHS, None, None)),
        ("exports.export.export", "export run out --to onnx --dtype float32 --base there",
         ("run", PATHS[1], "onnx", "float32", "there")),
        ("exports.export.export", "export run out", ("run", PATHS[1], "hf", None, None)),
        ("adapters.convert.convert", "convert run out --rank 5 --base there", (*PATHS, 5, "there")),
        ("exports.push.push", "push run me/name --merged --public --dry-run --message why --base there",
         (PATHS[0], "me/name", True, True, True, "why", "there")),
        ("exports.push.push", "push run me/name", (PATHS[0], "me/name", False, False, False, None, None)),
        ("forecast.machine.measured", "machine --refresh", (True,)),
        ("forecast.machine.measured", "machine", (False,)),
        ("report.page.write_report", "report run", (PATHS[0],)),
        ("comparison.side_by_side.write_side_by_side", "report run out --out page.html",
         ([*PATHS], Path("page.html"))),
    ],
)  # fmt: skip
def test_arguments_stand_in_their_places(monkeypatch, function, arguments, given):
    assert call(monkeypatch, f"microplane.{function}", *arguments.split()).given == given


TRAIN = {
    "--lr": ("train.lr", 0.25), "--epochs": ("train.epochs", 2.5), "--rank": ("method.rank", 4),
    "--batch-size": ("train.batch_size", 5), "--max-length": ("data.max_length", 33), "--seed": ("train.seed", 9),
    "--method": ("method.name", "dora"), "--name": ("name", "mine"), "--track": ("track", ("wandb",)),
}  # fmt: skip


@pytest.mark.parametrize("option", TRAIN)
def test_an_option_of_train_is_its_knob(monkeypatch, option):
    knob, value = TRAIN[option]
    text = value[0] if isinstance(value, tuple) else str(value)
    found = call(monkeypatch, "microplane.runs.train.train", "train", "smollm2", "rows.jsonl", option, text).named
    knobs = found["knobs"]
    assert (knobs.model.name, knobs.data.train) == ("smollm2", "rows.jsonl")
    section, _, name = knob.rpartition(".")
    if section == "method":
        assert knobs.method[name] == value
    else:
        assert getattr(getattr(knobs, section) if section else knobs, name) == value
    assert found["started"] is not None  # the time of a run is the command's


def test_a_run_goes_on_with_what_is_set(monkeypatch):
    arguments = "train", "--resume", "run", "--set", "train.epochs=3"
    folder, _, changes, started = call(monkeypatch, "microplane.runs.train.resume", *arguments).given
    assert (folder, changes) == (PATHS[0], {"train.epochs": 3})
    assert started is not None


LANGUAGES = "--source-language", "eng_Latn", "--target-language", "fra_Latn"


def test_generate_opens_what_it_is_told(monkeypatch):
    more = "--dtype", "int8", "--base", "there", *LANGUAGES
    found = call(monkeypatch, "microplane.inference.pipeline.load", "generate", "run", "hello", *more)
    assert found.given == ("run", "int8")
    assert found.named == {"base": "there", "source_language": "eng_Latn", "target_language": "fra_Latn"}


def test_serve_opens_what_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MICROPLANE_TOKEN", "of the environment")
    (tmp_path / "token").write_text("of the file\n")
    more = "--dtype", "int8", "--device", "cpu", "--base", "there", *LANGUAGES
    limits = "--max-batch", "3", "--queue", "4", "--timeout", "5", "--max-tokens", "6", "--grace", "7"
    where = "--host", "0.0.0.0", "--port", "81", "--adapters", "all"
    found = call(monkeypatch, "microplane.serving.run.serve", "serve", "base", "run", *more, *limits, *where).given
    names, adapters, host, port, token, knobs, library, _ = found
    assert (names, adapters, host, port, token) == (["base", "run"], Path("all"), "0.0.0.0", 81, "of the environment")
    assert (knobs.max_batch, knobs.queue, knobs.timeout, knobs.max_tokens, knobs.grace) == (3, 4, 5, 6, 7)
    assert (library.dtype, library.device, library.base) == ("int8", "cpu", "there")
    assert library.languages == ("eng_Latn", "fra_Latn")
    assert serve._token(tmp_path / "token") == "of the file"


def test_embed_pools_as_it_is_told(monkeypatch):
    seen = []

    def embed(texts, pooling):
        seen.append((texts, pooling))
        return torch.ones(1, 2)

    monkeypatch.setattr(
        "microplane.inference.pipeline.load", lambda *how, **more: SimpleNamespace(embed=embed, pairs=True)
    )
    app(["embed", "minilm", "a\tb", "--pooling", "cls"], standalone_mode=False)
    assert seen == [([("a", "b")], "cls")]


def test_a_comparison_is_forecast_with_its_seeds(monkeypatch):
    arguments = "compare", "minilm", "rows.csv", "--seeds", "5", "--dry-run", "--quiet"
    found = call(monkeypatch, "microplane.comparison.compare.forecast", *arguments)
    assert (found.given, found.named["seeds"]) == (("minilm", "rows.csv"), 5)


def test_suites_are_asked_as_they_are_told(monkeypatch):
    monkeypatch.setattr("microplane.inference.pipeline.load", lambda *how, **more: how)
    arguments = "--suite", "one,two", "--suite-folder", "own", "--limit", "7", "--shots", "2", "--chat", "--quiet"
    found = call(monkeypatch, "microplane.runs.suites.evaluate_suites", "eval", "run", *arguments)
    assert found.given[1] == ["one", "two"]
    assert found.named == {"folder": Path("own"), "limit": 7, "shots": 2, "chat": True, "watch": None}


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_a_check_that_finds_something_wrong_ends_with_1(monkeypatch, ok, code):
    found = SimpleNamespace(ok=ok, samples=[], to_dict=lambda: {"ok": ok})
    monkeypatch.setattr("microplane.runs.check.check", lambda **how: found)
    done = CliRunner().invoke(app, ["check", "smollm2", "rows.jsonl", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (code, {"ok": ok})


def test_rates_are_measured_anew_where_that_is_asked(monkeypatch):
    asked = []

    def measured(refresh=False):
        asked.append(refresh)
        return machine.Rates(1e9, 1e9, None, 1e9, 1e-6)

    monkeypatch.setattr(machine, "measured", measured)
    for more in ([], ["--refresh"]):
        app(["machine", "--json", *more], standalone_mode=False)
    assert asked == [False, True]


# Conversations


class Loaded:
    """Answers with the number of the messages."""

    objective, pairs = SimpleNamespace(needs_head=False), True
    frame: Any = ("before", "behind")
    model = SimpleNamespace(task_head=None)

    def __init__(self):
        self.seen, self.prefix, self.system = [], "As JSON: ", None

    def asked(self, text):
        return Message("user", self.prefix + text)

    def answers(self, prompts, knobs, on_text=None):
        for messages in prompts:
            if messages[-1].content.endswith("too long"):
                raise ConfigError("no room")
            self.seen.append([message.content for message in messages])
        return [Answer([], str(len(messages)), True) for messages in prompts]


def test_a_conversation_is_kept_until_another_begins(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\ntoo long\n\nc\n/new\nd\n/quit\ne\n"))
    loaded = Loaded()
    chat.chat(loaded, GenerateKnobs())
    assert loaded.seen == [
        ["As JSON: a"], ["As JSON: a", "1", "b"], ["As JSON: a", "1", "b", "3", "c"], ["As JSON: d"],
    ]  # fmt: skip
    assert capsys.readouterr().out.count("error: no room") == 1


def test_without_the_prefix_text_is_asked_as_it_stands():
    loaded = Loaded()
    chat.ask_as_told(loaded, GenerateKnobs(), None, no_prefix=True)
    assert (loaded.prefix, loaded.frame) == ("", ("", ""))


# What is told


def test_a_run_is_listed_with_what_it_was_before_and_after(tmp_path):
    metrics = {"before": {"loss": 3.0, "accuracy": 0.5}, "after": {"loss": 1.0, "accuracy": 0.75}}
    (tmp_path / "result.json").write_text(json.dumps({"schema": SCHEMA, "status": "success", "metrics": metrics}))
    found = facts(tmp_path)
    assert (found["metric"], found["before"], found["after"]) == ("accuracy", 0.5, 0.75)


def test_a_time_in_hours():
    assert [clock(seconds) for seconds in (59, 61, 3600 + 5 * 60 + 20)] == ["59 s", "1 min 01 s", "1 h 05 min"]


def test_what_was_done_in_an_earlier_sitting_took_no_time_in_this_one(monkeypatch):
    now, out = [100.0], io.StringIO()
    monkeypatch.setattr("microplane.cli.terminal.time", SimpleNamespace(monotonic=lambda: now[0]))
    from rich.console import Console

    show = Terminal(Console(file=out, width=200)).progress("tokenising")
    show(60, 100)
    now[0] += 10
    show(80, 100)
    assert out.getvalue().splitlines()[-1] == "tokenising 80/100  ETA 10 s"


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 1], 1), ([3, 3], 3), ([1, 0], 1), ([0, -9], 137), ([3, 1], 3)]
)
def test_of_several_processes_one_that_failed_is_told(monkeypatch, codes, code):
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    ended = [
        SimpleNamespace(poll=lambda one=one: one, returncode=one, send_signal=lambda number: None) for one in codes
    ]
    assert processes._watch(ended) == code


def test_a_prompt_of_standard_input_ends_with_its_line_alone(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\u2028line\nanother\x85one\x0c\n\nlast"))
    assert chat.read_lines() == ["one\u2028line", "another\x85one\x0c", "last"]
