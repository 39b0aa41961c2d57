"""BitFit, arXiv 2106.10199: of y = W x + b, and of norm(x) * g + b, only the biases b train.

Nothing is added: what is saved are the model's own biases, turned to float32. Where a model has none (T5, Llama), there
is nothing to train, and it is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from microplane.errors import ConfigError
from microplane.methods.method import Method, trainable
from microplane.methods.norms import own_modules, unfreeze
from microplane.models.contract import linears


class BitFit(Method):
    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "the model's biases train; for models that have some (BERT, Marian, Qwen2)"
    default_lr: ClassVar[float] = 1e-3
    trains_matrices: ClassVar[bool] = False
    trains: ClassVar[Literal["adapter", "vectors", "weights"]] = "vectors"
    not_convertible: ClassVar[str | None] = "trains biases, which a LoRA does not have; merge it instead"

    def attach(self, model: nn.Module) -> None:
        biases = [bias for m in own_modules(model) if isinstance(bias := getattr(m, "bias", None), nn.Parameter)]
        if not biases:
            what = getattr(getattr(model, "config", None), "architecture", type(model).__name__)
            raise ConfigError(
                f"method.name = 'bitfit': it trains biases, and {what} has none in its layers; choose norms, "
                "which trains as little, or lora"
            )
        model.requires_grad_(False)
        unfreeze(biases)

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Without weight decay: a bias is no weight, and 0 is not where it came from."""
        return [{"params": list(trainable(model).values()), "lr": lr, "weight_decay": 0.0}]

    def may_not_move(self, model: nn.Module) -> set[str]:
        """A key's bias adds the same to all scores of a query, which a softmax does not see where nothing turns it."""
        keys = (name for name, site in linears(model).items() if site.role == "k" and site.module.bias is not None)
        return {f"{name}.bias" for name in keys}

    def merge(self, model: nn.Module) -> None:
        """Nothing to do: the biases are the model's own."""
        model.requires_grad_(False)
