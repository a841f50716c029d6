"""The rows that `python -m benchmark quality` compares, each with the command that produces it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.demo import SETTINGS

_TRAIN = ("train.py", "--without", "progress", "curves", "tensorboard")
_VALIDATED = ("--validation", "leave-one-out")
_RECIPE = ("--config", "configs/ml-100k.yaml")


@dataclass(frozen=True)
class Row:
    """A model in the comparison.

    Attributes:
        kind: "baseline" (a closed form), "plain" (settings of `make demo`), "recipe" or "ablation" (of the recipe).
        what: description for people.
        program: Python program with its flags; --data, --output and --seed are added.
        seeded: whether the seed makes a difference.
        part: part of the members' weighting that is left out, see `benchmark.quality.ablations`.
    """

    kind: str
    what: str
    program: tuple[str, ...]
    seeded: bool = True
    part: str | None = None


def _baseline(what: str, *flags: str, seeded: bool = False) -> Row:
    return Row("baseline", what, ("-m", "benchmark.quality_baselines", *flags), seeded)


def _plain(what: str, *flags: str) -> Row:
    return Row("plain", what, (*_TRAIN, *SETTINGS.split(), *flags))


def _ablation(what: str, *flags: str, part: str | None = None) -> Row:
    return Row("ablation", what, (*_TRAIN, *_RECIPE, *flags), part=part)


ROWS = {
    "popularity": _baseline("train interactions of an item", "--model", "popularity"),
    "ease": _baseline("EASE", "--model", "ease"),
    "ease-recency": _baseline("EASE, scores of weighted histories", "--model", "ease", "--recency"),
    "ials": _baseline("iALS", "--model", "ials", seeded=True),
    "ials-recency": _baseline("iALS, weighted interactions", "--model", "ials", "--recency", seeded=True),
    "gmf": _plain("GMF", *_VALIDATED, "--arch", "gmf"),
    "mlp": _plain("MLP", *_VALIDATED, "--arch", "mlp"),
    "neumf": _plain("NeuMF", *_VALIDATED),
    "neumf-on-test": _plain("NeuMF, epoch chosen on test as the reference does"),
    "recipe": Row("recipe", "the recipe", (*_TRAIN, *_RECIPE)),
    "no-item-item": _ablation(
        "without the item-item member", "--members", "softmax", "softmax", "bce-all", "bce-all", "--factors", "256"
    ),
    "no-bce-all": _ablation(
        "softmax members instead of bce-all ones", "--members", "softmax", "softmax", "softmax", "item-item",
        "--factors", "256",
    ),
    "one-each": _ablation(
        "one member of each kind", "--members", "softmax", "bce-all", "item-item", "--factors", "192"
    ),
    "no-popularity": _ablation("popularity's weight 0, the others as they are", part="popularity"),
    "no-weights": _ablation("all weights 1, popularity's 0", part="weights"),
    "constant": _ablation("constant learning rate", "--schedule", "constant"),
    "single": _ablation(
        "one softmax GMF alone, its penalty and recency chosen", "--members", "softmax", "--factors", "64",
        part="weights",
    ),
}  # fmt: skip
