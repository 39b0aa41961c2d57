"""Which column is which part of a row: names, optional ones, those that begin late, and `data.fields`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from microplane.config.build import assemble
from microplane.config.knobs import PARTS, DataKnobs
from microplane.data.preparing.first_pass import files_of, first_pass
from microplane.data.reading import columns
from microplane.data.reading.bad_rows import RowError
from microplane.data.reading.formats import recognise
from microplane.data.rendering.labelled import LabelFormat
from microplane.errors import ConfigError, DataError
from microplane.objectives.select import NEXT_TOKEN, LabelCandidates


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(rows, file, knobs):
    return LabelFormat(rows, file, fields=knobs.fields)


def train_format(path: Path, read=None, **knobs) -> str:
    data = DataKnobs(train=str(path), **knobs)
    found = (
        first_pass(files_of(data), data, None, False, read) if read else first_pass(files_of(data), data, None, False)
    )
    return str(found.splits["train"].format)


def labels_of(*rows: dict, **fields) -> str:
    return str(LabelFormat(rows, "x.jsonl", fields=fields or None))


def test_every_part_has_names():
    assert set(columns._NAMES) == set(PARTS)


# Columns that not every row has


@pytest.mark.parametrize("every", [3, 7, 60])
def test_a_column_of_a_few_rows_is_used(tmp_path, every):
    rows = [
        {"instruction": f"Do {i}", "output": "done"} | ({"input": f"with {i}"} if i % every == 1 else {})
        for i in range(90)
    ]
    assert train_format(write(tmp_path / "a.jsonl", rows)) == "instruction/input/output (instruction + input -> output)"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("system", "prompt/completion (system + prompt -> completion)"),
        ("context", "prompt/completion (prompt + context -> completion)"),
        ("remark", "prompt/completion (prompt -> completion; not used: remark)"),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_a_column_that_begins_behind_the_first_rows_is_used_or_named(tmp_path, column, expected, empty):
    rows = [{"prompt": f"p {i}", "completion": "c"} | ({column: None} if empty else {}) for i in range(240)]
    rows[200][column] = "something"
    path = write(tmp_path / "a.jsonl", rows)
    assert train_format(path) == expected
    knobs = DataKnobs(train=str(path))
    split = first_pass(files_of(knobs), knobs, None, False).splits["train"]
    assert len(split.hashes) == 240


def test_a_column_of_a_later_shard_is_used(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", [{"question": f"q {i}", "answer": "a"} for i in range(120)])
    write(
        tmp_path / "train-00001-of-00002.jsonl",
        [{"question": f"q {i}", "answer": "a", "context": "c"} for i in range(9)],
    )
    assert train_format(tmp_path) == "prompt/completion (question + context -> answer)"


def test_a_column_of_a_later_parquet_shard_is_used(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    first = [{"text": f"t {i}", "label": i % 2} for i in range(120)]
    pq.write_table(pa.Table.from_pylist(first), tmp_path / "train-00000-of-00002.parquet")
    second = [row | {"text_pair": None if row["label"] else "more"} for row in first]
    pq.write_table(pa.Table.from_pylist(second), tmp_path / "train-00001-of-00002.parquet")
    assert train_format(tmp_path, labelled) == "classification (text + text_pair -> label)"


def test_of_a_parquet_file_columns_are_read_that_may_be_used_later(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"instruction": f"i {n}", "output": "o", "input": None, "context": None, "id": n} for n in range(150)]
    rows.append(rows[0] | {"context": "c"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = "instruction/input/output (instruction + context -> output; not used: input, id)"
    assert train_format(tmp_path / "a.parquet") == expected


def test_a_csv_column_that_is_empty_at_first_is_used(tmp_path):
    lines = [f"claim {i},,{i % 2}" for i in range(150)] + ["claim,evidence,1"]
    (tmp_path / "a.csv").write_text("\n".join(["claim,evidence,label", *lines]))
    assert train_format(tmp_path / "a.csv", labelled) == "classification (claim + evidence -> label)"


def test_two_columns_that_could_both_be_the_input_are_asked_for():
    rows = [{"instruction": "i", "output": "o", "input": "a"}, {"instruction": "i", "output": "o", "context": "b"}]
    with pytest.raises(
        DataError, match=r"\['input', 'context'\] could all be the input of a row.*fields={input: input}"
    ):
        recognise(rows, "x.jsonl")
    assert recognise(rows, "x.jsonl", fields={"input": "context"}).columns["input"] == "context"
    assert "input" not in recognise(rows, "x.jsonl", fields={"input": None}).columns


def test_keys_without_end_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("microplane.data.preparing.split.MOST_COLUMNS", 20)
    knobs = DataKnobs(train=str(write(tmp_path / "a.jsonl", [{"text": "t", f"k{i}": i} for i in range(300)])))
    split = first_pass(files_of(knobs), knobs, None, False).splits["train"]
    assert len(split.seen) <= 120


# Rows with labels


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("sentence question", "question + sentence"),
        ("context question", "question + context"),
        ("body title", "title + body"),
        ("subject message", "subject + message"),
        ("text_b text_a", "text_a + text_b"),
        ("Question2 Question1", "Question1 + Question2"),
        ("evidence claim", "claim + evidence"),
        ("review", "review"),
        ("abstract", "abstract"),
    ],
)
def test_a_second_text_is_part_of_the_row(keys, expected):
    row = dict.fromkeys(keys.split(), "words") | {"label": 1}
    assert labels_of(row) == f"classification ({expected} -> label)"


def test_of_three_texts_two_are_asked_for():
    row = {"title": "a", "text": "b", "comment": "c", "label": "x"}
    with pytest.raises(DataError, match=r"x.jsonl: the columns \['title', 'text', 'comment'\] could all be the text"):
        labels_of(row)
    assert labels_of(row, text="text", text_pair=None) == "classification (text -> label; not used: title, comment)"
    assert (
        labels_of(row, text="comment", text_pair="title") == "classification (comment + title -> label; not used: text)"
    )


def test_every_other_column_is_named():
    row = {"id": 3, "text": "a", "label": 1, "rating": 4.5, "url": "u", "content": None}
    assert labels_of(row) == "classification (text -> label; not used: id, rating, url, content)"
    many = {f"c{number}": 1 for number in range(11)}
    assert labels_of({"text": "a", "label": 1, **many}).endswith("c6, c7 and 3 more)")


@pytest.mark.parametrize(
    ("column", "task"), [("label", "classification"), ("score", "regression"), ("Rating", "regression")]
)
def test_whole_decimals_are_classes_unless_their_column_is_called_otherwise(column, task):
    rows = [{"text": "a", column: float(number % 3)} for number in range(30)]
    assert str(LabelFormat(rows, "x.jsonl")).startswith(task)


def test_rows_of_words_need_lists():
    assert labels_of({"tokens": ["a"], "ner_tags": [0], "text": "a"}).startswith("tokens (tokens -> ner_tags; not used")
    assert labels_of({"tokens": 12, "tags": "x, y", "text": "a", "label": 1}).startswith(
        "classification (text -> label"
    )
    cell = {"tokens": "['a', 'b']", "tags": '["O", "B"]', "text": "a b", "label": 1}  # of a CSV file
    assert labels_of(cell).startswith("tokens (tokens -> tags")


def test_a_row_without_its_second_text_is_one_text():
    form = LabelFormat([{"text": "a", "label": 1}, {"text": "a", "text_pair": "b", "label": 1}], "x")
    assert form.example({"text": "a", "text_pair": None, "label": 1}, "x:1").second_text == ""
    assert form.example({"text": "a", "text_pair": "b", "label": 1}, "x:1").second_text == "b"


# data.fields


@pytest.mark.parametrize(
    ("fields", "row", "expected"),
    [
        (
            {"text": "description", "label": "price"},
            {"description": "d", "price": 1.5},
            "regression (description -> price)",
        ),
        (
            {"label": "stars"},
            {"review": "r", "stars": "5", "label": 3},
            "classification (review -> stars; not used: label)",
        ),
        ({"tokens": "w", "tags": "t"}, {"w": ["a"], "t": ["b"]}, "tokens (w -> t)"),
        ({"text_pair": "notes"}, {"text": "a", "notes": "b", "label": 1}, "classification (text + notes -> label)"),
    ],
)
def test_columns_of_labels_are_named_by_the_user(fields, row, expected):
    assert labels_of(row, **fields) == expected


@pytest.mark.parametrize(
    ("fields", "row", "expected"),
    [
        (
            {"prompt": "ask", "completion": "say"},
            {"ask": "a", "say": "b", "question": "c", "answer": "d"},
            "prompt/completion (ask -> say; not used: question, answer)",
        ),
        ({"completion": "gold"}, {"question": "a", "gold": "b"}, "prompt/completion (question -> gold)"),
        (
            {"instruction": "task", "input": "on", "completion": "done"},
            {"task": "a", "on": "b", "done": "c"},
            "instruction/input/output (task + on -> done)",
        ),
        ({"messages": "turns"}, {"turns": [], "text": "a"}, "messages (turns; not used: text)"),
        (
            {"system": "rules"},
            {"prompt": "a", "completion": "b", "rules": "r"},
            "prompt/completion (rules + prompt -> completion)",
        ),
        (
            {"text": "body"},
            {"body": "a", "prompt": "p", "completion": "c"},
            "text (body; not used: prompt, completion)",
        ),
        ({"label": None}, {"text": "a", "label": 1}, "text (text; not used: label)"),
    ],
)
def test_columns_of_answers_are_named_by_the_user(fields, row, expected):
    assert str(recognise([row], "x.jsonl", fields=fields)) == expected


def test_a_column_that_is_not_there_is_told(tmp_path):
    with pytest.raises(
        DataError, match=r"data.fields reads text from 'descripton', and there is no such column. Did you"
    ):
        labels_of({"description": "a", "label": 1}, text="descripton")
    path = write(tmp_path / "a.jsonl", [{"prompt": f"{i}", "completion": "b"} for i in range(9)])
    with pytest.raises(DataError, match=r"a.jsonl: data.fields reads system from 'rules', and there is no such column"):
        train_format(path, fields={"system": "rules"})


def test_parts_that_there_are_not_are_refused():
    with pytest.raises(ConfigError, match=r"data.fields.*there is no part 'txt'. Did you mean 'text'\?"):
        assemble(None, {}, ["data.fields={txt: a}"])
    with pytest.raises(ConfigError, match="the column 'a' is two parts"):
        assemble(None, {}, ["data.fields={prompt: a, completion: a}"])
    assert assemble(None, {}, ["data.fields.text=body"]).data.fields == {"text": "body"}


SHARDS = [{"prompt": "a", "completion": "b"}, {"text": "a", "label": "b"}]


@pytest.mark.parametrize("rows", SHARDS, ids=["text", "labels"])
def test_a_parquet_shard_of_other_names_is_told_with_the_names_that_it_has(rows, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    other = {"wording": "a", "kind": "b", "when": 3}
    for number, row in enumerate((rows, other)):
        pq.write_table(pa.Table.from_pylist([row] * 5), tmp_path / f"train-0000{number}-of-00002.parquet")
    read_format = (LabelCandidates("classification") if "label" in rows else NEXT_TOKEN).read_format
    knobs = DataKnobs(train=str(tmp_path))
    with pytest.raises(DataError, match=r"is missing, .* the row has \['wording', 'kind', 'when'\]"):
        first_pass(files_of(knobs), knobs, hold_out=False, read_format=read_format)


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "rest", [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}, {"messages": TALK}]
)
@pytest.mark.parametrize(
    ("column", "yes", "no"), [("label", True, False), ("Label", "1", "0"), ("kto_tag", "True", "False")]
)
def test_an_answer_that_is_said_to_be_unwanted_is_not_trained(rest, column, yes, no):
    """Rows of KTO hold good answers and bad ones."""
    found = recognise([rest | {column: yes}], "x.jsonl")
    assert str(found).endswith(f", if {column})")
    assert column in found.keys
    assert found.example(rest | {column: yes}, "x:1").messages[-1].content == "b"
    with pytest.raises(RowError, match=rf"key '{column}' is .*: the answer is one that is not wanted.*--skip-bad-rows"):
        found.example(rest | {column: no}, "x:2")
    other = recognise([rest | {column: no}], "x.jsonl", fields={"label": None})
    assert other.example(rest | {column: no}, "x:2").messages[-1].content == "b"
    assert f"not used: {column}" in str(other)


def test_the_number_of_an_answer_does_not_judge_it():
    """As of rows that ask for one of two words, and have its number too."""
    rows = [{"prompt": f"q {n}", "completion": ("no", "yes")[n % 2], "label": n % 2} for n in range(8)]
    assert str(recognise(rows, "x.jsonl")).endswith("(prompt -> completion; not used: label)")
    rows[0]["label"] = 1
    assert str(recognise(rows, "x.jsonl")).endswith("if label)")


@pytest.mark.parametrize("values", [("good", "bad"), (0, 1, 2), ("0", "5"), (None, "")])
def test_a_label_that_is_no_truth_value_says_nothing_of_an_answer(values):
    rows = [{"prompt": "a", "completion": "b", "label": value} for value in values]
    found = recognise(rows, "x.jsonl")
    assert [found.example(row, "x:1").messages[-1].content for row in rows] == ["b"] * len(rows)
    assert "not used: label" in str(found)


@pytest.mark.parametrize(("row", "way"), [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "prompt", "completion": "chosen"}),
    ({"Question": "a", "Chosen": "b", "rejected": "c"}, {"prompt": "Question", "completion": "Chosen"}),
    ({"prompt": "a", "chosen": TALK, "rejected": TALK}, {"messages": "chosen"}),
    ({"chosen": "a b", "rejected": "a c"}, {"text": "chosen"}),
])  # fmt: skip
def test_of_two_answers_the_way_to_the_better_one_is_told(row, way):
    told = ", ".join(f"{part}: {column}" for part, column in way.items())
    with pytest.raises(DataError) as error:
        recognise([row], "x.jsonl")
    assert f"'data.fields={{{told}}}'" in str(error.value)
    assert "c" not in [*recognise([row], "x.jsonl", fields=way).example(row, "x:1").texts()]
