"""Runs of `train.py` for the GPU check."""

from __future__ import annotations

from pathlib import Path

from benchmark.common import train_run
from benchmark.gpu_check.findings import Scale, Settings


def train(settings: Settings, data: Path, name: str, *flags: str | Path) -> train_run.Run:
    """Run `train.py` to its end, into a folder of that name; see `train_run.train`."""
    return train_run.train(data, settings.work / name.replace(" ", "-"), *flags)


def speed_flags(scale: Scale) -> tuple[str, ...]:
    """Flags of a run for speed measurements: the reference's network and batches, three epochs."""
    layers = ("--layers", *map(str, scale.layers))
    return (
        *("--batch_size", str(scale.batch_size), "--factors", str(scale.factors), *layers),
        *("--epochs", "3", "--seed", "1"),
    )
