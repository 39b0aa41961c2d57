"""What other tools call our knobs: a name that means one of ours is told, not only one that is spelled nearly so."""

from __future__ import annotations

from collections.abc import Collection

OTHER_NAMES = {
    "learning_rate": "train.lr",
    "peak_lr": "train.lr",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "n_epochs": "train.epochs",
    "epoch": "train.epochs",
    "passes": "train.epochs",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "iters": "train.steps",
    "iterations": "train.steps",
    "device_map": "model.device",
    "gpu": "model.device=cuda",
    "cuda": "model.device=cuda",
    "use_cpu": "model.device=cpu",
    "no_cuda": "model.device=cpu",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "micro_batch_size": "train.micro_tokens",
    "batch": "train.batch_size",
    "gradient_accumulation_steps": "train.micro_tokens",
    "accumulation": "train.micro_tokens",
    "grad_accum": "train.micro_tokens",
    "grad_accum_steps": "train.micro_tokens",
    "accumulate_grad_batches": "train.micro_tokens",
    "per_device_eval_batch_size": "eval.batch_tokens",
    "eval_batch_size": "eval.batch_tokens",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length",
    "seq_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "context_length": "data.max_length",
    "block_size": "data.max_length",
    "model_max_length": "data.max_length",
    "r": "method.rank",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "target_modules": "method.targets",
    "lora_target": "method.targets",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "scheduler": "train.schedule",
    "optim": "train.optimizer",
    "max_grad_norm": "train.clip",
    "gradient_clipping": "train.clip",
    "gradient_checkpointing": "train.recompute",
    "label_smoothing_factor": "train.label_smoothing",
    "adam_epsilon": "train.eps",
    "random_seed": "train.seed",
    "num_threads": "train.threads",
    "cpus": "train.threads",
    "workers": "train.threads",
    "eval_steps": "train.eval_every",
    "evaluation_strategy": "train.eval_every",
    "save_steps": "train.save_every",
    "early_stopping": "train.patience",
    "early_stopping_patience": "train.patience",
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "bf16": "model.dtype=bfloat16",
    "bfloat16": "model.dtype=bfloat16",
    "fp32": "model.dtype=float32",
    "load_in_4bit": "model.dtype=nf4",
    "load_in_8bit": "model.dtype=int8",
    "quantization": "model.dtype",
    "dataset": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "dataset_path": "data.train",
    "validation_file": "data.validation",
    "eval_file": "data.validation",
    "eval_dataset": "data.validation",
    "val_size": "data.validation_share",
    "val_set_size": "data.validation_share",
    "test_size": "data.validation_share",
    "test_file": "data.test",
    "text_column": "data.fields",
    "text_field": "data.fields",
    "dataset_text_field": "data.fields",
    "prompt_column": "data.fields",
    "completion_column": "data.fields",
    "label_column": "data.fields",
    "columns": "data.fields",
    "column_mapping": "data.fields",
    "max_samples": "data.limit",
    "max_train_samples": "data.limit",
    "system_prompt": "data.system",
    "chat_template": "data.template",
    "prompt_template": "data.template",
    "peft": "method",
    "finetuning_type": "method",
    "lora": "method=lora",
    "qlora": "method=qlora",
    "output_dir": "runs",
    "output": "runs",
    "run_name": "name",
    "num_beams": "generate.beams",
    "max_tokens": "generate.max_new_tokens",
    "do_sample": "generate.temperature",
}

REASONS = {
    "fp16": "float16 is not trained in; half the memory is model.dtype=bfloat16",
    "float16": "float16 is not trained in; half the memory is model.dtype=bfloat16",
    "num_processes": "several processes are an option of the command: microplane train --processes N",
    "nproc_per_node": "several processes are an option of the command: microplane train --processes N",
    "logging_steps": "every step is written to metrics.jsonl",
    "report_to": "every step is written to metrics.jsonl, and report.html shows them",
    "packing": "rows are always packed, and none sees another",
    "overwrite_output_dir": "a run is never overwritten; give it another name, or delete its folder",
    "save_total_limit": "the checkpoints that a run can go on from are kept, and no others",
    "load_best_model_at_end": "the best weights are what a run leaves, always",
    "resume_from_checkpoint": "it is microplane train --resume RUN",
}


def meaning(name: str, known: Collection[str] = ()) -> str:
    """`" That is 'train.lr' here."`, or why there is none, for what another tool calls a knob; else an empty string.

    Args:
        known: the knobs that there are beside it; a method is not told of knobs that it does not have, and what
            writing an answer has is told as it is called there.
    """
    leaf = name.rsplit(".", 1)[-1].lower().replace("-", "_")
    if leaf in REASONS:
        return f" {REASONS[leaf][0].upper()}{REASONS[leaf][1:]}."
    ours = OTHER_NAMES.get(leaf, "")
    without = name.startswith("method.") and ours not in known  # a method that has no such knob
    if not ours or (without and ours.startswith("method.")):
        return ""
    if same := called(leaf, known):
        return f" That is {same!r} here."
    return f" That is {ours.removeprefix('generate.')!r} of microplane generate."


def called(leaf: str, known: Collection[str] = ()) -> str:
    """The knob that another tool's name means; of those of writing an answer the one that is in `known`, if any is."""
    ours = OTHER_NAMES.get(leaf, "")
    kind, _, written = ours.partition(".")
    if kind != "generate" or not known:
        return ours
    return next((other for other in known if other.rsplit(".", 1)[-1] == written), "")
