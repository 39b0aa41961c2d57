import bz2
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microplane.data.reading import lines as lines_module
from microplane.data.reading import read
from microplane.data.reading.read import check_file, find_splits, first_texts, read_rows
from microplane.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "zwölf\u2028", "completion": '"x"\n,;'}]
NOISE = random.Random(0).randbytes(9000).hex().encode()
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def good(path: Path) -> list[dict]:
    rows = list(read_rows(path))
    assert all(row.problem is None for row in rows), rows
    return [row.values for row in rows]


def complaints(path: Path) -> list[tuple[int, str, str]]:
    return [(row.line, row.problem.kind, row.problem.message) for row in read_rows(path) if row.problem]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    return str(caught.value)


def as_csv(rows: list[dict], delimiter: str = ",") -> str:
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# What is read


def test_every_type_of_file_gives_the_same_rows(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    files = [
        write(tmp_path / "a.jsonl", lines),
        write(tmp_path / "a.NDJSON", lines.replace("\n", "\r\n")),
        write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode())),
        write(tmp_path / "a.jsonl.bz2", bz2.compress(lines.encode())),
        write(tmp_path / "a.json", json.dumps(ROWS, indent=1)),
        write(tmp_path / "data.json", json.dumps({"version": 1, "data": ROWS, "notes": []})),
        write(tmp_path / "one.json", json.dumps({"version": 1, "rows": ROWS})),
        write(tmp_path / "lines.json", lines),
        write(tmp_path / "a.csv", as_csv(ROWS)),
        write(tmp_path / "semicolons.csv", as_csv(ROWS, ";")),
        write(tmp_path / "a.csv.gz", gzip.compress(as_csv(ROWS).encode())),
    ]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for file in [*files, tmp_path / "a.parquet"]:
        assert good(file) == ROWS, file.name


def test_in_a_tsv_file_a_quote_is_a_character_like_any_other(tmp_path):
    content = 'prompt\tcompletion\n"a\tb\n\'c"\t"d"\n'
    assert good(write(tmp_path / "a.tsv", content)) == [
        {"prompt": '"a', "completion": "b"}, {"prompt": "'c\"", "completion": '"d"'},
    ]  # fmt: skip


def test_a_tsv_file_whose_header_is_quoted_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.tsv: the names of the columns stand in quotes, .* name the file \.csv"):
        good(write(tmp_path / "a.tsv", '"prompt"\t"completion"\n"a"\t"b"\n'))
    assert good(write(tmp_path / "a.csv", '"prompt"\t"completion"\n"a"\t"b"\n')) == [{"prompt": "a", "completion": "b"}]


