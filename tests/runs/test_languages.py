"""Translation between languages that are tokens: trained, evaluated, asked, merged and served as transformers does."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import microplane
from microplane.adapters.merge import merge
from microplane.errors import ConfigError
from microplane.inference.likelihood import log_likelihoods
from microplane.serving.library import Library
from tests.languages import CODES, NAMES, translation_folder
from tests.tiny import save_tiny_folder

SET = {
    "train.steps": 6, "train.lr": 3e-3, "model.dtype": "float32", "train.eval_every": 3, "eval.rows": 2,
    "eval.max_new_tokens": 4, "train.threads": 1,
}  # fmt: skip
FAMILIES = [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def base(name, tmp_path):
    lines = [{"inputs": f"a cat {n}", "targets": f"un chat {n}"} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return translation_folder(tmp_path / "base", name)


def train(base, name, method="lora", **sets):
    english, french, _ = CODES[name]
    sets = SET | {"runs": str(base.parent / "runs"), "data.source_language": english} | sets
    sets = {"data.target_language": french} | sets
    sets = {knob: value for knob, value in sets.items() if value is not None}
    return microplane.train(str(base), str(base.parent / "rows.jsonl"), method=method, set=sets)


def translated(folder, texts, source=None, beams=1, **told):
    """As transformers' pipeline for translation does it, text by text."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **({"src_lang": source} if source else {}))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    found = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt")
        made = model.generate(**given, max_new_tokens=7, do_sample=False, num_beams=beams, early_stopping=False, **told)
        found.append(made[0].tolist())
    return found


def ids_of(pipeline, texts, beams=1):
    from microplane.config.knobs import GenerateKnobs

    answers = pipeline.answers(texts, GenerateKnobs(max_new_tokens=7, beams=beams))
    return [[pipeline.model.config.decoder_start, *answer.ids] for answer in answers]


def without_end(rows):
    return [row[: row.index(2, 1)] if 2 in row[1:] else row for row in rows]


def test_what_is_merged_translates_there_as_here(base, name, tmp_path):
    english, french, _ = CODES[name]
    done = train(base, name)
    assert done.metrics["after"]["loss"] < done.metrics["before"]["loss"]
    pipeline = done.load()
    assert (pipeline.tokenizer.languages.source, pipeline.tokenizer.languages.target) == (english, french)
    merged = merge(done.folder, tmp_path / "merged").folder
    texts = ["a cat 7", "a mat", "it is"]
    token = pipeline.tokenizer.id_of(pipeline.tokenizer.languages.token(french))
    for beams in (1, 3):
        theirs = translated(merged, texts, beams=beams)  # all of it is said by the folder
        assert without_end(theirs) == ids_of(pipeline, texts, beams)
        assert without_end(theirs) == ids_of(microplane.load(merged, "float32"), texts, beams)
        assert {row[0 if name == "mbart" else 1] for row in theirs} == {token}
    told = json.loads((merged / "generation_config.json").read_text())
    field = "decoder_start_token_id" if name == "mbart" else "forced_bos_token_id"
    assert told[field] == token
    written = (done.folder / "run.yaml").read_text()
    assert f"source_language: {english}" in written
    assert f"target_language: {french}" in written


def test_a_base_is_asked_in_any_language(base, name):
    english, french, other = CODES[name]
    texts = ["a cat 7", "a mat"]
    for source, target in ((english, french), (french, other)):
        pipeline = microplane.load(base, source_language=source, target_language=target)
        token = pipeline.tokenizer.id_of(pipeline.tokenizer.languages.token(target))
        told = {"decoder_start_token_id" if name == "mbart" else "forced_bos_token_id": token}
        assert without_end(translated(base, texts, source, **told)) == ids_of(pipeline, texts)
    with pytest.raises(ConfigError, match=r"data.target_language is not set, and this model writes in a language"):
        microplane.load(base, source_language=english).generate("a cat")


