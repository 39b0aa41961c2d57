#!/bin/sh
# Encoders and RWKV in transformers: five things that a good guess gets wrong. Run by hand, not in CI:
#     findings/encoders.sh             installs what is pinned below into a temporary folder
#     PYTHON=.venv/bin/python findings/encoders.sh     takes an environment that has it
#
# 1. Guess: with its attention mask, padding changes nothing for the other tokens of a row.
#    ConvBERT's convolutions run over the padding (so do FNet's mixing and Funnel's pooling): the states differ by as much
#    as the states are. Batches of rows of unequal length train and evaluate another function than single rows.
# 2. Guess: a model that loads and runs computes what its paper says.
#    MRA without its CUDA kernel returns zeros for its attention: no error, no warning, and nothing of it trains.
# 3. Guess: rows of a batch are independent in generation.
#    RWKV, going on from a state with two rows, mixes them (a broadcast of (B, D) against (B, 1, D)).
# 4. Guess: dtype=torch.bfloat16 loads a model in bfloat16.
#    DeBERTa (v1) keeps q_bias and v_bias in float32, and its first product fails.
# 5. Guess: every weight of the last layer gets a gradient.
#    LongformerForSequenceClassification reads its first token alone, which has weights of its own (query_global), so LoRA on
#    the last layer's query, key and value never moves: a check that all trained tensors moved fails, rightly.
set -e
if [ -z "$PYTHON" ]; then
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    python3 -m venv "$place/venv"
    PYTHON="$place/venv/bin/python"
    "$PYTHON" -m pip install -q torch==2.13.0 transformers==5.23.0
fi
"$PYTHON" -W ignore - <<'PROGRAM'
import tempfile

import torch
import transformers as t
print("transformers", t.__version__, "torch", torch.__version__)
t.logging.set_verbosity_error()
W = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
         max_position_embeddings=64, pad_token_id=0, initializer_range=0.2)
def seed(): torch.manual_seed(0)
short, long = [5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15]
ids = torch.tensor([short + [0, 0, 0], long]); mask = (ids != 0).long()

print("1. padding, with its attention mask, changes the states of the other tokens:")
for config in (t.ConvBertConfig(**W, embedding_size=32, head_ratio=2, conv_kernel_size=3), t.BertConfig(**W)):
    seed(); net = t.AutoModel.from_config(config).eval()
    with torch.no_grad():
        alone = net(torch.tensor([short])).last_hidden_state[0]
        batch = net(ids, attention_mask=mask).last_hidden_state[0, :4]
    d = float((alone - batch).abs().max()); print("  ", config.model_type, d)
    assert (d > 1e-2) == (config.model_type == "convbert")

print("2. MRA without its CUDA kernel pays no attention, without a word:")
seed(); net = t.MraModel(t.MraConfig(**W)).train()
net(ids[:, :4]).last_hidden_state.square().sum().backward()
q = net.encoder.layer[0].attention.self.query.weight.grad
print("   gradient of a query's weight:", q if q is None else float(q.abs().max())); assert q is None or not q.any()

print("3. RWKV mixes the rows of a batch when it goes on from its state:")
seed(); net = t.RwkvForCausalLM(t.RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=64)).eval()
both = torch.tensor([[5, 6, 7], [50, 51, 52]]); new = torch.tensor([[8], [53]])
with torch.no_grad():
    one = net(new[:1], state=net(both[:1], use_cache=True).state, use_cache=True).logits[0]
    two = net(new, state=net(both, use_cache=True).state, use_cache=True).logits[0]
d = float((one - two).abs().max()); print("   largest difference of a row's logits:", d); assert d > 1e-2

print("4. DeBERTa, loaded in bfloat16, has two biases in float32, and fails:")
seed(); folder = tempfile.mkdtemp()
t.DebertaModel(t.DebertaConfig(**W, relative_attention=True, pos_att_type=["c2p", "p2c"])).save_pretrained(folder)
net = t.AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
print("  ", sorted({n.rsplit(".", 1)[-1] for n, p in net.named_parameters() if p.dtype == torch.float32}))
try:
    net(ids)
    raise SystemExit("it works now")
except RuntimeError as error:
    print("  ", error)

print("5. LongformerForSequenceClassification reads nothing of its last layer's own query, key and value:")
seed(); net = t.LongformerForSequenceClassification(t.LongformerConfig(**{**W, "pad_token_id": 1}, attention_window=4)).train()
net(ids, attention_mask=mask, labels=torch.tensor([0, 1])).loss.backward()
last = net.longformer.encoder.layer[-1].attention.self
got = {n: bool(getattr(last, n).weight.grad.any()) for n in ("query", "key", "value", "query_global")}
print("  ", got); assert got == {"query": False, "key": False, "value": False, "query_global": True}
PROGRAM
