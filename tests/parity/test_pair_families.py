"""Encoder-decoders of BART's kind against transformers: states, logits, loss, gradients, files and what is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from microplane.config.knobs import GenerateKnobs
from microplane.errors import ModelError
from microplane.inference.generate import generate
from microplane.models.files.load import load_model, save_model
from microplane.models.transformer import Transformer
from microplane.nn.position import fairseq_sinusoids
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.text import TokenBatch, token_loss
from tests.cases import some
from tests.parity.pair_shapes import CLASSES, SHAPES, SIZE
from tests.parity.test_marian import Numbers, flat, padded

LENGTHS = ((9, 6), (15, 7), (3, 12), (11, 1), (1, 9), (16, 16))
FORCED: dict[str, dict[str, int]] = {
    "none": {},
    "first": {"forced_bos_token_id": 33},
    "both": {"forced_eos_token_id": 9, "forced_bos_token_id": 4},
}
FAST = [(name, 0) for name in CLASSES]
CASES = some([(name, number) for name in CLASSES for number in range(len(SHAPES))], FAST)


def build(name: str, **fields: Any) -> Any:
    """A random model of transformers in float32; norms and biases too are random, so that they count."""
    torch.manual_seed(0)
    config, kind = CLASSES[name]
    model = kind._from_config(config(**SIZE | fields), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


def texts(size: int, lengths: tuple[tuple[int, int], ...] = LENGTHS) -> tuple[list[list[int]], list[list[int]]]:
    """Source rows, and target rows without the start token; no token for padding among them."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda n: torch.randint(10, size, (n,), generator=generator).tolist()  # noqa: E731
    return [draw(n) for n, _ in lengths], [draw(m) for _, m in lengths]


def pairs_of(model: Transformer, source: list[list[int]], target: list[list[int]]) -> Pairs:
    return Pairs(Rows.of(source), Rows.of([[model.config.decoder_start, *row[:-1]] for row in target]))


def start_of(theirs: Any) -> int:
    """mBART's start is the language to write in, which its configuration does not say."""
    start = theirs.config.decoder_start_token_id
    return 2 if start is None else start


def theirs_on(theirs: Any, source: list[list[int]], target: list[list[int]]) -> Any:
    """transformers' output, padded on the right, and what is no padding among its target positions."""
    pad = theirs.config.pad_token_id
    ids, mask = padded(source, "right", pad)
    begun, wanted = padded([[start_of(theirs), *row[:-1]] for row in target], "right", pad)
    found = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=begun, use_cache=False)
    return found, mask.bool(), wanted.bool()


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """To `tolerance` of the largest number."""
    size = theirs.abs().max().clamp(min=1e-3)
    torch.testing.assert_close(ours / size, theirs / size, atol=tolerance, rtol=tolerance)


def check_gradients(ours: Transformer, theirs: Any) -> None:
    known, names = dict(theirs.named_parameters()), ours.hf_names()
    checked = {names[name] for name, _ in ours.named_parameters()}
    assert all(
        name in checked or not parameter.grad.any() for name, parameter in known.items() if parameter.grad is not None
    )
    largest = max(parameter.grad.abs().max().item() for parameter in ours.parameters() if parameter.grad is not None)
    for name, parameter in ours.named_parameters():
        expected = known[names[name]].grad
        if expected is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            torch.testing.assert_close(parameter.grad, expected, atol=1e-5 * max(1.0, largest), rtol=1e-5, msg=name)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_states_logits_loss_and_gradients_are_those_of_transformers(name, number, tmp_path):
    theirs = build(name, **SHAPES[number])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).requires_grad_(True)
    assert isinstance(ours, Transformer)
    source, target = texts(ours.config.vocab_size)
    pairs, labels = pairs_of(ours, source, target), flat(target)
    found, read, wanted = theirs_on(theirs, source, target)
    close(ours.encode(pairs.source), found.encoder_last_hidden_state[read])
    close(ours.logits(ours(pairs)), found.logits[wanted])
    for own, begun, row, logits in zip(
        *(
            side.split(rows.lengths)
            for side, rows in ((pairs.source.ids, pairs.source), (pairs.target.ids, pairs.target))
        ),
        source,
        ours.logits(ours(pairs)).split(pairs.target.lengths),
        strict=True,
    ):  # packed rows, each as it is alone
        assert own.tolist() == row
        close(logits, theirs(input_ids=own[None], decoder_input_ids=begun[None]).logits[0])
    for smoothing in (0.0, 0.1):
        loss = token_loss(ours, TokenBatch(pairs, torch.arange(len(labels)), labels), smoothing) / len(labels)
        expected = F.cross_entropy(found.logits[wanted], labels, label_smoothing=smoothing)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for model, value in ((ours, loss), (theirs, expected)):
            model.zero_grad()
            value.backward(retain_graph=True)
        check_gradients(ours, theirs)


