"""Generating: Microplane against transformers, and llama.cpp on the same file; in turn, each in its own process.

    python benchmarks/generation.py [--work W7 W8 T5 OPT] [--pairs 5] [--llama FOLDER]

W7: greedy, 32 prompts of 5 to 200 words x 64 tokens, SmolLM2 in bfloat16, batched. W8: one prompt x 128 tokens, in
bfloat16, int8, nf4 and as the GGUF file stores it. T5: W7 on random weights of FLAN-T5-small's shape; OPT: on those of
OPT-125M's, a family without code here that runs through transformers. Both sides get the same token ids and write the
same number of tokens, stop tokens or not. A side opens its model, generates once to be
warm, and then once more, which is what counts: reading the prompts and writing. Memory is the peak of its process.
FOLDER holds llama-cpp-python: `pip install --no-deps --target FOLDER llama-cpp-python diskcache`.
Writes results/generation_<date>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from common import environment, peak_rss, spread

HERE = Path(__file__).parent
Ids = list[list[int]]
FLAN_T5_SMALL = {
    "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
# What is measured: the side, and how it is called. The first of each is what the others are compared with.
SIDES = {
    "W7": ["transformers bfloat16", "ours bfloat16", "ours int8", "ours nf4", "ours gguf"],
    "W8": ["transformers bfloat16", "ours bfloat16", "ours int8", "ours nf4", "ours gguf", "llama.cpp gguf"],
    "T5": ["transformers bfloat16", "ours bfloat16"],
    "OPT": ["transformers bfloat16", "ours bfloat16"],
}
FOLDERS = {"W7": "smollm2", "W8": "smollm2", "T5": "t5", "OPT": "opt"}


def prepare(folder: Path) -> None:
    """The model in a Hugging Face folder, and the token ids of the prompts."""
    from microplane.data.tokenizers.load import load_tokenizer
    from microplane.models.files.hub import resolve
    from microplane.models.files.load import load_model, save_model

    path = resolve("smollm2")
    save_model(load_model(path, torch.bfloat16), folder / "smollm2")
    tokenizer = load_tokenizer(path)
    tokenizer.save(folder / "smollm2")
    words = (HERE.parent / "LICENSE").read_text(encoding="utf-8").split()  # a text that does not grow
    chance = Random(0)
    texts = [_piece(words, 5 + round(195 * number / 31), chance) for number in range(32)]
    many = [tokenizer.encode(text, special=False) for text in texts]
    (folder / "W7.json").write_text(json.dumps({"prompts": many, "tokens": 64}))
    (folder / "W8.json").write_text(json.dumps({"prompts": [many[8]], "tokens": 128}))
    chance = Random(1)
    sources = [[chance.randrange(3, 32100) for _ in ids] + [1] for ids in many]
    (folder / "T5.json").write_text(json.dumps({"prompts": sources, "tokens": 64}))
    (folder / "OPT.json").write_text(json.dumps({"prompts": [ids[:-1] for ids in sources], "tokens": 64}))
    _save_random(folder)


def _piece(words: list[str], count: int, chance: Random) -> str:
    first = chance.randrange(len(words) - count)
    return " ".join(words[first : first + count])


def _save_random(folder: Path) -> None:
    import transformers

    torch.manual_seed(0)
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**FLAN_T5_SMALL))
    t5.to(torch.bfloat16).save_pretrained(folder / "t5")
    opt = transformers.OPTForCausalLM(transformers.OPTConfig())  # whose defaults are OPT-125M's
    opt.to(torch.bfloat16).save_pretrained(folder / "opt")


def run_side(name: str, work: str, folder: Path, threads: int) -> dict[str, Any]:
    """One side of one measurement, in this process."""
    who, _, form = name.partition(" ")
    task = json.loads((folder / f"{work}.json").read_text())
    torch.set_num_threads(threads)
    begin = {"ours": ours, "transformers": peer, "llama.cpp": llama}[who]
    write = begin(folder / FOLDERS[work], form)
    write(task["prompts"], 8)
    started, used = time.perf_counter(), time.process_time()
    answers = write(task["prompts"], task["tokens"])
    seconds, used = time.perf_counter() - started, time.process_time() - used
    written = sum(map(len, answers))
    assert written == task["tokens"] * len(task["prompts"]), "every token was written"
    return {
        "tokens_per_second": written / seconds,
        "tokens_per_processor_second": written / used,  # which waiting for other processes' turns does not change
        "peak_memory_bytes": peak_rss(),
        "answers": answers,
    }


def ours(folder: Path, form: str) -> Callable[[Ids, int], Ids]:
    from microplane.config.knobs import GenerateKnobs
    from microplane.data.tokenizers.load import load_tokenizer
    from microplane.inference.generate import generate
    from microplane.methods.base_format import number_format
    from microplane.models.files.hub import resolve
    from microplane.models.files.load import load_model

    format_ = number_format(form) if form == "bfloat16" else number_format(form, "bfloat16")
    model = load_model(resolve("smollm2") if form == "gguf" else folder, format_).eval()
    tokenizer = load_tokenizer(resolve("smollm2"))  # which random weights know nothing of

    def write(prompts: Ids, tokens: int) -> Ids:
        return [a.ids for a in generate(model, tokenizer, prompts, GenerateKnobs(max_new_tokens=tokens), ())]

    return write


def peer(folder: Path, form: str) -> Callable[[Ids, int], Ids]:
    import transformers

    t5 = folder.name == "t5"
    kind = transformers.AutoModelForSeq2SeqLM if t5 else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=getattr(torch, form)).eval()

    def write(prompts: Ids, tokens: int) -> Ids:
        longest = max(map(len, prompts))
        ids, mask = (torch.zeros(len(prompts), longest, dtype=torch.long) for _ in range(2))
        for row, prompt in enumerate(prompts):  # encoders are padded at the end, decoders at the beginning
            place = slice(0, len(prompt)) if t5 else slice(longest - len(prompt), longest)
            ids[row, place], mask[row, place] = torch.tensor(prompt), 1
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            found = model.generate(input_ids=ids, attention_mask=mask, **limits)
        return found[:, 1 if t5 else longest :].tolist()

    return write


def llama(folder: Path, form: str) -> Callable[[Ids, int], Ids]:
    from llama_cpp import Llama  # type: ignore[import-not-found]

    from microplane.models.files.hub import resolve

    threads = torch.get_num_threads()
    model = Llama(str(resolve("smollm2")), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def write(prompts: Ids, tokens: int) -> Ids:
        answers = []
        for prompt in prompts:
            model.reset()
            stream = model.generate(prompt, temp=0.0, repeat_penalty=1.0)
            answers.append([next(stream) for _ in range(tokens)])
        return answers

    return write


def in_a_process(name: str, work: str, folder: Path, paths: list[str], threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", name, "--work", work, "--folder", str(folder)]
    command += ["--threads", str(threads)]
    more = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": more, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env)
    return json.loads(done.stdout.splitlines()[-1])


Runs = dict[str, list[dict[str, Any]]]
MEASURED = ("tokens_per_second", "tokens_per_processor_second", "peak_memory_bytes")


def rounds(work: str, sides: list[str], pairs: int, once: Callable[[str], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The sides in turn; after each round the table of what there is so far."""
    runs: Runs = {side: [] for side in sides}
    for number in range(pairs):
        for side in sides:
            runs[side].append(once(side))
            told = ", ".join(f"{runs[side][-1][key]:.4g}" for key in MEASURED)
            print(f"{work} round {number + 1}, {side}: {told}", flush=True)
        yield table(runs, sides)


