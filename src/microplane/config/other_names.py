"""What other tools call our knobs: a name that means one of ours is told, not only one that is spelled nearly so.

The names are those of transformers' TrainingArguments, peft's LoraConfig, trl's SFTConfig, and of the configurations of
axolotl, LLaMA-Factory, Unsloth, torchtune and Lightning.
"""

from __future__ import annotations

from collections.abc import Collection

OTHER_NAMES = {
    "learning_rate": "train.lr",
    "peak_lr": "train.lr",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "n_epochs": "train.epochs",
    "epoch": "train.epochs",
    "max_epochs": "train.epochs",
    "passes": "train.epochs",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "iters": "train.steps",
    "iterations": "train.steps",
    "max_steps_per_epoch": "train.steps",
    "device_map": "model.device",
    "gpu": "model.device=cuda",
    "cuda": "model.device=cuda",
    "use_cpu": "model.device=cpu",
    "no_cuda": "model.device=cpu",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "bs": "train.batch_size",
    "micro_batch_size": "train.micro_tokens",
    "batch": "train.batch_size",
    "gradient_accumulation_steps": "train.micro_tokens",
    "accumulation": "train.micro_tokens",
    "grad_accum": "train.micro_tokens",
    "grad_accum_steps": "train.micro_tokens",
    "auto_find_batch_size": "train.micro_tokens=auto",
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
    "seq_length": "data.max_length",
    "max_len": "data.max_length",
    "max_prompt_length": "data.max_length",
    "max_source_length": "data.max_length",
    "max_completion_length": "data.max_target_length",
    "r": "method.rank",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "target_modules": "method.targets",
    "lora_target": "method.targets",
    "lora_target_modules": "method.targets",
    "lora_target_linear": "method.targets",
    "lora_attn_modules": "method.targets",
    "apply_lora_to_mlp": "method.targets",
    "apply_lora_to_output": "method.targets",
    "layers_to_transform": "method.targets",
    "layers_pattern": "method.targets",
    "exclude_modules": "method.targets",
    "init_lora_weights": "method.start",
    "pissa_init": "method.start=pissa",
    "eva_config": "method.start=eva",
    "loftq_config": "method.start=loftq",
    "use_rslora": "method=rslora",
    "peft_use_rslora": "method=rslora",
    "use_dora": "method=dora",
    "peft_use_dora": "method=dora",
    "loraplus_lr_ratio": "method=lora+",
    "full_finetuning": "method=full",
    "freeze_trainable_layers": "method=last-n",
    "unfrozen_parameters": "method=last-n",
    "freeze_base": "method=head-only",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "num_warmup_steps": "train.warmup",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "scheduler": "train.schedule",
    "optim": "train.optimizer",
    "max_grad_norm": "train.clip",
    "gradient_clipping": "train.clip",
    "clip_grad_norm": "train.clip",
    "grad_clip": "train.clip",
    "gradient_clip_val": "train.clip",
    "wd": "train.weight_decay",
    "l2": "train.weight_decay",
    "adam_beta1": "train.betas",
    "adam_beta2": "train.betas",
    "momentum": "train.betas",
    "gradient_checkpointing": "train.recompute",
    "gradient_checkpointing_kwargs": "train.recompute",
    "use_gradient_checkpointing": "train.recompute",
    "enable_activation_checkpointing": "train.recompute",
    "activation_offloading": "train.recompute",
    "enable_activation_offloading": "train.recompute",
    "full_determinism": "train.deterministic",
    "fsdp": "train.shard",
    "fsdp_config": "train.shard",
    "deepspeed": "train.shard",
    "zero_stage": "train.shard",
    "class_weight": "train.class_weights",
    "loss_weights": "train.class_weights",
    "label_smoothing_factor": "train.label_smoothing",
    "adam_epsilon": "train.eps",
    "random_seed": "train.seed",
    "random_state": "train.seed",
    "data_seed": "train.seed",
    "num_threads": "train.threads",
    "cpus": "train.threads",
    "workers": "train.threads",
    "eval_steps": "train.eval_every",
    "evaluation_strategy": "train.eval_every",
    "eval_strategy": "train.eval_every",
    "evals_per_epoch": "train.eval_every",
    "save_steps": "train.save_every",
    "save_strategy": "train.save_every",
    "saves_per_epoch": "train.save_every",
    "checkpoint_every": "train.save_every",
    "early_stopping": "train.patience",
    "early_stopping_patience": "train.patience",
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "model_name": "model.name",
    "adapter_name_or_path": "model.adapter",
    "lora_model_dir": "model.adapter",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "mixed_precision": "model.dtype",
    "amp": "model.dtype",
    "autocast": "model.dtype",
    "tf32": "model.dtype",
    "bf16": "model.dtype=bfloat16",
    "bfloat16": "model.dtype=bfloat16",
    "fp32": "model.dtype=float32",
    "load_in_4bit": "model.dtype=nf4",
    "load_in_8bit": "model.dtype=int8",
    "quantization": "model.dtype",
    "quantization_bit": "model.dtype",
    "quantization_config": "model.dtype",
    "quantize_base": "model.dtype",
    "bnb_4bit_quant_type": "model.dtype",
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_dir": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "dataset_path": "data.train",
    "validation_file": "data.validation",
    "eval_file": "data.validation",
    "eval_dataset": "data.validation",
    "val_size": "data.validation_share",
    "val_set_size": "data.validation_share",
    "test_size": "data.validation_share",
    "validation_split": "data.validation_share",
    "eval_ratio": "data.validation_share",
    "test_file": "data.test",
    "test_split": "data.test",
    "task_type": "data.task",
    "problem_type": "data.task",
    "text_column": "data.fields",
    "text_field": "data.fields",
    "dataset_text_field": "data.fields",
    "prompt_column": "data.fields",
    "completion_column": "data.fields",
    "label_column": "data.fields",
    "label_field": "data.fields",
    "input_column": "data.fields",
    "response_column": "data.fields",
    "target_column": "data.fields",
    "columns": "data.fields",
    "column_mapping": "data.fields",
    "max_samples": "data.limit",
    "max_train_samples": "data.limit",
    "system_prompt": "data.system",
    "system_message": "data.system",
    "chat_template": "data.template",
    "prompt_template": "data.template",
    "chat_format": "data.template",
    "peft": "method",
    "finetuning_type": "method",
    "lora": "method=lora",
    "qlora": "method=qlora",
    "output_dir": "runs",
    "output": "runs",
    "run_name": "name",
    "report_to": "track",
    "metric_logger": "track",
    "wandb_project": "track",
    "compute_accuracy": "eval.metrics",
    "predict_with_generate": "eval.rows",
    "generation_max_length": "generate.max_new_tokens",
    "generation_num_beams": "generate.beams",
    "num_beams": "generate.beams",
    "max_tokens": "generate.max_new_tokens",
    "do_sample": "generate.temperature",
}

