"""Mixture files and sources that are wrong: each is told with the value, the place and what is possible."""

import json

import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.sampler import open_mixture
from microplane.data.mixtures.spec import mixture_fields, read_mixture
from microplane.data.preparing.first_pass import files_of
from microplane.errors import ConfigError, DataError, MicroplaneError
from tests.data.mixtures.kit import FLAN, NEWS, QUIZ, REVIEWS, SUMS, one, write, write_mixture, write_sources


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    write_sources(folder)
    return folder


def refused(folder, values, kind: type[MicroplaneError]) -> str:
    path = write_mixture(folder, values, "wrong.yaml")
    with pytest.raises(kind) as caught:
        open_mixture(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            one(REVIEWS | {"family": "sentimant"}),
            "wrong.yaml, source reviews: there is no family of templates 'sentimant'. "
            "Did you mean 'sentiment'? There are command, definition",
        ),
        (
            one(REVIEWS | {"options": None}),
            "source reviews: the family sentiment chooses among options, and with_options = "
            "0.5, but none are given. Expected options: [first, second], options_column: COLUMN, or with_options: 0",
        ),
        (
            one(SUMS | {"family": "summarisation", "options": ["a", "b"]}),
            "source sums: options are given, but the family summarisation has none to choose from",
        ),
        (one(NEWS | {"options": [True, False]}), "put them in quotes: ['true', 'false']"),
        (one(NEWS | {"options": ["a"]}), "at least two different answers are needed"),
        (one(NEWS | {"options": [["a"]]}), "must be a list of texts, as in [positive, negative]"),
        (one(NEWS | {"options": 3}), "options = 3: must be a section"),
        (one(QUIZ | {"options": ["a", "b"]}), "options and options_column are both given; expected one"),
        (
            one(NEWS | {"fields": {"txt": "text"}}),
            "source news: fields has 'txt', which is no field of the family topic. "
            "Did you mean 'text'? Its fields: text (the text to be sorted), label",
        ),
        (
            one(NEWS | {"constants": {"label": "a"}}),
            "constants has 'label', the answer, which would be the same for all",
        ),
        (one(NEWS | {"constants": {"text": "a"}, "fields": {"text": "a"}}), "'text' is in fields and in constants"),
        (
            one(NEWS | {"flie": "x"}),
            "submixtures.all.sources.0.flie: there is no such knob. Did you mean 'submixtures.all.sources.0.file'?",
        ),
        (one({"name": "x", "family": "topic"}), "submixtures.all.sources.0.file"),
        (
            one(submixture={"weight": 0}),
            "the weights of the submixtures with sources are 0 in total; raise one of them",
        ),
        (one(submixture={"weight": -1}), "submixtures.all.weight = -1: must be greater than or equal to 0"),
        (one(submixture={"few_shot": 2}), "submixtures.all.few_shot = 2: must be less than or equal to 1"),
        (one(submixture={"cap": 0}), "submixtures.all.cap = 0: must be greater than or equal to 1"),
        (one(submixture={"inversions": 1}), "submixtures.all.inversions: there is no such knob. Did you mean"),
        (one(rowz=1), "mixture.rowz: there is no such knob. Did you mean 'mixture.rows'?"),
        (one(exemplars=[5, 1]), "mixture.exemplars = [5, 1]: must be fewest and most, from 1 to 64, as in [1, 5]"),
        (one(exemplars=5), "mixture.exemplars = 5: must be a list"),
        (
            one(base="flan2021"),
            "base = 'flan2021': there is no such file or ready-made mixture. Did you mean 'flan2022'?",
        ),
        (one(base="wrong.yaml"), "base = 'wrong.yaml' leads back to itself"),
        ({"submixtures": {"a": None}}, "mixture.submixtures.a = null: must be a section"),
        ({"submixtures": {}}, "mixture.submixtures = "),
        ({"submixtures": {"a": {}, "b": {}}}, "no submixture has sources (a, b). Expected, as in: sources: [{name:"),
        ({"base": "flan2022"}, "no submixture has sources (flan2021, t0, niv2, cot, dialog)"),
        ({"submixtures": {"a": {"sources": [NEWS, NEWS]}}}, "two sources are named 'news'; give each its own name"),
        (
            {"train": {"lr": 1}},
            "wrong.yaml is no mixture: it has no section submixtures; it holds train. Knobs of a run go "
            "to --config FILE",
        ),
        ("- a\n- b\n", "must hold knobs as `name: value`"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused(place, values, message):
    assert message in refused(place, values, ConfigError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            REVIEWS | {"fields": {"text": "reviw", "label": "stars"}},
            "reviews.jsonl has no column 'reviw' for text. Did you "
            "mean 'review'? It has review, stars. Name the right one, as in fields: {text: COLUMN}",
        ),
        (QUIZ | {"options_column": "choices"}, "quiz.jsonl has no column 'choices' for options_column."),
        (REVIEWS | {"options": {0: "bad", 2: "good"}}, "150 of 300 rows cannot be used"),
        (NEWS | {"options": ["a", "b"]}, "key 'label' is the text 'c', which is no option; possible: 'a', 'b'"),
        (
            QUIZ | {"fields": {"answer": "question"}},
            "the answer is the text '<quiz 0>', which is not in key 'all': a list",
        ),
        (
            NEWS | {"options": None, "options_column": "text"},
            "key 'text' is the text '<news 0>', expected a list of at least",
        ),
        (NEWS | {"file": "new.jsonl"}, "source news: there is no file"),
        (NEWS | {"file": "empty.jsonl"}, "empty.jsonl is empty"),
        (NEWS | {"file": "blank.jsonl"}, "holds no rows that can be used"),
        (
            NEWS | {"file": "bad.jsonl"},
            "wrong.yaml, source news: 4 of 6 rows cannot be used:\n  bad.jsonl:2: key 'text' is "
            "empty, expected text\n  bad.jsonl:3: key 'text' is null, expected text\n"
            "  bad.jsonl:4: key 'text' is a list ",
        ),
        (NEWS | {"file": "bad.jsonl"}, "bad.jsonl:5: the row has no key 'label'"),
        (NEWS | {"file": "bad.jsonl"}, "or leave them out with skip_bad_rows: true in the mixture."),
        (NEWS | {"file": "mixture.yaml"}, "there is no file"),
        (
            NEWS | {"split": "test"},
            "split = test asks for a folder with such files, or a file whose column split says so",
        ),
        (NEWS | {"file": "folder", "split": "test"}, "has no test file; it has train, validation"),
    ],
)
def test_a_source_that_is_wrong_is_refused(place, source, message):
    (place / "empty.jsonl").write_text("")
    (place / "blank.jsonl").write_text("\n\n")
    good = [{"text": "t", "label": "a"}, {"text": "u", "label": "b"}]
    bad = [{"text": " ", "label": "a"}, {"text": None, "label": "a"}, {"text": ["x"], "label": "a"}, {"text": "x"}]
    write(place / "bad.jsonl", [good[0], *bad, good[1]])
    (place / "folder").mkdir(exist_ok=True)
    write(place / "folder" / "train.jsonl", good)
    write(place / "folder" / "validation.jsonl", good)
    assert message in refused(place, one(source), DataError)


