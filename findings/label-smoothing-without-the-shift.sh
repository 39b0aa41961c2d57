#!/usr/bin/env bash
# Guess: label_smoothing_factor in TrainingArguments makes the targets softer and leaves everything else as it is: labels of a decoder are
#   shifted by one, as its own loss does it, so that each place learns the token behind it.
# What happens: with smoothing the Trainer computes the loss itself and shifts only where the name of the model's class is in transformers'
#   list of causal models. Qwen2-VL, Qwen3.5 with pictures, LLaVA, SmolVLM, Mistral 3, Llama 4 and some seventy more that are opened with
#   AutoModelForImageTextToText are not in it, nor is a class of your own, not even an empty subclass of LlamaForCausalLM, nor a
#   prefix of peft, whose base is the bare decoder. They learn to say each token again that they have just read. The
#   evaluation computes the same loss, so that both curves fall as they should. Nothing is said.
# Why it matters to people who fine-tune: smoothing is one number of a search over settings, and the one that it spoils has as good a loss as
#   the others (0.66, the least that 0.1 allows here, for the right task and the wrong one). The model repeats its last token. Give
#   compute_loss_func to such a model, or look whether the first loss is that of the model's own, made softer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
from importlib.metadata import version

import peft
import torch
import transformers as t

t.logging.disable_progress_bar()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("transformers", "accelerate", "peft", "torch")))
shape = dict(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
pictures = dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, patch_size=4)


class Own(t.LlamaForCausalLM):
    pass


def qwen():
    turns = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(
        text_config={**shape, "rope_parameters": turns}, vision_config=pictures, image_token_id=31, video_token_id=30,
        vision_start_token_id=29, vision_end_token_id=28))


# Counting by threes from any number below 27: the token behind each is always another one.
rows = [{"input_ids": [(first + 3 * step) % 27 for step in range(12)], "attention_mask": [1] * 12} for first in range(27)]
for row in rows:
    row["labels"] = row["input_ids"]


def together(batch):
    return {key: torch.tensor([row[key] for row in batch]) for key in batch[0]}


def trained(make, smoothing):
    torch.manual_seed(0)
    model = make()
    arguments = t.TrainingArguments(
        "run", use_cpu=True, max_steps=150, learning_rate=1e-2, per_device_train_batch_size=27, label_smoothing_factor=smoothing,
        report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no")
    trainer = t.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=together)
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    ids = together(rows)["input_ids"]
    with torch.no_grad():
        said = model.eval()(input_ids=ids).logits.argmax(-1)
    return loss, float((said[:, :-1] == ids[:, 1:]).float().mean()), float((said == ids).float().mean())


def llama():
    return t.LlamaForCausalLM(t.LlamaConfig(**shape))


def adapted():
    return peft.get_peft_model(llama(), peft.LoraConfig(target_modules="all-linear", r=16, modules_to_save=["embed_tokens", "lm_head"]))


kinds = {"LlamaForCausalLM": (llama, False), "the same with LoRA": (adapted, False), "an empty subclass of it": (lambda: Own(t.LlamaConfig(**shape)), True),
         "Qwen2VLForConditionalGeneration": (qwen, True)}
for name, (make, wrong) in kinds.items():
    for smoothing in (0.0, 0.1):
        loss, behind, same = trained(make, smoothing)
        print(f"{name}, smoothing {smoothing}: evaluation loss {loss:.3f}; says the token behind {behind:.2f}, the token itself {same:.2f}")
        copies = wrong and smoothing > 0
        assert (behind, same)[copies] > 0.95 and (behind, same)[not copies] < 0.05, (name, smoothing, behind, same)
        assert loss < (0.75 if smoothing else 0.1), (name, loss)
# A prefix of peft: the class whose name is looked up is the bare decoder, so the first loss is that of labels that are not shifted.
torch.manual_seed(0)
model = peft.get_peft_model(llama(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
trainer = t.Trainer(model, t.TrainingArguments("run", use_cpu=True, label_smoothing_factor=0.1, report_to=[], disable_tqdm=True),
                    eval_dataset=rows, data_collator=together)
trainer.remove_callback(t.trainer_callback.PrinterCallback)
batch = together(rows)
with torch.no_grad():
    scores, labels = model(**batch).logits, batch["labels"]
    loss = float(trainer.compute_loss(model, dict(batch)))


def smooth(scores, labels):
    return float(torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), label_smoothing=0.1))


right, unshifted = smooth(scores[:, :-1], labels[:, 1:]), smooth(scores, labels)
print(f"a prefix: the Trainer's loss {loss:.5f}; with labels shifted {right:.5f}, not shifted {unshifted:.5f}")
assert abs(loss - unshifted) < 1e-5 < abs(loss - right)
said_of_it = [line for line in open("said") if "shift" in line or "smooth" in line]
assert not said_of_it, said_of_it
PYTHON
