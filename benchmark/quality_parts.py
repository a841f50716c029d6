"""A run of several members (`model.recipe`) with a part of what was weighed left out, for the ablation."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from model.checkpoint import Run

PARTS = ("popularity", "weights")


@torch.no_grad()
def leave_out(part: str, run: Run, item_counts: Tensor) -> None:
    """Take the popularity out of the sum of the members again, and for "weights" their weights, too.

    Args:
        part: one of `PARTS`.
        run: its network is changed.
        item_counts: train positives of each item, [n_items].
    """
    recipe, items = run.config["recipe"], run.model.mf_item_embed.weight
    members = recipe["members"]
    ends = list(accumulate(member["width"] for member in members))
    # The popularity stands where the first member that was trained has its items' bias.
    bias = next(end for member, end in zip(members, ends, strict=True) if member["kind"] != "item-item") - 1
    items[:, bias] -= recipe["by_popularity"] * (item_counts.float() + 1.0).log()
    if part == "weights":
        for member, end in zip(members, ends, strict=True):
            items[:, end - member["width"] : end] /= member["weight"]
