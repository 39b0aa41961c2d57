"""microplane.attach on models that are not ours: how targets are found, what is refused, and that it learns."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration

import microplane
from microplane.errors import AdapterError, ConfigError
from microplane.methods import METHODS
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from microplane.methods.method import NEEDS_SOCKETS
from tests.foreign.kit import clip, digits, gpt2, vit
from tests.tiny import tiny


def sites(attached):
    return {name for name, _ in adapted_layers(attached.model, AdaptedLinear)}


def linear_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_targets_by_role_by_end_by_name_by_pattern_and_all():
    every = linear_names(vit())
    first, second = "vit.layers.0.attention.q_proj", "vit.layers.1.attention.q_proj"
    for targets in (["q_proj"], ["q"], "attention.q_proj", [first, second], "*.attention.*q_proj", "layers.[01].*.q_*"):
        assert sites(microplane.attach(vit(), "lora", targets)) == {first, second}, targets
    assert sites(microplane.attach(vit(), "lora", second)) == {second}
    assert sites(microplane.attach(vit(), "lora", ["layers.0.*", "fc1"])) == {
        name for name in every if ".0." in name or name.endswith("fc1")
    }
    assert sites(microplane.attach(vit(), "lora")) == every
    assert sites(microplane.attach(vit(), "lora", train="classifier")) == every - {"classifier"}


def test_patterns_and_names_on_a_model_of_ours():
    assert sites(microplane.attach(tiny(), "lora", "layers.1.*.[qk]")) == {
        "layers.1.attention.q",
        "layers.1.attention.k",
    }
    assert sites(microplane.attach(tiny(), "lora", ["layers.0.mlp.up"])) == {"layers.0.mlp.up"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_porj", "'q_porj' name no linear layer; this model has fc1, .*q_proj.* Did you mean 'q_proj'?"),
        ("layers.9.attention.q_proj", "Did you mean 'vit.layers.[01].attention.q_proj'?"),
        ("decoder.blocks.*.multi.part.q_poj", "Did you mean 'q_proj'?"),
        ("decoder.blocks.*.multi.part.fc1", "A whole name is 'vit.layers.0.mlp.fc1'"),
        ("layernorm_before", "vit.layers.0.layernorm_before is a LayerNorm; only linear layers can be adapted"),
        ("patch_embeddings.projection", "projection is a Conv2d; only linear"),
        ("classifier", "classifier trains in full"),
        ([], "method.targets is empty; this model has"),
    ],
)
def test_targets_that_are_not_there(targets, message):
    with pytest.raises(ConfigError, match=message):
        microplane.attach(vit(), "lora", targets, train="classifier")


def test_parts_that_are_not_there():
    with pytest.raises(
        ConfigError, match="train = 'clasifier': the model has no such part. Did you mean 'classifier'?"
    ):
        microplane.attach(vit(), "lora", train="clasifier")
    with pytest.raises(ConfigError, match="train = 'layernorm': .* Did you mean 'vit.layernorm'?"):
        microplane.attach(vit(), "lora", train="layernorm")
    with pytest.raises(ConfigError, match="train = 'vit.layers.0.dropout': that part has no weights"):
        microplane.attach(vit(), "lora", train="vit.layers.0.dropout")
    with pytest.raises(ConfigError, match="parts by name are for models that are not Microplane's own"):
        microplane.attach(tiny(), "lora", train="norm")


def test_twice_is_refused_until_merged():
    attached = microplane.attach(vit())
    with pytest.raises(ConfigError, match="a method attached already"):
        microplane.attach(attached.model)
    assert sites(microplane.attach(attached.merge(), "vera"))


@pytest.mark.parametrize("name", [name for name, made in METHODS.items() if made.needs_own_model])
def test_a_method_that_needs_what_only_our_models_have_is_refused_with_the_reason(name):
    why = (
        "places that Microplane's own models keep open"
        if METHODS[name].needs_own_model == NEEDS_SOCKETS
        else "which blocks a model has"
    )
    with pytest.raises(ConfigError, match=f"method.name = '{name}' .*{why}"):
        microplane.attach(vit(), name)


def test_starts_that_look_at_data_ask_for_losses():
    method = {"name": "lora", "start": "lora_ga", "rank": 2}
    with pytest.raises(ConfigError, match="method.start = 'lora_ga' looks at training rows"):
        microplane.attach(vit(), method)
    model, (images, labels) = vit(), digits()
    plain = model(images[:4]).logits
    attached = microplane.attach(
        model, method, losses=[lambda: F.cross_entropy(model(images[:64]).logits, labels[:64])]
    )
    torch.testing.assert_close(attached.model(images[:4]).logits, plain)
    assert all(module.lora_B.any() for _, module in adapted_layers(model, AdaptedLinear))


def test_a_layer_that_reads_the_weight_itself_is_never_passed_by_in_silence():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x):
            return F.linear(x, self.odd.weight)

    attached = microplane.attach(Reads())
    assert sites(attached) == {"odd"}  # not attention.out_proj
    with pytest.raises(
        AttributeError, match=r"reads the weight of an adapted .* leave that layer out of method\.targets"
    ):
        attached.model(torch.ones(1, 4))
    with pytest.raises(
        ConfigError, match=r"attention.out_proj lies in an nn.MultiheadAttention, which reads its weight"
    ):
        microplane.attach(Reads(), "lora", "out_proj")


def test_weights_that_two_parts_share_are_left_alone():
    every = {name for name in linear_names(gpt2()) if name != "lm_head"}
    assert not every
    assert "lm_head" not in sites(microplane.attach(gpt2()))
    with pytest.raises(ConfigError, match="lm_head shares its weight with another part"):
        microplane.attach(gpt2(), "lora", "lm_head")


def test_nothing_within_a_part_that_trains_in_full_is_adapted():
    attached = microplane.attach(vit(), {"name": "lora", "rank": 2}, "all", train=["vit.layers.0"])
    assert sites(attached)
    assert not any(name.startswith("vit.layers.0.") for name in sites(attached))
    own = {name for name in attached.trainable() if name.startswith("vit.layers.0.")}
    assert own == {f"vit.layers.0.{name}" for name, _ in vit().vit.layers[0].named_parameters()}


def test_averages_of_batch_norms_come_back_too(tmp_path):
    def net():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 10)
        return nn.Sequential(*layers).eval()

    images = digits()[0][:32]
    for method in ("lora", "full"):
        attached = microplane.attach(net(), method)
        attached.model.train()(images)
        attached.save(tmp_path / method)
        opened = microplane.attach_saved(net(), tmp_path / method)
        assert torch.equal(attached.model.eval()(images), opened.model(images))
        assert not torch.equal(attached.model(images), net()(images))
        assert torch.equal(opened.merge()(images), opened.model(images))


def learn(attached, loss, steps, lr):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(attached.param_groups(lr))
    attached.model.train()
    losses = []
    for step in range(steps):
        value = loss(step)
        value.backward()
        attached.step(optimizer, step, steps)
        optimizer.zero_grad()
        losses.append(value.item())
    attached.model.eval()
    return losses


@torch.no_grad()
def accuracy(model, images, labels):
    return (model(images).logits.argmax(-1) == labels).float().mean().item()


def test_a_vit_learns_digits_then_lora_moves_it_to_others():
    """Trained in full on the digits 0 to 4; a LoRA on its queries and values, and its head, then learn 5 to 9."""
    images, labels = digits()
    old, new = labels < 5, labels >= 5
    held = torch.arange(len(labels)) % 5 == 0

    def batches(which):
        chosen = torch.nonzero(which & ~held).flatten()
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        return lambda step: chosen[order.roll(-32 * step)[:32]]

    def loss(model, batch):
        return lambda step: F.cross_entropy(model(images[batch(step)]).logits, labels[batch(step)])

    model = vit()
    assert 0.05e6 < sum(p.numel() for p in model.parameters()) < 0.15e6
    full = microplane.attach(model, "full")
    learn(full, loss(model, batches(old)), 50, 2e-3)
    full.merge()
    assert accuracy(model, images[held & old], labels[held & old]) > 0.85
    assert accuracy(model, images[held & new], labels[held & new]) < 0.05
    lora = microplane.attach(model, {"name": "lora", "rank": 8}, ["q_proj", "v_proj"], train="classifier")
    assert lora.trainable_parameters == 2 * 2 * 8 * (64 + 64) + 65 * 10
    losses = learn(lora, loss(model, batches(new)), 90, 5e-3)
    assert losses[-1] < losses[0] / 4
    found = accuracy(lora.merge(), images[held & new], labels[held & new])
    assert found > 0.85, found


def test_what_is_opened_is_asked_and_its_rate_is_the_methods_own(tmp_path):
    attached = microplane.attach(vit().train(), {"name": "lora", "rank": 4}, ["q_proj"])
    (group,) = attached.param_groups()
    assert group["lr"] == attached.method.rate(attached.model)
    attached.save(tmp_path / "adapter")
    assert not microplane.attach_saved(vit().train(), tmp_path / "adapter").model.training


def test_a_base_that_was_quantised_is_opened_so(tmp_path):
    images = digits()[0][:4]
    attached = microplane.attach(vit(), {"name": "lora", "rank": 4}, ["q_proj"], base="int8")
    attached.save(tmp_path / "adapter")
    opened = microplane.attach_saved(vit(), tmp_path / "adapter")
    assert torch.equal(opened.model(images).logits, attached.model.eval()(images).logits)
    plain = microplane.attach_saved(vit(), tmp_path / "adapter", base="plain")
    assert not torch.equal(plain.model(images).logits, opened.model(images).logits)


def test_both_towers_of_a_clip_learn_to_meet():
    images, labels = digits()
    chosen = torch.stack([torch.nonzero(labels == digit)[0, 0] for digit in range(10)])
    texts = torch.tensor([[38, digit + 1, digit + 11, 39] for digit in range(10)])
    model = clip()
    attached = microplane.attach(model, {"name": "lora", "rank": 4}, ["*_model.*", "*_projection"])
    towers = {name.split(".")[0] for name in sites(attached)}
    assert towers == {"text_model", "vision_model", "visual_projection", "text_projection"}

    def loss(step):
        return model(input_ids=texts, pixel_values=images[chosen], return_loss=True).loss

    losses = learn(attached, loss, 40, 1e-2)
    assert losses[-1] < losses[0] / 3
    moved = {name.split(".")[0] for name, p in attached.trainable().items() if name.endswith("lora_B") and p.any()}
    assert moved == towers


def test_whisper_by_pattern():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=10,
        max_target_positions=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    sound, words = torch.randn(2, 8, 20), torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])
    plain = model(sound, decoder_input_ids=words).logits
    attached = microplane.attach(model, "lora", ["*.encoder_attn.[qv]_proj", "model.encoder.*.fc1"])
    assert sites(attached) == {
        "model.decoder.layers.0.encoder_attn.q_proj",
        "model.decoder.layers.0.encoder_attn.v_proj",
        "model.encoder.layers.0.fc1",
    }
    assert torch.equal(model(sound, decoder_input_ids=words).logits, plain)
    losses = learn(attached, lambda step: model(sound, labels=words).loss, 10, 1e-2)
    assert losses[-1] < losses[0]


def test_peft_opens_what_is_saved_and_the_other_way_round(tmp_path):
    images = digits()[0][:8]
    attached = microplane.attach(vit(), {"name": "lora", "rank": 4}, ["layers.0.*.q_proj", "fc2"], train="classifier")
    learn(attached, lambda step: attached.model(images).logits.square().mean(), 3, 1e-2)
    attached.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(vit(), tmp_path / "ours")
    torch.testing.assert_close(theirs(images).logits, attached.model(images).logits, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = microplane.attach_saved(vit(), tmp_path / "theirs")
    assert torch.equal(again.model(images).logits, attached.model(images).logits)
    with pytest.raises(AdapterError, match="does not fit this model"):
        microplane.attach_saved(gpt2(), tmp_path / "theirs")


def test_pefts_targets_may_be_a_pattern_of_another_model_too(tmp_path):
    images = digits()[0][:8]
    config = peft.LoraConfig(r=4, target_modules=r".*layers\.1\..*(q_proj|fc1)", init_lora_weights=False)
    theirs = peft.get_peft_model(vit(), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    again = microplane.attach_saved(vit(), tmp_path / "theirs")
    torch.testing.assert_close(again.model(images).logits, theirs(images).logits, atol=1e-5, rtol=1e-5)
