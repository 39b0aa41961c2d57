"""Writes the files of this folder: models, adapters and a stopped run, as they were before modules and names moved.

It was run on the commit 7d04f0f, and it imports that commit's modules by the places that they had there. With a work
tree of that commit at BEFORE:

    OMP_NUM_THREADS=1 PYTHONPATH=BEFORE/src python tests/earlier_files/make.py OUT

OUT then holds, for a decoder, an encoder-decoder and an encoder with a task head (FAMILIES):

    <family>/base/                what was adapted
    <family>/data.jsonl           what it was adapted to
    <family>/<adapter>/           what each method left, under names of ADAPTERS and VARIANTS
    <family>/expected.safetensors what the model with each adapter says of fixed rows: `<adapter>.<way>`, where a way is
                                  `plain` (torch's own operations) or `compiled` (Microplane's)
    resume/<case>/stopped/        a run that was stopped half-way by Ctrl-C
    resume/<case>/straight/       what the same run leaves if nothing stops it
    expected.json                 the rows, and on what machine all this was computed

All training is done with torch's own operations, whose bits do not depend on a compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MICROPLANE_NATIVE"] = "0"

import torch  # noqa: I001 - ruff does not know modules that are elsewhere today
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import microplane
from microplane.environment import processor
from microplane.errors import ConfigError
from microplane.methods import METHODS
from microplane.models.families import family_of
from microplane.models.heads import task_scores
from microplane.models.load import save_model
from microplane.nn import native
from microplane.nn.rows import Pairs, Rows
from microplane.watch import Silent

MOST = 300_000  # bytes of a file
MOVES = 1e-3  # how far adapters must be from the base and from each other in some score: more than rounding could

# ---------------------------------------------------------------------------------------------------- models

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = "the film plot actor is was good bad fine poor red green blue".split()
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,  # so that heads * d_kv is not d_model
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": True,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
FAMILIES = {"llama": LLAMA, "t5": T5, "bert": BERT}


def letters_tokenizer(specials: list[str], ends: bool = False) -> Tokenizer:
    """Letters, digits, space and line end behind special tokens; bytes that no row has are left out, to be small."""
    vocabulary = {token: number for number, token in enumerate([*specials, "Ġ", "Ċ", *LETTERS])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>" if "<unk>" in specials else None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if ends:
        backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return backend


def wordpiece(specials: list[str]) -> Tokenizer:
    pieces = [*specials, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def tokenizer_of(family: str) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and what its config says."""
    if family == "llama":
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        names = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|im_end|>"}
        backend, config = letters_tokenizer(specials), {"chat_template": CHATML, **names}
    elif family == "t5":
        specials = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(4))]
        names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        backend, config = letters_tokenizer(specials, ends=True), names
    else:
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}
        backend, config = wordpiece(specials), names
    backend.add_special_tokens(specials)
    kind = "BertTokenizerFast" if family == "bert" else "PreTrainedTokenizerFast"
    return backend, {"tokenizer_class": kind, **config}


