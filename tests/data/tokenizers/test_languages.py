"""Languages beside texts: ids of sources and targets as transformers' own classes have them, and what is refused."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from microplane.data.reading.example import Example, Message
from microplane.data.rendering.seq2seq import Seq2SeqRenderer
from microplane.data.tokenizers.languages import with_languages
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ConfigError, ModelError
from tests.languages import CODES, NAMES, save_tokenizer
from tests.parity.test_marian_tokenizer import TEXTS
from tests.tiny import save_byte_tokenizer

PLAIN = ["the cat sat on the mat", "a bird in 2 hands", "x", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("languages")
    for name in NAMES:
        save_tokenizer(root / name, name)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers(folders, name):
    english, french, _ = CODES[name]
    theirs = AutoTokenizer.from_pretrained(folders / name, src_lang=english, tgt_lang=french)
    ours = with_languages(load_tokenizer(folders / name), english, french)
    assert ours.languages is not None
    for text in PLAIN + (TEXTS if name == "m2m_100" else []):
        assert ours.encode(text) == theirs(text).input_ids, text
        labels = theirs(text_target=text).input_ids
        wanted = labels[:-1] if name == "mbart" else labels  # theirs go on behind the end, where nothing is written
        assert ours.encode_target(text) == wanted, text
        said = theirs.decode(wanted, skip_special_tokens=True).removeprefix("__fr__")  # M2M100's leaves it there
        assert ours.for_targets.decode(wanted).strip() == said.strip()
    assert len({ours.fingerprint, with_languages(load_tokenizer(folders / name), french, english).fingerprint}) == 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_says_the_languages(folders, name, tmp_path):
    english, french, other = CODES[name]
    with_languages(load_tokenizer(folders / name), french, english).save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.src_lang, theirs.tgt_lang) == (french, english)
    again = with_languages(load_tokenizer(tmp_path))
    assert (again.languages.source, again.languages.target) == (french, english)
    assert again.encode("the cat") == theirs("the cat").input_ids
    assert with_languages(load_tokenizer(tmp_path), other).languages.source == other


@pytest.mark.parametrize("name", ["nllb", "mbart50"])
def test_a_folder_that_names_no_class_is_known_by_its_tokens(folders, name, tmp_path):
    for file in (folders / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | {"tokenizer_class": "TokenizersBackend"}))
    kind = "m2m_100" if name == "nllb" else "mbart"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    english, french, _ = CODES[name]
    found, known = (with_languages(load_tokenizer(place), english, french) for place in (tmp_path, folders / name))
    assert found.languages.scheme == known.languages.scheme
    assert found.encode("the cat") == known.encode("the cat")


def test_the_older_way_of_nllb_is_kept(folders, tmp_path):
    for file in (folders / "nllb").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | {"legacy_behaviour": True}))
    theirs = AutoTokenizer.from_pretrained(tmp_path, src_lang="vie_Latn")
    assert with_languages(load_tokenizer(tmp_path), "vie_Latn").encode("the cat") == theirs("the cat").input_ids


@pytest.mark.parametrize("name", NAMES)
def test_what_is_cut_keeps_the_language_and_the_end(folders, name):
    english, french, _ = CODES[name]
    tokenizer = with_languages(load_tokenizer(folders / name), english, french)
    render = Seq2SeqRenderer(tokenizer)
    whole = render.prompt([Message("user", "the cat sat on the mat " * 3)])
    assert whole == tokenizer.encode("the cat sat on the mat " * 3)
    asked, answer = Message("user", "the cat sat on the mat " * 3), Message("assistant", "it was a mat", trained=True)
    [row] = render.rows(Example((asked, answer), None, "here"), 12, 50)
    source, target = row.ids[: row.source_length], row.ids[row.source_length :]
    empty = tokenizer.encode("")
    assert len(source) == 12
    assert [token for token in source if token in empty] == empty
    assert source[:9] == whole[:9]
    assert target == tokenizer.encode_target("it was a mat")
    talk = [asked, Message("assistant", "no"), asked, answer]
    [row] = render.rows(Example(tuple(talk), None, "here"), 12, 50)
    assert [token for token in row.ids[:12] if token in empty] == empty
    assert row.ids[4:12] == render.prompt(talk[:3])[-8:]


def test_codes_that_there_are_not(folders, tmp_path):
    for name, code, match in (
        (
            "nllb",
            "eng_Lat",
            r"language = eng_Lat: .* Did you mean 'eng_Latn' or 'eng_Grek'\? It has 4: eng_Latn, fra",
        ),
        ("m2m_100", "EN", "data.source_language = EN: .* Did you mean 'en'. It has 100: af, am, .*, bg, ..."),
        ("mbart", "en", "Did you mean 'en_XX'. It has 25: "),
        ("mbart50", "fr-fr", "Did you mean 'fr_XX'"),
        ("mbart50", "fr_FR", "Did you mean 'fr_XX'"),
    ):
        with pytest.raises(ConfigError, match=match):
            with_languages(load_tokenizer(folders / name), code)
    with pytest.raises(ConfigError, match="data.target_language = xx: the vocabulary has no token of it"):
        with_languages(load_tokenizer(folders / "m2m_100"), "en", "xx")
    save_byte_tokenizer(tmp_path)
    assert with_languages(load_tokenizer(tmp_path)).languages is None
    with pytest.raises(ConfigError, match="language = en: the vocabulary of this model has no tokens of languages"):
        with_languages(load_tokenizer(tmp_path), "en")


def test_a_table_of_m2m100_that_is_damaged(folders, tmp_path):
    for file in (folders / "m2m_100").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({text: n for text, n in table.items() if text != "</s>"}))
    with pytest.raises(ModelError, match="must give its .* pieces the ids 0 to"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(table | {"</s>": table["<s>"], "x</s>": table["</s>"], "<s>": 2}))
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | {"language_codes": "flores"}))
    with pytest.raises(ModelError, match="language_codes = 'flores': known are m2m100, wmt21"):
        load_tokenizer(tmp_path)
