"""The pure parts of examples/flan_small, on tiny made-up inputs: no network, no training."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from microplane.data.mixtures.spec import read_mixture
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import DataError
from microplane.models.families import family_of
from microplane.nn.rows import Pairs, Rows
from tests.tiny import PAIR_CONFIGS, save_byte_tokenizer

FOLDER = Path(__file__).parents[2] / "examples" / "flan_small"
sys.path.insert(0, str(FOLDER))

import arms  # noqa: E402
import choose  # noqa: E402
import fetch  # noqa: E402
import parse  # noqa: E402
import stages  # noqa: E402
import tasks  # noqa: E402
import vocabulary  # noqa: E402

WORDNET = """\
  1 This line belongs to the licence.
00000010 06 n 02 lamp 0 light_source 0 001 @ 00000020 n 0000 | a thing that gives light; "the lamp is on"; "a red lamp"
00000020 06 n 01 device 0 000 | a made thing
00000030 00 a 01 bright(p) 0 001 ! 00000040 a 0101 | giving much light
00000040 00 a 01 dim 1 001 ! 00000030 a 0101 | giving little light
00000050 00 s 01 murky 0 001 & 00000040 a 0000 | dark or gloomy
"""
INDEX = """\
Package: lamp-data
Source: lamp (1.2-3)
Section: contrib/games

Package: lamp
Section: games
"""
ENGLISH = """\
Package: lamp
Description-md5: aa
Description-en: a game about lamps
 Light them all,
 one after the other.
 .
  * a list
 Second paragraph.

Package: lamp-data
Description-md5: bb
Description-en: a game about lamps - data

Package: unknown
Description-md5: cc
Description-en: not in the index
"""
FRENCH = """\
Package: lamp
Description-md5: aa
Description-fr: un jeu de lampes
 Allumez-les.

