"""transformers, and peft on it, as engines that a folder or an adapter is compared in."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microplane.adapters.asked import settings_of_writing
from microplane.exports.source import Source
from microplane.models.contract import Model
from microplane.models.external.library import quiet
from microplane.models.generation_rules import MEANS_NOTHING

TEXT = ("decoder", "encoder-decoder")


class Transformers:
    """A folder opened by transformers' class for its kind.

    Args:
        adapter: that peft puts on it.
    """

    def __init__(self, folder: Path, source: Source, adapter: Path | None = None):
        library: Any = importlib.import_module("transformers")
        self.name, self.measure = f"transformers {library.__version__}", "logit"
        self.pairs = source.pipeline.model.KIND == "encoder-decoder"
        kind = library.AutoModelForSeq2SeqLM if self.pairs else library.AutoModelForCausalLM
        with quiet():
            self.model = kind.from_pretrained(folder, dtype=torch.float32)
        self.stops = None if adapter is None else list(source.pipeline.stop_ids)  # which peft's format does not tell
        if self.pairs:
            self.measure, self.start = "log-probability", source.pipeline.model.config.decoder_start
        if adapter is not None:
            peft: Any = importlib.import_module("peft")
            self.name = f"peft {peft.__version__}"
            self.model = peft.PeftModel.from_pretrained(self.model, str(adapter))
        self.model.eval()
        self.tokenizer = library.AutoTokenizer.from_pretrained(folder)
        self.plain = {
            name: MEANS_NOTHING[name] for name in ("do_sample", "num_beams", *settings_of_writing(source.pipeline))
        }
        self.bad = list(source.pipeline.model.generation_rules.bad_tokens) if self.pairs else []

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text).input_ids
        return found

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        found: Tensor = self.model(input_ids=torch.tensor([list(ids)])).logits[0].float()
        return found[-len(ids) :]  # behind the vectors of a prompt, which peft has before them

    @torch.no_grad()
    def scores(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        read = torch.tensor([[self.start, *answer[:-1]]])
        logits = self.model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=read).logits[0].float()
        logits[:, self.bad] = -torch.inf
        found: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        return found

    @torch.no_grad()
    def greedy(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        return [self._continued(prompt, most) for prompt in prompts]

    def _continued(self, prompt: Sequence[int], most: int) -> list[int]:
        given = torch.tensor([list(prompt)])
        own = {} if self.stops is None else {"eos_token_id": self.stops}
        found = self.model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=most,
            return_dict_in_generate=False, **self.plain, **own,
        )[0].tolist()  # fmt: skip
        said = found[1:] if self.pairs else found[len(prompt) :]
        ends = self.stops if self.stops is not None else self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return [*said[:-1], -1] if said and said[-1] in ends else said


def writes_text(model: Model) -> bool:
    return model.KIND in TEXT and model.task_head is None
