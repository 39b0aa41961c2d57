import io
import json
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from microplane.cli.show_data import BINS, SHOWN, describe, histogram
from microplane.cli.terminal import make_console
from microplane.config.knobs import DataKnobs
from microplane.errors import DataError
from microplane.objectives.select import LabelCandidates
from tests.tiny import PAIRS


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))


def write(path, rows) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def printed(description, colour: str | None = None, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour is not None, color_system=colour)
    console.print(description)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


@pytest.fixture
def file(tmp_path):
    rows = [{"instruction": "Do.", "input": f"row {n}", "output": "x" * (1 + n % 5)} for n in range(40)]
    return write(tmp_path / "x.jsonl", [*rows, rows[0], '{"instruction": "a", "output": null}', "{"])


def test_with_a_model_rows_are_shown_as_they_are_trained(file, smol):
    description = describe(DataKnobs(train=file, system=""), smol)
    text = printed(description)
    first = (
        "  <|im_start|>system\n  <|im_end|>\n  <|im_start|>user\n  Do.\n\n  row 0<|im_end|>\n  <|im_start|>assistant\n"
        "  [[x<|im_end|>]]\n"
    )
    facts = description.facts
    where = facts["samples"][0]["where"]
    assert f"\n{where}\n" in text
    assert (
        first.replace("row 0", f"row {int(where.split(':')[1]) - 1}").replace(
            "[[x", "[[x" + "x" * ((int(where.split(":")[1]) - 1) % 5)
        )
        in text
    )
    assert "Trained text is within [[ ]]. The rest is only read." in text
    assert text.count("[[") == 4
    assert "format      instruction/input/output (instruction + input -> output)" in text
    assert "template    chat" in text
    assert re.search(r"rows        train \d+, validation \d \(validation split off\)", text)
    assert re.search(r"tokens      \d+ to \d+, median \d+, 95% within \d+", text)
    assert "cut         0 prompts and 0 answers above 1,024 tokens; 0 rows dropped" in text
    assert "<unk>       0.00% of the tokens of inputs, 0.00% of answers'" in text
    assert re.search(r"duplicates  train [01], validation [01]", text)
    assert "overlap     validation 0 rows that stand in train too" in text
    assert "2 bad rows (1 x null, 1 x broken JSON), which training refuses without --skip-bad-rows:" in text
    assert "  x.jsonl:42: key 'output' is null, expected text" in text
    assert "Training rows by length in tokens" in text
    assert sum(item["rows"] for item in facts["histogram"]) == facts["rows"]["train"]
    assert (facts["unit"], facts["bad"]) == ("tokens", {"null": 1, "broken JSON": 1})
    assert json.loads(json.dumps(facts)) == facts


def test_trained_text_is_coloured_and_underlined_where_colours_are(file, smol):
    text = printed(describe(DataKnobs(train=file), smol), "truecolor")
    assert re.search("Trained text is \x1b\\[1;4;32mmarked so\x1b\\[0m", text)
    assert len(re.findall("\x1b\\[1;4;32mx+<\\|im_end\\|>\x1b\\[0m", text)) == 3
    assert "[[" not in text


def test_without_a_model_characters_are_counted(file):
    description = describe(DataKnobs(train=file))
    text = printed(description)
    assert "\nx.jsonl:1\n  user: Do.\n\n  row 0\n  assistant: [[x]]\n\nx.jsonl:2\n" in text
    assert "characters  11 to 16, median 14, 95% within 16" in text
    assert "2 bad rows" in text
    assert "template" not in text
    assert "Training rows by length in characters" in text
    facts = description.facts
    assert sum(facts["rows"].values()) == 41
    assert sum(facts["duplicates"].values()) == 1
    assert sum(facts["bad"].values()) == 2
    assert json.loads(json.dumps(facts)) == facts


def test_overlap_and_warnings_are_shown(tmp_path, smol):
    rows = [{"text": f"Text {n}"} for n in range(9)]
    train, test = write(tmp_path / "x.jsonl", rows), write(tmp_path / "t.jsonl", rows[:2])
    for tokenizer in (smol, None):
        text = printed(describe(DataKnobs(train=train, validation=test), tokenizer))
        assert "overlap     validation 2 rows that stand in train too, such as x.jsonl:1 = t.jsonl:1" in text
        assert "(validation split off" not in text
        assert "format      text (text)" in text
    assert "[[Text 0]]" in text
    warned = printed(describe(DataKnobs(train=train, validation=test), smol), width=300)
    assert "warning: 2 of 2 validation rows stand in the training rows too (x.jsonl:1 = t.jsonl:1): numbers" in warned


