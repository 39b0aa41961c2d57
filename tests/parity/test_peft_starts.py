"""The starts of a low-rank pair against peft's; a pair counted from its start against a rewritten base."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.lora import eva
from peft.utils import loftq_utils

from microplane.checkpoints.adapter import save_adapter
from microplane.methods import make_method
from microplane.methods.adapted_linear import adapted_layers
from microplane.methods.init.factors import loftq
from microplane.methods.lora import LoRALinear
from microplane.models.files.load import load_model
from microplane.nn.rows import Rows
from tests.parity.peft_kit import PEFT_NAMES, adapted_reference, assert_equal, gradients, ours, reference, theirs
from tests.tiny import save_tiny_folder

ALL = list(PEFT_NAMES.values())


@pytest.fixture
def base(tmp_path):
    return save_tiny_folder(tmp_path / "base", "llama-tied")


def both(base, start, **more):
    """Our model with its start, peft's with the same one, and the layers of both by our names."""
    method = make_method({"name": "lora", "rank": 4, "alpha": 6, "start": start, **more})
    model = load_model(base)
    method.attach(model)
    peft_model = adapted_reference(
        base,
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, init_lora_weights=start, target_modules=ALL),
    )
    modules = dict(peft_model.named_modules())
    layers = {
        site: (module, modules[f"base_model.model.model.layers.{site.split('.')[1]}.{where(site)}"])
        for site, module in adapted_layers(model, LoRALinear)
    }
    return method, model, peft_model, layers


def where(site):
    _, _, part, role = site.split(".")
    return f"{'self_attn' if part == 'attention' else 'mlp'}.{PEFT_NAMES[role]}"


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_from_the_weight_equal_pefts(base, tmp_path, start):
    method, model, peft_model, layers = both(base, start)
    method.init_from_data(model, [])
    assert_equal(ours(model), theirs(reference(base)))
    for mine, its in layers.values():
        A, B = its.lora_A["default"].weight, its.lora_B["default"].weight
        torch.testing.assert_close(mine.lora_B @ mine.lora_A, B @ A, atol=1e-5, rtol=1e-5)
        if start == "olora":
            torch.testing.assert_close(mine.lora_A, A, atol=1e-5, rtol=1e-5)
        # The sign of a singular vector is free, so peft's pair is taken over and moved from on both sides.
        mine.set_factors(A.data, B.data, relative_to_start=True)
        for one, other in ((mine.lora_A, A), (mine.lora_B, B)):
            step = torch.randn_like(one) * 0.2
            one.data.add_(step)
            other.data.add_(step)
    mine, its = ours(model), theirs(peft_model)
    assert_equal(mine, its, 5e-5)  # the rewritten base has lost the last bits
    gradients(mine)
    gradients(its)
    for one, other in layers.values():
        for a, b in ((one.lora_A, other.lora_A), (one.lora_B, other.lora_B)):
            grad = b["default"].weight.grad
            torch.testing.assert_close(a.grad / grad.abs().max(), grad / grad.abs().max(), atol=5e-5, rtol=1e-5)
    save_adapter(tmp_path / "adapter", model, method, {"base": str(base)})
    opened = peft.PeftModel.from_pretrained(reference(base), tmp_path / "adapter").eval()  # on the original base
    assert opened.peft_config["default"].r == 8
    assert_equal(theirs(opened), ours(model))


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_eva_finds_pefts_directions_and_ranks(base, tmp_path, monkeypatch, rho):
    method, model, _, _ = both(base, "eva", eva_rho=rho)
    exact = eva.IncrementalPCA  # peft's own takes a random subspace for speed
    monkeypatch.setattr(eva, "IncrementalPCA", lambda **knobs: exact(**knobs | {"lowrank": False}))
    ids = torch.randint(3, 97, (8, 24), generator=torch.Generator().manual_seed(1))
    method.init_from_data(model, [lambda: model(Rows.of(ids.tolist()))])
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=6,
        target_modules=ALL,
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=rho, tau=0.99, use_label_mask=False),
    )
    peft_model = peft.get_peft_model(reference(base), config)
    loader = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    peft.initialize_lora_eva_weights(peft_model, loader, show_progress_bar=False)
    modules = dict(peft_model.named_modules())
    ranks = set()
    for site, mine in adapted_layers(model, LoRALinear):
        its = modules[f"base_model.model.model.layers.{site.split('.')[1]}.{where(site)}"]
        A = its.lora_A["default"].weight
        assert len(mine.lora_A) == len(A)
        assert its.scaling["default"] == pytest.approx(mine.scale)
        cosines = torch.nn.functional.cosine_similarity(mine.lora_A, A).abs()
        assert cosines.min() > 1 - 1e-5, (site, cosines)
        ranks.add(len(A))
    assert (len(ranks) > 1) == (rho > 1)
    for _, mine in adapted_layers(model, LoRALinear):
        mine.lora_B.data.normal_(0, 0.2)
    save_adapter(tmp_path / "adapter", model, method, {"base": str(base)})
    opened = peft.PeftModel.from_pretrained(reference(base), tmp_path / "adapter").eval()
    assert_equal(theirs(opened), ours(model))


def test_loftq_is_pefts_first_round(monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    to = torch.Tensor.to
    on_cpu = lambda args: tuple("cpu" if arg == "cuda" else arg for arg in args)  # noqa: E731 - peft insists on a GPU
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *args, **named: to(
            self, *on_cpu(args), **{k: "cpu" if v == "cuda" else v for k, v in named.items()}
        ),
    )
    four_bits = bitsandbytes.nn.Params4bit
    quantise = four_bits.to
    monkeypatch.setattr(four_bits, "to", lambda self, *args, **named: quantise(self, *on_cpu(args), **named))
    W = torch.randn(64, 128) * 0.1
    Q, A, B = loftq_utils.loftq_init(torch.nn.Parameter(W), num_bits=4, reduced_rank=4, num_iter=1)
    codes, state = bitsandbytes.functional.quantize_4bit(W, quant_type="nf4")
    dequantised = bitsandbytes.functional.dequantize_4bit(codes, state)
    torch.testing.assert_close(Q, dequantised)
    mine = loftq(W, dequantised, 4, scale=1.0)
    torch.testing.assert_close(mine[1] @ mine[0], B @ A, atol=1e-5, rtol=1e-5)
