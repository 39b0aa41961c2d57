"""Runs by the commands that users type, on tiny models, and what transformers and peft say of what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner, Result

from microplane.cli.app import app
from microplane.config.knobs import GenerateKnobs
from microplane.inference.pipeline import Pipeline
from microplane.models.contract import Model
from microplane.objectives.head import Text
from tests import labels
from tests.adapters.both_ways import FEW_STEPS
from tests.adapters.test_leaving import folder_of
from tests.foreign.encoder_folders import save_encoder
from tests.foreign.folders import CAUSAL, save_causal, save_plbart
from tests.tiny import CONFIGS, ENCODER_CONFIGS

MOST = 6  # tokens of an answer
ADDED = (AddedToken("<tool>", special=False, normalized=False), AddedToken("<call>", special=True))
PROMPTS = ("say aa", "say d", "say ggg and no more", "say bb", "say cc")
TEXTS: dict[str, tuple[Text, ...]] = {
    "pairs": (("the film is good 3", "it was bad"), ("bad", "it was good"), ("the plot is poor", "good 1")),
    "tokens": ("the red film xyz 3", "good", "green plot is 7 unheard"),
}
USUAL_TEXTS: tuple[Text, ...] = ("the red film is good 3", "bad", "a plot it was not three")

Scores = Callable[[Text], torch.Tensor]  # of a text those of its labels (C,), or of its tokens (T, C)

# What is trained


def answers(count: int = 56) -> list[dict[str, Any]]:
    """A letter to each question, for some with a token that was added."""
    said = [letter if n % 3 else f"<tool>{letter}" for n, letter in enumerate("abcdefg")]
    return [{"prompt": f"say {'abcdefg'[n % 7] * (n % 3 + 1)}", "completion": said[n % 7]} for n in range(count)]


ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "answers": answers,
    "classification": lambda: labels.reviews(40),
    "pairs": lambda: labels.pairs(40),
    "multilabel": lambda: labels.multilabel(40),
    "regression": lambda: labels.scores(40),
    "tokens": lambda: labels.tags(40),
}


def base_of(family: str, folder: Path) -> Path:
    """A model with two tokens more than its vocabulary was made of, and, where it writes, with several tokens that
    end an answer. A decoder's tokens pad with their end. "its" before a family: as transformers alone computes it."""
    its = family.removeprefix("its ")
    if its != family:
        return save_plbart(folder) if its == "plbart" else (save_causal if its in CAUSAL else save_encoder)(folder, its)
    folder_of(family, folder)
    file = folder / "tokenizer.json"
    if family in ("t5gemma", "t5gemma2", "marian-apart"):  # of which transformers makes one side larger
        named = file.read_text().replace("<extra_id_38>", "<call>").replace("<extra_id_39>", "<tool>")
        file.write_text(named)
    else:
        backend = Tokenizer.from_file(str(file))
        backend.add_tokens(list(ADDED))
        backend.save(str(file))
        enlarge(folder, backend.get_vocab_size())
    config = json.loads((folder / "config.json").read_text())
    if family in CONFIGS:
        told = {"eos_token_id": [2, 0], "pad_token_id": 2, "temperature": 0.4, "do_sample": True}
        (folder / "generation_config.json").write_text(json.dumps(told))
    elif family not in ENCODER_CONFIGS:
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 1}))
        backend = Tokenizer.from_file(str(file))
        ended = TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
        backend.post_processor = ended
        backend.save(str(file))
        told = {name: config[name] for name in ("pad_token_id", "decoder_start_token_id") if name in config}
        told |= {"decoder_start_token_id": config.get("decoder_start_token_id", config.get("bos_token_id", 2))}
        (folder / "generation_config.json").write_text(json.dumps(told | {"eos_token_id": [1, 9]}))
    return folder


def enlarge(folder: Path, size: int) -> None:
    """Rows for more tokens, by transformers."""
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, kind).from_pretrained(folder)
    torch.manual_seed(1)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.save_pretrained(folder)


def command(*given: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in given])


def done(*given: object) -> str:
    """What a command says that ends well."""
    said = command(*given)
    assert said.exit_code == 0, said.output + str(said.exception or "")
    return said.output


def train(base: Path, task: str, method: str, sets: Mapping[str, Any]) -> Path:
    """The folder of a run."""
    rows = labels.write(base.parent / f"{task}.jsonl", ROWS[task]())
    sets = FEW_STEPS | {"train.eval_every": 30, "runs": base.parent / "runs", "name": f"{task}-{method}"} | sets
    if task == "answers":
        sets |= {"train.steps": 150 if "gpt" in base.name else 60, "eval.rows": 0}
    chosen = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    if task != "answers":
        chosen += ["--set", f"data.task={'classification' if task == 'pairs' else task}"]
    done("train", base, rows, "--method", method, *chosen)
    return base.parent / "runs" / f"{task}-{method}"


