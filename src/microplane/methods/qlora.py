"""QLoRA, arXiv 2305.14314: LoRA over a base in 4 bits, h = dequant(W) x + s B A dropout(x).

The base is NF4 with double quantisation (nn/nf4.py): 4.127 bits a weight. It is dequantised layer by layer, for each
product anew, and gradients flow through it to the adapters below; it never trains. The paper adapts all linear layers,
which it found to be needed to match 16 bits. The base's rounding is part of what the adapters learn to live with, so
they belong to the quantised base: merged into the original one they compute something slightly else.
"""

from __future__ import annotations

from typing import ClassVar

from microplane.methods.lora import LoRA


class QLoRA(LoRA):
    name: ClassVar[str] = "qlora"
    summary: ClassVar[str] = "LoRA over a base in 4 bits (nf4): a quarter of the memory of bfloat16, a little slower"
    default_lr: ClassVar[float] = 2e-3
    quantize: ClassVar[str | None] = "nf4"
