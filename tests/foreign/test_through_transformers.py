"""Architectures that have no implementation here, wrapped: what the model gives, how it writes, what is refused."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from microplane.config.knobs import GenerateKnobs
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ConfigError, ModelError
from microplane.inference.generate import generate
from microplane.models.external.transformers import TransformersModel
from microplane.models.files.load import load_model, new_model, save_model
from microplane.nn import attention
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import QuantisedLinear
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.text import TokenBatch, token_loss
from tests.foreign.folders import CAUSAL, save_causal, save_plbart

ROWS = [[5, 9, 200, 31], [7], [100, 101, 102, 103, 104, 105]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreign")
    return {name: save_causal(root / name, name) for name in CAUSAL} | {"plbart": save_plbart(root / "plbart")}


@pytest.fixture(params=["together", "in groups"])
def grouped(request, monkeypatch):
    """Rows of unequal length in one rectangle, and in several, as where one is much longer than the others."""
    if request.param == "in groups":
        monkeypatch.setattr(attention, "SMALL", 0)
        monkeypatch.setattr(attention, "WASTE", 1.0)


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("name", CAUSAL)
def test_rows_of_a_decoder_as_transformers_has_them_one_by_one(folders, name):
    model = load_model(folders[name])
    assert isinstance(model, TransformersModel)
    assert model.head_is_separable == (name != "cohere")
    peer = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    rows = Rows.of(ROWS)
    wanted = torch.cat([peer(torch.tensor([row])).logits[0] for row in ROWS])
    torch.testing.assert_close(model.logits(model(rows)), wanted, atol=1e-4, rtol=1e-4)
    batch = TokenBatch(rows, torch.arange(3), torch.tensor([1, 2, 3]))
    loss = torch.nn.functional.cross_entropy(wanted[:3], batch.targets, reduction="sum")
    torch.testing.assert_close(token_loss(model, batch), loss, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("name", CAUSAL)
def test_it_writes_what_transformers_writes(folders, name):
    model, peer = load_model(folders[name]), AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    tokenizer = load_tokenizer(folders[name])
    answers = generate(model, tokenizer, ROWS, GenerateKnobs(max_new_tokens=8), [])
    for row, answer in zip(ROWS, answers, strict=True):
        made = peer.generate(torch.tensor([row]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert answer.ids == made[0, len(row) :].tolist()
    beams = generate(model, tokenizer, ROWS, GenerateKnobs(max_new_tokens=5, beams=3), [2])
    made = peer.generate(
        torch.tensor(ROWS[:1]), max_new_tokens=5, num_beams=3, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    assert beams[0].ids == [token for token in made[0, len(ROWS[0]) :].tolist() if token not in (0, 2)]


@pytest.mark.usefixtures("grouped")
def test_pairs_of_an_encoder_decoder(folders):
    model, peer = load_model(folders["plbart"]), AutoModelForSeq2SeqLM.from_pretrained(folders["plbart"]).eval()
    assert isinstance(model, TransformersModel)
    assert model.KIND == "encoder-decoder"
    assert model.head_is_separable
    targets = [[1, 50, 60], [1], [1, 70]]
    found = model.logits(model(Pairs(Rows.of(ROWS), Rows.of(targets))))
    wanted = [
        peer(torch.tensor([row]), decoder_input_ids=torch.tensor([target])).logits[0]
        for row, target in zip(ROWS, targets, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-4, rtol=1e-4)
    answers = generate(model, load_tokenizer(folders["plbart"]), ROWS, GenerateKnobs(max_new_tokens=6), [])
    for row, answer in zip(ROWS, answers, strict=True):
        made = peer.generate(
            torch.tensor([row]), max_new_tokens=6, num_beams=1, do_sample=False, eos_token_id=None, pad_token_id=0,
            forced_eos_token_id=None,
        )  # fmt: skip
        assert answer.ids == made[0, 1:].tolist()


@pytest.mark.parametrize("name", [*CAUSAL, "plbart"])
def test_saved_it_is_opened_again_by_both(folders, name, tmp_path):
    model = load_model(folders[name])
    save_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out")
    peer = (AutoModelForSeq2SeqLM if name == "plbart" else AutoModelForCausalLM).from_pretrained(tmp_path / "out")
    for other in (again.net, peer):
        assert model.net.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.net.state_dict().items())


def test_new_weights_follow_the_seed(folders):
    one, same, other = (new_model(folders["openai-gpt"], seed, NumberFormat(torch.float32)) for seed in (1, 1, 2))
    rows = Rows.of(ROWS)
    assert torch.equal(one(rows), same(rows))
    assert not torch.equal(one(rows), other(rows))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base(folders, kind):
    plain, model = (
        load_model(folders["openai-gpt"]),
        load_model(folders["openai-gpt"], NumberFormat(torch.float32, kind)),
    )
    assert sum(isinstance(module, QuantisedLinear) for module in model.modules()) == 8
    found, wanted = (m.logits(m(Rows.of(ROWS))) for m in (model, plain))
    assert not torch.equal(found, wanted)
    assert torch.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.9


def test_products_in_bfloat16_of_weights_in_float32(folders):
    model = load_model(folders["openai-gpt"], NumberFormat(torch.bfloat16, weights=torch.float32))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.logits(model(Rows.of(ROWS))).dtype == torch.bfloat16
    wide = load_model(folders["openai-gpt"])
    torch.testing.assert_close(
        model.logits(model(Rows.of(ROWS))).float(), wide.logits(wide(Rows.of(ROWS))), atol=0.5, rtol=0.1
    )


def changed(folder, to, **fields):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text()) | fields
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_without_transformers_the_error_names_the_extra(folders, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else real(name, *a)
    )
    with pytest.raises(
        ModelError,
        match=r"OpenAIGPTLMHeadModel has no impl.* pip install 'microplane\[transformers\]' Supported .* llama",
    ):
        load_model(folders["openai-gpt"])


def test_what_transformers_does_not_have_is_refused_and_no_code_of_the_folder_runs(folders, tmp_path):
    folder = changed(
        folders["openai-gpt"],
        tmp_path / "odd",
        architectures=["OddLM"],
        model_type="odd",
        auto_map={"AutoModel": "odd.OddLM"},
    )
    (folder / "odd.py").write_text("raise SystemExit('ran')")
    with pytest.raises(
        ModelError, match="OddLM is not supported: .* Code from the model's own repository is never run"
    ):
        load_model(folder)
    own = changed(folders["openai-gpt"], tmp_path / "own", auto_map={"AutoModelForCausalLM": "odd.OddLM"})
    (own / "odd.py").write_text("raise SystemExit('ran')")
    assert isinstance(load_model(own), TransformersModel)
    with pytest.raises(ModelError, match="OpenAIGPTForSequenceClassification is not supported"):
        load_model(changed(folders["openai-gpt"], tmp_path / "c", architectures=["OpenAIGPTForSequenceClassification"]))


def test_weights_that_do_not_fit_are_listed(folders, tmp_path):
    with pytest.raises(ModelError, match=r"do not fit the OpenAIGPTLMHeadModel(.|\n)*12 missing: .*transformer\.h\.2"):
        load_model(changed(folders["openai-gpt"], tmp_path / "more", n_layer=3))
    with pytest.raises(ModelError, match="cannot (load|build)"):
        load_model(changed(folders["openai-gpt"], tmp_path / "odd", n_embd=30))


def test_labels_are_refused(folders):
    from microplane.models.heads import add_head

    with pytest.raises(ConfigError, match="labels need a task head, and OpenAIGPTLMHeadModel"):
        add_head(load_model(folders["openai-gpt"]), "classification", ("a", "b"))