def save_base(folder: Path, family: str) -> None:
    folder.mkdir(parents=True)
    backend, config = tokenizer_of(family)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    fields = FAMILIES[family] | {"vocab_size": backend.get_vocab_size()}
    model = family_of(fields).from_hf(fields).init_weights(0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():  # zeros and ones would hide a bias or a norm that is read in the wrong place
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    save_model(model, folder)


# ---------------------------------------------------------------------------------------------------- data


def rows_of(family: str) -> list[dict[str, Any]]:
    if family == "llama":
        return [{"prompt": f"say {'abcde'[n % 5] * 2} {n}", "completion": "abcde"[n % 5]} for n in range(24)]
    if family == "t5":
        return [{"inputs": f"say {'abcde'[n % 5]} {n}", "targets": "abcde"[n % 5] * 2} for n in range(24)]
    said = (("good", "positive"), ("bad", "negative"))
    return [
        {"text": f"the {WORDS[1 + n % 3]} is {said[n % 2][0]} {WORDS[10 + n % 3]} {n}", "label": said[n % 2][1]}
        for n in range(24)
    ]


# Of unequal length, as rows are packed side by side. Of an encoder-decoder the first half is read, the rest written.
IDS = [[5, 9, 12, 7, 30, 21], [8, 3, 17, 40], [11, 6, 25, 33, 9, 14, 28, 5]]

# ---------------------------------------------------------------------------------------------------- adapters

SETS = {
    "model.dtype": "float32",
    "train.steps": 4,
    "train.batch_size": 24,  # all rows: so few steps must be in the right direction to be kept
    "train.threads": 1,
    "train.lr": 0.02,
    "train.warmup": 0,
    "train.eval_every": 1,
    "eval.rows": 1,
    "eval.max_new_tokens": 2,
}
# Scales are no powers of two, with which a product taken in another order would have the same bits.
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"method.rank": 3, "method.dropout": 0.1},
    "rslora": {"method.rank": 3},
    "lora+": {"method.rank": 3, "train.lr": 0.002},
    "lora-fa": {"method.rank": 3},
    "qlora": {"method.rank": 3, "model.dtype": "auto", "model.compute": "float32"},
    "dora": {"method.rank": 3},
    "lora-auto": {
        "method.start_rank": 1,
        "method.max_rank": 4,
        "method.gain": 0.9,
        "method.warmup": 1,
        "method.energy": 1.0,
        "method.scale": 1.7,
        "train.lr": 0.01,
    },
    "adalora": {"method.rank": 1, "method.initial_rank": 3, "method.interval": 1, "train.lr": 0.1},
    "scalora": {"method.rank": 3, "method.interval": 2},
    "nb-lora": {"method.rank": 3, "method.delta": 3.0},
    "ia3": {"train.lr": 0.1},
    "vera": {"method.rank": 4},
    "bottleneck": {"method.width": 4},
    "prompt": {"method.length": 3},
    "prefix": {"method.length": 3},
    "full": {},
    "head-only": {},
    "last-n": {"method.n": 1},
    "bitfit": {},
    "norms": {},
}
assert list(ADAPTERS) == list(METHODS)
# Knobs that change what lies in the files, or how they are read; on the decoder alone.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora-pissa": ("lora", {"method.rank": 3, "method.start": "pissa"}),
    "lora-olora": ("lora", {"method.rank": 3, "method.start": "olora"}),
    "lora-eva": ("lora", {"method.rank": 3, "method.start": "eva", "method.start_rows": 8}),
    "lora-ga": ("lora", {"method.rank": 3, "method.start": "lora_ga", "method.start_rows": 8}),
    "lora-targets": ("lora", {"method.rank": 3, "method.targets": ["q", "v", "head"]}),
    "lora-int8": ("lora", {"method.rank": 3, "model.dtype": "int8", "model.compute": "float32"}),
    "qlora-loftq": ("qlora", ADAPTERS["qlora"] | {"method.start": "loftq"}),
    "nb-lora-fixed": ("nb-lora", {"method.rank": 3, "method.bounds": "fixed", "method.p": 1.0}),
    "vera-by-seed": ("vera", {"method.rank": 4, "method.save_projections": False, "method.seed": 3}),
    "bottleneck-houlsby": ("bottleneck", {"method.width": 4, "method.kind": "houlsby"}),
    "bottleneck-parallel": ("bottleneck", {"method.width": 4, "method.kind": "parallel", "method.scale": 3.0}),
    "prompt-text": ("prompt", {"method.length": 3, "method.start": "text", "method.text": "say it"}),
    "prefix-mlp": ("prefix", {"method.length": 3, "method.mlp": True, "method.mlp_width": 8}),
}


def wanted(family: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, method, knobs) of each adapter of a family."""
    yield from ((name, name, knobs) for name, knobs in ADAPTERS.items())
    if family == "llama":
        yield from ((name, method, knobs) for name, (method, knobs) in VARIANTS.items())


@torch.no_grad()
def said(folder: Path, dtype: str) -> torch.Tensor:
    """What the model in a folder says of IDS: logits (T, V), or the scores of its task head (B, C)."""
    model = microplane.load(folder, dtype).model
    if model.task_head is not None:
        return task_scores(model, Rows.of(IDS))
    if model.KIND != "encoder-decoder":
        return model.logits(model(Rows.of(IDS)))
    halves = [(ids[: len(ids) // 2], [model.config.decoder_start, *ids[len(ids) // 2 :]]) for ids in IDS]
    return model.logits(model(Pairs(Rows.of([read for read, _ in halves]), Rows.of([own for _, own in halves]))))


def ways(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    made = {"plain": said(folder, dtype)}
    del os.environ["MICROPLANE_NATIVE"]
    assert native.library() is not None, "there must be a compiler"
    made["compiled"] = said(folder, dtype)
    os.environ["MICROPLANE_NATIVE"] = "0"
    return made


def adapt(out: Path, family: str, runs: Path) -> dict[str, Any]:
    """Everything of one family; returns for each adapter its method and the format to open it in."""
    place = out / family
    save_base(place / "base", family)
    lines = [json.dumps(row) for row in rows_of(family)]
    (place / "data.jsonl").write_text("\n".join(lines) + "\n")
    found, tensors = {}, {}
    if family != "bert":  # which has no head of its own
        tensors = {f"base.{way}": scores for way, scores in ways(place / "base", "float32").items()}
    for name, method, knobs in wanted(family):
        base, data = str(place / "base"), str(place / "data.jsonl")
        sets = SETS | {"runs": str(runs / family), "name": name, "data.validation": data} | knobs
        try:
            run = microplane.train(base, data, method=method, set=sets)
        except ConfigError as error:  # bitfit where there are no biases, and so on
            print(f"{family} {name}: none, as {str(error)[:100]}")
            continue
        assert run.result["status"] == "success"
        assert run.result["train"]["best_step"] > 0, f"{family} {name} learned nothing"
        assert all(check["passed"] in (True, None) for check in run.result["checks"]), run.result["checks"]
        shutil.copytree(run.folder / "adapter", place / name)
        dtype = "auto" if sets["model.dtype"] != "float32" else "float32"  # auto: quantised as it was in training
        scores = ways(place / name, dtype)
        tensors |= {f"{name}.{way}": part for way, part in scores.items()}
        print(f"{family} {name}: {distance(tensors, name):.3f} from the next, {run.result['train']['decisions']}")
        found[name] = {"method": method, "dtype": dtype}
    save_file(tensors, place / "expected.safetensors")
    return found


def distance(tensors: dict[str, torch.Tensor], name: str) -> float:
    """How far an adapter's scores are from the nearest of the base and all adapters before it."""
    others = [key for key in tensors if key.endswith(".plain") and key != f"{name}.plain"]
    far = [(tensors[f"{name}.plain"] - tensors[key]).abs().max().item() for key in others]
    assert min(far, default=1.0) > MOVES, f"{name} says nearly what another does"
    return min(far, default=float("nan"))