def test_bad_rows_are_left_out_on_request(place):
    write(place / "some.jsonl", [{"text": "t", "label": "a"}, {"text": ""}, {"text": "u", "label": "b"}])
    source = NEWS | {"file": "some.jsonl"}
    mixture = open_mixture(write_mixture(place, one(source, skip_bad_rows=True), "skip.yaml"))
    assert (len(mixture.sources[0].store), mixture.sources[0].problems.total) == (2, 1)


def test_there_must_be_a_file(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.yaml"):
        files_of(DataKnobs(train=str(tmp_path / "none.yaml")))
    (tmp_path / "empty.yml").write_text("")
    with pytest.raises(DataError, match=r"empty\.yml is empty"):
        files_of(DataKnobs(train=str(tmp_path / "empty.yml")))


def test_paths_are_relative_to_the_file_and_weights_without_sources_are_noted(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plan = read_mixture(write_mixture(place, FLAN | {"submixtures": {"t0": {"sources": [QUIZ]}}}, "part.yaml"))
    assert plan.sources[0].path == place / "quiz.jsonl"
    assert plan.notes == ("no sources in flan2021, niv2, cot, dialog: the weight is shared among the others",)
    (place / "below").mkdir(exist_ok=True)
    lower = write_mixture(place / "below", {"base": "../part.yaml", "seed": 7}, "lower.yaml")
    assert read_mixture(lower).knobs.seed == 7
    with pytest.raises(DataError, match=r"there is no file .*below/quiz\.jsonl"):
        open_mixture(lower)


def test_sources_of_weight_0_are_not_opened(place):
    values = {"submixtures": {"a": {"sources": [NEWS]}, "b": {"weight": 0, "sources": [QUIZ | {"file": "none.jsonl"}]}}}
    mixture = open_mixture(write_mixture(place, values, "zero.yaml"))
    assert [source.name for source in mixture.sources] == ["news"]


def test_fields_become_text(place):
    rows = [{"command": "light on", "output": {"on": True, "é": [1]}}, {"command": 5, "output": "x"}]
    write(place / "commands.jsonl", rows)
    write(place / "words.jsonl", [{"term": True, "definition": 1.5}])
    both = [{"name": kind, "file": f"{kind}s.jsonl", "family": kind} for kind in ("command",)]
    both.append({"name": "word", "file": "words.jsonl", "family": "definition", "limit": 2})
    mixture = open_mixture(write_mixture(place, {"submixtures": {"all": {"sources": both}}}, "kinds.yaml"))
    commands, words = (source.store for source in mixture.sources)
    assert commands[0].values == {"command": "light on", "output": json.dumps(rows[0]["output"], ensure_ascii=False)}
    assert commands[1].values == {"command": "5", "output": "x"}
    assert words[0].values == {"term": "true", "definition": "1.5"}


def test_a_source_reads_the_split_and_the_rows_that_it_names(place):
    folder = place / "splits"
    folder.mkdir()
    write(folder / "train.jsonl", [{"text": f"train {n}", "label": "a"} for n in range(9)])
    write(folder / "test.jsonl", [{"text": f"test {n}", "label": "a"} for n in range(9)])
    source = NEWS | {"file": "splits", "split": "test", "limit": 4}
    store = open_mixture(write_mixture(place, one(source), "split.yaml")).sources[0].store
    assert [store[row].values["text"] for row in range(len(store))] == [f"test {n}" for n in range(4)]


def marked(place, **source):
    """The texts that a source reads of a file whose rows say which split they belong to, and its note."""
    names = ["train", "test", "dev", "Train", "validation", "test"]
    write(place / "marked.jsonl", [{"text": f"{n}", "label": "a", "split": name} for n, name in enumerate(names)])
    source = NEWS | {"file": "marked.jsonl", "options": ["a", "b"]} | source
    read = open_mixture(write_mixture(place, one(source), "marked.yaml")).sources[0]
    return [read.store[row].values["text"] for row in range(len(read.store))], read.note


@pytest.mark.parametrize(
    ("split", "texts"), [("train", "03"), ("validation", "24"), ("test", "15"), ("all", "012345"), (None, "03")]
)
def test_of_a_file_of_all_splits_a_source_reads_the_rows_of_its_own(place, split, texts):
    found, note = marked(place, **({"split": split} if split else {}))
    assert found == list(texts)
    assert note == ("" if split == "all" else f"of marked.jsonl the rows are read whose split is {split or 'train'}")


def test_a_column_split_that_a_field_is_read_from_marks_nothing(place):
    names = ["train", "test", "dev", "Train", "validation"]
    assert marked(place, fields={"label": "split"}, options=names) == (list("012345"), "")
    folder = place / "marked"
    folder.mkdir()
    for name in ("train", "test"):
        write(folder / f"{name}.jsonl", [{"text": f"{name} {n}", "label": "a", "split": n} for n in ("train", "test")])
    assert marked(place, file="marked") == (["train train", "train test"], "")
    assert marked(place, file="marked", split="all")[0] == ["train train", "train test", "test train", "test test"]


def test_a_split_of_which_a_file_has_no_rows_is_refused(place):
    names = ["train", "dev"]
    write(place / "two.jsonl", [{"text": f"{n}", "label": "a", "split": name} for n, name in enumerate(names)])
    source = NEWS | {"file": "two.jsonl", "split": "test"}
    with pytest.raises(DataError, match=r"none of the rows of .*two.jsonl is marked as test; there are train, valid"):
        open_mixture(write_mixture(place, one(source), "two.yaml"))


def test_constants_fill_fields_for_all_rows(place):
    write(place / "pairs.jsonl", [{"en": "yes", "fr": "oui"}])
    source = {
        "name": "pairs",
        "file": "pairs.jsonl",
        "family": "translation",
        "fields": {"source": "en", "target": "fr"},
        "constants": {"source_language": "English", "target_language": "French"},
    }
    rows = open_mixture(write_mixture(place, one(source), "pairs.yaml")).rows(0, 30)
    assert {row["targets"] for row in rows} == {"oui"}


def test_everything_in_a_file_is_described():
    assert all(field.description for _, field in mixture_fields())


def test_a_mixture_knows_the_files_that_it_builds_on(place):
    below = write_mixture(place, one(NEWS), "below.yaml")
    path = write_mixture(place, {"base": "below.yaml", "rows": 7, "submixtures": {"all": {"cap": 5}}}, "upper.yaml")
    plan = read_mixture(path)
    assert plan.files == (path, below)
    assert (plan.knobs.rows, plan.submixtures["all"].cap) == (7, 5)
    assert [source.knobs.name for source in plan.sources] == ["news"], "sections are laid over one another"


def test_options_need_not_be_given_where_none_are_listed(place):
    path = write_mixture(place, one(REVIEWS | {"options": None}, submixture={"with_options": 0}), "unlisted.yaml")
    assert [source.knobs.name for source in read_mixture(path).sources] == ["reviews"]


def test_options_that_are_all_one_word_are_refused(place):
    said = refused(place, one(NEWS | {"options": {"a": "same", "b": "same"}}), ConfigError)
    assert "at least two different answers are needed" in said
