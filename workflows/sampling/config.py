"""Settings for negative sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from workflows.sampling.candidates import MAX_WEIGHT, Candidates

KINDS = ("exact", "uniform", "popularity")
SEEDS = range(2**63)  # non-negative integers of 64 bits


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How negatives are drawn.

    Attributes:
        kind: "exact" (items the user has not interacted with, all equally likely), "popularity" (the same items,
            weighted by their interaction counts) or "uniform" (any item, as in NVIDIA's reference).
        exponent: power of the interaction counts, for "popularity" (0.75 as in word2vec, Mikolov et al. 2013).
        time_aware: only items that had occurred in the log by the time of the positive.
        seed: the same seed gives the same negatives, however the rows are partitioned.
    """

    kind: str = "exact"
    exponent: float = 0.75
    time_aware: bool = False
    seed: int = 1

    @property
    def needs_statistics(self) -> bool:
        return self.kind == "popularity" or self.time_aware


EXACT = Sampling()


def wrong_seed(seed: int) -> str:
    """What is wrong with a seed from the command line; empty if it is right."""
    return "" if seed in SEEDS else f"--seed should be 0 .. 2^63-1 ({SEEDS[-1]}), got {seed}"


def build_candidates(
    n_items: int, sampling: Sampling, counts: np.ndarray | None, since: np.ndarray | None, like: Any
) -> Candidates:
    """Build the candidates to draw from, in the array library and on the device of `like`.

    Args:
        counts, since: int64 [n_items], interaction count and earliest time of each item, if `sampling` needs them.
    """
    cdf = items = positions = appeared = None
    if sampling.time_aware:
        assert since is not None
        items = np.lexsort((np.arange(n_items), since))
        positions = np.argsort(items)
        appeared = since[items]
    if sampling.kind == "popularity":
        assert counts is not None
        share = counts.astype(np.float64) ** sampling.exponent
        # Integers, so that sums are exact; at least 1, so that every item can be drawn.
        weights = np.maximum(1, share / share.sum() * (MAX_WEIGHT - n_items)).astype(np.int64)
        cdf = np.concatenate([[0], np.cumsum(weights if items is None else weights[items])])
    xp = array_namespace(like)
    like_device = device(like)
    arrays = (cdf, items, positions, appeared)
    return Candidates(n_items, *(None if array is None else xp.asarray(array, device=like_device) for array in arrays))
