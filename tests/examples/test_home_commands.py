"""The home-commands recipe: the grammar in both directions, the rows, the cache, and the real package once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from microplane.errors import DataError

RECIPE = Path(__file__).parents[2] / "examples" / "home_commands" / "build.py"
spec = importlib.util.spec_from_file_location("home_commands_build", RECIPE)
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)

WORDS = {
    "decimal": ".",
    "area": ["kitchen", "garage"],
    "names": {"light": ["lamp"], "fan": ["blower"], "scene": ["party"]},
    "song": ["Yesterday", "Help"],
    "awkward": {r"\b(the) \1\b": "the same word twice"},
}


def data(*sentences: str, **block) -> dict:
    return {
        "intents": {"Do": {"data": [{"sentences": list(sentences), **block}]}},
        "lists": {
            "color": {"values": [{"in": "(red|crimson)", "out": "r"}, {"in": "blue[ish]", "out": "b"}]},
            "kinds": {"values": [{"in": "blind", "out": ["blind", "shade"]}]},
            "level": {"range": {"from": 0, "to": 4, "step": 2}},
            "down": {"range": {"from": 1, "to": 2, "multiplier": -1}},
            "degrees": {"range": {"type": "temperature", "from": 20, "to": 21, "fractions": "halves"}},
            "song": {"wildcard": True},
        },
        "expansion_rules": {
            "the": "(the|my)",
            "home": "home|flat",
            "off": "(off|<off_dirty>)",
            "off_dirty": "of",
        },
    }


def said(template: str, draws: int = 300, **block) -> dict[str, dict]:
    """Every sentence that a template says, with what it means."""
    grammar = recipe.Grammar(data(template, **block), WORDS)
    rng = random.Random(0)
    pairs = dict(grammar.say(grammar.templates[0], rng) for _ in range(draws))
    for sentence, output in pairs.items():
        assert output in grammar.meanings(sentence), "what is said must be understood"
    return {sentence: json.loads(output) for sentence, output in pairs.items()}


@pytest.mark.parametrize(
    ("template", "sentences"),
    [
        ("plain text", {"plain text"}),
        ("(a|b) c", {"a c", "b c"}),
        ("a|b c", {"a", "b c"}),
        ("a [b] c", {"a c", "a b c"}),
        ("a [b|c]", {"a", "a b", "a c"}),
        ("hour[s]", {"hour", "hours"}),
        ("5( |-)hour", {"5 hour", "5-hour"}),
        ("[a [b]] c", {"c", "a c", "a b c"}),
        ("(a;b) c", {"a b c", "b a c"}),
        ("([a];b;c)", {"b c", "c b", "a b c", "a c b", "b a c", "b c a", "c a b", "c b a"}),
        ("go <home>", {"go home", "go flat"}),
        ("<the> <home>", {"the home", "my home", "the flat", "my flat"}),
        ("l' [a]", {"l'", "l'a"}),
        ("turn <off>", {"turn off"}),
        ("{color} x", {"red x", "crimson x", "blue x", "blueish x"}),
        ("{level}[%| percent]", {f"{n}{unit}" for n in (0, 2, 4) for unit in ("", "%", " percent")}),
        ("play {song}", {"play Yesterday", "play Help"}),
        ("(a|(b [c]))", {"a", "b", "b c"}),
    ],
)
def test_every_construct_says_all_its_sentences(template, sentences):
    assert set(said(template)) == sentences


def test_slots_carry_what_was_said():
    assert said("{color}")["crimson"] == {"intent": "Do", "color": "r"}
    assert said("{color:shade}")["blueish"] == {"intent": "Do", "shade": "b"}
    assert said("{kinds:kind}")["blind"] == {"intent": "Do", "kind": ["blind", "shade"]}
    assert said("by {down:step}")["by 2"] == {"intent": "Do", "step": -2}
    assert {m["t"] for m in said("{degrees:t}").values()} == {20, 20.5, 21}
    assert type(said("{level}")["4"]["level"]) is int


def test_slots_stand_in_the_order_they_are_said_after_the_fixed_ones():
    outputs = said("({area};{level})", slots={"domain": "light"})
    assert list(outputs["garage 2"]) == ["intent", "domain", "area", "level"]
    assert list(outputs["2 garage"]) == ["intent", "domain", "level", "area"]


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ({}, {"lamp", "blower", "party"}),
        ({"requires_context": {"domain": ["light", "fan"]}}, {"lamp", "blower"}),
        ({"excludes_context": {"domain": ["scene"]}}, {"lamp", "blower"}),
        ({"requires_context": {"area": {"slot": True}}, "metadata": {"x": 1}}, {"lamp", "blower", "party"}),
    ],
)
def test_names_are_devices_of_the_domains_that_the_block_asks_for(block, names):
    outputs = said("start {name}", **block)
    assert {meaning["name"] for meaning in outputs.values()} == names
    assert all(set(meaning) == {"intent", "name"} for meaning in outputs.values()), "a required area is not said"


def test_a_decimal_comma_is_said_and_understood():
    grammar = recipe.Grammar(data("{degrees:t}"), WORDS | {"decimal": ","})
    assert grammar.meanings("20,5") == {'{"intent": "Do", "t": 20.5}'}
    assert "20,5" in {grammar.say(grammar.templates[0], random.Random(i))[0] for i in range(50)}


def test_reading_ignores_case_but_not_spaces_between_words():
    grammar = recipe.Grammar(data("Play [the] {song}"), WORDS)
    assert grammar.meanings("play the help") == grammar.meanings("Play Help") == {'{"intent": "Do", "song": "Help"}'}
    for other in ("playhelp", "play the", "play help x", "the help", ""):
        assert grammar.meanings(other) == set()


@pytest.mark.parametrize("template", ["(a", "a)", "[a)", "{a", "a>", "(a|[b)]"])
def test_brackets_come_in_pairs(template):
    with pytest.raises(DataError, match=r"has no partner\n  in the template .*\n  possible"):
        recipe.parse(template)


def test_unknown_rules_and_words_are_named():
    with pytest.raises(DataError, match=r"rule <nope> is not defined\n  .*\n  known: home, off, off_dirty, the"):
        recipe.Grammar(data("<nope>"), WORDS)
    with pytest.raises(DataError, match=r"no words for \{planet\}\n  in words.json\n  known: area"):
        recipe.Grammar(data("{planet}"), WORDS)


def rows_of(grammar_data: dict, words: dict = WORDS) -> list:
    grammar = recipe.Grammar(grammar_data, words)
    return list(recipe.draw(grammar, recipe.Reader(words), random.Random(0)))


def test_a_sentence_with_two_meanings_is_left_out():
    both = data("start [the] {song}")
    both["intents"]["Other"] = {"data": [{"sentences": ["start Help", "stop Help"]}]}
    assert {row.sentence for row in rows_of(both)} == {
        "start Yesterday",
        "start the Yesterday",
        "start the Help",
        "stop Help",
    }


def test_what_does_not_read_well_is_left_out():
    assert {row.sentence for row in rows_of(data("<the> [<the>] x"))} == {"the x", "my x", "the my x", "my the x"} | {
        "my my x"
    }


def test_no_sentence_twice_whatever_the_case():
    assert len(rows_of(data("go", "Go", "go [home]"))) == 2


@pytest.mark.parametrize(
    ("sentence", "good"),
    [
        ("allume la cuisine", True),
        ("allume le cuisine", False),
        ("règle le volet à 5 %", True),
        ("règle la volet à 5 %", False),
        ("ouvre l'entrée", True),
        ("ouvre la entrée", False),
        ("éteins les lampes", True),
        ("éteins les lampe", False),
        ("éteins tous les volets", True),
        ("nettoie dans cuisine", False),
        ("température à la cuisine", True),
        ("température à le salon", False),
        ("le velux sont fermé", False),
        ("ajoute sur", False),
        ("y a-t-il des lampes allumées", True),
        ("y a t-'il des lampes allumées", False),
    ],
)
def test_french_agrees(sentence, good):
    assert recipe.Reader(recipe.words("fr"))(sentence) is good


@pytest.mark.parametrize(
    ("lang", "sentence", "good"),
    [
        ("en", "turn on the lamp", True),
        ("en", "turn on the my lamp", False),
        ("en", "is the the TV on", False),
        ("en", "where is the Alice", False),
        ("en", "turn off every light", True),
        ("en", "turn off every lights", False),
        ("en", "are all fan on", False),
        ("en", "set a 5-minute timer", True),
        ("en", "add 5-minutes", False),
        ("en", "is Alice at work", True),
        ("en", "are Alice at work", False),
        ("vi", "thời tiết Hà Nội ra sao", True),
        ("vi", "thời tiết cái Hà Nội ra sao", False),
    ],
)
def test_other_languages_read_well(lang, sentence, good):
    assert recipe.Reader(recipe.words(lang))(sentence) is good


# ---------------------------------------------------------------- the rows, from a small made-up package


@pytest.fixture
def small(monkeypatch):
    """A package of two intents with a few hundred sentences, in place of the real one."""
    content = data("set {area} to {hundred}[%]", "{area} [at] {hundred}", slots={"domain": "light"})
    content["lists"]["hundred"] = {"range": {"from": 0, "to": 100}}
    content["intents"]["Stop"] = {"data": [{"sentences": ["stop [it] [now]"]}]}
    monkeypatch.setattr(recipe, "templates", lambda lang: content)
    monkeypatch.setattr(recipe, "words", lambda lang: WORDS)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_what_the_readers_expect(small, tmp_path):
    summary = recipe.build(tmp_path, train_rows=30, test_rows=5)
    train, test = read(tmp_path / "train.jsonl"), read(tmp_path / "test.jsonl")
    assert (summary["train_rows"], summary["test_rows"], summary["intents"]) == (len(train), len(test), 2) == (30, 5, 2)
    assert summary["files"] == [str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")]
    for row in train + test:
        assert list(row) == ["instruction", "input", "output"]
        assert row["instruction"] == "Convert the command to JSON."
        meaning = json.loads(row["output"])
        if meaning["intent"] == "Do":
            assert meaning["domain"] == "light"
            assert meaning["area"] in row["input"]
            assert str(meaning["hundred"]) in row["input"]
    inputs = [row["input"].casefold() for row in train + test]
    assert len(set(inputs)) == len(inputs)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe.build(tmp_path / name, train_rows=30, test_rows=5, seed=seed)
    for file in ("train.jsonl", "test.jsonl"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b != c


def test_sizes_share_their_rows(small, tmp_path):
    recipe.build(tmp_path / "few", train_rows=20, test_rows=10)
    recipe.build(tmp_path / "many", train_rows=60, test_rows=10)
    assert (tmp_path / "few/test.jsonl").read_bytes() == (tmp_path / "many/test.jsonl").read_bytes()
    assert read(tmp_path / "few/train.jsonl") == read(tmp_path / "many/train.jsonl")[:20]


def test_the_smallest_train_set_has_every_intent(small, tmp_path):
    recipe.build(tmp_path, train_rows=2, test_rows=1)
    assert {json.loads(row["output"])["intent"] for row in read(tmp_path / "train.jsonl")} == {"Do", "Stop"}


def test_more_rows_than_sentences_is_refused_with_the_number(small, tmp_path):
    with pytest.raises(DataError, match=r"too few distinct commands: \d+ train and 5 test rows\n.*\n  ask for fewer"):
        recipe.build(tmp_path, train_rows=100_000, test_rows=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (-1, 5)])
def test_sizes_below_one_are_refused(small, tmp_path, sizes):
    with pytest.raises(DataError, match="at least 1 of each"):
        recipe.build(tmp_path, "en", *sizes)


def test_an_unknown_language_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no home commands in 'de'\n.*\n  possible: en, fr, vi"):
        recipe.build(tmp_path, "de")


def test_a_folder_that_cannot_be_written_is_refused(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the data.*\n.*\n  name a folder"):
        recipe.build(tmp_path / "file", train_rows=5, test_rows=2)


def test_the_command_prints_the_summary_or_one_message(small, tmp_path, capsys):
    recipe.main(["--lang", "fr", "--rows", "7", "--test-rows", "3", "--out", str(tmp_path)])
    assert json.loads(capsys.readouterr().out)["train_rows"] == 7
    with pytest.raises(SystemExit, match=r"^error: too few distinct commands"):
        recipe.main(["--rows", "100000", "--out", str(tmp_path)])


# ---------------------------------------------------------------- the cache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a made-up wheel that pip would deliver."""
    wheel = tmp_path / "index" / recipe.WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("home_assistant_intents/data/en.json", json.dumps({"hello": 1}))
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipe, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def pip(content: bytes | None, calls: list):
    def run(command, **_):
        calls.append(command)
        if content is not None:
            (Path(command[command.index("--dest") + 1]) / recipe.WHEEL).write_bytes(content)
        return subprocess.CompletedProcess(command, content is None, "", "WARNING: x\nERROR: no route to host\n")

    return run


