"""What is computed at once of texts that are to be labelled or embedded."""

from __future__ import annotations

from microplane.data.tokenizers.load import load_tokenizer
from microplane.inference.predict import batches
from tests.labels import save_wordpiece


def test_a_batch_knows_which_tokens_are_of_a_second_text(tmp_path):
    save_wordpiece(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    encoded = [tokenizer.encode_pair("red"), tokenizer.encode_pair("the film", "it was good")]
    [(order, rows)] = batches(encoded)
    assert order == [1, 0]
    assert rows.ids.tolist() == [*encoded[1].ids, *encoded[0].ids]
    assert rows.types.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    [(_, alone)] = batches(encoded[:1])
    assert alone.types is None
