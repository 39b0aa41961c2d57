"""Rows by a name on the Hub: with a stand-in for the package `datasets`, and (slow) with that package itself."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.first_pass import files_of, first_pass
from microplane.data.reading.hub_rows import HubName
from microplane.errors import ConfigError, DataError, MicroplaneWarning
from microplane.objectives.select import NEXT_TOKEN, LabelCandidates


class ClassLabel:
    names = ("bad", "good")

    def str2int(self, name):
        return self.names.index(name)


class Value:
    def __init__(self, dtype):
        self.dtype = dtype


class Image:
    pass


FEATURES = {"text": Value("string"), "label": ClassLabel(), "picture": Image(), "raw": Value("binary")}


class Rows(list):
    features = FEATURES
    split = "train"
    info = SimpleNamespace(splits={"train": SimpleNamespace(num_examples=3)})


ROWS = {
    "train": [("fine", 1), ("awful", 0), ("who knows", -1)],
    "test": [("so so", 0)],
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one data set, whose commit and network can be changed."""
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    state = SimpleNamespace(commit="c0ffee", reachable=True, reads=[])

    def load_dataset(repo, config, split, revision, streaming):
        assert streaming
        state.reads.append((repo, config, split, revision))
        return Rows({"text": text, "label": label, "picture": object(), "raw": b"1"} for text, label in ROWS[split])

    def split_names(repo, config, revision):
        return list(ROWS)

    def dataset_info(self, repo, revision=None):
        if not state.reachable:
            raise OSError("no network")
        return SimpleNamespace(sha=state.commit)

    library = SimpleNamespace(load_dataset=load_dataset, get_dataset_split_names=split_names)
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    return state


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::microplane.errors.MicroplaneWarning")
def test_rows_are_read_once_for_a_commit(hub):
    files = files_of(DataKnobs(train="hf://me/films"))
    assert {name: len(paths) for name, paths in files.items()} == {"train": 1, "test": 1}
    assert read(files["train"][0]) == [
        {"text": "fine", "label": "good"},
        {"text": "awful", "label": "bad"},
        {"text": "who knows", "label": -100},
    ]
    assert files_of(DataKnobs(train="hf://me/films")) == files
    assert len(hub.reads) == 2
    hub.commit = "decaf"
    assert files_of(DataKnobs(train="hf://me/films")) != files


def test_what_is_left_out_is_said(hub):
    with pytest.warns(MicroplaneWarning, match=r"left out.*picture \(Image\), raw \(Value\)"):
        files_of(DataKnobs(train="hf://me/films:train"))


@pytest.mark.filterwarnings("ignore:me/films")
def test_without_a_network_the_last_commit_is_taken_and_said(hub):
    files = files_of(DataKnobs(train="hf://me/films:train"))
    hub.reachable = False
    with pytest.warns(MicroplaneWarning, match="does not answer.*c0ffee"):
        assert files_of(DataKnobs(train="hf://me/films:train")) == files
    with pytest.raises(DataError, match="never read on this machine"):
        files_of(DataKnobs(train="hf://me/others:train"))


@pytest.mark.filterwarnings("ignore:me/films")
def test_each_side_may_be_named(hub):
    files = files_of(DataKnobs(train="hf://me/films@v2/small:train", test="hf://me/films:test"))
    assert len(read(files["test"][0])) == 1
    assert hub.reads == [("me/films", "small", "train", "c0ffee"), ("me/films", None, "test", "c0ffee")]
    with pytest.raises(DataError, match="no such split; there are train, test"):
        files_of(DataKnobs(train="hf://me/films:dev"))


@pytest.mark.parametrize("name", ["hf://films", "hf://me/films:", "hf://me/films/a/b", "hf://me/films:train[:10]"])
def test_other_names_are_refused_with_the_spelling(name):
    with pytest.raises(ConfigError, match="expected hf://org/name"):
        HubName.parse(name)


def test_a_name_is_taken_letter_by_letter():
    names = ["hf://Me/Films", "hf://me/Films@V2/Small:Train"]
    assert [str(HubName.parse(name)) for name in names] == names


