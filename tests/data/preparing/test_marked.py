"""One file with a column that says of each row which split it belongs to."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.first_pass import files_of, first_pass
from microplane.data.preparing.load_splits import load_rows
from microplane.data.reading.marked import marks_of
from microplane.errors import DataError
from microplane.objectives.select import NEXT_TOKEN
from tests.tiny import text_splits

NAMES = ["train", "Training", "train", "validation", "dev", " val", "test", "train", "train", "TEST"]
SPLITS = {"train": [0, 1, 2, 7, 8], "validation": [3, 4, 5], "test": [6, 9]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plain(make_tiny):
    return make_tiny(("<s>", "</s>"), eos="</s>", bos="<s>", adds_bos=True)


def marked(names=NAMES, column="split") -> list[dict]:
    return [{"prompt": f"q{n}", "completion": f"a{n}", column: name} for n, name in enumerate(names)]


def write(path, rows):
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(dataset) -> list[int]:
    return [int(dataset.where(row).rpartition(":")[2]) for row in range(len(dataset))]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_rows_are_in_the_split_that_they_name(tmp_path, plain, name):
    splits = text_splits(DataKnobs(train=write(tmp_path / name, marked())), plain)
    first = 2 if name.endswith("csv") else 1
    for split, numbers in SPLITS.items():
        dataset = getattr(splits, split)
        assert lines(dataset) == [number + first for number in numbers]
        assert [plain.decode(dataset.prompt_and_target(row)[1]) for row in range(len(dataset))] == [
            f"a{number}" for number in numbers
        ]
    summary = splits.summary
    assert (summary.split_by, summary.validation_from) == ("split", "file")
    assert summary.format == "prompt/completion (prompt -> completion)"
    assert "rows      train 5, validation 3, test 2 (by the column 'split')" in summary.lines()


def test_without_validation_rows_some_are_split_off_the_training_rows(tmp_path, plain):
    names = ["train"] * 20 + ["test"] * 5
    splits = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", marked(names))), plain)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 2, 5)
    assert max(*lines(splits.train), *lines(splits.validation)) == 20
    assert any("(by the column 'split'; validation split off)" in line for line in splits.summary.lines())


def test_what_is_measured_of_such_a_file_is_its_test_rows(tmp_path, plain):
    knobs = DataKnobs(train=write(tmp_path / "x.jsonl", marked()))
    rows, _, summary = load_rows(knobs, plain, NEXT_TOKEN)
    assert (lines(rows), summary.split_by) == ([7, 10], "split")
    assert len(text_splits(knobs, plain).train) == 5  # what was read before is not taken for it
    given = DataKnobs(train=write(tmp_path / "y.jsonl", marked(["train"] * 9)), test=knobs.train)
    assert lines(text_splits(given, plain).test) == [7, 10]


@pytest.mark.parametrize(
    "names",
    [
        ["train"] * 10,  # one split alone
        ["test", "validation"] * 5,  # no training rows
        ["train", "test"] * 4 + ["left", "right"],  # something else
        [0, 1] * 5,
        [None] * 10,
    ],
)
def test_a_column_that_says_something_else_is_named_as_not_used(tmp_path, plain, names):
    splits = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", marked(names))), plain)
    assert len(splits.train) + len(splits.validation) == 10
    assert splits.test is None
    assert splits.summary.split_by == ""
    assert splits.summary.format.endswith("not used: split)")


def test_the_column_can_be_named_and_left_out(tmp_path, plain):
    file = write(tmp_path / "x.jsonl", marked(column="fold"))
    assert len(text_splits(DataKnobs(train=file), plain).train) == 9
    splits = text_splits(DataKnobs(train=file, fields={"split": "fold"}), plain)
    assert (len(splits.train), splits.summary.split_by) == (5, "fold")
    file = write(tmp_path / "y.jsonl", marked())
    splits = text_splits(DataKnobs(train=file, fields={"split": None}), plain)
    assert (len(splits.train), splits.test) == (9, None)
    other = write(tmp_path / "z.jsonl", marked(["train", "test", "north", "train"], "fold"))
    with pytest.raises(
        DataError, match=r"z.jsonl:3: data.fields reads the split from 'fold', which is the text 'north'"
    ):
        files_of(DataKnobs(train=other, fields={"split": "fold"}))
    lacking = DataKnobs(train=other, fields={"split": "wing"})
    files = files_of(lacking)
    with pytest.raises(DataError, match="no such column"):
        first_pass(files, lacking)


def test_a_row_that_names_none_is_bad_and_told_once(tmp_path, plain):
    names = ["train"] * 8 + [None, "test"]
    knobs = DataKnobs(train=write(tmp_path / "x.jsonl", marked(names)))
    with pytest.raises(DataError, match=r"x.jsonl:9: key 'split' is null, expected train, validation or test"):
        text_splits(knobs, plain)
    splits = text_splits(knobs.model_copy(update={"skip_bad_rows": True}), plain)
    assert splits.summary.bad == {"no split": 1}


def test_marks_that_begin_late_and_broken_lines_are_seen(tmp_path, plain):
    rows = [json.dumps(row) for row in marked(["train"] * 150 + ["test"] * 3)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([*rows, "{"]) + "\n")
    splits = text_splits(DataKnobs(train=str(path), skip_bad_rows=True), plain)
    assert (len(splits.test), splits.summary.bad) == (3, {"broken JSON": 1})


def test_rows_marked_for_what_is_given_otherwise_are_told(tmp_path, plain):
    file = write(tmp_path / "x.jsonl", marked())
    other = write(tmp_path / "v.jsonl", [{"prompt": "v", "completion": "w"}] * 2)
    splits = text_splits(DataKnobs(train=file, validation=other), plain)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (5, 2, 2)
    assert any("marked as validation are not used" in line for line in splits.summary.warnings)


def test_a_file_that_lacks_the_marks_which_are_asked_for_is_refused(tmp_path, plain):
    file = write(tmp_path / "x.jsonl", marked(["train", "validation"] * 4))
    with pytest.raises(DataError, match="none of its rows is marked as test; there are train, validation"):
        text_splits(DataKnobs(train=file, test=file), plain)


def test_a_file_that_changes_is_looked_at_again(tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, marked(["train", "test"]))
    assert marks_of(path).splits == {"train", "test"}
    write(path, marked(["train", "test", "dev"]))
    assert marks_of(path).splits == {"train", "test", "validation"}
