"""Initialise NeuMF from a trained GMF and MLP (He et al. 2017, section 3.4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.network.checkpoint import load_run
from model.network.neumf import NeuMF
from workflows.common.errors import UserError

_CPU = torch.device("cpu")


@torch.no_grad()
def start_from(model: NeuMF, runs: Sequence[Path], alpha: float) -> None:
    """Initialise the GMF branch, the MLP branch or both from runs of that branch alone.

    The last layer becomes [alpha * GMF's, (1 - alpha) * MLP's], and the bias likewise. With one run only, the other
    branch and its part of the last layer keep their initial values.

    Args:
        model: with both branches, on the CPU.
        alpha: weight of the GMF, 0 to 1.

    Raises:
        UserError: a run does not have exactly one branch, its shapes do not fit, or two runs have the same branch.
    """
    own, taken = dict(model.named_parameters()), dict[str, Path]()
    factors, bias = model.config.factors, torch.zeros(1)
    for folder in runs:
        run = load_run(folder, _CPU).model
        arch = run.config.arch
        if arch not in ("gmf", "mlp") or arch in taken:
            found = f"{taken[arch]} has the same branch" if arch in taken else f"got {arch}"
            raise UserError(f"--pretrained {folder}: expected one run of --arch gmf and one of --arch mlp; {found}")
        taken[arch] = folder
        share, head = (alpha, slice(0, factors)) if arch == "gmf" else (1.0 - alpha, slice(factors, None))
        branch = {name: value for name, value in run.named_parameters() if value.numel() and "final" not in name}
        last = model.final.weight[:, head]
        wrong = _wrong({**branch, "final.weight": run.final.weight}, {**own, "final.weight": last})
        if wrong:
            raise UserError(
                f"--pretrained {folder} does not fit the network ({wrong}); use the same --factors and --layers"
            )
        for name, value in branch.items():
            own[name].copy_(value)
        last.copy_(share * run.final.weight)
        bias += share * run.final.bias
    model.final.bias.copy_(bias)


def _wrong(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    return "; ".join(
        f"{name}: expected {tuple(expected[name].shape) if name in expected else 'nothing'}, got {tuple(value.shape)}"
        for name, value in found.items()
        if name not in expected or expected[name].shape != value.shape
    )
