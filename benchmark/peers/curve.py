"""Quality by training time: HR@10 on test after epochs, with the time of evaluation taken out."""

from __future__ import annotations

from collections.abc import Sequence
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
