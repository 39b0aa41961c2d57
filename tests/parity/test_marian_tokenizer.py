"""Translation tokenizers against transformers' MarianTokenizer, on a small pair of SentencePiece models."""

from __future__ import annotations

import json
import random
import warnings

import pytest
import sentencepiece
from transformers import MarianTokenizer

from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ModelError

ENGLISH = """the cat sat on the mat and looked at the small bird in the tall tree
a bird in the hand is worth two in the bush said the old man to the boy
we walked along the river until the sun had gone down behind the hills
she reads a letter from her brother who lives in a town by the sea
it was raining when the train came in and nobody stood on the platform
please bring the bread and the cheese to the table before the others come
the teacher asked why the water in the glass was colder than the air
how many apples are there in the basket, and who has eaten the others?""".splitlines()
FRENCH = """le chat était assis sur le tapis et regardait le petit oiseau dans le grand arbre
un oiseau dans la main vaut mieux que deux dans le buisson, dit le vieil homme au garçon
nous avons marché le long de la rivière jusqu'à ce que le soleil disparaisse derrière les collines
elle lit une lettre de son frère qui habite dans une ville au bord de la mer
il pleuvait quand le train est arrivé et personne n'était sur le quai
apportez le pain et le fromage à la table avant que les autres n'arrivent, s'il vous plaît
le professeur a demandé pourquoi l'eau dans le verre était plus froide que l'air
combien de pommes y a-t-il dans le panier, et qui a mangé les autres ?""".splitlines()


def words(seed: int, count: int) -> list[str]:
    """Sentences of both languages' words, so that each side also meets what it was not made for."""
    chance = random.Random(seed)
    known = [word for line in ENGLISH + FRENCH for word in line.split()]
    return [" ".join(chance.sample(known, chance.randint(1, 9))) for _ in range(count)]


TEXTS = [
    *ENGLISH,
    *FRENCH,
    *words(0, 40),
    "",
    "  two   spaces  at the ends  ",
    "ﬁne ① Ｗｉｄｅ letters",  # as nmt_nfkc rewrites them
    "The Zürich-Łódź train; 東京 to Ωmega!",
    "é",
    "ç à ù",
    "line\nbreak\tand tab",
    "it was raining </s> when",
    ">>fra<< the cat sat on the mat",
    ">>fra<<the bird",
]


def save_folder(folder, apart: bool = False, **training):
    """As Marian's models are published; the table has the pieces of both sides, language codes and the pad."""
    folder.mkdir(exist_ok=True)
    found = []
    for name, lines in (("source", ENGLISH), ("target", FRENCH)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 4),
            model_prefix=str(folder / name),
            vocab_size=80,
            character_coverage=1.0,
            minloglevel=2,
            **training,
        )
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        model = sentencepiece.SentencePieceProcessor(str(folder / f"{name}.spm"))
        found.append([model.id_to_piece(i) for i in range(3, len(model))])
    tables = found if apart else [sorted({*found[0], *found[1]})]
    for name, pieces in zip(("vocab.json", "target_vocab.json"), tables, strict=False):
        order = ["</s>", "<unk>", *random.Random(0).sample(pieces, len(pieces)), ">>fra<<", ">>ron<<", "<pad>"]
        (folder / name).write_text(json.dumps({piece: token for token, piece in enumerate(order)}))
    config = {"source_lang": "en", "target_lang": "fr", "separate_vocabs": apart}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["one table", "two tables"])
def both(request, tmp_path_factory):
    folder = save_folder(tmp_path_factory.mktemp("marian"), request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends a normaliser of punctuation, which it does not use
        return MarianTokenizer.from_pretrained(folder), load_tokenizer(folder), folder


def same(theirs, ours):
    for text in TEXTS:
        read = theirs(text)["input_ids"]
        written = theirs(text_target=text)["input_ids"]
        if theirs.separate_vocabs and text.startswith(">>"):
            continue  # theirs then has no language codes
        assert ours.encode(text) == read, text
        assert ours.encode_target(text) == written, text
        # theirs also strips, which would take spaces from texts that are told piece by piece
        assert ours.for_targets.decode(written).strip() == theirs.decode(written, skip_special_tokens=True), text


def test_ids_and_texts_are_those_of_transformers(both):
    theirs, ours, _ = both
    same(theirs, ours)
    assert ours.special_tokens["pad_token"] == "<pad>"
    assert ours.eos_ids == (theirs.eos_token_id,) == (0,)
    assert ours.unk_id == theirs.unk_token_id
    if not theirs.separate_vocabs:
        assert ours.encode("the bird") != ours.encode_target("the bird")
        for ids in (theirs(text_target=text)["input_ids"] for text in FRENCH):
            assert ours.decode(ids) == ours.for_targets.decode(ids)
        pieces = [ours.piece(token) for token in range(ours.vocab_size)]
        assert pieces == [ours.for_targets.piece(token) for token in range(ours.vocab_size)]
        assert pieces == [theirs.convert_ids_to_tokens(token).replace("▁", " ") for token in range(ours.vocab_size)]


def test_what_is_saved_is_the_same_tokenizer(both, tmp_path):
    _, ours, _ = both
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == ours.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(MarianTokenizer.from_pretrained(tmp_path), again)


def test_the_fingerprint_knows_both_sides(both, tmp_path):
    _, ours, _ = both
    ours.save(tmp_path)
    (tmp_path / "target.spm").write_bytes((tmp_path / "source.spm").read_bytes())
    assert load_tokenizer(tmp_path).fingerprint != ours.fingerprint


def test_folders_that_do_not_work_are_refused(both, tmp_path):
    _, ours, _ = both
    ours.save(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"<pad>": 0}))
    with pytest.raises(ModelError, match=r"vocab.json must give its \d+ pieces the ids 0 to \d+, each once"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "</s>": 1}))
    with pytest.raises(ModelError, match="vocab.json has no '<unk>', which is the unk_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "target.spm").unlink()
    with pytest.raises(ModelError, match="lacks target.spm: a translation model's tokenizer is source.spm, target.spm"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="source.spm is a SentencePiece model of the BPE kind"):
        load_tokenizer(save_folder(tmp_path / "bpe", model_type="bpe"))