Package: lamp-data
Description-md5: old
Description-fr: un vieux texte
"""


def test_wordnet_lines_become_synsets():
    lamp, device, bright, dim, murky = parse.wordnet(WORDNET.splitlines())
    assert lamp.words == ("lamp", "light source")
    assert (lamp.definition, lamp.examples) == ("a thing that gives light", ("the lamp is on", "a red lamp"))
    assert lamp.above == (device.key,)
    assert bright.words == ("bright",)  # without the mark of its syntax
    assert bright.opposites == (("bright", dim.key, 1),)
    assert murky.key == "00000050a"  # pointers name satellites by a as well


def test_every_lexicographer_file_has_a_topic():
    assert len(parse.LEXNAMES) == 45
    assert [parse.LEXNAMES[number] for number in (5, 13, 18, 28, 43)] == ["animal", "food", "person", "time", "weather"]


def test_debian_descriptions_go_with_their_source_and_translation():
    lamp, data = parse.packages(INDEX.splitlines(), ENGLISH.splitlines(), FRENCH.splitlines())
    assert (lamp.name, lamp.source, lamp.section) == ("lamp", "lamp", "games")
    assert lamp.long == "Light them all, one after the other.\nSecond paragraph."
    assert (lamp.short_fr, lamp.long_fr) == ("un jeu de lampes", "Allumez-les.")
    assert (data.source, data.section, data.short_fr) == ("lamp", "games", "")  # its translation is of an older text


def test_packages_of_one_source_give_one_summary():
    long = "Light them all, one after the other, until every room of the house is bright, and then begin again."
    found = [parse.Package(name, "lamp", "games", "a game about lamps", long) for name in ("lamp", "lamp-data")]
    assert len(tasks.debian_tasks(found)["summaries"]) == 1


def test_sides_follow_from_the_family_and_shares_hold():
    splits = [parse.split_of(f"film {number}", 0.1, 0.2) for number in range(4000)]
    assert splits == [parse.split_of(f"film {number}", 0.1, 0.2) for number in range(4000)]
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.03)


def test_held_out_rows_split_by_source_and_list_the_right_section():
    long = "It does what it says, and a little more than that, for everybody who has a lamp at home or at work."
    found = [
        parse.Package(f"lamp{n}-{part}", f"lamp{n}", f"section{n % 5}" if n else "rare", f"lamp {n}", long)
        for n in range(300)
        for part in ("bin", "data")
    ]
    made = tasks.held_out(found, random.Random(0), at_least=20)
    texts = [row["inputs"] for own in made.values() for row in own]
    assert len(texts) == len(set(texts)) == 299
    assert all(len(own) > 0 for own in made.values())
    for row in made["train"]:
        assert row["targets"] in row["options"]
        assert len(set(row["options"])) == 4
        assert "Options:\n- " + "\n- ".join(row["options"]) + "\n" in row["inputs"]
    assert len({row["options"].index(row["targets"]) for row in made["train"]}) == 4  # its place tells nothing
    few = tasks.held_out(found, random.Random(0), at_least=20, most=9)
    assert sum(len(own) for own in few.values()) == 5 * 9
    held = {tasks.side_of(package) for package in found if f"lamp {package.source[4:]}. " in made["test"][0]["inputs"]}
    assert held == {"test"}


def test_tasks_from_wordnet():
    synsets = list(parse.wordnet(WORDNET.splitlines()))
    made = tasks.mixture_tasks(synsets, [], random.Random(0))
    assert {"term": "lamp", "definition": "a thing that gives light"} in made["definitions"]
    assert [row["context"] for row in made["gaps"]] == ["the ___ is on"]
    assert made["gaps"][0]["answer"] in made["gaps"][0]["options"]
    assert all(row["hypothesis"] == "lamp is a kind of device" for row in made["kinds"])


def test_opposites_are_balanced():
    more = "00000060 00 v 02 shine 0 glow 0 000 00 | give light\n00000070 00 r 02 far 0 away 0 000 | not near\n"
    rows = tasks.opposites(list(parse.wordnet((WORDNET + more).splitlines())), random.Random(0))
    assert sorted(row["answer"] for row in rows) == ["opposite", "opposite", "same", "same"]


def test_the_mixture_has_at_least_six_tasks_and_not_the_held_out_one(tmp_path):
    (tmp_path / "mixture.yaml").write_bytes((FOLDER / "mixture.yaml").read_bytes())
    names = "definitions kinds opposites gaps translation summaries commands".split()
    for name in names:
        tasks.write_rows(tmp_path / "tasks" / f"{name}.jsonl", [{"a": 1}])
    plan = read_mixture(tmp_path / "mixture.yaml")
    assert {source.knobs.name for source in plan.sources} == set(names)
    assert len(names) >= 6
    assert tasks.HELD_OUT_FAMILY not in {source.knobs.family for source in plan.sources}


def test_the_vocabulary_keeps_line_breaks_and_writes_every_character(tmp_path):
    letters = "the quick brown fox jumps over the lazy dog and every lamp is lit again".split()
    texts = [" ".join(random.Random(n).sample(letters, 9)) for n in range(300)]
    size = vocabulary.save(vocabulary.train(texts, 400), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.id_of(token) for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert tokenizer.unk_id == 2
    assert size >= tokenizer.vocab_size
    assert all(tokenizer.id_of(f"<extra_id_{number}>") is not None for number in (0, 99))
    for text in ("the fox\n\n\nOptions:\n- lazy", '{"dog": [1, 2]}', "日本 œuvre", "two  spaces"):
        ids = tokenizer.encode(text)
        assert ids[-1] == 1
        assert 2 not in ids
        assert tokenizer.decode(ids) == text


def test_steps_to_a_quality():
    curve = [(0, 0.5), (10, 0.62), (20, 0.58), (30, 0.7)]
    assert [arms.steps_to(curve, level) for level in (0.5, 0.6, 0.65, 0.71)] == [0, 10, 30, None]
    assert arms.choose_lr([{"lr": 1, "validation_loss": 0.7}, {"lr": 2, "validation_loss": 0.6}]) == 2


def test_an_arm_over_its_seeds():
    runs = [
        {"curve": [(0, 0.5), (10, end)], "test": {"accuracy": end}, "validation_loss": 1.0} for end in (0.6, 0.7, 0.8)
    ]
    made = arms.summary(runs, [0.65, 0.75])
    assert made["test_accuracy"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.1)}
    assert made["curve"][1] == {"step": 10, "mean": pytest.approx(0.7), "low": 0.6, "high": 0.8}
    assert made["steps_to"]["0.650"] == {"mean_curve": 10, "seeds": [None, 10, 10]}
    assert made["steps_to"]["0.750"] == {"mean_curve": None, "seeds": [None, None, 10]}
    with pytest.raises(ValueError, match="different steps"):
        arms.mean_curve([[(0, 0.5)], [(1, 0.5)]])


def test_options_are_ranked_by_their_log_probability():
    rows = [choose.Choice("a", ("x", "y"), 1), choose.Choice("b", ("x", "y", "z"), 0)]
    assert choose.ranked(rows, [-2.0, -1.0, -3.0, -0.5, -4.0]) == {"accuracy": 0.5, "loss": 2.0}


def test_a_source_read_once_gives_the_scores_of_whole_pairs(tmp_path):
    size = save_byte_tokenizer(tmp_path, ends=True)
    tokenizer = load_tokenizer(tmp_path)
    model = family_of(PAIR_CONFIGS["t5"]).from_hf(PAIR_CONFIGS["t5"] | {"vocab_size": size}).init_weights(0).eval()
    rows = [choose.Choice(text, ("ab", "c", "def"), number % 3) for number, text in enumerate(("one", "three", "six"))]
    data = choose.OptionRows(rows, tokenizer, 8)
    got, loss = choose.rank(model, rows, data)["loss"], 0.0
    model.eval()
    for row, source, options in zip(rows, data.sources, data.options, strict=True):
        ids = options[row.right]
        pair = Pairs(Rows.of([source]), Rows.of([[model.config.decoder_start, *ids[:-1]]]))
        loss += functional.cross_entropy(model.logits(model(pair)), torch.tensor(ids), reduction="sum").item()
    assert got == pytest.approx(loss / 3, rel=1e-5)


def test_naive_bayes_learns_what_words_tell():
    train = [choose.Choice(text, ("bad", "good"), number) for number, text in enumerate(("dull film", "fine film"))] * 3
    test = [choose.Choice("so fine", ("bad", "good"), 1), choose.Choice("so dull", ("bad", "good"), 0)]
    assert choose.counting_baseline(train, test) == {"commonest": 0.5, "naive_bayes": 1.0}


def test_a_stage_is_done_once_and_its_seconds_add_up(tmp_path):
    calls = []

    def work() -> dict[str, int]:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"rows": 3}

    with pytest.raises(KeyboardInterrupt):
        stages.Stages(tmp_path, lambda text: None).do("learn", work)
    for _ in range(2):
        assert stages.Stages(tmp_path, lambda text: None).do("learn", work) == {"rows": 3}
    record = json.loads((tmp_path / "stages.json").read_text())["learn"]
    assert len(calls) == record["starts"] == 2
    assert record["done"]


def test_without_apt_it_is_said_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs apt-get and dpkg-deb"):
        fetch.debian(tmp_path)
    with pytest.raises(DataError, match="cannot be run"):
        fetch.run(["no-such-program"], tmp_path, "fetching")
