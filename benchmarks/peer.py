"""The peer: transformers and peft, as one who knows both would write the loop. Measures speed, loss, memory.

    python benchmarks/peer.py --model-folder HF_FOLDER --train train.ids.jsonl --validation validation.ids.jsonl \
        --rank 16 --alpha 32 --lr 1e-3 --batch-size 16 --steps 150 --warmup 8 --dtype bfloat16 --seed 0 --out peer.json

Rows are tokenised already, one JSON object per line: {"ids": [...], "trained": [0 or 1, ...]}. Row i belongs to step
i // batch_size, so that both sides of a comparison see the same tokens in the same batches. `trained[i]` says that
token i is a target (predicted from token i - 1). With --trl the steps are those of TRL's trainer, which
has to be installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from torch import Tensor

from common import environment, figures, named, parse, peak_rss, read_rows, steps_of


class Batch(NamedTuple):
    inputs: dict[str, Tensor]  # (B, T), padded on the right; labels are -100 where nothing is trained
    tokens: int  # without padding
    trained: int


def batches_of(rows: Sequence[dict[str, Any]], options: argparse.Namespace, pad: int) -> list[Batch]:
    collated = collate_pairs if options.pairs else collate
    return [collated([rows[i] for i in step], pad) for step in steps_of(rows, options.batch_size)]


def collate(rows: Sequence[dict[str, Any]], pad: int) -> Batch:
    """Pads on the right to the longest row. A row's first token is no target: nothing predicts it.

    The model shifts the labels by one itself.
    """
    ids, mask = padded([row["ids"] for row in rows], pad)
    trained, _ = padded([row["trained"] for row in rows], 0)
    labels = ids.masked_fill(trained == 0, -100)
    labels[:, 0] = -100
    return Batch(
        {"input_ids": ids, "attention_mask": mask, "labels": labels}, int(mask.sum()), int((labels != -100).sum())
    )


def collate_pairs(rows: Sequence[dict[str, Any]], pad: int) -> Batch:
    """Both sides padded on the right to their longest; the model makes the decoder's input of the labels."""
    cuts = [row["trained"].index(1) for row in rows]
    ids, mask = padded([row["ids"][:cut] for row, cut in zip(rows, cuts, strict=True)], pad)
    labels, target_mask = padded([row["ids"][cut:] for row, cut in zip(rows, cuts, strict=True)], -100)
    trained = int(target_mask.sum())
    return Batch({"input_ids": ids, "attention_mask": mask, "labels": labels}, int(mask.sum()) + trained, trained)


def padded(rows: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(B, T) each: the rows, and 1 where they are."""
    length = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows])
    filled = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    return filled, (torch.arange(length) < lengths[:, None]).long()


def load(options: argparse.Namespace) -> torch.nn.Module:
    """What trains: an encoder-decoder in float32, or a frozen decoder with adapters."""
    if not options.pairs:
        return load_lora(options)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        options.model_folder, dtype=torch.float32, attn_implementation=options.attention
    )
    model.config.use_cache = False
    return model


def load_lora(options: argparse.Namespace) -> peft.PeftModel:
    """The model in its number format, frozen, with fp32 adapters (peft's default) on every linear but the head."""
    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        options.model_folder,
        dtype=torch.bfloat16 if options.dtype == "nf4" else getattr(torch, options.dtype),
        quantization_config=quantised if options.dtype == "nf4" else None,
        attn_implementation=options.attention,
    )
    base.config.use_cache = False
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",  # peft leaves the head out by itself
    )
    model = peft.get_peft_model(base, config)
    if isinstance(base.get_output_embeddings(), peft.tuners.lora.LoraLayer):
        raise SystemExit("peft adapted the head: not the comparison that is meant")
    return model


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Rises linearly over `warmup` steps, then falls as half a cosine to 0; `step` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def loss_of(model: torch.nn.Module, batch: Batch, autocast: bool) -> Tensor:
    """Mean cross-entropy over the trained tokens of the batch."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(**batch.inputs).loss


def train(model: torch.nn.Module, batches: list[Batch], options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """(seconds, losses) of every step. A step is all that it takes: forward, backward, clipping, AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.0, fused=True)
    model.train()
    seconds, losses = [], []
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(batches), options.warmup, options.lr)
        loss = loss_of(model, batch, options.autocast)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        print(f"step {step + 1}/{len(batches)}  loss {losses[-1]:.4f}  {seconds[-1]:.2f} s", file=sys.stderr)
    return seconds, losses


def train_by_trl(
    model: torch.nn.Module, batches: list[Batch], options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """The same steps by TRL's trainer: rows in our order, our collation, its own optimizer step and measuring."""
    from trl import SFTConfig, SFTTrainer

    seconds, losses = [time.perf_counter()], []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    with tempfile.TemporaryDirectory() as folder:
        knobs = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=1,  # batches are made already
            max_steps=len(batches),
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            warmup_steps=options.warmup,
            weight_decay=0.0,
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            bf16=options.autocast,
            use_cpu=True,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model,
            args=knobs,
            train_dataset=rows_for_trl(len(batches), Path(folder)),
            data_collator=lambda rows: batches[rows[0]["batch"]].inputs,
            processing_class=transformers.AutoTokenizer.from_pretrained(options.model_folder),
            callbacks=[Clock()],
        )
        seconds[0] = time.perf_counter()
        trainer.train()
    return [later - earlier for earlier, later in itertools.pairwise(seconds)], losses


def rows_for_trl(count: int, folder: Path) -> Any:
    """A row for each batch, as TRL asks for a dataset of `datasets`; the collator puts the batch in its place."""
    import datasets

    file = folder / "batches.jsonl"
    file.write_text("".join(json.dumps({"batch": batch, "input_ids": [0]}) + "\n" for batch in range(count)))
    return datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))


@torch.no_grad()
def evaluate(model: torch.nn.Module, batches: list[Batch], autocast: bool) -> float:
    """The same loss over all trained tokens of the validation rows."""
    model.eval()
    total = sum(loss_of(model, batch, autocast).item() * batch.trained for batch in batches)
    return total / sum(batch.trained for batch in batches)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Loads, trains, evaluates; the memory peak is read after each, as it only ever rises."""
    what = "an encoder-decoder with transformers" if options.pairs else "LoRA with transformers + peft"
    result = {"what": what, **environment()}
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = load(options)
    memory = {"after_load": peak_rss()}
    pad = model.config.pad_token_id or 0  # masked out: which token it is does not matter
    batches = batches_of(read_rows(options.train), options, pad)[: options.steps]
    if len(batches) < options.steps:
        raise SystemExit(f"{options.train} has rows for {len(batches)} of {options.steps} steps")
    validation = batches_of(read_rows(options.validation), options, pad)
    first = evaluate(model, validation[:1], autocast=False)
    seconds, losses = (train_by_trl if options.trl else train)(model, batches, options)
    memory["after_training"] = peak_rss()
    result |= {
        "options": named(options),
        "threads": torch.get_num_threads(),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "adapter_dtype": str(next(p.dtype for p in model.parameters() if p.requires_grad)).removeprefix("torch."),
        "untrained_loss": first,
        "validation_loss": evaluate(model, validation, options.autocast),
        "memory_bytes": memory,
        "peak_memory_bytes": peak_rss(),
        **figures(seconds, losses, [batch.tokens for batch in batches], [batch.trained for batch in batches]),
    }
    return result


if __name__ == "__main__":
    asked = parse()
    asked.out.write_text(json.dumps(measure(asked), indent=1) + "\n", encoding="utf-8")
