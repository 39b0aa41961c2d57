#!/usr/bin/env bash
# Guess: peft's task type SEQ_CLS trains and saves the head that transformers adds to a base, so that the adapter's folder and the
#   base together are the classifier that was trained.
# What happens: peft looks for modules whose names hold `classifier` or `score`, and takes nothing else. The dense layer before it
#   is new too in DeBERTa (`pooler`) and EuroBERT (`dense`), and the whole head of BART, T5 (`classification_head`) and XLNet
#   (`sequence_summary`, `logits_proj`) is called otherwise. It stays as it was drawn at random, is not trained and not saved; the
#   next process draws another. transformers lists new weights whenever a base is opened for labels, for BERT as well, where all
#   is right; peft says nothing. With the same seed in both processes nothing is seen.
# Why it matters to people who fine-tune: accuracy is good until the program ends, and afterwards the adapter guesses. The way round:
#   name these modules in `modules_to_save`, and open the adapter with another seed before believing it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import peft
import torch
import transformers as t

t.logging.set_verbosity_error()
t.logging.disable_progress_bar()
torch.set_num_threads(1)
warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name of its own
print("transformers", t.__version__, "peft", peft.__version__)
usual = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
             max_position_embeddings=16, pad_token_id=0, initializer_range=0.2)
sides = dict(vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
             encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=16, pad_token_id=0, init_std=0.2)
families = {  # the base, what LoRA adapts, and the modules that are new beside what peft finds
    "BERT": (t.BertConfig(**usual), ["query", "value"], []),
    "DeBERTa-v2": (t.DebertaV2Config(**usual, pooler_hidden_size=32), ["query_proj", "value_proj"], ["pooler"]),
    "EuroBERT": (t.EuroBertConfig(**usual, num_key_value_heads=4), ["q_proj", "v_proj"], ["dense"]),
    "BART": (t.BartConfig(**sides), ["q_proj", "v_proj"], ["classification_head"]),
    "T5": (t.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
           ["q", "v"], ["classification_head"]),
    "XLNet": (t.XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=4, d_inner=48, initializer_range=0.2), ["layer_1"],
              ["sequence_summary", "logits_proj"]),
}
torch.manual_seed(0)
rows = torch.cat([torch.randint(5, 40, (96, 5)), torch.full((96, 1), 2)], 1)
rows[:, 0] = 3
rows[:, 1] = 5 + torch.arange(96) % 3  # the label stands in the second place
labels = torch.arange(96) % 3
ends = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 2}


def opened(place, seed):
    torch.manual_seed(seed)
    return t.AutoModelForSequenceClassification.from_pretrained(place, num_labels=3)


@torch.no_grad()
def accuracy(model):
    return float((model.eval()(input_ids=rows).logits.argmax(-1) == labels).float().mean())


def trained_and_opened(name, more):
    """Accuracy in the process that trained, and of the saved adapter on the same base; only the seeds differ."""
    config, targets, _ = families[name]
    place = f"{sys.argv[1]}/{name}"
    for key, value in ends.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    t.AutoModel.from_config(config).save_pretrained(place)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=targets, modules_to_save=more or None)
    model = peft.get_peft_model(opened(place, 1), lora).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(80):
        model(input_ids=rows, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(f"{place}-adapter")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", FutureWarning)
        again = peft.PeftModel.from_pretrained(opened(place, 2), f"{place}-adapter")
    assert not said, [str(one.message) for one in said]
    return accuracy(model), accuracy(again)


for name, (_, _, new) in families.items():
    before, after = trained_and_opened(name, [])
    print(f"{name}: {before:.2f} where it was trained, {after:.2f} from the adapter's folder", end="")
    assert before > 0.9 and (after == before if not new else after < 0.8), (name, before, after)
    if new:
        before, after = trained_and_opened(name, list(new))
        print(f"; with {', '.join(new)} in modules_to_save {before:.2f} and {after:.2f}", end="")
        assert before == after > 0.9, (name, before, after)
    print()
PYTHON
