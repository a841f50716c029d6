"""Quality by training time: HR@10 on test after epochs, with the time of evaluation taken out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHARE = 0.99  # of the final quality


def first_within(points: Sequence[dict[str, Any]], final: float) -> dict[str, Any]:
    """The first point within 1 % of the final quality. The last point is the final one."""
    return next(point for point in points if point["hr"] >= SHARE * final)


def with_offset(curve: dict[str, Any], wall_s: float, cpu_s: float) -> dict[str, Any]:
    """The curve after that much work before it."""

    def later(point: dict[str, Any]) -> dict[str, Any]:
        return {**point, "wall_s": point["wall_s"] + wall_s, "cpu_s": point["cpu_s"] + cpu_s}

    return {**curve, "points": [later(point) for point in curve["points"]], "within": later(curve["within"])}


def dllogger_curve(log: Path, wall_s: float, cpu_s: float) -> dict[str, Any]:
    """The curve of a run of `train.py` that evaluates on test after each epoch; its last epoch is the final one.

    Args:
        log: its log.json.
        wall_s, cpu_s: of the whole process. Everything but epochs and evaluation counts as before the first epoch; CPU
            seconds are the process's share of a core times wall-clock seconds.
    """
    epochs = []
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line.removeprefix("DLLL "))
        step = record.get("step")
        if isinstance(step, list) and len(step) == 1:
            epochs.append(record["data"])
    trained = [epoch["train_epoch_time"] for epoch in epochs]
    elapsed = wall_s - sum(trained) - sum(epoch["validation_epoch_time"] for epoch in epochs)
    points = []
    for number, (epoch, train_s) in enumerate(zip(epochs, trained, strict=True), 1):
        elapsed += train_s
        points.append({"epoch": number, "wall_s": elapsed, "cpu_s": elapsed * cpu_s / wall_s, "hr": epoch["hr@10"]})
    final = points[-1]["hr"]
    return {"final": final, "points": points, "within": first_within(points, final)}
