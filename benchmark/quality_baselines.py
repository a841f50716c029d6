"""`python -m benchmark.quality_baselines`: scores of closed-form models, with settings chosen on validation.

Settings are chosen on the split of `--validation leave-one-out`, by the sum of expected HR@10 and NDCG@10; then the
model is fitted to all of train. Runs in its own process, so that its time is measured separately.

Shapes: U users, I items, D factors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.quality.data import Data, Matrix
from model.network.checkpoint import save_tensors
from workflows.common.errors import UserError, run_command
from workflows.common.files import staged_folder, write_json
from workflows.common.progress import console

SCORES_NAME, CHOICE_NAME = "scores.safetensors", "choice.json"
_SWEEPS = 16  # of alternating least squares, as in the paper

Settings = dict[str, float]
# Initial settings, and the factor between successive values tried.
_STARTS: dict[str, Settings] = {
    "popularity": {},
    "ease": {"l2": 300.0},
    "ials": {"l2": 0.01, "unobserved": 0.25, "factors": 64.0},
}
_STEPS = {"l2": 2.0**0.5, "unobserved": 2.0, "factors": 2.0}
_MOST = {"factors": 256.0}  # noise may favour ever more factors, and each further step takes eight times as long
_RECENCIES = (0.5, 1.0)


class Split:
    """The data to fit: all of train, or train without the held-out items."""

    def __init__(self, data: Data, validation_items: Tensor | None, seed: int) -> None:
        self._data, self._held_out, self._seed = data, validation_items, seed
        self._histories: dict[float, Matrix] = {}

    def histories(self, recency: float) -> Matrix:
        if recency not in self._histories:
            self._histories[recency] = self._data.histories(recency, self._held_out)
        return self._histories[recency]

    @cached_property
    def products(self) -> Matrix:
        """XᵀX of the unweighted histories X, [I, I]."""
        return self.histories(0.0).T @ self.histories(0.0)

    def scores(self, model: str, settings: Mapping[str, float]) -> Matrix:
        """Scores of all users for all items, [U, I]."""
        weights = self.histories(settings.get("recency", 0.0))
        if model == "ease":
            return weights @ ease(self.products, settings["l2"])
        if model == "ials":
            users, items = ials(
                weights, int(settings["factors"]), settings["l2"], settings["unobserved"], _SWEEPS, self._seed
            )
            return users @ items.T
        return np.tile(weights.sum(0), (len(weights), 1))


def ease(products: Matrix, l2: float) -> Matrix:
    """Item-item weights that best predict the histories, with a zero diagonal (EASE, Steck 2019).

    Args:
        products: XᵀX of the histories X, [I, I].
        l2: penalty on the squared weights.
    """
    inverse = np.linalg.inv(products + l2 * np.eye(len(products)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def ials(weights: Matrix, factors: int, l2: float, unobserved: float, sweeps: int, seed: int) -> tuple[Matrix, Matrix]:
    """User factors [U, D] and item factors [I, D] by alternating least squares (Hu et al. 2008).

    The loss is that of Rendle et al. 2021, "Revisiting the performance of iALS": weighted squared errors of the
    interactions against a target of 1; squared scores of all pairs, times `unobserved`; and a penalty on each vector,
    `l2` times its total weight in the first two terms.
    """
    generator = np.random.default_rng(seed)
    items = generator.normal(0.0, 0.1 / np.sqrt(factors), (weights.shape[1], factors))
    for _ in range(sweeps):
        users = _solved(weights, items, l2, unobserved)
        items = _solved(weights.T, users, l2, unobserved)
    return users, items


def _solved(weights: Matrix, fixed: Matrix, l2: float, unobserved: float) -> Matrix:
    """The optimal vector of each row of `weights` [R, C], given fixed column vectors [C, D]."""
    n_columns, width = fixed.shape
    found, everything, identity = np.empty((len(weights), width)), unobserved * fixed.T @ fixed, np.eye(width)
    for row, own in enumerate(weights):
        there = np.flatnonzero(own)
        vectors, weight = fixed[there], own[there]
        penalty = l2 * (weight.sum() + unobserved * n_columns)
        left = everything + (vectors * weight[:, None]).T @ vectors + penalty * identity
        found[row] = np.linalg.solve(left, weight @ vectors)
    return found


def climbed(start: Settings, quality: Callable[[Settings], float]) -> Settings:
    """Hill climbing: scale one setting at a time up or down until no change improves `quality`."""

    def is_better(settings: Settings) -> bool:
        return all(settings[name] <= most for name, most in _MOST.items() if name in settings) and (
            quality(settings) > quality(best)
        )

    best, before = start, None
    while best != before:
        before = best
        for name in (name for name in start if name in _STEPS):
            for factor in (_STEPS[name], 1.0 / _STEPS[name]):
                while is_better(following := {**best, name: best[name] * factor}):
                    best = following
    return best


class Validated:
    """Validation metrics of a model by its settings; each combination is fitted once."""

    def __init__(self, model: str, data: Data, seed: int) -> None:
        validation_items = data.validation_items(seed)
        self._model, self._measured, self._split = (
            model,
            data.validation(validation_items),
            Split(data, validation_items, seed),
        )
        self._known: dict[tuple[float, ...], tuple[float, float]] = {}

    def metrics(self, settings: Settings) -> tuple[float, float]:
        """Expected HR@10 and NDCG@10."""
        key = tuple(round(value, 9) for value in settings.values())
        if key not in self._known:
            found = self._measured(self._split.scores(self._model, settings))
            named = ", ".join(f"{name} {value:.4g}" for name, value in settings.items())
            console.print(f"{self._model} {named}: expected HR@10 {found[0]:.4f}, NDCG@10 {found[1]:.4f}")
            self._known[key] = found
        return self._known[key]

    def quality(self, settings: Settings) -> float:
        """The criterion for choosing settings."""
        return sum(self.metrics(settings))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.quality_baselines", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared folder")
    parser.add_argument("--model", choices=_STARTS, required=True)
    parser.add_argument("--recency", action="store_true", help="also try weights that decay with an interaction's age")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier output of this command")
    args = parser.parse_args()
    data = Data.load(args.data)
    if args.recency and not data.time_ordered:
        raise UserError(f"--recency needs train rows in time order, and those of {args.data} are not; leave it out")
    validated = Validated(args.model, data, args.seed)
    settings = climbed(_STARTS[args.model], validated.quality)
    for recency in _RECENCIES if args.recency else ():
        settings = max(settings, climbed({**settings, "recency": recency}, validated.quality), key=validated.quality)
    quality = validated.metrics(settings)
    scores = Split(data, None, args.seed).scores(args.model, settings)
    with staged_folder(args.output, args.overwrite, lambda folder: (folder / CHOICE_NAME).exists()) as folder:
        save_tensors(folder / SCORES_NAME, {"scores": torch.from_numpy(scores.astype(np.float32))})
        choice = {"settings": settings, "validation_hr@10": quality[0], "validation_ndcg@10": quality[1]}
        write_json(folder / CHOICE_NAME, choice)


if __name__ == "__main__":
    run_command(main)
