"""`python -m benchmark.baseline_pipeline CSV OUT`: the reference's preparation as plain, vectorised pandas.

The baseline for `python -m preprocessing`. It follows the steps of NVIDIA's `convert.py` in order (read the log, encode
both ids, sort by time, drop duplicate pairs, each user's last row to test, the rest sorted by user and item to train,
negatives by rejection), with vectorised pandas calls in place of that script's Python loops and `groupby.apply`. Prints
the seconds of each step as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from workflows.common.errors import run_command

_TEST_NEGATIVES = 100


def run(log: Path, output: Path, seed: int = 1) -> dict[str, float]:
    """Write `train.parquet` and `test.parquet` (user, item: int32, label: float32); returns the seconds per step."""
    steps_s: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        steps_s[name] = time.perf_counter() - started

    with step("read"):
        df = pd.read_csv(log)
    with step("encode"):
        df["userId"], users = pd.factorize(df["userId"])
        df["movieId"], items = pd.factorize(df["movieId"])
    with step("sort"):
        df = df.sort_values("timestamp")
    with step("drop duplicates"):
        df = df.drop(columns=["rating", "timestamp"]).drop_duplicates()
    with step("split"):
        last = df.groupby("userId").tail(1)
        seen = np.bincount(df["userId"], minlength=len(users))
        test = last[seen[last["userId"]] < len(items)].sort_values("userId")
        train = df.drop(index=test.index).sort_values(["userId", "movieId"])
    with step("negatives"):
        positives = np.sort(df["userId"].to_numpy() * len(items) + df["movieId"].to_numpy())
        negatives = _negatives(test["userId"].to_numpy(), positives, len(items), np.random.default_rng(seed))
    with step("write"):
        output.mkdir(parents=True, exist_ok=True)
        _write(train["userId"].to_numpy(), train["movieId"].to_numpy()[:, None], output / "train.parquet")
        series = np.column_stack([test["movieId"].to_numpy(), negatives])
        _write(np.repeat(test["userId"].to_numpy(), series.shape[1]), series, output / "test.parquet")
    return steps_s


def _negatives(users: np.ndarray, positives: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Draw negatives by rejection: items the user has already seen are redrawn.

    Args:
        users: int64 [T], each with at least one unseen item.
        positives: int64, `user * n_items + item` of all interactions, ascending.
    Returns:
        int64 [T, _TEST_NEGATIVES].
    """
    owners = np.repeat(users, _TEST_NEGATIVES) * n_items
    items = rng.integers(0, n_items, len(owners))
    again = np.arange(len(owners))
    while len(again):
        keys = owners[again] + items[again]
        found = np.minimum(np.searchsorted(positives, keys), len(positives) - 1)
        again = again[positives[found] == keys]
        items[again] = rng.integers(0, n_items, len(again))
    return items.reshape(len(users), _TEST_NEGATIVES)


def _write(users: np.ndarray, items: np.ndarray, path: Path) -> None:
    """Write the rows of items [N, series]; the first item of each series is the positive."""
    label = np.zeros(items.shape, dtype=np.float32)
    label[:, 0] = 1
    columns = {"user": users.astype(np.int32), "item": items.ravel().astype(np.int32), "label": label.ravel()}
    pd.DataFrame(columns, copy=False).to_parquet(path, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.baseline_pipeline", allow_abbrev=False)
    parser.add_argument("log", type=Path, metavar="CSV", help="a log with the columns of MovieLens-20M")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write")
    args = parser.parse_args()
    print(json.dumps({"steps_s": run(args.log, args.output)}))


if __name__ == "__main__":
    run_command(main)