OF_METHODS = ("rank", "alpha", "dropout", "targets", "start", "ratio")
"""Knobs of methods, which stand in the section `method` and nowhere else."""

_REASONS = {
    ("fp16", "float16"): "float16 is not trained in; half the memory is model.dtype=bfloat16",
    (
        *("num_processes", "nproc_per_node", "num_gpus", "n_gpu", "gpus"),
        *("local_rank", "ddp_backend"),
    ): "several processes are an option of the command: microplane train --processes N",
    (
        *("logging_steps", "logging_strategy", "logging_first_step", "log_every_n_steps"),
        *("logging_dir", "log_level", "plot_loss"),
    ): "every step is written to metrics.jsonl, and report.html shows them",
    ("disable_tqdm",): "progress is not shown with microplane train --quiet",
    (
        *("packing", "sample_packing", "eval_packing", "packed", "padding_free", "pad_to_sequence_len"),
        *("pad_to_multiple_of", "group_by_length"),
    ): "rows are always packed without padding, and none sees another",
    (
        *("train_on_inputs", "train_on_input", "train_on_prompt", "train_on_responses_only", "mask_history"),
        *("completion_only_loss", "assistant_only_loss", "response_template", "instruction_template"),
    ): "answers alone are trained, of a conversation all, or those whose `weight` is not 0; of a column `text` all is",
    (
        *("flash_attention", "flash_attn", "attn_implementation", "xformers_attention", "sdp_attention"),
        *("torch_compile", "compile", "use_liger_kernel"),
    ): "what is fastest on this machine is taken without being asked for",
    ("trust_remote_code",): "code from a model's folder is never run",
    (
        *("model_type", "tokenizer", "tokenizer_type", "special_tokens", "eos_token", "pad_token"),
        *("rope_scaling", "num_labels", "labels", "id2label", "label_names"),
    ): "that follows from the model's own files, and the classes from the rows",
    ("overwrite_output_dir",): "a run is never overwritten; give it another name, or delete its folder",
    ("save_total_limit",): "the checkpoints that a run can go on from are kept, and no others",
    ("save_only_model", "save_safetensors"): "an adapter is saved as safetensors, beside what the run can go on from",
    (
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ): "the best weights, by validation loss, are what a run leaves, always",
    ("early_stopping_threshold",): "a validation counts as worse where it is so by more than chance",
    ("resume_from_checkpoint",): "it is microplane train --resume RUN",
    ("push_to_hub", "hub_model_id", "hub_token"): "a run is published by microplane push",
    ("do_train", "do_eval", "do_predict"): "train, eval and generate are commands of their own",
    ("trainer", "training_args"): "the sections are model, method, data, train and eval",
    ("stage",): "the rows say what is learnt: answers, plain text or labels (data.format, data.task)",
    ("split",): "a split of a data set of the Hub stands in its name: hf://org/name:split",
    (
        *("dataset_prepared_path", "overwrite_cache", "streaming", "num_workers", "dataloader_num_workers"),
        *("preprocessing_num_workers", "dataset_num_proc", "dataloader_pin_memory"),
    ): "rows are tokenised once, kept in the cache (microplane cache), and read from disk",
    ("dataloader_drop_last",): "no row is left out of a pass",
    ("shuffle", "shuffle_merged_datasets"): "rows are shuffled anew in each pass, by train.seed",
    ("remove_unused_columns",): "columns that are not used are left alone, and named",
    ("lr_scheduler_kwargs", "cosine_min_lr_ratio", "min_lr"): "the rate falls to 0, but with train.schedule=constant",
    ("neftune_noise_alpha",): "embeddings get no noise; against overfitting there is method.dropout",
    ("bias",): "biases stay as they are; method=bitfit trains them",
    (
        *("modules_to_save", "lora_modules_to_save", "additional_target"),
    ): "beside an adapter only a task head trains whole; other parts do with method=full or method=last-n",
    ("rank_pattern", "alpha_pattern"): "all layers have one rank; method=adalora gives each its own",
}
REASONS = {name: reason for names, reason in _REASONS.items() for name in names}
"""Why there is no such knob, of names that mean none."""


