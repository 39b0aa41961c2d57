"""Sampling a mixture: shares, rows by number, epochs, exemplars, and what is left of a killed run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplane.cache.eviction import prune
from microplane.config.build import read_yaml
from microplane.config.knobs import DataKnobs
from microplane.data.mixtures import task_templates
from microplane.data.mixtures.render import materialise
from microplane.data.mixtures.sampler import open_mixture
from microplane.data.mixtures.sources import _own_options
from microplane.data.mixtures.spec import READY
from microplane.data.mixtures.task_templates import family
from microplane.data.preparing.first_pass import files_of
from microplane.errors import DataError
from tests.data.mixtures.kit import FLAN, NEWS, REVIEWS, SUMS, one, write, write_mixture, write_sources
from tests.tiny import text_rows, text_splits

DRAWN = 100_000
PINNED_SOURCES = [0, 1, 1, 2, 1, 3, 3, 1, 3, 0, 2, 1, 2, 1, 2, 0]
PINNED_ROWS = [261, 17, 34, 216, 65]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    write_sources(folder)
    write_mixture(folder, FLAN | {"rows": 400}, "flan.yaml")
    return folder


@pytest.fixture(scope="module")
def flan(place):
    return open_mixture(place / "flan.yaml")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))


def within_3_sigma(count: int, share: float, of: int = DRAWN) -> bool:
    return abs(count - of * share) <= 3 * np.sqrt(of * share * (1 - share))


# Shares


def test_100_000_draws_have_the_published_shares(flan):
    drawn = flan.draws(0, DRAWN)
    counts = Counter(flan.sources[number].plan.submixture for number in drawn.source.tolist())
    published = {"flan2021": 0.40, "t0": 0.32, "niv2": 0.20, "cot": 0.05, "dialog": 0.03}
    assert set(counts) == set(published)
    for name, share in published.items():
        assert within_3_sigma(counts[name], share), name


def test_within_a_submixture_rates_are_rows_up_to_the_cap(flan):
    shares = dict(zip([source.name for source in flan.sources], flan.shares(), strict=True))
    assert shares["reviews"] == pytest.approx(0.40 * 100 / (100 + 60))  # 300 rows, cap 100
    assert shares["news"] == pytest.approx(0.40 * 60 / (100 + 60))
    assert sum(shares.values()) == pytest.approx(1)
    counts = np.bincount(flan.draws(0, DRAWN).source, minlength=6)
    assert all(within_3_sigma(count, share) for count, share in zip(counts, flan.shares(), strict=True))


def test_templates_are_mixed_as_published(flan):
    """Few-shot x options a quarter each in flan2021 and t0; options always in the rest; 0.3 / 1.3 inverted in two."""
    drawn = flan.draws(0, DRAWN)
    part = np.array([source.plan.submixture for source in flan.sources])[drawn.source]
    for name in ("flan2021", "t0"):
        own = part == name
        for few_shot in (False, True):
            for options in (False, True):
                count = int((own & (drawn.few_shot == few_shot) & (drawn.options == options)).sum())
                assert within_3_sigma(count, 0.25, int(own.sum())), (name, few_shot, options)
    for name in ("cot", "dialog"):
        own = part == name
        assert within_3_sigma(int((own & drawn.inverted).sum()), 0.3 / 1.3, int(own.sum()))
    assert drawn.options[part == "niv2"].all()
    assert not drawn.inverted[(part != "cot") & (part != "dialog")].any()
    rules = flan.style_shares()
    assert rules["inverted"] == pytest.approx(0.08 * 0.3 / 1.3)
    assert rules["few_shot"] == 0.5
    assert within_3_sigma(int(drawn.options.sum()), rules["with_options"])


def test_the_ready_made_file_is_that_of_the_published_code(flan):
    assert READY / "flan2022.yaml" in flan.plan.files
    published = read_yaml(READY / "flan2022.yaml")["submixtures"]
    assert [part["weight"] for part in published.values()] == [0.40, 0.32, 0.20, 0.05, 0.03]
    assert [part["cap"] for part in published.values()] == [30_000, 20_000, 5_000, 100_000, 200_000]
    assert [part["inversion"] for part in published.values()] == [0, 0, 0, 0.3, 0.3]
    read = [(part.weight, part.cap, part.inversion) for part in flan.plan.submixtures.values()]
    assert read[1:] == [(part["weight"], part["cap"], part["inversion"]) for part in published.values()][1:]
    assert read[0] == (0.40, 100, 0)  # a file changes what it names, and no more


def test_templates_and_numbers_of_exemplars_are_drawn_evenly(flan):
    drawn = flan.draws(0, DRAWN)
    for values, kinds in ((np.floor(drawn.template * 12), 12), (drawn.exemplars, 5), (np.floor(drawn.style * 6), 6)):
        _, counts = np.unique(values, return_counts=True)
        assert len(counts) == kinds
        assert all(within_3_sigma(count, 1 / kinds) for count in counts)


# Rows by number


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 5000), st.integers(1, 40), st.integers(0, 40))
def test_rows_are_the_same_however_they_are_cut(flan, start, first, second):
    whole = list(flan.rows(start, start + first + second))
    assert len(whole) == first + second
    assert whole == [*flan.rows(start, start + first), *flan.rows(start + first, start + first + second)]


def test_draws_made_at_once_are_those_made_one_by_one(flan):
    block = flan.draws(1000, 1300)
    for row in range(300):
        single = flan.draws(1000 + row, 1001 + row)
        for name in ("source", "inverted", "few_shot", "options", "template", "style", "exemplars"):
            assert getattr(block, name)[row] == getattr(single, name)[0]


def test_another_process_draws_the_same_rows_later_and_without_end(flan, place):
    other = open_mixture(place / "flan.yaml")
    assert list(islice(other.rows(200_000), 20)) == list(flan.rows(200_000, 200_020))


def test_the_rows_of_a_seed_stay_what_they_are(flan):
    """Pinned: a new version of this code or of numpy must not change what a seed means."""
    drawn = flan.draws(0, 16)
    assert drawn.source.tolist() == PINNED_SOURCES
    assert [flan._place(0, time, "train") for time in (0, 1, 2, 300, 301)] == PINNED_ROWS


def test_another_seed_draws_other_rows(place, flan):
    other = open_mixture(write_mixture(place, FLAN | {"seed": 1}, "seed.yaml"))
    assert list(other.rows(0, 5)) != list(flan.rows(0, 5))


def test_a_source_gives_each_row_once_before_any_again(place):
    mixture = open_mixture(write_mixture(place, one(submixture={"few_shot": 0}), "epochs.yaml"))
    found = [re.search(r"<review \d+>", row["inputs"])[0] for row in mixture.rows(0, 900)]
    epochs = [found[:300], found[300:600], found[600:]]
    assert all(len(set(epoch)) == 300 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


# Rendered rows


def test_a_row_says_where_it_is_from(flan):
    for row in flan.rows(0, 200):
        assert set(row) == {"inputs", "targets", "source", "template", "shots", "options"}
        name, *turned, number = row["template"].split("/")
        kind = family(name)
        assert 1 <= int(number) <= len(kind.inverted if turned else kind.templates)


def test_exemplars_are_other_rows_and_never_the_row_itself(flan):
    shots = Counter()
    for row in flan.rows(0, 1500):
        parts = row["inputs"].split("\n\n\n")
        assert len(parts) == row["shots"] + 1
        own = re.findall(r"<\w+ \d+>", row["inputs"] + row["targets"])
        if row["source"] in ("reviews", "news", "quiz"):
            assert len(set(own)) == len(own) == row["shots"] + 1
        shots[row["shots"]] += 1
    assert set(shots) == {0, 1, 2, 3, 4, 5}


def test_a_copy_of_the_row_is_no_exemplar_for_it(tmp_path):
    write(tmp_path / "r.jsonl", [{"text": "<same>", "label": "a"}] * 50 + [{"text": "<other>", "label": "b"}])
    source = {"name": "r", "file": "r.jsonl", "family": "topic", "options": ["a", "b"]}
    mixture = open_mixture(write_mixture(tmp_path, one(source, {"few_shot": 1})))
    for row in mixture.rows(0, 60):
        assert row["inputs"].count("<same>") <= 1
        assert row["shots"] == row["inputs"].count("<same>") + row["inputs"].count("<other>") - 1


def test_an_option_that_a_row_lists_twice_is_one():
    assert _own_options({"all": ["yes", "no", "yes ", "no"]}, "all", "no") == ["yes", "no"]


def test_options_are_those_of_the_row_in_a_drawn_order_or_the_given_one(place):
    only = {"few_shot": 0, "with_options": 1}
    mixed = open_mixture(write_mixture(place, one(NEWS, only), "mixed.yaml"))
    orders = {tuple(re.findall(r"\b[abc]\b(?! )", row["inputs"])) for row in mixed.rows(0, 200)}
    assert len({order for order in orders if len(order) == 3}) == 6
    given = open_mixture(write_mixture(place, one(REVIEWS, only, shuffle_options=False), "given.yaml"))
    assert all(row["inputs"].index("bad") < row["inputs"].index("good") for row in given.rows(0, 60))
    assert {row["targets"] for row in given.rows(0, 60)} == {"bad", "good"}


def test_inverted_rows_list_no_options(place):
    mixture = open_mixture(write_mixture(place, one(NEWS, {"with_options": 1, "inversion": 1}), "turned.yaml"))
    drawn = mixture.draws(0, DRAWN)
    assert within_3_sigma(int(drawn.options.sum()), mixture.style_shares()["with_options"])
    assert mixture.style_shares()["with_options"] == 0.5
    for row in mixture.rows(0, 100):
        assert row["options"] != ("/inverted/" in row["template"])
        assert row["options"] == (row["targets"] in ("a", "b", "c"))


def test_a_few_shot_prompt_stays_within_its_length(place):
    mixture = open_mixture(write_mixture(place, one(SUMS, {"few_shot": 1}, max_characters=300), "short.yaml"))
    rows = list(mixture.rows(0, 200))
    assert max(len(row["inputs"]) for row in rows) <= 300
    assert 0 < sum(row["shots"] for row in rows) < 3 * 200


# Held-out rows


def test_held_out_rows_are_neither_trained_on_nor_shown(place):
    mixture = open_mixture(place / "flan.yaml", validation_share=0.2)
    held = {
        source.name: {source.store[row].values[field] for row in source.sides["validation"]}
        for source, field in zip(
            mixture.sources, ("text", "text", "question", "text", "question", "dialogue"), strict=True
        )
    }
    assert [len(texts) for texts in held.values()] == [60, 12, 16, 12, 20, 10]
    for row in mixture.rows(0, 1000):
        assert not any(text in row["inputs"] + row["targets"] for text in held[row["source"]])
    for row in mixture.rows(0, 300, "validation"):
        last = row["inputs"].split("\n\n\n")
        shown = [text for text in held[row["source"]] if text in "\n\n\n".join(last[:-1])]
        asked = [text for text in held[row["source"]] if text in last[-1] + row["targets"]]
        assert (shown, len(asked)) == ([], 1)


def test_training_reads_a_mixture_and_holds_source_rows_out(place, make_tiny):
    knobs = DataKnobs(train=str(place / "flan.yaml"), max_length=4096, template="plain")
    told = []
    splits = text_splits(knobs, make_tiny(), lambda *what: told.append(what))
    assert told[:3] == [
        ("rendering flan.yaml", 200, 400),
        ("rendering flan.yaml", 400, 400),
        ("rendering flan.yaml", 40, 40),
    ]
    assert (len(splits.train), len(splits.validation)) == (400, 40)
    assert splits.summary.format.startswith("inputs/targets (inputs -> targets")
    texts = [json.loads(line) for line in files_of(knobs)["train"][0].read_text().splitlines()]
    assert texts == list(open_mixture(place / "flan.yaml", 0.1).rows(0, 400))
    again = text_splits(knobs, make_tiny())
    assert again.summary.fingerprint == splits.summary.fingerprint
    assert len(text_rows(knobs, make_tiny())) == 40


def test_a_mixture_that_is_being_read_stays_in_the_cache(tmp_path, monkeypatch, make_tiny):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    write_sources(tmp_path)
    knobs = DataKnobs(train=str(write_mixture(tmp_path, one(rows=50))), max_length=4096)
    told = []

    def progress(what: str, done: int, total: int | None) -> None:
        if what.startswith("tokenising"):
            told.append(prune("mixtures"))

    text_splits(knobs, make_tiny(), progress)
    assert {(len(pruned.in_use), len(pruned.deleted)) for pruned in told} == {(1, 0)}
    assert len(prune("mixtures").deleted) == 1


def test_a_changed_source_is_read_again(tmp_path, make_tiny):
    write_sources(tmp_path)
    knobs = DataKnobs(train=str(write_mixture(tmp_path, one(rows=50))), max_length=4096)
    first = files_of(knobs)
    assert files_of(knobs) == first
    write(tmp_path / "reviews.jsonl", [{"review": f"<new {n}>", "stars": 1} for n in range(20)])
    second = files_of(knobs)
    assert second != first
    assert "<new 1" in second["train"][0].read_text()
    second["train"][0].unlink()  # a damaged cache is made again
    assert files_of(knobs)["train"][0].is_file()


def test_rows_are_kept_by_all_that_decides_them(tmp_path, monkeypatch):
    write_sources(tmp_path)
    knobs = DataKnobs(train=str(write_mixture(tmp_path, one(rows=50))), validation_share=0.2, validation_rows=4)
    places = {files_of(knobs)["train"][0].parent}
    for other in ({"validation_share": 0.1}, {"validation_rows": 3}):
        places.add(files_of(knobs.model_copy(update=other))["train"][0].parent)
    told = (source := tmp_path / "reviews.jsonl").stat()
    os.utime(source, ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    places.add(files_of(knobs)["train"][0].parent)
    shutil.copytree(task_templates.FOLDER, tmp_path / "templates")
    with (tmp_path / "templates" / "topic.yaml").open("a") as template:
        template.write("# another wording\n")
    monkeypatch.setattr(task_templates, "FOLDER", tmp_path / "templates")
    places.add(files_of(knobs)["train"][0].parent)
    assert len(places) == 5


def test_few_rows_have_a_validation_row(tmp_path):
    write_sources(tmp_path)
    knobs = DataKnobs(train=str(write_mixture(tmp_path, one(rows=5))), validation_share=0.01)
    assert len(files_of(knobs)["validation"][0].read_text().splitlines()) == 1


def test_validation_rows_have_draws_of_their_own(place):
    mixture = open_mixture(place / "flan.yaml", validation_share=0.2)
    train, validation = (mixture.draws(0, 100, side) for side in ("train", "validation"))
    assert (train.template != validation.template).all()


def test_a_mixture_may_also_be_what_is_validated_on(place, tmp_path):
    rows = write(tmp_path / "x.jsonl", [{"inputs": f"{n}", "targets": "a"} for n in range(9)])
    files = files_of(DataKnobs(train=str(rows), validation=str(place / "flan.yaml")))
    assert len(files["validation"][0].read_text().splitlines()) == 400


@pytest.mark.parametrize("copies", [1, 9])
def test_nothing_to_hold_out_is_told(tmp_path, copies):
    write(tmp_path / "r.jsonl", copies * [{"text": "t", "label": "a"}])
    path = write_mixture(tmp_path, one({"name": "r", "file": "r.jsonl", "family": "topic", "options": ["a", "b"]}))
    with pytest.raises(DataError, match="no source has two different rows, so none can be held out"):
        files_of(DataKnobs(train=str(path)))


def test_rows_that_differ_in_one_field_are_two(tmp_path):
    write(tmp_path / "r.jsonl", [{"text": "t", "label": label} for label in "aba"])
    path = write_mixture(tmp_path, one({"name": "r", "file": "r.jsonl", "family": "topic", "options": ["a", "b"]}))
    (source,) = open_mixture(path).sources
    assert len(set(source.hashes.tolist())) == 2


# Killed and gone on with

WRITER = """
import sys
from pathlib import Path
from microplane.data.mixtures.sampler import open_mixture
mixture = open_mixture(Path(sys.argv[1]))
with open(sys.argv[2], "w") as out:
    import json
    for row in mixture.rows():
        out.write(json.dumps(row, ensure_ascii=False) + "\\n")
        out.flush()
        print(flush=True)
