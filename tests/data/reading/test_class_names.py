"""Classes that a Parquet file of the package `datasets` holds as numbers, and names beside its columns."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.first_pass import files_of, first_pass
from microplane.data.reading.class_names import class_columns
from microplane.data.reading.read import read_rows
from microplane.objectives.select import LabelCandidates


def class_label(*names):
    return {"names": list(names), "_type": "ClassLabel"}


def write(path, columns, features):
    table = pa.table(columns)
    metadata = features if isinstance(features, bytes) else json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
    return path


def values(path, keys=()):
    return [row.values for row in read_rows(path, keys)]


def test_a_label_is_the_same_in_files_that_number_it_differently(tmp_path):
    for split, names, numbers in [("train", "abc", [0, 1, 2, 1]), ("test", "ac", [1, 0])]:
        texts = [f"{split} text {number}" for number in range(len(numbers))]
        write(tmp_path / f"{split}.parquet", {"text": texts, "label": numbers}, {"label": class_label(*names)})
    assert [row["label"] for row in values(tmp_path / "train.parquet")] == ["a", "b", "c", "b"]
    assert [row["label"] for row in values(tmp_path / "test.parquet")] == ["c", "a"]
    knobs = DataKnobs(train=str(tmp_path))
    found = first_pass(
        files_of(knobs), knobs, hold_out=False, read_format=LabelCandidates("classification").read_format
    )
    assert found.splits["test"].problems.total == 0
    assert len(found.splits["test"].hashes) == 2


def test_classes_in_lists_and_objects_have_names_and_all_else_stays(tmp_path):
    value = {"dtype": "int64", "_type": "Value"}
    tags = class_label("O", "B-PER")
    columns = {
        "words": [["in", "Oslo"]],
        "tags": [[0, 1]],
        "old": [[1, 0]],
        "both": [{"kind": 1, "size": 1}],
        "many": [{"kind": [0, 1], "size": [0, 1]}],
        "size": [1],
    }
    features = {
        "words": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        "tags": {"feature": tags, "_type": "List"},
        "old": [tags],
        "both": {"kind": tags, "size": value},
        "many": {"feature": {"kind": tags, "size": value}, "_type": "Sequence"},
        "size": value,
    }
    assert values(write(tmp_path / "a.parquet", columns, features)) == [
        {
            "words": ["in", "Oslo"],
            "tags": ["O", "B-PER"],
            "old": ["B-PER", "O"],
            "both": {"kind": "B-PER", "size": 1},
            "many": {"kind": ["O", "B-PER"], "size": [0, 1]},
            "size": 1,
        }
    ]


def test_a_row_without_a_class_has_no_label_and_one_without_a_name_is_a_bad_row(tmp_path):
    columns = {"text": list("wxyz"), "label": [1, -1, None, 2]}
    file = write(tmp_path / "a.parquet", columns, {"label": class_label("bad", "good")})
    *rows, bad = read_rows(file)
    assert [row.values["label"] for row in rows] == ["good", -100, None]
    told = "key 'label' is 2, and the file names 2 classes"
    assert (bad.line, bad.values, bad.problem.message) == (4, None, told)
    assert values(file, ["text"]) == [{"text": letter} for letter in "wxyz"]


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"no JSON",
        b"\xff",
        b"[]",
        b'{"info": null}',
        b'{"info": {"features": [1]}}',
        b'{"info": {"features": {"label": "int64"}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}',
    ],
)
def test_metadata_of_another_form_leave_the_numbers(tmp_path, metadata):
    assert values(write(tmp_path / "a.parquet", {"label": [1]}, metadata)) == [{"label": 1}]
    assert class_columns(None) == {}


@pytest.mark.slow
def test_the_package_itself_writes_such_files(tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install 'microplane[hub]'")
    rows = {"text": list("vwxyz"), "label": ["sad", "glad", "angry", "glad", "sad"]}
    train = datasets.Dataset.from_dict(rows)
    both = datasets.DatasetDict(train=train, test=train.filter(lambda row: row["label"] != "angry"))
    for split, part in both.class_encode_column("label").items():
        part.to_parquet(tmp_path / f"{split}.parquet")
    assert pq.read_table(tmp_path / "test.parquet")["label"].to_pylist() == [1, 0, 0, 1]
    assert values(tmp_path / "train.parquet") == train.to_list()
    assert [row["label"] for row in values(tmp_path / "test.parquet")] == ["sad", "glad", "glad", "sad"]
