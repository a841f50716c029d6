"""Runs of `train.py`, and what they logged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmark.common.program import run_program
from workflows.common.files import read_json

_OUTPUTS = ("--without", "progress", "tensorboard", "curves")


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        losses, samples_per_s: by epoch; empty for an ensemble or a test.
        metrics: the content of `metrics.json`.
    """

    folder: Path
    losses: list[float]
    samples_per_s: list[float]
    metrics: dict[str, Any]

    @property
    def steady_samples_per_s(self) -> float:
        """Mean over the epochs after the first, which loads libraries and reads the rows."""
        return fmean(self.samples_per_s[1:])


def train(data: Path, run: Path, *flags: str | Path) -> Run:
    """Run `train.py` to its end.

    Raises:
        UserError: it failed; the message includes the last lines of its output.
    """
    run_program("train.py", "--data", str(data), "--output", str(run), *map(str, flags), *_OUTPUTS)
    lines = (run / "log.json").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line.removeprefix("DLLL ")).get("data", {}) for line in lines]
    epochs = [record for record in records if "train_loss" in record]
    return Run(
        run,
        [epoch["train_loss"] for epoch in epochs],
        [epoch["train_throughput"] for epoch in epochs],
        read_json(run / "metrics.json"),
    )
