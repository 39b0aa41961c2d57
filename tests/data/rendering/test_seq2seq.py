"""Examples as pairs for an encoder-decoder: what is read, what is written, and where a row is cut."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_splits
from microplane.data.reading.example import Example, Message
from microplane.data.rendering.seq2seq import Seq2SeqRenderer, source_text
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import DataError
from microplane.objectives.seq2seq import Seq2Seq
from tests.tiny import PAIRS, save_byte_tokenizer, text_splits


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    save_byte_tokenizer(folder, ends=True)
    return load_tokenizer(folder)


def example(*said: tuple[str, str]) -> Example:
    return Example(tuple(Message(role, text) for role, text in said), None, "x:1")


def test_both_sides_end_with_the_end_token_and_only_the_target_is_trained(tokenizer):
    (row,) = Seq2SeqRenderer(tokenizer).rows(example(("user", "ab"), ("assistant", "c")), 99, 99)
    source, target = tokenizer.encode("ab"), tokenizer.encode("c")
    assert source[-1] == target[-1] == 1
    assert row.ids == source + target
    assert row.targets == [False] * len(source) + [True] * len(target)
    assert (row.lost, row.count) == ("", len(target))


def test_a_tokenizer_that_adds_no_end_token_gets_one(tmp_path):
    save_byte_tokenizer(tmp_path, ends=False)
    (row,) = Seq2SeqRenderer(load_tokenizer(tmp_path)).rows(example(("user", "ab"), ("assistant", "c")), 99, 99)
    assert [row.ids[2], row.ids[-1]] == [1, 1]


def gemma_like(folder, config):
    """Bytes with <unk> for what stands before every text, and an end of its own that stands behind none."""
    save_byte_tokenizer(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = TemplateProcessing("<unk> $A", special_tokens=[("<unk>", 2)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def test_what_the_tokenizer_puts_before_a_text_stands_there_once(tmp_path):
    """T5Gemma's: a source is left open, and the token that the decoder is started by is not written again."""
    tokenizer = gemma_like(tmp_path, {"decoder": {"bos_token_id": 2}})
    said = example(("user", "abcd"), ("assistant", "xy"))
    (row,) = Seq2SeqRenderer(tokenizer).rows(said, 99, 99)
    both = row.ids[: row.source_length], row.ids[row.source_length :]
    assert [tokenizer.decode(ids, False) for ids in both] == ["<unk>abcd", "xy</s>"]
    (cut,) = Seq2SeqRenderer(tokenizer).rows(said, 3, 99)
    assert tokenizer.decode(cut.ids[: cut.source_length], False) == "<unk>ab"
    spoken = example(("system", "s"), ("user", "old"), ("assistant", "no"), ("user", "new"), ("assistant", "xy"))
    (cut,) = Seq2SeqRenderer(tokenizer).rows(spoken, 9, 99)
    assert tokenizer.decode(cut.ids[: cut.source_length], False) == "<unk>s\n\n: new"
    (cut,) = Seq2SeqRenderer(tokenizer).rows(spoken, 5, 99)
    assert tokenizer.decode(cut.ids[: cut.source_length], False) == "<unk> new"
    tokenizer = gemma_like(tmp_path, {"decoder_start_token_id": 1})
    (row,) = Seq2SeqRenderer(tokenizer).rows(said, 99, 99)
    assert tokenizer.decode(row.ids[row.source_length :], False) == "<unk>xy</s>"


@pytest.mark.parametrize(
    ("most", "most_target", "cut", "source", "target"),
    [(4, 9, "end", "abc</s>", "xyz</s>"), (9, 3, "answer", "abcdef</s>", "xyz"), (4, 2, "answer", "abc</s>", "xy")],
)
def test_what_is_too_long_loses_its_end(tokenizer, most, most_target, cut, source, target):
    (row,) = Seq2SeqRenderer(tokenizer).rows(example(("user", "abcdef"), ("assistant", "xyz")), most, most_target)
    first = row.source_length
    assert tokenizer.decode(row.ids[:first], False) == source
    assert tokenizer.decode(row.ids[first:], False) == target
    assert row.lost == cut