"""


def test_a_killed_mixture_goes_on_with_the_same_rows(place, flan, tmp_path):
    half = tmp_path / "half.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, place / "flan.yaml", half], stdout=subprocess.PIPE)
    for _ in range(57):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    lines = half.read_bytes().count(b"\n")
    assert lines >= 57
    with half.open("ab") as file:
        file.write(b'{"inputs": "torn')
    assert materialise(open_mixture(place / "flan.yaml"), half, lines + 100) == lines
    assert [json.loads(line) for line in half.read_text().splitlines()] == list(flan.rows(0, lines + 100))


def test_a_file_with_other_rows_is_not_gone_on_with(flan, tmp_path):
    path = write(tmp_path / "x.jsonl", [{"inputs": "a"}])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"x\.jsonl: line 1 is not that of .*flan\.yaml; name another file"):
        materialise(flan, path, 10)
    materialise(flan, tmp_path / "y.jsonl", 10)
    with pytest.raises(DataError, match="holds 10 rows, more than the 5 that are asked for"):
        materialise(flan, tmp_path / "y.jsonl", 5)
    first, *rest = (tmp_path / "y.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "y.jsonl").write_text(first + rest[1])  # as of another seed, whose first row is the same by chance
    with pytest.raises(DataError, match=r"y\.jsonl: line 2 is not that of"):
        materialise(flan, tmp_path / "y.jsonl", 10)
    with pytest.raises(DataError, match="cannot be written"):
        materialise(flan, tmp_path / "none" / "y.jsonl", 5)
    assert path.read_bytes() == before
