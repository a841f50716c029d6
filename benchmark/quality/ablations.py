"""Ablation: a run of several members (`model.ensemble.search`) without part of their weighting."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from model.network.checkpoint import Run

PARTS = ("popularity", "weights")


@torch.no_grad()
def leave_out(part: str, run: Run, item_counts: Tensor) -> None:
    """Remove popularity from the sum of the members and, for "weights", their weights as well.

    Args:
        part: one of `PARTS`.
        run: its network is changed in place.
        item_counts: train positives per item, [n_items].
    """
    recipe, items = run.config["recipe"], run.model.mf_item_embed.weight
    members = recipe["members"]
    ends = list(accumulate(member["width"] for member in members))
    # Popularity was added to the item bias of the first trained member.
    bias = next(end for member, end in zip(members, ends, strict=True) if member["kind"] != "item-item") - 1
    items[:, bias] -= recipe["by_popularity"] * (item_counts.float() + 1.0).log()
    if part == "weights":
        for member, end in zip(members, ends, strict=True):
            items[:, end - member["width"] : end] /= member["weight"]