@pytest.mark.parametrize(
    ("most", "source"),
    [
        (99, "be brief\n\nuser: old\nassistant: yes\nuser: new</s>"),
        (24, "be brief\n\nyes\nuser: new</s>"),
        (16, ": yes\nuser: new</s>"),
    ],
)
def test_a_long_conversation_loses_its_start_behind_the_rules_and_never_its_last_question(tokenizer, most, source):
    said = [("system", "be brief"), ("user", "old"), ("assistant", "yes"), ("user", "new"), ("assistant", "no")]
    (row,) = Seq2SeqRenderer(tokenizer).rows(example(*said), most, 9)
    assert tokenizer.decode(row.ids[: row.source_length], False) == source
    assert row.source_length <= most
    assert tokenizer.decode(row.ids[row.source_length :], False) == "no</s>"
    assert row.lost == ("" if most == 99 else "start")


def test_what_just_fits_is_whole(tokenizer):
    said = example(("user", "ab"), ("assistant", "c"))
    fits, cut = (Seq2SeqRenderer(tokenizer).rows(said, 3, most)[0] for most in (2, 1))
    assert (fits.lost, fits.count) == ("", 2)
    assert (cut.lost, cut.count) == ("answer", 1)


def test_a_conversation_becomes_lines_and_the_system_prompt_comes_first():
    one, rules = [Message("user", "q")], Message("system", "own")
    assert source_text(one) == "q"
    assert source_text([rules, *one]) == "own\n\nq"
    talk = [rules, *one, Message("assistant", "a"), Message("user", "r")]
    assert source_text(talk) == "own\n\nuser: q\nassistant: a\nuser: r"


def test_a_system_prompt_of_the_run_is_for_conversations_without_one(tokenizer):
    renderer = Seq2SeqRenderer(tokenizer, "S")
    own = [Message("system", "own"), Message("user", "q")]
    assert [tokenizer.decode(renderer.prompt(said)) for said in (own[1:], own)] == ["S\n\nq", "own\n\nq"]


def test_from_file_to_batch(tokenizer, tmp_path):
    rows = [{"inputs": f"in{n}", "targets": "t" * (1 + n % 3)} for n in range(20)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = load_splits(DataKnobs(train=str(file), validation_share=0.1), tokenizer, PAIRS).train
    batch = Seq2Seq().collate(train, [0, 5, 2])
    for number, row in enumerate([0, 5, 2]):
        prompt, target = train.prompt_and_target(row)
        source = batch.rows.source.ids.split(batch.rows.source.lengths)[number].tolist()
        read = batch.rows.target.ids.split(batch.rows.target.lengths)[number].tolist()
        wanted = batch.targets.split(batch.rows.target.lengths)[number].tolist()
        assert source == prompt
        assert wanted == [*target, 1]
        assert read == [0, *target]  # the decoder begins with its start token, and never reads the last
    assert batch.count == len(batch.targets) == sum(batch.rows.target.lengths)
    assert np.array_equal(train.lengths, [len(train[row][0]) for row in range(len(train))])


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"])
def test_that_a_chat_template_is_not_followed_is_said(tokenizer, tmp_path, template):
    """T5Gemma's tuned checkpoints have one."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"inputs": f"in{n}", "targets": "t"}) + "\n" for n in range(9)))
    splits = load_splits(DataKnobs(train=str(file)), replace(tokenizer, chat_template=template), PAIRS)
    assert any("do not follow" in warning for warning in splits.summary.warnings) == bool(template)


def test_plain_text_beside_answers_is_refused(tokenizer, tmp_path):
    asked, text = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"q {n}", "completion": "a"}) + "\n" for n in range(10)))
    text.write_text("".join(json.dumps({"text": f"a longer text {n}"}) + "\n" for n in range(10)))
    for train, test in ((asked, text), (text, asked)):
        with pytest.raises(DataError, match=rf"{test.name} is read as .*learns plain text in another way than answers"):
            load_splits(DataKnobs(train=str(train), test=str(test), max_length=24), tokenizer, PAIRS)


def test_the_same_file_for_a_decoder_is_another_entry_of_the_cache(tokenizer, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"inputs": f"in{n}", "targets": "t"}) + "\n" for n in range(9)))
    pairs = load_splits(DataKnobs(train=str(file)), tokenizer, PAIRS).train
    rows = text_splits(DataKnobs(train=str(file)), tokenizer).train
    assert pairs.fingerprint != rows.fingerprint
