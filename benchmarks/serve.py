"""Many clients and many adapters against `microplane serve`, beside one client and a loop around peft, on one machine.

    python benchmarks/serve.py --family decoder --clients 64 --adapters 8 --seconds 300 --out serve.json

Each answer that the load gets is compared with what `microplane.load(...).generate` gives of the same adapter. What
many adapters cost is measured in turns of one and of all, over the same prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

import microplane
from common import environment, spread
from microplane.checkpoints.adapter import save_adapter
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.families import family_of
from microplane.models.files.hub import tokenizer_folder
from microplane.models.files.load import load_model, save_model
from microplane.nn.number_format import NumberFormat

STEMS = [
    "turn on the kitchen light",
    "What is the capital of France?",
    "set the bedroom to 21 degrees, and close the blinds when it gets dark outside",
    "Write one sentence about the sea.",
    "lock the door",
    "Translate to French: good morning, how did you sleep?",
]
T5 = {  # 10M parameters beside the embedding
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 32128, "d_model": 256,
    "d_kv": 32, "d_ff": 1024, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip


def make_base(family: str, folder: Path) -> Path:
    """SmolLM2 as float32 files; or a T5 of random weights, since none with trained ones is to be had here."""
    if family == "decoder":
        microplane.export("smollm2", folder, to="hf")
        return folder
    folder.mkdir(parents=True)
    for file in tokenizer_folder("t5-tokenizer").iterdir():
        if file.suffix in (".json", ".model"):
            (folder / file.name).write_bytes(file.read_bytes())
    save_model(family_of(T5).from_hf(T5).init_weights(0), folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int) -> None:
    model, method = load_model(base, NumberFormat(torch.float32)), make_method({"name": "lora", "rank": 16})
    attach_method(method, model)
    generator = torch.Generator().manual_seed(seed)
    for tensor in trainable(model).values():
        tensor.data.add_(0.02 * torch.randn(tensor.shape, generator=generator))
    folder.mkdir(parents=True)
    save_adapter(folder, model, method, {"base": str(base), "base_dtype": "float32"})


class Served:
    """The server as a process of its own."""

    def __init__(self, base: Path, adapters: Path):
        command = [sys.executable, "-m", "microplane", "serve", str(base), "--adapters", str(adapters)]
        command += ["--port", "0", "--dtype", "float32", "--queue", "1000"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        self.url = next(line.split()[0] for line in self.process.stderr if line.startswith("http://"))

    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


async def load(url: str, requests: Any, clients: int, seconds: float, tokens: int, every: Any = None) -> dict[str, Any]:
    """Ask for so long; every answer is kept."""
    answers, errors, written, end = {}, list[str](), 0, time.perf_counter() + seconds
    mixed = computed = 0

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal written, mixed, computed
        while time.perf_counter() < end:
            model, prompt = next(requests)
            body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
            try:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                errors.append(repr(error))
                continue
            found = answer.json()
            text = found["choices"][0]["message"]["content"]
            mixed += answers.setdefault((model, prompt), text) != text
            written += found["usage"]["completion_tokens"]
            computed += found["usage"]["total_tokens"]
            counts.append(time.perf_counter())

    counts: list[float] = []
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=clients)) as client:
        tasks = [asyncio.create_task(ask(client)) for _ in range(clients)]
        while every and not all(task.done() for task in tasks):
            await asyncio.sleep(2)
            every()
        await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    told = {"clients": clients, "seconds": took, "requests": len(counts), "errors": len(errors), "changed": mixed}
    return told | {
        "tokens": written,
        "tokens_per_second": written / took,
        "with_prompts_per_second": computed / took,
        "answers": answers,
        "first_errors": errors[:3],
    }


def peft_loop(
    base: Path, adapters: Path, asked: list[tuple[str, str]], family: str, tokens: int, count: int
) -> dict[str, float]:
    """Answers one after the other: the adapter is set, and transformers generates."""
    import transformers
    from peft import PeftModel

    kind = transformers.AutoModelForCausalLM if family == "decoder" else transformers.AutoModelForSeq2SeqLM
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    first, *others = sorted({name for name, _ in asked})
    model = PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32), adapters / first, first)
    for name in others:
        model.load_adapter(adapters / name, name)
    model.eval()
    written, began = 0, time.perf_counter()
    for name, prompt in itertools.islice(itertools.cycle(asked), count):
        model.set_adapter(name)
        if family == "decoder":
            turns = [{"role": "user", "content": prompt}]
            given = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            given = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**given, do_sample=False, max_new_tokens=tokens)[0]
        written += len(ids) - (given["input_ids"].shape[1] if family == "decoder" else 1)
    took = time.perf_counter() - began
    return {"requests": count, "tokens": written, "seconds": took, "tokens_per_second": written / took}


def requests(names: list[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The same prompts, all different, for all adapters in turn, and for the first alone: what many of one adapter
    have in common with each other would be computed once, and be no price of the others."""
    prompts = [f"{number}. {stem}" for number, _ in enumerate(names, 1) for stem in STEMS]
    shared = [(names[place % len(names)], prompt) for place, prompt in enumerate(prompts)]
    return shared, [(names[0], prompt) for prompt in prompts]