@pytest.mark.parametrize(
    ("name", "number"), some([(name, number) for name in CLASSES for number in (0, 3)], [("bart", 3), ("pegasus", 0)])
)
def test_each_opens_what_the_other_saves(name, number, tmp_path):
    theirs = build(name, **SHAPES[number])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    source, target = texts(ours.config.vocab_size)
    expected = ours.logits(ours(pairs_of(ours, source, target)))
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config.to_hf() == ours.config.to_hf()
    assert torch.equal(again.logits(again(pairs_of(ours, source, target))), expected)
    ours.source_config = {}  # as of a model that was never in a file
    save_model(ours, tmp_path / "from nothing")
    for folder in ("ours", "from nothing"):
        reopened, report = CLASSES[name][1].from_pretrained(
            tmp_path / folder, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        for buffer, tensor in theirs.named_buffers():
            assert torch.equal(dict(reopened.named_buffers())[buffer], tensor)
        found, _, wanted = theirs_on(reopened.eval(), source, target)
        close(found.logits[wanted], expected)


@pytest.mark.parametrize("name", some(CLASSES, ["bart"]))
def test_older_files_open(name, tmp_path):
    """Without a head's prefix and bias, with every copy of the table, and with what fairseq's modules left."""
    theirs = build(name)
    theirs.model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert not any(key.startswith("model.") for key in tensors)
    table = tensors["shared.weight"]
    tensors |= {f"{stack}.embed_tokens.weight": table.clone() for stack in ("encoder", "decoder")}
    tensors |= {f"{stack}.version": torch.ones(1) for stack in ("encoder", "decoder")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = load_model(tmp_path)
    source, target = texts(ours.config.vocab_size)
    if hasattr(theirs, "final_logits_bias"):
        theirs.final_logits_bias.zero_()
        assert not ours.final_logits_bias.any()
    found, _, wanted = theirs_on(theirs, source, target)
    close(ours.logits(ours(pairs_of(ours, source, target))), found.logits[wanted])
    save_model(ours, tmp_path / "again")
    assert isinstance(load_model(tmp_path / "again"), Transformer)


@pytest.mark.parametrize(
    ("name", "settings"),
    some(
        [(name, kind) for name in CLASSES for kind in FORCED],
        [("bart", "none"), ("m2m_100", "first"), ("bart", "both")],
    ),
)
def test_it_writes_what_transformers_writes(name, settings, tmp_path):
    theirs = build(name, d_model=64, tie_word_embeddings=False, init_std=0.3, scale_embedding=True)
    told = {"forced_eos_token_id": None, "bos_token_id": None, "eos_token_id": 9} | FORCED[settings]
    theirs.generation_config.update(**told)
    theirs.generation_config.decoder_start_token_id = start_of(theirs)
    theirs.generation_config.bad_words_ids = [[theirs.config.pad_token_id]]
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    source, _ = texts(67)
    ids, mask = padded(source, "right", theirs.config.pad_token_id)
    told = {"max_new_tokens": 11, "repetition_penalty": 5.0}  # random models repeat themselves
    for beams in (1, 3):
        made = theirs.generate(
            ids, attention_mask=mask, num_beams=beams, do_sample=False, early_stopping=False, **told
        ).tolist()
        answers = generate(ours, Numbers(), source, GenerateKnobs(beams=beams, **told), [9])
        for answer, row in zip(answers, made, strict=True):
            said = row[1:]
            assert answer.ids == said[: said.index(9) if 9 in said else len(said)]
        assert len({token for answer in answers for token in answer.ids}) > 9


def test_a_forced_token_that_is_none_is_refused(tmp_path):
    build("bart").save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ours.generation_config = {"forced_bos_token_id": [1, 2]}
    with pytest.raises(ModelError, match=r"forced_bos_token_id = \[1, 2\] is not supported; only a single token is"):
        generate(ours, Numbers(), [[1]], GenerateKnobs(max_new_tokens=4), [9])


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_fairseq_positions_are_transformers(pad):
    table = transformers.models.m2m_100.modeling_m2m_100.M2M100SinusoidalPositionalEmbedding(1024, 26, pad)
    expected = table(torch.full((1, 1030), 9))[0]
    positions = torch.tensor([3, 0, 511, 512, 1023, 1029])
    torch.testing.assert_close(fairseq_sinusoids(positions, 26, 1029, pad + 1), expected[positions], rtol=0, atol=1e-6)