def test_the_package_is_asked_for(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'microplane\[hub\]'"):
        files_of(DataKnobs(train="hf://me/films"))


class Sequence:
    def __init__(self, feature):
        self.feature = feature


def serve(monkeypatch, features, splits):
    """Splits by their names instead of the usual rows."""

    class Others(list):
        pass

    Others.features = features

    def load_dataset(repo, config, split, revision, streaming):
        return Others(splits[split])

    names = SimpleNamespace(load_dataset=load_dataset, get_dataset_split_names=lambda *_, revision: list(splits))
    monkeypatch.setitem(sys.modules, "datasets", names)


def test_tags_have_their_names_wherever_they_stand(hub, monkeypatch):
    features = {
        "tokens": Sequence(Value("string")),
        "ner_tags": Sequence(ClassLabel()),
        "pos_tags": [ClassLabel()],
        "parts": Sequence({"tag": ClassLabel(), "at": Value("int32")}),
        "about": {"kind": ClassLabel()},
    }
    row = {"tokens": ["a", "b"], "ner_tags": [1, -1], "pos_tags": [0, 1], "parts": {"tag": [1], "at": [1]}}
    serve(monkeypatch, features, {"train": [row | {"about": {"kind": 0}}, row | {"ner_tags": None, "about": None}]})
    (file,) = files_of(DataKnobs(train="hf://me/words"))["train"]
    first, second = read(file)
    assert first == {
        "tokens": ["a", "b"],
        "ner_tags": ["good", -100],
        "pos_tags": ["bad", "good"],
        "parts": {"tag": ["good"], "at": [1]},
        "about": {"kind": "bad"},
    }
    assert second == first | {"ner_tags": None, "about": None}


def test_a_split_without_labels_and_one_without_a_use_are_told(hub, monkeypatch):
    features = {"text": Value("string"), "label": ClassLabel()}
    known, unknown = [{"text": "x", "label": 1}, {"text": "y", "label": -1}], [{"text": "z", "label": -1}] * 3
    splits = {"train": known, "test": unknown, "validation_matched": known, "validation_other": unknown}
    serve(monkeypatch, features, splits)
    with pytest.warns(MicroplaneWarning) as said:
        files = files_of(DataKnobs(train="hf://me/pairs"))
    assert list(files) == ["train"]
    told = [str(warning.message) for warning in said]
    assert sum("has a label, so that this split is left out" in text for text in told) == 2
    assert any("not used of its splits: validation_matched; one can be named, as in" in text for text in told)
    assert any("data.validation=hf://me/pairs:validation_matched" in text for text in told)
    assert [row["label"] for row in read(files_of(DataKnobs(train="hf://me/pairs:test"))["train"][0])] == [-100] * 3
    serve(monkeypatch, features, {"en": known})
    with pytest.raises(
        DataError, match=r"hf://me/tongues: none of its splits .* there are en\. Name one: .*tongues:en"
    ):
        files_of(DataKnobs(train="hf://me/tongues"))
    serve(monkeypatch, {"text": Value("string")}, {"train": [{"text": "x"}], "test": [{"text": "y"}]})
    assert list(files_of(DataKnobs(train="hf://me/plain"))) == ["train", "test"]


@pytest.mark.filterwarnings("ignore:me/films")
@pytest.mark.parametrize("candidates", [LabelCandidates("classification"), NEXT_TOKEN], ids=["head", "answers"])
def test_rows_without_a_label_among_labelled_ones_are_left_out(hub, candidates):
    knobs = DataKnobs(train="hf://me/films:train")
    found = first_pass(files_of(knobs), knobs, hold_out=False, read_format=candidates.read_format)
    train = found.splits["train"]
    assert (len(train.hashes), train.unlabelled, train.problems.total) == (2, 1, 0)


@pytest.mark.slow
def test_the_package_itself_reads_a_folder(hub, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "datasets")
    pytest.importorskip("datasets", reason="pip install 'microplane[hub]'")
    folder = tmp_path / "me" / "films"
    folder.mkdir(parents=True)
    classes = (
        "dataset_info:\n  features:\n  - {name: text, dtype: string}\n  - name: label\n    dtype:\n      class_label:\n"
    )
    (folder / "README.md").write_text(f"---\n{classes}        names: {{'0': bad, '1': good}}\n---\n")
    (folder / "train.csv").write_text("text,label\nfine,1\nawful,0\n")
    (folder / "test.csv").write_text("text,label\nso so,0\n")
    monkeypatch.chdir(tmp_path)
    files = files_of(DataKnobs(train="hf://me/films"))
    assert read(files["train"][0]) == [{"text": "fine", "label": "good"}, {"text": "awful", "label": "bad"}]
    assert read(files["test"][0]) == [{"text": "so so", "label": "bad"}]