def table(runs: Runs, sides: list[str]) -> dict[str, Any]:
    """Each side's figures, and their ratios to others' within a round."""
    found: dict[str, Any] = {}
    others = [sides[0], *(side for side in sides if side.startswith("llama"))]
    for side, own in runs.items():
        found[side] = {"runs": len(own), **{key: spread([run[key] for run in own]) for key in MEASURED}}
        for other in others:
            pairs = list(zip(own, runs[other], strict=True))
            found[side][f"to {other}"] = {key: spread([a[key] / b[key] for a, b in pairs]) for key in MEASURED}
        found[side][f"tokens as {sides[0]}"] = agreement(own[0]["answers"], runs[sides[0]][0]["answers"])
    return found


def agreement(own: Ids, others: Ids) -> float:
    """The share of answers' tokens up to the first that is another one: rounding decides near ties, and all behind."""
    same = 0
    for mine, theirs in zip(own, others, strict=True):
        same += next((n for n, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), len(mine))
    return same / sum(map(len, own))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--sides", nargs="+", default=None, help="these alone, as 'ours bfloat16'")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--llama", type=Path, default=None, help="a folder that holds llama-cpp-python")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--note", default="", help="what else was going on")
    parser.add_argument("--side", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.work[0], options.folder, options.threads)))
        return
    about, paths, works = environment(), [str(options.llama)] if options.llama else [], dict[str, Any]()
    path = options.out or HERE / "results" / f"generation_{about['date'][:10]}.json"
    named = {"pairs": options.pairs, "threads": options.threads, "note": options.note}
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "OPT.json").exists():
            prepare(folder)
        for work in options.work:
            sides = [side for side in options.sides or SIDES[work] if paths or not side.startswith("llama")]
            once = partial(in_a_process, work=work, folder=folder, paths=paths, threads=options.threads)
            for found in rounds(work, [side for side in sides if side in SIDES[work]], options.pairs, once):
                works[work] = found
                path.write_text(json.dumps({"what": "generation", **about, **named, "works": works}, indent=1) + "\n")
    print(json.dumps(works, indent=1))


if __name__ == "__main__":
    main()