# ---------------------------------------------------------------------------------------------------- a stopped run

STEPS, STOP = 8, 5  # of six steps is an epoch
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("llama", "lora", {"method.rank": 3}),
    "lora-dropout": ("llama", "lora", {"method.rank": 3, "method.dropout": 0.1}),
    "adalora": ("llama", "adalora", ADAPTERS["adalora"]),
    "adafactor": ("t5", "lora", {"method.rank": 3, "train.optimizer": "adafactor"}),
    "last-n": ("bert", "last-n", {"method.n": 1}),
}


class CtrlC(Silent):
    """Presses Ctrl-C in the step of a number."""

    def record(self, record: dict[str, Any]) -> None:
        if record["step"] == STOP and "loss" in record:
            os.kill(os.getpid(), signal.SIGINT)


def stop(out: Path, case: str, runs: Path) -> dict[str, Any]:
    family, method, knobs = CASES[case]
    base, data = out / family / "base", out / family / "data.jsonl"
    sets = SETS | {"train.steps": STEPS, "train.batch_size": 4, "runs": str(runs), "data.validation": str(data)} | knobs
    for name, watch in {"straight": Silent(), "stopped": CtrlC()}.items():
        named = sets | {"name": f"{case}-{name}"}
        run = microplane.train(str(base), str(data), method=method, set=named, watch=watch)
        assert run.result["status"] == {"straight": "success", "stopped": "stopped"}[name]
        place = out / "resume" / case / name
        place.mkdir(parents=True)
        shutil.copytree(run.folder / "adapter", place / "adapter")
        if name == "straight":
            shutil.copy(run.folder / "metrics.jsonl", place)
            continue
        shutil.copytree(run.folder / "resume", place / "resume")
        for older in sorted((place / "resume").glob("step-*"))[:-1]:  # what is gone on from is the last
            shutil.rmtree(older)
        for file in run.folder.iterdir():
            if file.is_file() and file.name != "report.html":  # which is large, and read by nobody here
                shutil.copy(file, place)
    return {"family": family, "stopped": STOP, "steps": STEPS}


# ---------------------------------------------------------------------------------------------------- all of it


def vendor() -> str:
    """Who made the processor; MKL chooses its products by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), platform.machine())


def compiler() -> str:
    done = subprocess.run(["c++", "--version"], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["MICROPLANE_CACHE"] = str(Path(temporary) / "cache")
        adapters = {family: adapt(out, family, Path(temporary) / "runs") for family in FAMILIES}
        stopped = {case: stop(out, case, Path(temporary) / "stopped") for case in CASES}
    plain = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "vendor": vendor()}
    compiled = plain | {"processor": processor(), "compiler": compiler()}
    whole = {
        "out": str(out),
        "ids": IDS,
        "machine": {"plain": plain, "compiled": compiled},
        "adapters": adapters,
        "resume": stopped,
    }
    (out / "expected.json").write_text(json.dumps(whole, indent=1) + "\n")
    files = [file for file in out.rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) <= MOST
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