def test_what_has_to_be_said_and_what_there_is_not(base, name):
    file = base / "tokenizer_config.json"
    told = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("src_lang", "tgt_lang")}
    file.write_text(json.dumps(told))
    for side in ("source", "target"):
        with pytest.raises(ConfigError, match=f"data.{side}_language is not set, and this model .* such as"):
            train(base, name, **{f"data.{side}_language": None})
        with pytest.raises(ConfigError, match=f"data.{side}_language = klingon: the vocabulary has no token of it"):
            train(base, name, **{f"data.{side}_language": "klingon"})
    with pytest.raises(ConfigError, match="data.source_language is not set"):
        microplane.load(base).generate("a cat")


@pytest.mark.slow
def test_labels_are_read_in_a_language_and_written_in_none(base, name):
    rows = [{"text": f"a cat {n}", "label": "ab"[n % 2]} for n in range(30)]
    (base.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"data.task": "classification", "eval.max_new_tokens": None}
    with pytest.raises(ConfigError, match="data.target_language = .* nothing is written in it"):
        train(base, name, **sets)
    done = train(base, name, **sets, **{"data.target_language": None})
    assert done.load().tokenizer.languages.target is None
    assert done.load().classify(["a cat"])[0].label in ("a", "b")


def test_other_models_have_no_languages(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    with pytest.raises(ConfigError, match="data.source_language = en: LlamaForCausalLM has no languages here"):
        microplane.load(base, source_language="en")


def test_scores_of_rows_are_those_of_transformers(base, name):
    """log p of answers behind the language, as suites of multiple choice ask for it."""
    english, french, _ = CODES[name]
    pipeline = microplane.load(base, "float32", source_language=english, target_language=french)
    peer = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    token = pipeline.tokenizer.id_of(pipeline.tokenizer.languages.token(french))
    source, wanted = pipeline.prompt("a cat 7"), pipeline.tokenizer.for_targets.encode("un chat", special=False)
    begun = [token] if name == "mbart" else [2, token]
    logits = peer(torch.tensor([source]), decoder_input_ids=torch.tensor([[*begun, *wanted[:-1]]])).logits[0]
    expected = logits.log_softmax(-1)[len(begun) - 1 :].gather(1, torch.tensor(wanted)[:, None]).sum()
    [(found, _)] = log_likelihoods(pipeline.model, [(source, wanted)])
    assert found == pytest.approx(expected.item(), abs=1e-4)


def test_a_base_is_served_in_the_languages_that_are_told(base, name):
    english, french, other = CODES[name]
    for target in (french, other):
        [served] = Library("float32", source_language=english, target_language=target).open(str(base))
        alone = microplane.load(base, "float32", source_language=english, target_language=target)
        assert ids_of(served.pipeline, ["a cat 7"]) == ids_of(alone, ["a cat 7"])
    with pytest.raises(ConfigError, match="data.target_language = klingon"):
        Library("float32", source_language=english, target_language="klingon").open(str(base))


@pytest.mark.slow
def test_adapters_of_two_languages_are_served_from_one_base(base, name):
    folders = [train(base, name, **{"data.target_language": code}).folder for code in CODES[name][1:]]
    library = Library(dtype="float32")
    for folder in folders:
        served = library.open(str(folder))
        library.publish(served)
        one = served[-1]
        assert ids_of(one.pipeline, ["a cat 7"]) == ids_of(microplane.load(folder, "float32"), ["a cat 7"])
        assert one.engine.model is one.pipeline.model


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_resumed_and_evaluated_it_is_the_same(base, name, method):
    import shutil

    from microplane.training.resume import checkpoints

    done = train(base, name, method)
    [file] = [path for path in (done.folder / "adapter").iterdir() if path.suffix == ".safetensors"]
    before = file.read_bytes()
    shutil.rmtree(checkpoints(done.folder / "resume")[-1])
    microplane.resume(done.folder)
    assert file.read_bytes() == before
    measured = microplane.evaluate(str(done.folder), str(base.parent / "rows.jsonl"))
    assert measured["scores"]["loss"] > 0