SWALLOWED = 'sentence,mood\nlate again,bad\n"so it began,good\nwe left,bad\nhome",bad\nfine,good\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (SWALLOWED, "of 3 lines"),
        (SWALLOWED.replace("good", "3.5").replace("bad", "-1"), "of 3 lines"),
        (SWALLOWED.replace("so it began,good", "so it began, said he").replace("we left,bad", "we left, or not"), None),
        (SWALLOWED.replace("we left,bad", "we left"), None),
        ('mood,sentence\nbad,"late again\ngood,so it began\nbad,home"\ngood,fine\nbad,we left\n', "of 3 lines"),
        ('mood,sentence\nbad,"late again\ngood,so it began"\ngood,fine\nbad,we left\n', "of 2 lines"),
        ('mood,sentence\nbad,"late again\nand so on"\ngood,fine\nbad,we left\n', None),
        (SWALLOWED.replace(",good\nwe left,bad\nhome", ""), None),
    ],
)
def test_a_quoted_cell_that_holds_what_looks_like_rows_is_told(tmp_path, content, told):
    rows = list(read_rows(write(tmp_path / "a.csv", content)))
    assert [row.problem for row in rows if row.problem] == []
    notices = [(row.line, row.notice) for row in rows if row.notice]
    assert [line for line, _ in notices] == ([3 - content.startswith("mood")] if told else [])
    assert all(told in notice and 'written twice ("")' in notice for _, notice in notices)


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path):
    column = pa.array(["a"])
    table = pa.Table.from_arrays([column, column, pa.array(["b"])], names=["prompt", "completion", "completion"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet has two columns 'completion'"):
        list(read_rows(tmp_path / "a.parquet"))


def test_of_parquet_only_the_columns_in_use_are_read_and_odd_types_do_no_harm(tmp_path):
    far = pa.array([2**62, 5], pa.timestamp("us"))
    table = pa.table({"prompt": ["a", "b"], "when": far, "took": pa.array([1, 2], pa.duration("ns"))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row.values for row in read_rows(tmp_path / "a.parquet", ["prompt", "absent"])] == [
        {"prompt": "a"}, {"prompt": "b"},
    ]  # fmt: skip
    rows = good(tmp_path / "a.parquet")
    assert [row["prompt"] for row in rows] == ["a", "b"]
    assert all(set(row) == {"prompt", "when", "took"} for row in rows)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, suffix):
    content = {"jsonl": json.dumps(ROWS[0]), "json": json.dumps(ROWS[:1]), "csv": as_csv(ROWS[:1])}[suffix]
    assert good(write(tmp_path / f"a.{suffix}", b"\xef\xbb\xbf" + content.encode())) == ROWS[:1]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    rows = list(read_rows(write(tmp_path / "a.jsonl", '\n  \n{"a": 1}\r\n\n{"a": 2}')))
    assert [(row.line, row.values) for row in rows] == [(3, {"a": 1}), (5, {"a": 2})]


def test_a_cell_over_several_lines_keeps_the_line_numbers_right(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n"1\n2",x\n3,y\nonly\n')
    assert [(row.line, row.values) for row in read_rows(path)][:2] == [
        (2, {"a": "1\n2", "b": "x"}),
        (4, {"a": "3", "b": "y"}),
    ]
    message = "the row has 1 cells, expected 2 as in the header; it begins with the text 'only'"
    assert complaints(path) == [(5, "ragged row", message)]


def test_a_column_without_a_name_is_left_out(tmp_path):
    assert good(write(tmp_path / "a.csv", ",a,b\n0,x,y\n")) == [{"a": "x", "b": "y"}]


def test_a_key_that_is_repeated_with_one_value_is_harmless(tmp_path):
    assert good(write(tmp_path / "a.jsonl", '{"a": 1, "": 2, "a": 1}')) == [{"a": 1, "": 2}]
    with pytest.raises(DataError, match=r"b\.json: an object has the key '' twice"):
        good(write(tmp_path / "b.json", '[{"a": 1}, {"": 1, "": 2}]'))


# Bad rows


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (b'{"a": ', "broken JSON", "Expecting value at column 6, near '{\"a\":'; expected one whole JSON object"),
        (b'{"a": 1} {"b": 2}', "broken JSON", "Extra data at column 10"),
        (b'{"a": "\xff"}', "invalid UTF-8", "byte 8 of the line, 17 of the file is 0xff, expected UTF-8 text"),
        (b'{"label": 1, "a": 2, "label": 0}', "repeated key", "an object has the key 'label' twice, with two values"),
        (b'{"a": [{"role": "x", "role": "y"}]}', "repeated key", "the key 'role' twice"),
        (b"[1, 2]", "not an object", "the line is a list [1, 2], expected an object"),
        (b"null", "not an object", "the line is null, expected an object"),
        (b"12", "not an object", "the line is the number 12, expected an object"),
        (b"[" * 100_000, "broken JSON", "too long to be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "broken JSON", "too long to be read"),
    ],
)
def test_a_bad_line_is_told_with_its_place_and_the_others_are_read(tmp_path, line, kind, message):
    path = write(tmp_path / "a.jsonl", b'{"x": 1}\n\n' + line + b'\n{"y": 2}\n')
    ((number, found, text),) = complaints(path)
    assert (number, found) == (3, kind)
    assert message in text
    assert len(text) < 300
    assert [row.values for row in read_rows(path) if row.values] == [{"x": 1}, {"y": 2}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_line_that_is_too_long_is_told_and_the_others_are_read(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(lines_module, "MAX_LINE", 2**20)
    content = {"jsonl": '{{"a": "{}"}}\n', "csv": "{}\n"}[suffix]
    lines = [content.format(text) for text in ("x", "y" * 3 * 2**20, "z" * 2**19, "w" * 2**21)]
    path = write(tmp_path / f"a.{suffix}", ("a\n" if suffix == "csv" else "") + "".join(lines))
    first = 1 if suffix == "jsonl" else 2
    assert complaints(path) == [
        (first + 1, "line too long", "the line holds 3 MB, at most 1 MB are read"),
        (first + 3, "line too long", "the line holds 2 MB, at most 1 MB are read"),
    ]
    assert [row.values["a"][0] for row in read_rows(path) if row.values] == ["x", "z"]


def test_a_csv_cell_with_foreign_bytes_or_an_open_quote(tmp_path):
    path = write(tmp_path / "a.csv", b'a,b\ngr\xfc\xdfe,1\nok,2\n"open,3\nmore,4\n')
    first, second = complaints(path)
    assert first[:2] == (2, "invalid UTF-8")
    assert "a cell holds the byte 0xfc, expected UTF-8 text" in first[2]
    assert second[:2] == (4, "broken CSV")
    assert "is a quote left open" in second[2]


def test_of_several_marks_in_a_header_the_comma_parts_it_and_empty_lines_are_no_rows(tmp_path):
    file = write(tmp_path / "x.csv", "text,kind;of\n\na,b;c\n\n")
    assert good(file) == [{"text": "a", "kind;of": "b;c"}]


def test_a_stray_carriage_return_in_csv(tmp_path):
    ((line, kind, message),) = complaints(write(tmp_path / "a.csv", b"a,b\n1\r2,3\n4,5\n"))
    assert (line, kind) == (2, "broken CSV")
    assert "line end stray" in message


def test_items_of_a_json_list_that_are_no_objects(tmp_path):
    path = write(tmp_path / "a.json", '[{"a": 1}, "x", {"a": 2}]')
    assert complaints(path) == [(2, "not an object", "the item is the text 'x', expected an object")]


# Files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.txt", b"hi", "files ending in '.txt' are not known. Possible: .jsonl, .ndjson"),
        ("a.jsnol", b"hi", "files ending in '.jsnol' are not known. Did you mean '.jsonl'? Possible: .jsonl, .ndjson"),
        ("a", b"hi", "the name has no ending that tells its type. Possible: .jsonl"),
        ("a.parquet.gz", b"hi", "Parquet is compressed inside; unpack the file first"),
        ("a.jsonl", b"\x7fELF\x00\x01\x02", "is a binary file (byte 4 is zero), expected .jsonl text"),
        ("a.jsonl", b"PAR1abc", "is a Parquet file by its content, not .jsonl text; give it the right ending"),
        ("a.csv", b"PK\x03\x04abc", "is a zip file by its content"),
        ("a.csv", b"\xff\xfea\x00", "is UTF-16 text; save it as UTF-8"),
        ("a.parquet", b"hello", "is no readable Parquet file"),
        ("a.jsonl.gz", b"hello", "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(NOISE)[:5000], "the compressed file is damaged or cut off"),
        ("a.jsonl.bz2", bz2.compress(NOISE)[:5000], "the compressed file is damaged or cut off"),
        ("a.json", b"[1, ", "is broken JSON: Expecting value at line 1, column 5; expected a list of objects"),
        ("a.json", b"[" * 100_000, "is broken JSON: a number or a nesting"),
        ("a.json", b'["\xff"]', "byte 2 is 0xff, expected UTF-8 text"),
        ("a.json", b'{"a": 1}', "is one object with the keys ['a'] and no list; expected a list of objects"),
        ("a.json", b'{"a": [], "b": []}', "is one object with lists below ['a', 'b']; expected a list of objects"),
        ("a.json", b"12", "holds the number 12, expected a list of objects"),
        ("a.csv", b"a,b,a\n", "the first line names 'a' twice; it must name each column once"),
        ("a.csv", b",,\n1,2,3\n", "the first line names no column"),
        ("a.csv", b"\n\n", "the first line names no column"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path, name, content, message):
    assert message in refused(write(tmp_path / name, content))


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # importing it fails, as where it is not installed
    assert refused(tmp_path / "a.parquet") == (
        f"{tmp_path / 'a.parquet'} is a Parquet file, which needs the package pyarrow, and that is not installed. "
        "Install it: pip install 'microplane[parquet]'; or save the data as JSONL"
    )


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path / "train.jsonl", "{}")
    assert (
        refused(tmp_path / "trian.jsonl") == f"there is no file {tmp_path / 'trian.jsonl'}. Did you mean 'train.jsonl'?"
    )
    (tmp_path / "d.jsonl").mkdir()
    assert refused(tmp_path / "d.jsonl") == f"{tmp_path / 'd.jsonl'} is no file"


def test_a_header_above_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "MAX_LINE", 100)
    assert "expected the names of the columns" in refused(write(tmp_path / "a.csv", "x" * 200 + "\n1\n"))


def test_a_json_list_above_the_bound_is_sent_to_jsonl(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_JSON", 100)
    assert "save it as JSONL, one object on a line" in refused(write(tmp_path / "a.json", json.dumps(ROWS * 10)))


# Folders


def test_a_folder_gives_its_splits(tmp_path):
    for name in ("Train.jsonl", "dev.csv", "test.json.gz", "notes.md", ".train.jsonl.swp"):
        write(tmp_path / name, "x")
    assert {split: [file.name for file in files] for split, files in find_splits(tmp_path).items()} == {
        "train": ["Train.jsonl"],
        "validation": ["dev.csv"],
        "test": ["test.json.gz"],
    }


def test_shards_are_read_in_order(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path / f"train-0000{number}-of-00003.parquet", "x")
    write(tmp_path / "train-old.parquet", "x")
    assert [file.name[6:11] for file in find_splits(tmp_path)["train"]] == ["00000", "00001", "00002"]


SHARDS = [  # files, and what is said of them
    (("train-00000-of-00003", "train-00002-of-00003"), r"2 of 3 train files: beside train-00000-.* number 1 is"),
    (("train-00001-of-00002",), r"has 1 of 2 train files: .* number 0 is lacking"),
    (("train-0-of-2", "train-1-of-2", "train-0-of-3"), r"train-0-of-2.jsonl and train-0-of-3.jsonl are of two sets"),
    (("train-0-of-2", "Train-00-of-02", "train-1-of-2"), r"are of two sets of train files; keep one"),
    (("train", "train-0-of-2", "train-1-of-2"), r"train.jsonl and train-0-of-2.jsonl .* could all be the train file"),
    (("train", "val-0-of-2"), r"has 1 of 2 validation files: beside val-0-of-2.jsonl number 1 is lacking"),
    (("train-1-of-900000000",), r"has 1 of 900,000,000 train files: .* number 0, 2, 3, 4 is lacking"),
]


@pytest.mark.parametrize(("names", "says"), SHARDS, ids=lambda x: "" if isinstance(x, str) else x[-1])
def test_shards_of_which_some_are_lacking_or_too_many_are_refused(names, says, tmp_path):
    for name in names:
        write(tmp_path / f"{name}.jsonl", "x")
    with pytest.raises(DataError, match=says):
        find_splits(tmp_path)


def test_shards_that_are_counted_from_one_are_whole(tmp_path):
    for number in (1, 2, 3):
        write(tmp_path / f"train-{number}-of-3.csv", "x")
    assert len(find_splits(tmp_path)["train"]) == 3


def test_a_folder_without_training_data_lists_what_it_holds(tmp_path):
    with pytest.raises(DataError, match=r"has no train file; it holds no file\. Expected train\.jsonl"):
        find_splits(tmp_path)
    write(tmp_path / "valid.jsonl", "x")
    with pytest.raises(DataError, match=r"has no train file; it holds valid\.jsonl\."):
        find_splits(tmp_path)


def test_a_folder_with_two_candidates_is_refused(tmp_path):
    write(tmp_path / "val.jsonl", "x")
    write(tmp_path / "validation.csv", "x")
    write(tmp_path / "train.csv", "x")
    with pytest.raises(DataError, match=r"val\.jsonl and validation\.csv could all be the validation file"):
        find_splits(tmp_path)


# Properties

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
KEYS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NAMES = ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.bz2")
PIECES = st.sampled_from(
    [b'{"a": 1}\n', b"\n", b'"', b",", b"\xff", b"[", b"{", b"\xef\xbb\xbf", b"\r", b"a,b\n", b"\x00"]
)


@MANY
@given(st.binary(max_size=200) | st.lists(PIECES, max_size=20).map(b"".join), st.sampled_from(NAMES), st.booleans())
def test_arbitrary_bytes_give_rows_or_one_error(tmp_path, content, name, packed):
    if packed and name.endswith((".gz", ".bz2")):
        content = (gzip if name.endswith(".gz") else bz2).compress(content)
    try:
        rows = list(read_rows(write(tmp_path / name, content)))
    except DataError:
        return
    for row in rows:
        assert (row.values is None) != (row.problem is None)
        assert row.line >= 1
    assert [row.line for row in rows] == sorted({row.line for row in rows})


@MANY
@given(st.lists(st.dictionaries(TEXTS, JSON, max_size=4), min_size=1, max_size=8), st.booleans())
def test_json_lines_that_were_written_are_read_back(tmp_path, rows, ascii_only):
    lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    assert good(write(tmp_path / "a.jsonl", lines)) == rows
    assert good(write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=ascii_only))) == rows


@MANY
@given(st.lists(KEYS, min_size=2, max_size=4, unique=True), st.data())
def test_tables_that_were_written_are_read_back(tmp_path, names, data):
    cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, cells)), min_size=1, max_size=6))
    assert good(write(tmp_path / "a.csv", as_csv(rows))) == rows
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert good(tmp_path / "a.parquet") == rows


