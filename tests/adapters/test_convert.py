"""Any adapter as plain LoRA: exact where it is one, else the nearest; peft opens it."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

from microplane.adapters.convert import best_pair, convert
from microplane.checkpoints.adapter import save_adapter
from microplane.cli import app as cli
from microplane.errors import AdapterError
from microplane.inference.pipeline import load
from microplane.methods import METHODS, make_method
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from microplane.methods.method import trainable
from microplane.models.contract import linears
from microplane.models.files.load import load_model
from microplane.nn.rows import Rows
from tests.adapters.test_leaving import adapter as labelled
from tests.labels import encoder_folder
from tests.tiny import save_tiny_folder

IDS = [5, 9, 77, 31, 40, 2, 8]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("base") / "model")


def adapter(base, folder, **knobs):
    """A saved adapter whose trainable tensors have moved."""
    method, model = make_method(knobs), load_model(base)
    method.attach(model)
    size = 0.02 if method.whole_model else 0.3
    for number, tensor in enumerate(trainable(model).values()):
        tensor.data += size * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    if method.finishes:
        method.finish(model, lambda: 0.0)
    folder.mkdir()
    if method.whole_model:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((base / name).read_bytes())
    save_adapter(folder, model, method, {"base": str(base), "template": "chat"})
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model.logits(model(Rows.of([IDS])))


@pytest.mark.parametrize(
    "knobs",
    [
        {"name": "lora", "rank": 4},
        {"name": "rslora", "rank": 4},
        {"name": "lora+", "rank": 4},
        {"name": "lora", "rank": "auto", "start_rank": 3},
        {"name": "adalora", "rank": 2, "initial_rank": 3},
        {"name": "nb-lora", "rank": 4, "targets": ["q", "down"]},
        {"name": "scalora", "rank": 4},
        {"name": "paca", "rank": 4},
    ],
    ids=lambda knobs: knobs["name"] + str(knobs.get("rank")),
)
def test_exact_ones_are_exact_and_peft_opens_them(base, tmp_path, knobs):
    model = adapter(base, tmp_path / "a", **knobs)
    converted = convert(tmp_path / "a", tmp_path / "b")
    assert converted.error < 1e-5
    assert converted.rank == (3 if knobs["name"] == "adalora" or knobs["rank"] == "auto" else 4)
    assert converted.difference < 1e-4
    again = load(tmp_path / "b", dtype="float32")
    assert again.method.name == "lora"
    assert again.template == "chat"
    torch.testing.assert_close(logits(again.model), logits(model), atol=1e-4, rtol=1e-4)
    reference = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    opened = peft.PeftModel.from_pretrained(reference, tmp_path / "b").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(torch.tensor([IDS])).logits[0], logits(model), atol=1e-4, rtol=1e-4)


def test_a_smaller_rank_is_the_nearest_and_its_error_is_told(base, tmp_path):
    model = adapter(base, tmp_path / "a", name="lora", rank=6)
    converted = convert(tmp_path / "a", tmp_path / "b", rank=2)
    values = [torch.linalg.svdvals(module.delta().detach()) for _, module in adapted_layers(model, AdaptedLinear)]
    lost, all_of_it = (sum(float(v[k:].square().sum()) for v in values) for k in (2, 0))
    assert converted.rank == 2
    assert converted.error == pytest.approx((lost / all_of_it) ** 0.5, rel=1e-3)
    assert converted.worst[0] >= converted.error
    assert "the best approximation of this rank: relative error" in "\n".join(converted.lines())


def test_dora_becomes_the_nearest(base, tmp_path):
    model = adapter(base, tmp_path / "a", name="dora", rank=4)
    low, high = convert(tmp_path / "a", tmp_path / "b", rank=4), convert(tmp_path / "a", tmp_path / "c", rank=32)
    assert 0.01 < low.error < 1
    assert high.error < 1e-5
    torch.testing.assert_close(logits(load(tmp_path / "c", "float32").model), logits(model), atol=1e-3, rtol=1e-3)


def test_full_fine_tuning_becomes_the_nearest_and_what_is_left_out_is_told(base, tmp_path):
    model, original = adapter(base, tmp_path / "a", name="full"), load_model(base)
    low, high = convert(tmp_path / "a", tmp_path / "b", rank=4), convert(tmp_path / "a", tmp_path / "c", rank=32)
    assert 0.3 < low.error < 1
    assert high.error < 1e-5
    others = {name: p for name, p in original.named_parameters() if name not in {f"{n}.weight" for n in linears(model)}}
    moved = [float((model.get_parameter(name) - p).detach().square().sum()) for name, p in others.items()]
    assert high.lost == pytest.approx((sum(moved) / sum(float(p.square().sum()) for p in others.values())) ** 0.5)
    assert "left out: the change of embedding, norms and biases" in "\n".join(high.lines())


@pytest.mark.parametrize("pooling", ["mean", "cls"], ids=["ours", "of a class in transformers"])
def test_a_head_that_was_trained_comes_along(pooling, tmp_path):
    path = labelled(encoder_folder(tmp_path / "base"), tmp_path / "a", "dora", "classification", pooling)
    convert(path, tmp_path / "b", rank=32)
    texts = ["the red film is good", "bad"]
    ours, theirs = ([one.probabilities for one in load(at, "float32").classify(texts)] for at in (path, tmp_path / "b"))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_the_nearest_pair():
    change = torch.randn(8, 12)
    A, B = best_pair(change, 3)
    expected = torch.linalg.svdvals(change)[3:].square().sum().sqrt()
    torch.testing.assert_close(torch.linalg.norm(change - B @ A), expected)


def test_methods_that_no_lora_can_stand_for_say_why(base, tmp_path, monkeypatch):
    adapter(base, tmp_path / "ia3", name="ia3")
    with pytest.raises(AdapterError, match="the method ia3 multiplies whole rows and columns, a change of full rank"):
        convert(tmp_path / "ia3", tmp_path / "b")
    adapter(base, tmp_path / "last", name="last-n", n=1)
    with pytest.raises(AdapterError, match="the method last-n trains weights of the model's own"):
        convert(tmp_path / "last", tmp_path / "b")
    adapter(base, tmp_path / "a", name="lora")
    monkeypatch.setattr(METHODS["lora"], "mergeable", False)
    with pytest.raises(AdapterError, match="the method lora adds to the model what is no change of a weight"):
        convert(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_from_the_command_line(base, tmp_path, monkeypatch, capsys):
    adapter(base, tmp_path / "a", name="nb-lora", rank=2)
    monkeypatch.setattr("sys.argv", ["microplane", "convert", str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "nb-lora as LoRA of rank 2\nexact but for rounding" in capsys.readouterr().out
    assert (tmp_path / "a-lora" / "adapter_config.json").is_file()
    (tmp_path / "a-lora").rename(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.setattr("sys.argv", ["microplane", "convert", "."])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert (tmp_path / "a-lora" / "adapter_config.json").is_file()
    for more, message in (
        ([], "exists and is not an empty folder"),
        ([str(tmp_path / "c"), "--to", "ia3"], "--to ia3: possible is lora"),
        ([str(tmp_path / "c"), "--rank", "0"], "--rank 0: must be at least 1"),
    ):
        monkeypatch.setattr("sys.argv", ["microplane", "convert", str(tmp_path / "a"), *more])
        with pytest.raises(SystemExit):
            cli.main()
        assert message in capsys.readouterr().err