# What is said here


def written(run: Pipeline) -> list[tuple[list[int], bool]]:
    """Of each prompt the tokens, and whether a stop token ended them."""
    found = run.answers(PROMPTS, GenerateKnobs(max_new_tokens=MOST))
    return [(one.ids, one.stopped) for one in found]


# What is said there


def opened(folder: Path, name: str, **told: Any) -> Any:
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **told).eval()


def written_there(model: Any, tokenizer: Any, chat: bool, together: bool = True) -> list[tuple[list[int], bool]]:
    """The same of a model of transformers, of all prompts at once, padded as its folder says, or of each alone."""
    if not together:
        return [one for prompt in PROMPTS for one in _written_there(model, tokenizer, chat, [prompt])]
    return _written_there(model, tokenizer, chat, PROMPTS)


@torch.no_grad()
def _written_there(model: Any, tokenizer: Any, chat: bool, prompts: Sequence[str]) -> list[tuple[list[int], bool]]:
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    texts: list[str] = list(prompts)
    how = {"return_tensors": "pt", "padding": True}
    if chat:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for text in prompts
        ]
        how |= {"padding_side": "left", "add_special_tokens": False}
    given = tokenizer(texts, **how)
    made = model.generate(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=MOST, do_sample=False,
        num_beams=1,
    )  # fmt: skip
    made = made[:, given["input_ids"].shape[1] if chat else 1 :]  # behind the prompt, or the decoder's start
    found = []
    for row in made.tolist():
        end = next((place for place, token in enumerate(row) if token in ends), None)
        found.append((row[:end], end is not None))
    return found


def in_pipeline(folder: Path, texts: Sequence[Text], together: bool) -> list[dict[str, float]]:
    """Of each text its labels, in a pipeline of transformers."""
    options = {"device": "cpu", "top_k": None, "batch_size": len(texts) if together else 1}
    asked = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
    found = transformers.pipeline("text-classification", str(folder), **options)(asked)
    return [{one["label"]: one["score"] for one in entry} for entry in found]


def of_its_class(model: Any, tokenizer: Any) -> Scores:
    """How a head of one of transformers' classes is asked."""

    @torch.no_grad()
    def scores(text: Text) -> torch.Tensor:
        found: torch.Tensor = model(
            **tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
        ).logits
        return found[0]

    return scores


def by_the_notice(model: Any, tokenizer: Any, ours: Model, weights: Mapping[str, Any]) -> Scores:
    """How a head is computed that transformers has no class for, as `merge` and the card of an adapter tell it."""
    assert ours.task_head is not None
    head, whole = ours.task_head.config, ours.KIND == "encoder-decoder"

    @torch.no_grad()
    def scores(text: Text) -> torch.Tensor:
        given = dict(tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt"))
        asked, name = model, "last_hidden_state"
        if isinstance(model, peft.PeftModel):
            given["output_hidden_states"], name = True, "hidden_states"
        if whole and head.reads_decoder:
            ids = given["input_ids"]
            given["decoder_input_ids"] = torch.cat([torch.tensor([[ours.config.decoder_start]]), ids[:, :-1]], 1)
            name = "decoder_hidden_states" if "output_hidden_states" in given else name
        elif whole:
            asked, name = model.get_encoder(), "last_hidden_state"
        said = asked(**given)[name]
        states = (said[-1] if isinstance(said, tuple) else said)[0]
        pooled = {"cls": states[0], "last": states[-1], "mean": states.mean(0)}[head.pooling]
        at = states if head.per_token else pooled
        return at @ weights["task_head.out.weight"].T + weights["task_head.out.bias"]

    return scores


def as_probabilities(scores: torch.Tensor, task: str) -> torch.Tensor:
    if task == "regression":
        return scores
    return scores.sigmoid() if task == "multilabel" else scores.softmax(-1)


def head_weights(file: Path) -> dict[str, torch.Tensor]:
    return {f"task_head{name.split('task_head')[-1]}": x for name, x in load_file(file).items() if "task_head" in name}


def adapted(base: Path, adapter: Path, name: str, **told: Any) -> Any:
    return peft.PeftModel.from_pretrained(opened(base, name, **told), adapter).eval()