def test_a_large_file_is_read_in_little_memory(tmp_path):
    """100 MB of short lines and one line of 60 MB; the reader may keep none of it."""
    path = tmp_path / "big.jsonl"
    block = "".join(json.dumps({"prompt": "word " * 160, "completion": str(i)}) + "\n" for i in range(500)).encode()
    with path.open("wb") as file:
        for _ in range(50):
            file.write(block)
        file.write(b'{"prompt": "' + b"x" * 60_000_000 + b'"}\n')
        for _ in range(50):
            file.write(block)
    script = """
        import resource, sys
        from pathlib import Path
        from microplane.data.reading.read import read_rows
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before, good, bad = peak(), 0, 0
        for row in read_rows(Path(sys.argv[1])):
            good, bad = good + (row.values is not None), bad + (row.problem is not None)
        print(good, bad, peak() - before)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert out[:2] == ["50000", "1"]
    assert float(out[2]) < 60  # MB


def test_first_texts_are_those_that_can_be_written(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "one", "b": ["two", {"c": "three"}], "d": 4}\n{"a": "half \\ud83d"}\n{"a": "five"}\n')
    assert first_texts(file, 2) == ["one", "two", "three"]


def test_a_link_to_nothing_is_told_as_one(tmp_path):
    (tmp_path / "rows.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl is a link to gone\.jsonl, which is not there"):
        check_file(tmp_path / "rows.jsonl")
