"""The measurements behind `python -m benchmark scaling`: one quantity at a time grows, the others stay as they are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmark.common.data import prepared_folder
from benchmark.common.measure import measure
from benchmark.common.program import ROOT
from benchmark.common.train_run import train
from benchmark.pipeline.command import SHUFFLED, log_file, our_command
from preprocessing.synthetic.log import Shape
from workflows.common.progress import console

_SMALLEST = Shape(100, 50, 1000)  # its preparation is all start-up
Point = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What a training run is made of; each sweep changes one field.

    Attributes:
        width: of the GMF embeddings; the layers are 4, 4, 2 and 1 times as wide.
        processes: on a CPU, else GPUs.
    """

    users: int
    items: int
    rows: int
    batch_size: int
    width: int
    processes: int = 1

    @property
    def flags(self) -> list[str]:
        layers = [str(factor * self.width) for factor in (4, 4, 2, 1)]
        counts = ["--batch_size", str(self.batch_size), "--gpus", str(self.processes)]
        return ["--factors", str(self.width), "--layers", *layers, *counts]


def sweep_rows(measured: Sequence[Shape], repeats: int, flags: Sequence[str], cache: Path) -> list[Point]:
    """Prepare shuffled logs of these shapes.

    `seconds` are CPU seconds beyond start-up, which the preparation of a tiny log measures.
    """
    shapes = [_SMALLEST, *measured]
    logs = [log_file(each, SHUFFLED, cache) for each in shapes]
    runs: list[list[Point]] = [[] for _ in shapes]
    with tempfile.TemporaryDirectory(prefix="work-", dir=cache) as work:
        for number in range(repeats):
            for found, log, each in zip(runs, logs, shapes, strict=True):
                usage = measure(our_command(log, Path(work) / "ours", flags), ROOT)
                found.append({key: getattr(usage, key) for key in ("wall_s", "cpu_s", "peak_pss_bytes")})
                told = f"{usage.wall_s:.1f} s, CPU {usage.cpu_s:.1f} s, PSS {usage.peak_pss_bytes >> 20:,} MiB"
                console.print(f"rows {each.rows:,}, run {number + 1}: {told}")
    start_up_s = median(run["cpu_s"] for run in runs[0])
    return [
        {
            "value": each.rows,
            "users": each.users,
            **{key: median(run[key] for run in found) for key in found[0]},
            **_repeated([max(run["cpu_s"] - start_up_s, 1e-3) for run in found]),
            "processes": found,
        }
        for each, found in list(zip(shapes, runs, strict=True))[1:]
    ]


def sweep_training(
    name: str, values: Iterable[int], base: Setting, epochs: int, device: str, cache: Path, known: dict[Setting, Point]
) -> list[Point]:
    """Train with each value of one field of the setting: `seconds` are those of a million samples.

    Args:
        epochs: the first is a warm-up, the others are the repetitions.
        known: settings measured before, which are not measured again.
    """
    points = []
    for value in values:
        setting = replace(base, **{name: value})
        if setting not in known:
            data = prepared_folder(Shape(setting.users, setting.items, setting.rows), cache, "--test-negatives", "0")
            more = ["--device", device, "--epochs", str(epochs), "--seed", "1"]
            with tempfile.TemporaryDirectory(prefix="neumf-benchmark-") as folder:
                run = train(data, Path(folder) / "run", *setting.flags, *more)
            known[setting] = _repeated([1e6 / speed for speed in run.samples_per_s[1:]])
        points.append({"value": value, **known[setting]})
        console.print(f"{name} {value:,}: {points[-1]['seconds']:.3f} s a million samples")
    return points


def _repeated(seconds: Sequence[float]) -> Point:
    return {"seconds": median(seconds), "runs": list(seconds)}


def slope(points: Sequence[Point], key: str = "seconds") -> float:
    """The power p in `key` ~ value ** p, by least squares of the logarithms."""
    values, found = ([float(point[name]) for point in points] for name in ("value", key))
    return float(np.polyfit(np.log(values), np.log(found), 1)[0])
