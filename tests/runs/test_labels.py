"""Task heads through the whole job: rows with labels in, a head beside an adapter or in a model out, opened again."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest

import microplane
from microplane.errors import ConfigError
from tests import labels as rows
from tests.cases import some
from tests.labels import encoder_folder, write
from tests.resuming import assert_killed_it_goes_on_to_the_same_bytes
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import ENCODER_CONFIGS, save_tiny_folder

SET = {
    "train.steps": 40,
    "train.lr": 1e-2,
    "train.eval_every": 20,
    "train.threads": 1,
    "train.patience": 0,
    "model.dtype": "float32",
    "eval.rows": 4,
}
METHODS = {"lora": 1e-2, "full": 3e-3}


def train(model: Path, data: Path, method: str = "lora", **changes):
    sets = SET | {"runs": str(data.parent / "runs"), "train.lr": METHODS.get(method, 1e-2)} | changes
    return microplane.train(str(model), str(data), method=method, set=sets)


def sound(run) -> None:
    assert run.result["status"] == "success"
    assert run.metrics["after"]["loss"] < run.metrics["before"]["loss"]
    assert all(check["passed"] in (True, None) for check in run.result["checks"]), run.result["checks"]


@pytest.mark.parametrize(
    ("family", "method"),
    some(
        [(family, method) for family in ENCODER_CONFIGS for method in METHODS],
        [("bert", "full"), *((family, "lora") for family in ENCODER_CONFIGS)],
    ),
)
def test_an_encoder_learns_classes_and_is_opened_again(family, method, tmp_path):
    run = train(encoder_folder(tmp_path / "model", family), write(tmp_path / "data.jsonl", rows.reviews()), method)
    sound(run)
    assert set(run.metrics["after"]) == {"loss", "accuracy", "macro_f1"}
    assert run.metrics["after"]["accuracy"] > 0.9
    by_class = run.metrics["by_class"]
    assert list(by_class["classes"]) == ["negative", "positive"]
    assert sum(map(sum, by_class["confusion"])) == run.result["data"]["validation_rows"]
    assert all(scores["f1"] > 0.8 for scores in by_class["classes"].values())
    said = run.load().classify(["the red film is good", "the blue plot is bad"])
    assert [one.label for one in said] == ["positive", "negative"]
    for one in said:
        assert set(one.probabilities) == {"positive", "negative"}
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.probabilities[one.label] == max(one.probabilities.values())


def test_several_classes_at_once(tmp_path):
    run = train(
        encoder_folder(tmp_path / "model"),
        write(tmp_path / "data.jsonl", rows.multilabel()),
        "full",
        **{"train.steps": 100},
    )
    sound(run)
    assert run.metrics["after"]["micro_f1"] > 0.9
    none, two = run.load().classify(["a film 3", "a red blue film 5"])
    assert (none.labels, two.labels) == ((), ("blue", "red"))
    assert all(0 < chance < 1 for chance in two.probabilities.values())
    assert str(none).startswith("(none)  (")


def test_numbers(tmp_path):
    run = train(
        encoder_folder(tmp_path / "model"),
        write(tmp_path / "data.jsonl", rows.scores()),
        "full",
        **{"train.steps": 100},
    )
    sound(run)
    assert set(run.metrics["after"]) == {"loss", "rmse", "pearson", "spearman"}
    assert run.metrics["after"]["pearson"] > 0.8
    low, high = run.load().classify(["it is good 4", "it is good good good 4"])
    assert low.values[0] < high.values[0]
    assert low.probabilities is None


def test_a_class_for_each_word(tmp_path):
    run = train(
        encoder_folder(tmp_path / "model"), write(tmp_path / "data.jsonl", rows.tags()), "full", **{"train.steps": 60}
    )
    sound(run)
    assert run.metrics["after"]["accuracy"] > 0.9
    said = run.load().classify(["the  green actor xyz 5"])[0]  # xyz is three tokens, of which the first speaks
    assert [(word, one.label) for word, one in said.words] == [
        ("the", "O"), ("green", "COLOUR"), ("actor", "THING"), ("xyz", "O"), ("5", "NUMBER"),
    ]  # fmt: skip
    assert str(said) == "the/O green/COLOUR actor/THING xyz/O 5/NUMBER"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_two_texts_that_belong_together(family, tmp_path):
    model = encoder_folder(tmp_path / "model", family, type_vocab_size=2 if family == "bert" else 1)
    run = train(model, write(tmp_path / "data.jsonl", rows.pairs()), "full", **{"train.steps": 100})
    sound(run)
    loaded = run.load()
    said = loaded.classify([("the film is bad 1", "it was good"), ("the film is good 1", "it was bad")])
    assert [one.label for one in said] == ["yes", "no"]
    assert run.result["data"]["format"] == "classification (premise + hypothesis -> label)"


@pytest.mark.parametrize(
    ("kind", "method"),
    some(
        [(kind, method) for kind in ("decoder", "t5-last", "t5-mean") for method in METHODS],
        [("decoder", "full"), ("t5-mean", "lora")],
    ),
)
def test_models_that_write_take_heads_too(kind, method, tmp_path):
    model = save_tiny_folder(tmp_path / "model") if kind == "decoder" else pair_folder(tmp_path / "model")
    changes = {"data.task": "classification", "model.pooling": "auto" if kind == "decoder" else kind[3:]}
    run = train(model, write(tmp_path / "data.jsonl", rows.reviews()), method, **changes)
    sound(run)
    loaded = run.load()
    assert loaded.objective.name == "classification"
    assert {one.label for one in loaded.classify(["the red film is good 1", "a"])} <= {"positive", "negative"}


@pytest.mark.parametrize("method", list(METHODS))
def test_a_killed_run_goes_on_to_the_same_bytes(method, tmp_path, monkeypatch):
    model = encoder_folder(tmp_path / "model", hidden_dropout_prob=0.2)
    data = write(tmp_path / "data.jsonl", rows.reviews())

    def begin(name):
        return train(model, data, method, name=name, **{"train.eval_every": 8})

    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert_killed_it_goes_on_to_the_same_bytes(begin, weights, monkeypatch)


def test_class_weights_train_and_choose_and_the_figures_are_without_them(tmp_path):
    """Where the text says nothing, what is said follows the weights."""
    draw = random.Random(0)
    made = [{"text": f"the film {n}", "label": "rare" if draw.random() < 0.1 else "common"} for n in range(200)]
    data, model = write(tmp_path / "data.jsonl", made), encoder_folder(tmp_path / "model")
    said = {}
    for name, weights in {"plain": "none", "weighted": {"rare": 30.0}, "balanced": "balanced"}.items():
        changes = {"train.steps": 60, "train.batch_size": 40, "name": name, "train.class_weights": weights}
        run = train(model, data, "head-only", **changes)
        said[name] = run.load().classify(["the film 1"])[0].probabilities["rare"]
        scores = run.metrics["after"]["loss"], run.result["train"]["validation_loss"]
        assert (scores[0] == pytest.approx(scores[1])) == (name == "plain")
    assert said["plain"] < 0.2 < said["balanced"] < said["weighted"]
    assert said["balanced"] == pytest.approx(0.5, abs=0.15)
    with pytest.raises(ConfigError, match=r"train\.class_weights: there is no class 'rar'\. Did you mean 'rare'\?"):
        train(model, data, "head-only", **{"train.class_weights": {"rar": 2}})


def test_gaps_and_rare_classes_from_the_file_to_the_figures(tmp_path):
    """Multi-hot rows with names from nowhere, tags of entities with gaps, and a class of two rows."""
    made = [row | {"label": "odd" if n in (3, 40) else row["label"]} for n, row in enumerate(rows.reviews())]
    run = train(encoder_folder(tmp_path / "model"), write(tmp_path / "rare.jsonl", made), **{"train.steps": 2})
    counts = run.result["data"]["label_counts"]
    assert counts["train"]["odd"] == counts["validation"]["odd"] == 1
    assert run.metrics["by_class"]["classes"]["odd"]["rows"] == 1
    entities = {"O": "O", "COLOUR": "B-colour", "THING": "I-colour", "NUMBER": -100}
    made = [row | {"tags": [entities[tag] for tag in row["tags"]]} for row in rows.tags()]
    run = train(tmp_path / "model", write(tmp_path / "tags.jsonl", made), "full", name="tags", **{"train.steps": 60})
    assert run.result["data"]["labels"] == ["B-colour", "I-colour", "O"]
    assert run.metrics["after"]["entity_f1"] > 0.9
    assert run.metrics["by_class"]["entities"]["colour"]["rows"] == run.result["data"]["validation_rows"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    data = write(folder / "data.jsonl", rows.reviews())
    return train(encoder_folder(folder / "model"), data, "full"), data


def microplane_command(capsys, *arguments: str) -> str:
    from microplane.cli.app import app

    app(list(arguments), standalone_mode=False)
    return capsys.readouterr().out


def test_generate_gives_the_label_and_its_probability(done, capsys):
    run, _ = done
    said = microplane_command(capsys, "generate", str(run.folder), "the red film is good 1", "--dtype", "float32")
    assert said.startswith("positive  (positive ")
    assert "%, negative " in said
    two = microplane_command(
        capsys, "generate", str(run.folder), "the red film is good 1", "a plot is bad\tit is bad 3"
    )
    assert two.startswith("> the red film is good 1\npositive  (")
    assert "\n> a plot is bad\tit is bad 3\n" in two


def test_a_conversation_with_a_task_head_is_labels_line_by_line(done, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the red film is good 1\n/new\nthe red film is bad 2\n/quit\n"))
    said = microplane_command(capsys, "generate", str(done[0].folder), "-i").splitlines()
    assert [line.split()[0] for line in said] == ["positive", "negative"]


def test_eval_measures_labels(done, capsys, tmp_path):
    run, data = done
    said = microplane_command(
        capsys, "eval", str(run.folder), str(data), "--json", "--out", str(tmp_path / "out.jsonl")
    )
    assert json.loads(said)["accuracy"] > 0.9
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["answer"] in ("positive", "negative")


def test_eval_cuts_rows_as_the_run_did_and_never_above_the_context(tmp_path):
    from microplane.config.build import assemble
    from microplane.runs.evaluate import measure_file

    words = {"good": "the film is good " * 30, "bad": "the film is bad " * 30}
    made = [{"text": f"{n} {words['good' if n % 2 else 'bad']}", "label": n % 2} for n in range(40)]
    data, held = write(tmp_path / "a.jsonl", made[:30]), write(tmp_path / "b.jsonl", made[30:])
    model = encoder_folder(tmp_path / "model", max_position_embeddings=64)
    for length in (1024, 24):
        sets = {"data.validation": str(held), "data.max_length": length, "name": f"of {length}", "train.steps": 8}
        run = train(model, data, "full", **sets)
        given = {"model.name": str(run.folder), "data.train": str(held), "model.dtype": "float32"}
        assert measure_file(assemble(given=given))["scores"] == run.metrics["after"]
    other = measure_file(assemble(given=given | {"data.max_length": 16}))["scores"]
    assert other["loss"] != run.metrics["after"]["loss"]


def test_embeddings_have_length_one_and_come_as_json_lines(done, capsys):
    model = str(done[0].folder.parent.parent / "model")
    said = microplane_command(capsys, "embed", model, "the red film", "the red film", "bad", "--dtype", "float32")
    one, same, other = (json.loads(line) for line in said.splitlines())
    assert one["text"] == "the red film"
    assert sum(x * x for x in one["embedding"]) == pytest.approx(1, abs=1e-5)
    assert one == same != other
    cls = microplane.load(model, "float32").embed(["the red film"], pooling="cls")
    assert cls.shape == (1, 32)
    assert cls[0].tolist() != pytest.approx(one["embedding"], abs=1e-3)


def test_what_cannot_be_labelled_or_embedded_is_refused(done, capsys, tmp_path, monkeypatch):
    model = done[0].folder.parent.parent / "model"
    with pytest.raises(ConfigError, match="this BertModel has no task head, so it has no labels to give: train one on"):
        microplane.load(model).classify(["a"])
    with pytest.raises(ConfigError, match="pooling = 'max': possible are cls, mean, last"):
        microplane.load(model).embed(["a"], pooling="max")
    with pytest.raises(microplane.errors.DataError, match="the text ' ' is empty"):
        microplane.load(done[0].folder).classify([" "])
    with pytest.raises(ConfigError, match=r"has no task head, so it says nothing of labels yet"):
        microplane_command(capsys, "eval", str(model), str(done[1]))
    for ask in (lambda asked: asked.prompt("a"), lambda asked: asked.generate("a"), lambda asked: asked.answers([])):
        with pytest.raises(microplane.errors.ModelError, match="BertModel is an encoder and writes no text"):
            ask(microplane.load(model))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="there is no text"):
        microplane_command(capsys, "embed", str(model))