def test_long_texts_are_shortened_and_control_characters_shown(tmp_path):
    rows = [{"prompt": "a\x1b[31m\x07[bold]" + "p" * 2000, "completion": f"b{n}"} for n in range(3)]
    text = printed(describe(DataKnobs(train=write(tmp_path / "x.jsonl", rows))), width=3000)
    assert "\x1b" not in text
    assert "a␛[31m␇[bold]ppp" in text
    assert f"p ... ({2014 - SHOWN:,} more characters) ... p" in text


def test_samples_are_not_cropped_at_the_width_of_the_terminal(tmp_path):
    rows = [{"prompt": "word " * 60 + f"end\n{n}", "completion": "b"} for n in range(3)]
    console = make_console()
    console.width = 80
    with console.capture() as caught:
        console.print(describe(DataKnobs(train=write(tmp_path / "x.jsonl", rows))))
    assert "word end\n  0\n" in caught.get()


def test_a_file_of_which_nothing_can_be_used_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl: 2 of 2 rows cannot be used:"):
        describe(DataKnobs(train=write(tmp_path / "x.jsonl", ["{", "["])))


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=50))
def test_a_histogram_holds_every_row_in_bins_of_a_round_width(lengths):
    bins = histogram(np.array(lengths))
    assert len(bins) <= BINS
    assert sum(item["rows"] for item in bins) == len(lengths)
    widths = {item["to"] - item["from"] for item in bins}
    assert len(widths) == 1
    assert str(widths.pop()).rstrip("0") in ("1", "2", "5")
    for item in bins:
        assert item["rows"] == sum(item["from"] <= length < item["to"] for length in lengths)
    assert all(one["to"] == other["from"] for one, other in pairwise(bins))


def test_rows_of_which_none_can_be_held_out_are_shown_all_the_same(tmp_path, smol):
    data = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "b"}])
    for found in (describe(DataKnobs(train=data)), describe(DataKnobs(train=data), smol)):
        assert found.facts["rows"] == {"train": 1}
        assert found.facts["warnings"][0].startswith(
            "the training data has 1 row; at least 2 different ones are needed"
        )
        assert "a.jsonl:2: key 'prompt' is null" in printed(found)


def test_rows_with_labels_and_pairs_are_shown_as_a_model_takes_them(tmp_path, make_tiny):
    rows = [{"text": f"film {n}", "label": ("good", "bad")[n % 2]} for n in range(9)]
    file = write(tmp_path / "x.jsonl", rows)
    labelled = printed(describe(DataKnobs(train=file), make_tiny(), LabelCandidates(None)))
    assert "classification (text -> label)" in labelled
    assert "9 of bad, good" in labelled
    assert "[[ -> good]]" in labelled
    pairs = printed(describe(DataKnobs(train=file), make_tiny(), PAIRS))
    assert "[[bad<eos>]]" in pairs or "[[good<eos>]]" in pairs


@pytest.mark.parametrize(("form", "shown"), [("auto", "e\u0301"), ("nfc", "\u00e9")])
def test_without_a_model_texts_are_in_the_form_that_was_asked_for(tmp_path, form, shown):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"cafe\u0301 {n}"}) + "\n" for n in range(20)))
    facts = describe(DataKnobs(train=str(tmp_path / "rows.jsonl"), unicode=form)).facts
    assert shown in facts["samples"][0]["parts"][0]["text"]


def test_where_validation_rows_come_from_is_said_without_a_model_too(tmp_path):
    for name in ("train", "validation"):
        lines = [json.dumps({"prompt": f"{name} {number}", "completion": "x"}) for number in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    both, alone = (describe(DataKnobs(train=str(path))) for path in (tmp_path, tmp_path / "train.jsonl"))
    assert both.facts["validation_from"] == "file"
    assert alone.facts["validation_from"] == "split off"
