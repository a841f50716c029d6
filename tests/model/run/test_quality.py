"""The whole pipeline learns the structure in the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import train
from preprocessing.__main__ import main as prepare

CLASS_USERS, CLASS_ITEMS, SEEN = 30, 30, 24


def test_a_checkerboard_is_learned(tmp_path: Path) -> None:
    """Two classes; a user likes the items of their own class and has seen all but six.

    A series ranks the held-out item against all 36 items the user has not seen. A model that has learned the classes
    ranks it among the first 7; popularity ignores them, and the item is in the top 10 of 37 only by chance.
    """
    rng = np.random.default_rng(0)
    lines = ["user,item,time"]
    for user in range(2 * CLASS_USERS):
        items = rng.permutation(CLASS_ITEMS)[:SEEN] * 2 + user % 2
        lines += [f"{user},{item},{time}" for time, item in enumerate(items)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(lines) + "\n")
    unseen = 2 * CLASS_ITEMS - SEEN
    columns = f"--user user --item item --time time --test-negatives {unseen} --partitions 2"
    prepare(
        ["--input", str(log), "--output", str(tmp_path / "data"), *columns.split()],
    )
    flags = "-e 8 -b 256 -f 8 --layers 16 8 --dropout 0 -l 0.01 -s 1"
    train.main(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), *flags.split()])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["hr@10"] > 0.95
    assert metrics["popularity_hr@10"] < 0.5


def test_structure_visible_only_in_side_features_is_learned(tmp_path: Path, write_frames: Callable[..., Path]) -> None:
    """Users like items whose kind equals their gender; in test all users and half the items are new."""
    rng = np.random.default_rng(0)

    def rows(users: range, items: range, count: int) -> pd.DataFrame:
        frame = pd.DataFrame({"user": rng.integers(users.start, users.stop, count)})
        frame["item"] = rng.integers(items.start, items.stop, count)
        frame["gender"], frame["kind"] = frame["user"] // 2 % 2, frame["item"] // 3 % 2
        frame["label"] = (frame["gender"] == frame["kind"]).astype(float)
        return frame

    frames = {"train": rows(range(300), range(100), 6000), "test": rows(range(300, 600), range(50, 150), 2000)}
    ids = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]}
    sides = {"categorical_user_inputs": ["user", "gender"], "categorical_item_inputs": ["item", "kind"]}
    sizes = {"user": 600, "item": 150, "gender": 2, "kind": 2}
    areas = {}
    for name, channels in (("without", ids), ("with", {**ids, **sides})):
        data = write_frames(frames, channels, sizes, name=name)
        flags = "-e 6 -b 256 -f 4 --layers 16 16 8 --dropout 0 -l 0.01 -s 1 --negatives static"
        train.main(["--data", str(data), "--output", str(tmp_path / "run" / name), *flags.split()])
        metrics = json.loads((tmp_path / "run" / name / "metrics.json").read_text())
        assert (metrics["hr@10"], metrics["selected_on"]) == (None, "test")
        areas[name] = metrics["auc"]
    assert areas["with"] > 0.95
    assert areas["without"] < 0.65
