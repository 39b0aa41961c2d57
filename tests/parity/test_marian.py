"""The Transformer family against transformers' Marian: logits, loss, gradients, files and what is generated."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import MarianConfig, MarianMTModel

from microplane.config.knobs import GenerateKnobs
from microplane.errors import ConfigError, ModelError
from microplane.inference.generate import generate
from microplane.models.files.load import load_model, save_model
from microplane.models.transformer import Transformer
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.text import TokenBatch, token_loss

PAD, EOS = 66, 0
SMALL = {
    "vocab_size": 67,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
    "eos_token_id": EOS,
    "forced_eos_token_id": EOS,
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "activation_function": "relu",
    "init_std": 0.15,  # large enough for attention to have something to choose from
}
APART = {"share_encoder_decoder_embeddings": False, "vocab_size": 71, "decoder_vocab_size": 67}
CASES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "swish": {"activation_function": "swish"},
    "gelu, embeddings as they are": {"activation_function": "gelu", "scale_embedding": False},
    "odd width of sines": {"d_model": 36},
    "separate embeddings": APART,
    "separate embeddings and head": APART | {"tie_word_embeddings": False},
    "shared embeddings but for the head": {"tie_word_embeddings": False},
}
PUBLISHED = {  # of Helsinki-NLP/opus-mt-en-fr
    "activation_dropout": 0.0,
    "activation_function": "swish",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "classif_dropout": 0.0,
    "d_model": 512,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 6,
    "decoder_start_token_id": 59513,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 6,
    "eos_token_id": 0,
    "extra_pos_embeddings": 59514,
    "forced_eos_token_id": 0,
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "max_position_embeddings": 512,
    "normalize_before": False,
    "normalize_embedding": False,
    "num_hidden_layers": 6,
    "pad_token_id": 59513,
    "scale_embedding": True,
    "static_position_embeddings": True,
    "vocab_size": 59514,
}
LENGTHS = {"one pair": ((9, 6),), "five pairs": ((20, 7), (3, 12), (11, 1), (1, 9), (16, 16))}


def build(fields: dict[str, Any]) -> MarianMTModel:
    """A random model of transformers in float32; norms and biases too are random, so that they count."""
    torch.manual_seed(0)
    model = MarianMTModel._from_config(MarianConfig(**fields), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.final_logits_bias.normal_()
    return model


def texts(lengths: tuple[tuple[int, int], ...], size: int = PAD) -> tuple[list[list[int]], list[list[int]]]:
    """Source rows, and target rows without the start token."""
    generator = torch.Generator().manual_seed(7)
    sides = ([n for n, _ in lengths], [m for _, m in lengths])
    source, target = ([torch.randint(1, size, (n,), generator=generator).tolist() for n in side] for side in sides)
    return source, target


def flat(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([token for row in rows for token in row])


def pairs_of(source: list[list[int]], target: list[list[int]], start: int = PAD) -> Pairs:
    return Pairs(Rows.of(source), Rows.of([[start, *row[:-1]] for row in target]))


def padded(rows: list[list[int]], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    return ids, mask


def theirs_on(model: MarianMTModel, source: list[list[int]], target: list[list[int]]) -> torch.Tensor:
    """Logits at all target positions, padded on the right: (T, V)."""
    pad = model.config.pad_token_id
    ids, mask = padded(source, "right", pad)
    begun, wanted = padded([[pad, *row[:-1]] for row in target], "right", pad)
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=begun, use_cache=False).logits
    return logits[wanted.bool()]


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def check_gradients(ours: Transformer, theirs: MarianMTModel) -> None:
    known, names = dict(theirs.named_parameters()), ours.hf_names()
    for name, parameter in ours.named_parameters():
        if known[names[name]].grad is None or not known[names[name]].grad.abs().max() > 1e-7:
            assert parameter.grad.abs().max() < 1e-5, name  # a bias of keys moves nothing
        else:
            assert off(parameter.grad, known[names[name]].grad) < 1e-4, name


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_are_those_of_transformers(case, tmp_path):
    theirs = build(SMALL | CASES[case])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).requires_grad_(True)
    assert isinstance(ours, Transformer)
    for lengths in LENGTHS.values():
        source, target = texts(lengths)
        pairs, labels = pairs_of(source, target), flat(target)
        logits = theirs_on(theirs, source, target)
        assert off(ours.logits(ours(pairs)), logits) < 1e-4
        for smoothing in (0.0, 0.1):
            loss = token_loss(ours, TokenBatch(pairs, torch.arange(len(labels)), labels), smoothing) / len(labels)
            expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
            for model, value in ((ours, loss), (theirs, expected)):
                model.zero_grad()
                value.backward(retain_graph=True)
            check_gradients(ours, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_left_out(side, tmp_path):
    """Their positions count padding on the left; so each pair alone, without padding, is what it is compared to."""
    theirs = build(SMALL)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    source, target = texts(LENGTHS["five pairs"])
    pairs = Pairs(*(Rows.from_padded(*padded(rows, side, PAD)) for rows in (source, target)))
    parts = ours.logits(ours(pairs)).split(pairs.target.lengths)
    for read, written, part in zip(source, target, parts, strict=True):
        alone = theirs(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([written])).logits[0]
        assert off(part, alone) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_each_opens_what_the_other_saves(case, tmp_path):
    theirs = build(SMALL | CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    source, target = texts(LENGTHS["five pairs"])
    expected = ours.logits(ours(pairs_of(source, target)))
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config.to_hf() == ours.config.to_hf()
    assert torch.equal(again.logits(again(pairs_of(source, target))), expected)
    ours.source_config = {"eos_token_id": EOS}  # as of a model that was never in a file
    save_model(ours, tmp_path / "from nothing")
    for name in ("ours", "from nothing"):
        reopened, report = MarianMTModel.from_pretrained(
            tmp_path / name, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        assert torch.equal(reopened.final_logits_bias, theirs.final_logits_bias)
        assert off(theirs_on(reopened.eval(), source, target), expected) < 1e-4


@pytest.mark.parametrize(
    "holds",
    [
        ["model.encoder.embed_tokens.weight"],
        ["lm_head.weight"],
        ["model.shared.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"],
    ],
)
def test_a_shared_embedding_is_found_under_any_of_its_names(holds, tmp_path):
    build(SMALL).save_pretrained(tmp_path)
    expected = load_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors.pop("model.shared.weight")
    tensors |= {name: table.clone() for name in holds}
    tensors["model.encoder.embed_positions.weight"] = torch.zeros(64, 32)  # as older files have them
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = load_model(tmp_path)
    assert found.config.tied
    assert torch.equal(found.embed.weight, expected.embed.weight)


@pytest.mark.parametrize("case", ["the paper's", "separate embeddings"])
def test_a_head_that_was_trained_apart_is_kept(case, tmp_path):
    build(SMALL | CASES[case]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(67, 32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = load_model(tmp_path)
    assert not found.config.tied
    assert torch.equal(found.head_weight, tensors["lm_head.weight"])
    assert torch.equal(found.target_embed.weight, tensors.get("model.shared.weight", found.target_embed.weight))


def test_cached_steps_are_those_of_one_pass(tmp_path):
    build(SMALL).save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    source, target = texts(((9, 6), (3, 6), (14, 6), (1, 6)))
    with torch.no_grad():
        whole = ours.logits(ours(pairs_of(source, target))).unflatten(0, (4, 6))
        cache, begun = ours.start_generation(source)
        assert begun == [[PAD]] * 4
        rows, order = [*zip(*target, strict=True)], [0, 1, 2, 3]
        for step in range(6):
            tokens = begun if step == 0 else [[rows[step - 1][b]] for b in order]
            found = ours.logits(ours(Rows.of(tokens, starts=cache.lengths), cache))
            torch.testing.assert_close(found, whole[order, step], rtol=1e-4, atol=1e-4)
            if step in (1, 3):  # rows change places, are doubled and leave
                chosen = [2, 0, 0, 3] if step == 1 else [3, 1]
                cache.select(chosen)
                order = [order[place] for place in chosen]


class Numbers:
    def encode(self, text, special=True):
        return []

    def decode(self, ids, skip_special=True):
        return " ".join(map(str, ids))


WRITING = {  # as published
    "bad_words_ids": [[PAD]],
    "decoder_start_token_id": PAD,
    "eos_token_id": EOS,
    "forced_eos_token_id": EOS,
    "pad_token_id": PAD,
    "renormalize_logits": True,
}
TEXTS = [torch.randint(1, PAD, (1 + place % 13,), generator=torch.manual_seed(place)).tolist() for place in range(50)]


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """Ours and theirs, trained from nothing for a moment to write a text backwards, so that they write all sorts."""
    folder = tmp_path_factory.mktemp("marian")
    torch.manual_seed(0)
    ours = Transformer.from_hf(SMALL | {"model_type": "marian"}).init_weights(1).train()
    optimizer = torch.optim.Adam(ours.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        source = [TEXTS[(step * 17 + place) % 50] for place in range(16)]
        target = [[*row[::-1], EOS] for row in source]
        labels = flat(target)
        loss = token_loss(ours, TokenBatch(pairs_of(source, target), torch.arange(len(labels)), labels)) / len(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 4
    assert losses[-1] < 2.5
    with torch.no_grad():
        ours.final_logits_bias[0, PAD] = 9.0  # it would often be written
    ours.source_config, ours.generation_config = {"eos_token_id": EOS}, WRITING
    save_model(ours, folder)
    theirs = MarianMTModel.from_pretrained(folder, attn_implementation="eager").eval()
    return theirs, load_model(folder)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"renormalize_logits": False},
        {"forced_eos_token_id": None},
        {"bad_words_ids": [[PAD], [5], [6]]},
        {"repetition_penalty": 1.3},
        {"length_penalty": 0.4},
    ],
    ids=lambda settings: " ".join(settings) or "as published",
)
def test_fifty_texts_are_written_as_transformers_writes_them(writers, beams, settings):
    theirs, ours = writers
    penalties = ("repetition_penalty", *["length_penalty"] * (beams > 1))
    chosen = {name: settings[name] for name in penalties if name in settings}
    told = WRITING | {name: x for name, x in settings.items() if not name.endswith("_penalty")}
    ours.generation_config = told
    answers = generate(ours, Numbers(), TEXTS, GenerateKnobs(max_new_tokens=12, beams=beams, **chosen), [EOS])
    ids, mask = padded(TEXTS, "right", PAD)
    theirs.generation_config.update(**told)
    made = theirs.generate(
        ids, attention_mask=mask, num_beams=beams, do_sample=False, early_stopping=False, max_new_tokens=12, **chosen
    )
    for answer, row in zip(answers, made.tolist(), strict=True):
        expected = row[1:]
        assert answer.ids == expected[: expected.index(EOS) if EOS in expected else len(expected)]
    written = {token for answer in answers for token in answer.ids}
    assert PAD not in written
    assert len(written) > 30
    assert len({len(answer.ids) for answer in answers}) > 5


def test_writing_that_is_not_supported_is_refused(writers):
    _, ours = writers
    for told, message in (
        ({"bad_words_ids": [[1, 2]]}, "bad_words_ids = [[1, 2]] is not supported; only single tokens are"),
        ({"forced_eos_token_id": [1, 2]}, "forced_eos_token_id = [1, 2] is not supported; only a single token is"),
    ):
        ours.generation_config = told
        with pytest.raises(ModelError) as caught:
            generate(ours, Numbers(), [[1]], GenerateKnobs(max_new_tokens=4), [EOS])
        assert message in str(caught.value)


def test_more_than_the_context_is_refused(writers):
    _, ours = writers
    ours.generation_config = WRITING
    with pytest.raises(ConfigError, match="prompt 2 has 65 tokens: more than the 64 that the model reads"):
        generate(ours, Numbers(), [[1], [1] * 65], GenerateKnobs(max_new_tokens=4), [EOS])
    with pytest.raises(ConfigError, match="max_new_tokens = 65 is more than the 64 tokens that the model writes"):
        generate(ours, Numbers(), [[1]], GenerateKnobs(max_new_tokens=65), [EOS])
    assert generate(ours, Numbers(), [[1] * 64], GenerateKnobs(max_new_tokens=64), [EOS])


@pytest.mark.slow
def test_the_published_shape(tmp_path):
    """The whole opus-mt-en-fr with random weights: 75 million parameters."""
    theirs = build(PUBLISHED)
    theirs.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | PUBLISHED))
    ours = load_model(tmp_path).requires_grad_(True)
    assert sum(p.numel() for p in ours.parameters()) == sum(
        p.numel() for n, p in theirs.named_parameters() if "embed_positions" not in n
    )
    source, target = texts(LENGTHS["five pairs"], 59513)
    pairs, labels = pairs_of(source, target, 59513), flat(target)
    logits = theirs_on(theirs, source, target)
    assert off(ours.logits(ours(pairs)), logits) < 1e-4
    loss = token_loss(ours, TokenBatch(pairs, torch.arange(len(labels)), labels)) / len(labels)
    expected = F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    check_gradients(ours, theirs)


def test_positions_are_transformers():
    from microplane.nn.position import sinusoids

    table = transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding(700, 21)
    expected = table.create_weight()
    positions = torch.tensor([3, 0, 511, 512, 699])
    torch.testing.assert_close(sinusoids(positions, 21, 699), expected[positions])
