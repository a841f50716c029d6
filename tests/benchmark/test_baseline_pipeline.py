"""The baseline follows the reference's steps, checked against a plain loop over each user's interactions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from benchmark.baseline_pipeline import run

_ROOT = Path(__file__).parents[2]
_N_ITEMS = 150


def _write_log(path: Path) -> pd.DataFrame:
    """Duplicate pairs, times without ties, one user with a single interaction and one who has seen every item."""
    rng = np.random.default_rng(0)
    users = np.concatenate([rng.integers(10, 30, 900), [1], np.full(_N_ITEMS, 2)])
    items = np.concatenate([rng.integers(0, _N_ITEMS, 901), np.arange(_N_ITEMS)]) * 7
    times = rng.permutation(len(users))
    log = pd.DataFrame({"userId": users, "movieId": items, "rating": 3.5, "timestamp": times})
    log.to_csv(path, index=False)
    return log


def test_train_and_test_match_a_plain_loop(tmp_path: Path) -> None:
    log = _write_log(tmp_path / "log.csv")
    steps = run(tmp_path / "log.csv", tmp_path)
    assert min(steps.values()) >= 0
    train, test = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("train", "test"))
    histories: dict[int, list[int]] = {}
    for row in log.sort_values("timestamp").itertuples():
        history = histories.setdefault(row.userId, [])
        if row.movieId not in history:
            history.append(row.movieId)
    pairs = train[["user", "item"]].to_numpy()
    assert (np.lexsort((pairs[:, 1], pairs[:, 0])) == np.arange(len(pairs))).all()
    # Ids are numbered by first occurrence in the file.
    user_of, item_of = (dict(enumerate(log[name].unique())) for name in ("userId", "movieId"))
    train = train.assign(user=train["user"].map(user_of), item=train["item"].map(item_of))
    test = test.assign(user=test["user"].map(user_of), item=test["item"].map(item_of))
    expected = {user: items if len(items) == _N_ITEMS else items[:-1] for user, items in histories.items()}
    assert train.groupby("user")["item"].agg(set).to_dict() == {u: set(items) for u, items in expected.items() if items}
    assert (train["label"] == 1).all()
    series = test.to_numpy().reshape(-1, 101, 3)
    assert (series[:, :, 0] == series[:, :1, 0]).all()
    assert {user: item for user, item, _ in series[:, 0]} == {
        user: items[-1] for user, items in histories.items() if len(items) < _N_ITEMS
    }
    assert (series[:, 0, 2] == 1).all()
    assert (series[:, 1:, 2] == 0).all()
    for rows in series:
        assert not set(rows[1:, 1]) & set(histories[rows[0, 0]])
    assert len(np.unique(series[:, 1:, 1])) > 0.9 * _N_ITEMS


def test_as_a_process_it_prints_the_seconds_per_step(tmp_path: Path) -> None:
    _write_log(tmp_path / "log.csv")
    command = [sys.executable, "-m", "benchmark.baseline_pipeline", str(tmp_path / "log.csv"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    steps = json.loads(done.stdout)["steps_s"]
    assert list(steps) == ["read", "encode", "sort", "drop duplicates", "split", "negatives", "write"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.parquet", "test.parquet"}


def test_a_missing_log_gives_an_error_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmark.baseline_pipeline", str(tmp_path / "no.csv"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no.csv" in done.stderr
    assert "Traceback" not in done.stderr