def single_user(adapters: Path, asked: list[tuple[str, str]], tokens: int) -> dict[tuple[str, str], str]:
    opened = {name: microplane.load(adapters / name, "float32") for name in {name for name, _ in asked}}
    return {(name, prompt): opened[name].generate(prompt, max_new_tokens=tokens) for name, prompt in asked}


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    base, adapters = make_base(args.family, work / "base"), work / "adapters"
    names = [f"a{number}" for number in range(args.adapters)]
    for number, name in enumerate(names):
        make_adapter(base, adapters / name, number)
    every, of_one = requests(names)
    expected = single_user(adapters, every, args.tokens)
    served, memory, pairs = Served(base, adapters), list[int](), list[dict[str, dict[str, Any]]]()
    try:
        ask = lambda what, clients, seconds, **more: asyncio.run(  # noqa: E731
            load(served.url, itertools.cycle(what), clients, seconds, args.tokens, **more)
        )
        ask(every, args.clients, 5)  # buffers are made
        runs = {
            "one client": ask(every, 1, args.seconds / 3),
            "all": ask(every, args.clients, args.seconds, every=lambda: memory.append(served.memory())),
        }
        for _ in range(args.pairs):
            each = args.seconds / args.pairs
            pairs.append({"one adapter": ask(of_one, args.clients, each), "all": ask(every, args.clients, each)})
    finally:
        code = served.stop()
    every_run = [*runs.values(), *(run for pair in pairs for run in pair.values())]
    answers = [run.pop("answers") for run in every_run]
    wrong = sum(expected.get(key, text) != text for found in answers for key, text in found.items())
    peer = peft_loop(base, adapters, every, args.family, args.tokens, args.peer_requests)
    together = runs["all"]["tokens_per_second"]
    rate = "with_prompts_per_second"
    return {
        "family": args.family, "adapters": args.adapters, "clients": args.clients, "tokens": args.tokens, "runs": runs,
        "answers_unlike_single_user": wrong, "different_answers": len(set(expected.values())), "peft": peer,
        "exit_code": code, "adapter_bytes": sum(file.stat().st_size for file in (adapters / names[0]).iterdir()),
        "memory_every_2_s": memory,
        "memory_growth_after_the_first_third": max(memory) / max(memory[: len(memory) // 3 + 1]) - 1,
        "times_one_client": together / runs["one client"]["tokens_per_second"],
        "times_peft": together / peer["tokens_per_second"],
        "pairs": pairs,
        "one_adapter_to_all": spread([pair["one adapter"][rate] / pair["all"][rate] for pair in pairs]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=("decoder", "t5"), default="decoder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument(
        "--pairs", type=int, default=5, help="loads of one adapter and of all in turn, as long together"
    )
    parser.add_argument("--peer-requests", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    about = environment()
    with tempfile.TemporaryDirectory() as work:
        found = measure(args, Path(work))
    found["environment"] = about | {"omp_num_threads": os.environ.get("OMP_NUM_THREADS")}
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "environment"}, indent=2))


if __name__ == "__main__":
    main()
