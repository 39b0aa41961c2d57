#!/usr/bin/env bash
# Guess: a run of SentenceTransformerTrainer that resumes from its checkpoint goes on as if it had not stopped; what is trained is in
#   the checkpoint, as with the Trainer that it is made from.
# What happens: weights of a loss (the classifier of SoftmaxLoss, the projection of MSELoss) are trained too, by the same optimizer, but only
#   the model is saved. A resumed run draws the loss's weights anew and puts the old optimizer's moments beside them. The loss
#   jumps, and the encoder, which is trained already, is pulled about by a classifier that knows nothing, at the rate of the
#   middle of the run. Nothing is said; the optimizer's state is found, and fits.
# Why it matters to people who fine-tune: runs are stopped and resumed by whoever pays for the machine. What was resumed ends with another encoder
#   than what ran through, and a worse one the shorter the rest. The classifier is not in the finished folder either, so that
#   nobody can measure by it later. Save loss.state_dict() beside each checkpoint, and read it before train().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 sentence-transformers==6.2.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import os
from importlib.metadata import version

import datasets
import torch
import transformers as t
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers

t.logging.disable_progress_bar()
datasets.disable_progress_bars()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("sentence-transformers", "transformers", "accelerate", "torch")))
words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnop"]
backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
t.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained("base")
torch.manual_seed(0)
t.BertModel(t.BertConfig(vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
                         max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).save_pretrained("base")
# A pair's label: whether the second text is the first one, its turn, or another.
letters = [(one, two) for one in "abcdefgh" for two in "ijklmnop"]
rows = datasets.Dataset.from_list([
    {"first": f"{one} {two}", "second": second, "label": label}
    for one, two in letters for label, second in enumerate([f"{one} {two}", f"{two} {one}", f"{two} p"])])


def run(steps, seed, resume=None, head=None):
    """The losses of a run in a program of its own, whose model and loss are made anew; `head`: the weights of the loss, kept by hand."""
    torch.manual_seed(seed)
    model = SentenceTransformer(modules=[Transformer("base"), Pooling(32)], device="cpu")
    loss = SoftmaxLoss(model, 32, 3)
    if head is not None:
        loss.classifier.load_state_dict(head)
    arguments = SentenceTransformerTrainingArguments(
        "run", use_cpu=True, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, save_steps=60, report_to=[], disable_tqdm=True)
    kept = {}

    class Keep(t.TrainerCallback):
        def on_save(self, args, state, control, **_):
            kept.update({state.global_step: {name: weight.clone() for name, weight in loss.classifier.state_dict().items()}})

    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss, callbacks=[Keep()])
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, kept


whole, kept = run(120, seed=0)
resumed, _ = run(120, seed=1, resume="run/checkpoint-60")
by_hand, _ = run(120, seed=1, resume="run/checkpoint-60", head=kept[60])
print("files of the checkpoint:", ", ".join(sorted(os.listdir("run/checkpoint-60"))))


def means(losses):
    return [sum(losses[first : first + 10]) / 10 for first in (0, 50, 60, 70, 110)]


for text, losses in [("ran through", whole), ("resumed at 60", resumed), ("resumed with the loss's weights", by_hand)]:
    print(f"{text}: loss of the steps 1-10, 51-60, 61-70, 71-80, 111-120:", *(f"{value:.3f}" for value in means(losses)))
through, new, right = (means(losses) for losses in (whole, resumed, by_hand))
assert whole[:60] == resumed[:60] == by_hand[:60]
assert max(abs(a - b) for a, b in zip(whole, by_hand, strict=True)) < 1e-3
assert new[2] > through[2] + 0.3 and new[2] > through[1] + 0.3, (new, through)
PYTHON
