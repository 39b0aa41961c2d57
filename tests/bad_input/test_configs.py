"""Knobs and command lines that make no sense."""

from __future__ import annotations

import pytest

from tests.bad_input.kit import Case, evaluate, generate, sets, train, train_with, write


def knob(kind: str, assignment: str, *says: str) -> Case:
    return Case(kind, train_with(assignment), says)


def yaml(kind: str, content: str | bytes, *says: str, arguments: tuple[str, ...] = ()) -> Case:
    return Case(kind, ["train", "--config", "c.yaml", *arguments], says, write("c.yaml", content))


def usage(kind: str, *arguments: str, says: tuple[str, ...]) -> Case:
    return Case(kind, list(arguments), says, code=2)


CASES = [
    knob("an unknown knob", "train.lrr=1", "train.lrr", "no such knob", "'train.lr'"),
    knob("a knob of another section", "lr=1", "lr: there is no such knob", "'train.lr'"),
    knob("a knob like no other", "foo.bar=1", "foo: there is no such knob", "microplane knobs"),
    knob("text for a number", "train.epochs=many", "train.epochs = 'many'", "number"),
    knob("a list for a number", "train.lr=[1, 2]", "train.lr = [1, 2]", "number"),
    knob("null for a number", "train.batch_size=null", "train.batch_size = null", "integer"),
    knob("text for a list", "eval.metrics=rouge", "eval.metrics = 'rouge'", "a list, as in [a, b]"),
    knob("a list for text in a file", "data={system: [1]}", "data.system = [1]", "must be text"),
    knob("a truth for a number", "train.lr=true", "train.lr = True", "must be a number, not true or false"),
    knob("a truth in a list of numbers", "train.betas=[true, 0.9]", "train.betas", "must be a number, not true"),
    knob("a truth for a number of a method", "method.rank=True", "method.rank = True", "must be a number"),
    knob("nothing behind the =", "train.lr=", "--set train.lr=", "write null for no value, '' for an empty text"),
    knob("below its bound", "train.lr=-1", "train.lr = -1", "greater than 0"),
    knob("not a number", "train.lr=.nan", "train.lr = nan", "finite"),
    knob("infinity", "train.epochs=.inf", "train.epochs = inf", "finite"),
    knob("a number of 5,000 digits", f"train.seed=0x{'f' * 4200}", "train.seed", "a very long number"),
    knob("betas above one", "train.betas=[0.9, 2]", "train.betas = [0.9, 2]", "below 1"),
    knob("one of a few names", "data.format=alpaca", "data.format = 'alpaca'", "'prompt/completion'", "'messages'"),
    knob("an unknown number format", "model.dtype=float8", "model.dtype = 'float8'", "'bfloat16'"),
    knob("a value for a section", "train=3", "train = 3", "a section"),
    knob("a knob below a knob", "train.lr.x=3", "train.lr.x", "lr = 0.01 is a value"),
    knob("an unknown method", "method=lorra", "'lorra'", "lora, rslora", "full, head-only", "Did you mean 'lora'?"),
    knob("a method that is a list", "method.name=[lora]", "['lora']", "name must be text"),
    knob("an unknown knob of a method", "method.rnak=3", "method.rnak", "'method.rank'"),
    knob("a wrong knob of a method", "method.rank=0", "method.rank = 0", "greater than or equal to 1"),
    knob("an unknown role", "method.targets=[qq]", "'qq'", "down, gate, k, o, q, up, v", "Did you mean 'q'?"),
    knob("no role", "method.targets=[]", "method.targets is empty", "down, gate, k"),
    knob("a head that is tied", "method.targets=[head]", "'head'", "tied to the embedding"),
    knob("an unknown metric", "eval.metrics=[exact]", "'exact'", "Did you mean 'exact_match'?", "rouge"),
    Case(
        "scaled parameters for an adapter",
        train(*sets("train.optimizer=adafactor", "train.scale_parameter=true")),
        ("train.scale_parameter = true", "lora", "train.scale_parameter=false"),
    ),
    Case(
        "scaled parameters for AdamW",
        train(*sets("method={name: full}", "train.scale_parameter=true")),
        ("train.scale_parameter = true", "Adafactor", "train.optimizer=adafactor"),
    ),
    knob("the character 0", 'name="a\\0b"', "name", "without the character 0"),
    knob("bytes that are not UTF-8", "data.system=\udcff", "data.system", "UTF-8"),
    Case(
        "several at once",
        train_with("train.lr=-1", "data.max_length=2", "foo=1"),
        ("These knobs", "train.lr = -1", "data.max_length = 2", "foo: there is no such knob"),
    ),
    Case("--set without =", train("--set", "train.lr"), ("--set train.lr", "name=value")),
    Case("--set without a name", train("--set", "=3"), ("--set =3", "name=value")),
    Case("an unknown method as an option", train("-m", "loar"), ("'loar'", "Did you mean 'lora'?")),
    Case("a name with a slash", train("--name", "a/b"), ("'a/b'", "one folder", "runs=FOLDER")),
    Case("a name of blanks", train("--set", "name='  '"), ("name = '  '", "not the name of one folder")),
    Case("a name that leads out", train("--name", ".."), ("'..'", "one folder")),
    Case("a name that is too long", train("--name", "x" * 300), ("File name too long", "runs=FOLDER")),
    yaml("a list for a configuration", "- a\n- b\n", "c.yaml", "name: value", "['a', 'b']"),
    yaml("text for a configuration", "hello", "c.yaml", "name: value", "'hello'"),
    yaml("broken YAML", "a: [1,\nb: 2", "c.yaml is not YAML", "line 1, column 4"),
    yaml("a Python object in YAML", "a: !!python/object/apply:os.system ['echo']", "c.yaml is not YAML", "os.system"),
    yaml("a damaged value in YAML", "a: !!bool x", "c.yaml is not YAML", "damaged"),
    yaml("brackets without end", "[" * 3000, "c.yaml is not YAML", "nested too deeply"),
    yaml("a section twice", "train: {lr: 1}\ntrain: {seed: 2}\n", "c.yaml is not YAML", "'train' stands there twice"),
    yaml("a knob twice", "train:\n  lr: 1e-3\n  lr: 2e-3\n", "c.yaml is not YAML", "'lr' stands there twice", "line 3"),
    yaml("a configuration within itself", "a: &a [*a]\n", "c.yaml", "a: there is no such knob"),
    yaml("a binary configuration", bytes(range(128, 256)), "c.yaml is not YAML", "0x80"),
    yaml(
        "numbers for names",
        "train:\n  3: 4\n",
        "c.yaml",
        "train.3: there is no such knob",
        arguments=("model", "rows.jsonl"),
    ),
    yaml(
        "a name for a section",
        "model: smollm2\n",
        "model.name cannot be set",
        "'smollm2'",
        arguments=("model", "rows.jsonl"),
    ),
    Case("a missing configuration", ["train", "--config", "no.yaml"], ("no.yaml", "No such file")),
    Case("a folder as configuration", ["train", "--config", "model"], ("model", "Is a directory")),
    Case("data as configuration", ["train", "--config", "rows.jsonl"], ("rows.jsonl is not YAML", "line 2")),
    Case("an unknown section to list", ["knobs", "zzz"], ("'zzz'", "train", "generate")),
    Case("an unknown language", ["demo", "--lang", "de"], ("--lang de", "en, fr, vi")),
    Case("an unknown knob of eval", evaluate("--set", "eval.row=3"), ("eval.row", "'eval.rows'")),
    Case("an unknown metric of eval", evaluate("--set", "eval.metrics=[x]"), ("'x'", "rouge")),
    Case("an unknown knob of generate", generate("hi", "--set", "temprature=1"), ("temprature", "'temperature'")),
    usage("an unknown option", "train", "--foo", says=("--foo", "microplane train --help")),
    usage("a knob as an option", "train", "--clip", "3", says=("--clip", "--set train.clip=VALUE")),
    usage("a knob as an option, with hyphens", "train", "--weight-decay", "3", says=("train.weight_decay=VALUE",)),
    usage("an option with an empty value", "train", "model", "rows.jsonl", "--lr", "", says=("behind --lr", "not set")),
    usage("an empty value behind =", "train", "model", "rows.jsonl", "--rank=", says=("nothing stands behind --rank",)),
    usage("a base that is empty", "generate", "model", "hi", "--base", " ", says=("nothing stands behind --base",)),
    usage("a list that is empty", "plan", "model", "--methods", "", says=("nothing stands behind --methods",)),
    usage("an unknown command", "trian", says=("'trian'", "'train'")),
    usage("a missing argument", "merge", says=("Missing argument 'RUN'", "merge --help")),
    usage("an argument too many", "train", "a", "b", "c", says=("(c)", "train --help")),
    usage("an option without its value", "train", "--set", says=("'--set'", "requires an argument")),
    usage("text for a number of rows", "demo", "--rows", "x", says=("'--rows'", "integer")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_knobs(microplane, case):
    microplane.check(case)


def test_without_arguments_there_is_help(microplane):
    code, out, err = microplane.run()
    assert code == 2
    assert "train" in out + err
    assert "Traceback" not in out + err


def test_a_section_whose_lines_are_all_commented_out_is_empty(microplane, here):
    (here / "c.yaml").write_text("name: quiet\ntrain:\n#  lr: 3\n")
    code, _, err = microplane.run(*train("--config", "c.yaml"))
    assert code == 0, err


def test_nothing_is_measured_before_the_method_is_refused(microplane, monkeypatch):
    """On a real model that is minutes."""
    monkeypatch.setattr("microplane.runs.train.measure", lambda *a: pytest.fail("measured"))
    microplane.refuses(*train_with("method.targets=[qq]"))


def test_max_length_beyond_the_context_is_lowered_and_said(microplane):
    code, out, err = microplane.run(*train_with("data.max_length=4096"))
    assert code == 0, err
    assert "data.max_length lowered from 4096 to 128" in out
