#!/usr/bin/env bash
# Guess: SFTTrainer trains on `prompt` and `completion`, puts the end token behind each completion, and leaves other columns alone.
# What happens: if the rows have a column `text` as well, the end token is put behind that one, and not behind the completion. What
#   is tokenized and trained is prompt and completion all the same, so that no row has an end token. Nothing is said.
# Why it matters to people who fine-tune: instruction sets often bring the whole example once more as `text` (those of Alpaca's form do), and
#   renaming two of their columns is what one does to train on answers alone. Loss and token accuracy are as good as ever; the
#   model answers rightly and then does not stop. Drop the column, or look at the last label of a row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore::FutureWarning - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
from importlib.metadata import version

import datasets
import torch
import transformers as t
import trl
from tokenizers import Tokenizer, models, pre_tokenizers

t.logging.disable_progress_bar()
datasets.disable_progress_bars()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("trl", "transformers", "datasets", "torch")))
words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
config = t.LlamaConfig(vocab_size=30, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                       max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
two = [{"prompt": f"{one} to {one}", "completion": f" {one} {one} z"} for one in "abcdefgh"]
three = [row | {"text": row["prompt"] + row["completion"]} for row in two]


def trained(rows):
    torch.manual_seed(0)
    arguments = trl.SFTConfig("run", use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=8, max_steps=60,
                              learning_rate=1e-2, disable_tqdm=True, save_strategy="no", logging_steps=60)
    trainer = trl.SFTTrainer(t.LlamaForCausalLM(config), arguments, train_dataset=datasets.Dataset.from_list(rows),
                             processing_class=tokenizer)
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train()
    ids = torch.tensor([tokenizer("c to c")["input_ids"]])
    made = trainer.model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    row, log = trainer.train_dataset[0], trainer.state.log_history[0]
    return row["labels"], log["loss"], log["mean_token_accuracy"], tokenizer.decode(made[0, ids.shape[1]:])


for rows in (two, three):
    labels, loss, accuracy, answer = trained(rows)
    print(f"columns {', '.join(rows[0])}: labels {labels}, loss {loss:.3f}, answer {answer!r}")
    assert answer.startswith("c c z")
    if rows is two:
        assert labels[-1] == tokenizer.eos_token_id and answer == "c c z </s>", (labels, answer)
    else:
        assert tokenizer.eos_token_id not in labels and "</s>" not in answer and len(answer.split()) == 20, (labels, answer)
PYTHON
if grep -i "eos\|end token\|column" "$folder/said"; then echo "something is said of it" >&2; exit 1; fi