def test_the_wheel_is_fetched_once_and_kept(cache, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(recipe.subprocess, "run", pip(cache.read_bytes(), calls))
    assert recipe.templates("en") == recipe.templates("en") == {"hello": 1}
    assert len(calls) == 1
    assert "--no-deps" in calls[0]
    assert calls[0][-1] == "home-assistant-intents==2026.10.27"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [recipe.WHEEL]


def test_without_a_network_the_reason_and_the_way_out_are_given(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe.subprocess, "run", pip(None, []))
    with pytest.raises(
        DataError, match=r"could not be fetched: ERROR: no route to host\n  wanted as .*\n  go online, or"
    ):
        recipe.templates("en")
    assert not list((tmp_path / "cache").iterdir())


def test_a_wheel_of_other_content_is_not_used_nor_kept(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe.subprocess, "run", pip(b"other", []))
    with pytest.raises(DataError, match=r"its sha256 is d9298a10.*\n.*\n  expected .*; delete the file"):
        recipe.templates("en")
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache" / recipe.WHEEL).write_bytes(b"other")
    with pytest.raises(DataError, match="its sha256 is"):
        recipe.templates("en")


def test_a_cache_that_cannot_be_written_is_refused(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot write the cache.*\n.*\n  name another folder in MICROPLANE_CACHE"):
        recipe.templates("en")


# ---------------------------------------------------------------- the real package


@pytest.fixture(scope="module")
def package():
    try:
        recipe.templates("en")
    except DataError as error:
        if "could not be fetched" in str(error):
            pytest.skip(f"no network: {error}")
        raise


SAID = {"area", "floor", "name", "item", "message", "search_query", "conversation_command"}
COUNTED = {"hours", "minutes", "seconds", "start_hours", "start_minutes", "start_seconds", "position", "percentage"}


@pytest.mark.parametrize("lang", recipe.LANGUAGES)
def test_the_real_package(package, lang, tmp_path):
    recipe.build(tmp_path, lang, train_rows=600, test_rows=100)
    train, test = read(tmp_path / "train.jsonl"), read(tmp_path / "test.jsonl")
    assert (len(train), len(test)) == (600, 100)
    assert len({row["input"].casefold() for row in train + test}) == 700
    intents = {json.loads(row["output"])["intent"] for row in train}
    assert intents == set(recipe.templates(lang)["intents"])
    for row in train + test:
        sentence, meaning = row["input"], json.loads(row["output"])
        assert not set(sentence) & set("[](){}<>|;"), sentence
        assert sentence == " ".join(sentence.split())
        for slot, value in meaning.items():
            if slot in SAID:
                assert value in sentence, (sentence, meaning)
            if slot in COUNTED and not (value == 30 and {"half", "1/2"} & set(sentence.split())):
                assert str(value) in sentence, (sentence, meaning)


def test_the_real_package_gives_the_same_bytes_in_another_process(package, tmp_path):
    recipe.build(tmp_path / "here", train_rows=100, test_rows=20)
    command = [sys.executable, str(RECIPE), "--rows", "100", "--test-rows", "20", "--out", str(tmp_path / "there")]
    root = Path(__file__).parents[2]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root / "src")},
    )
    for file in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
