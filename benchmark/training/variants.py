"""The variants that `python -m benchmark training` compares, and their settings. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PIECE = 65_536  # samples per piece when gradients are accumulated

FACTORS = 64
LAYERS = (256, 256, 128, 64)
DROPOUT = 0.5
NEGATIVES = 4
LEARNING_RATE, BETA1, BETA2 = 0.0045, 0.25, 0.5


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train the same network.

    Attributes:
        kind: "plain" is the reference's method (`benchmark.training.plain_training`); "compiled" and "torch" are the
            product's two steps.
        precision: as in `model.training.config.TrainConfig.precision`; "amp" is the flag of that name.
        in_memory: batches from memory, else streamed.
        accumulated: gradients are accumulated over pieces of `PIECE` samples.
    """

    kind: Literal["plain", "compiled", "torch"]
    what: str
    precision: str = "fp32"
    in_memory: bool = False
    accumulated: bool = False


VARIANTS = {
    "plain": Variant(kind="plain", what="the reference's way: dense network, one permutation of all samples"),
    "plain accumulated": Variant(
        kind="plain", what="plain, the gradients of 65,536 samples at a time added up", accumulated=True
    ),
    "compiled": Variant(kind="compiled", what="the product on a CPU: streamed, compiled loops"),
    "compiled, in memory": Variant(kind="compiled", what="its batches from memory", in_memory=True),
    "compiled, amp": Variant(kind="compiled", what="with --amp", precision="amp"),
    "compiled, bf16": Variant(kind="compiled", what="with bfloat16 products", precision="bf16"),
    "torch": Variant(kind="torch", what="the product's torch step: streamed, grouped, in chunks"),
    "torch, bf16": Variant(kind="torch", what="in bfloat16", precision="bf16"),
}


def applies(name: str, batch_size: int) -> bool:
    """Whether a variant makes a difference at a batch size: accumulation needs more than one piece."""
    return not VARIANTS[name].accumulated or batch_size > PIECE
