"""Ablation: `train.py` without trying recency for its members, for which it has no flag."""

from __future__ import annotations

import inspect
from typing import Any

import train
from model.ensemble.search import Recipe
from workflows.common.errors import run_command

_found = Recipe.found


def _found_without(*args: Any, **kwargs: Any) -> Recipe:
    """`Recipe.found`, with rows treated as not time-ordered."""
    given = inspect.signature(_found).bind(*args, **kwargs)
    given.arguments["time_ordered"] = False
    return _found(*given.args, **given.kwargs)


if __name__ == "__main__":
    Recipe.found = staticmethod(_found_without)  # type: ignore[method-assign]
    run_command(train.main)