def meaning(name: str, known: Collection[str] = ()) -> str:
    """`" That is 'train.lr' here."`, or why there is none, for what another tool calls a knob; else an empty string.

    Args:
        known: the knobs that there are beside it; a method is not told of knobs that it does not have, and what
            writing an answer has is told as it is called there.
    """
    leaf = name.rsplit(".", 1)[-1].lower().replace("-", "_")
    if leaf in REASONS:
        return f" {REASONS[leaf][0].upper()}{REASONS[leaf][1:]}."
    ours = _ours(leaf)
    without = name.startswith("method.") and ours not in known  # a method that has no such knob
    if not ours or (without and ours.startswith("method.")):
        return ""
    if same := called(leaf, known):
        return f" That is {same!r} here."
    return f" That is {ours.removeprefix('generate.')!r} of microplane generate."


def called(leaf: str, known: Collection[str] = ()) -> str:
    """The knob that another tool's name means; of those of writing an answer the one that is in `known`, if any is."""
    ours = _ours(leaf)
    kind, _, written = ours.partition(".")
    if kind != "generate" or not known:
        return ours
    return next((other for other in known if other.rsplit(".", 1)[-1] == written), "")


def _ours(leaf: str) -> str:
    return f"method.{leaf}" if leaf in OF_METHODS else OTHER_NAMES.get(leaf, "")
