#!/usr/bin/env bash
# Guess: a LoRA in GGUF may stand on any matrix of the model. A head that is tied to the embedding is the embedding's matrix, so that
#   a pair under its name acts on the head, or on both; and what cannot be put on is an error where the model is opened.
# What happens: where the two are one the file has no `output.weight`, and llama.cpp refuses a pair for it. llama-cpp-python does not look
#   at the answer and gives a model back as if the adapter stood on it: nothing is raised, and a model so opened must not be asked
#   anything. With the head stored as a matrix of its own the same pair is put on, and computes what the merged model does.
# Why it matters to people who fine-tune: small models tie their heads (SmolLM2, small Qwens, Gemma), and adapters hold the head where
#   tokens were added. A server with such an adapter starts, and fails its users later. The way round: merge the adapter and write the
#   whole model, or write the base with a head of its own; look at the adapter before the first question.
# Where there is no wheel this compiles llama.cpp: some ten minutes on two cores. PYTHON=... takes an environment that has it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cat >"$folder/program.py" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

FOLDER, IDS = Path(sys.argv[1]), [5, 9, 31, 12]
V, D, F, R = 40, 32, 48, 4  # tokens, width, inner width, rank
random = np.random.default_rng(0)
SHAPES = {"token_embd": (V, D), "blk.0.attn_q": (D, D), "blk.0.attn_k": (D, D), "blk.0.attn_v": (D, D),
          "blk.0.attn_output": (D, D), "blk.0.ffn_gate": (F, D), "blk.0.ffn_up": (F, D), "blk.0.ffn_down": (D, F)}
BASE = {f"{name}.weight": random.normal(0, 0.2, shape).astype(np.float32) for name, shape in SHAPES.items()}
BASE |= {f"{name}.weight": np.ones(D, np.float32) for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
APART = BASE | {"output.weight": BASE["token_embd.weight"]}  # the same model, its head stored too


def write_model(name, tensors):
    out = gguf.GGUFWriter(FOLDER / name, "llama")
    for key, value in {"context_length": 64, "embedding_length": D, "feed_forward_length": F, "block_count": 1,
                       "head_count": 4, "head_count_kv": 4, "vocab_size": V}.items():
        getattr(out, f"add_{key}")(value)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([*"abcdefghijklmnopqrstuvwxyz0123456789", "<a>", "<b>", "<c>", "<d>"])
    out.add_token_types([1] * 36 + [3] * 4)
    out.add_token_merges(["a b"])
    out.add_bos_token_id(36)
    out.add_eos_token_id(37)
    for key, tensor in tensors.items():
        out.add_tensor(key, tensor)
    finished(out)


def write_adapter(name, at, A, B):
    out = gguf.GGUFWriter(FOLDER / name, "llama")
    out.add_string("general.type", "adapter")
    out.add_string("adapter.type", "lora")
    out.add_float32("adapter.lora.alpha", float(R))  # so that the scale is 1
    out.add_tensor(f"{at}.lora_a", A)
    out.add_tensor(f"{at}.lora_b", B)
    finished(out)


def finished(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def opened(model, adapter=None):
    return llama_cpp.Llama(str(FOLDER / model), lora_path=str(FOLDER / adapter) if adapter else None, n_ctx=64, logits_all=True,
                           n_threads=1, n_gpu_layers=0, verbose=False, type_k=llama_cpp.GGML_TYPE_F32,
                           type_v=llama_cpp.GGML_TYPE_F32)


def logits(model, adapter=None):
    engine = opened(model, adapter)
    assert adapter is None or put_on(engine)
    engine.eval(IDS)
    return np.array(engine.scores[: len(IDS)], np.float32)


def put_on(engine):
    """Whether llama.cpp gave an adapter back, or a null pointer."""
    return bool(engine._lora_adapter)


def changed(tensors, at, A, B):
    return tensors | {at: (tensors[at] + B @ A).astype(np.float32)}


def pair(out, inside):
    return random.normal(0, 0.3, (R, inside)).astype(np.float32), random.normal(0, 0.3, (out, R)).astype(np.float32)


print("llama-cpp-python", version("llama-cpp-python"), "gguf", version("gguf"))
query, table = pair(D, D), pair(V, D)
write_model("tied.gguf", BASE)
write_model("apart.gguf", APART)
write_adapter("query.gguf", "blk.0.attn_q.weight", *query)
write_adapter("head.gguf", "output.weight", *table)
write_model("query-merged.gguf", changed(BASE, "blk.0.attn_q.weight", *query))
write_model("head-merged.gguf", changed(APART, "output.weight", *table))

plain = logits("tied.gguf")
assert np.allclose(plain, logits("apart.gguf"), atol=1e-5)
for model, adapter in (("tied", "query"), ("apart", "head")):
    found, wanted = logits(f"{model}.gguf", f"{adapter}.gguf"), logits(f"{adapter}-merged.gguf")
    far, moved = np.abs(found - wanted).max(), np.abs(wanted - plain).max()
    print(f"head {model}, a pair for the {adapter}: {far:.0e} from the merged model, which is {moved:.1f} from the base")
    assert far < 1e-2 < 0.1 < moved
engine = opened("tied.gguf", "head.gguf")  # nothing is raised
print("head tied, a pair for the head: a model was given back; is the adapter on it?", put_on(engine))
assert not put_on(engine)
PYTHON
"$PYTHON" -W ignore "$folder/program.py" "$folder"
