"""Series in which any model hits: left out of the metrics and counted, or refused if there are no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preprocessing.__main__
import train

FLAGS = ["-b", "512", "-f", "4", "--device", "cpu", "-s", "1", "-e", "1"]
FLAGS += ["--without", "curves", "tensorboard", "progress", "log"]
MLP, MEMBERS = ["--layers", "8", "4"], ["--arch", "gmf", "--members", "softmax", "--validation", "leave-one-out"]
N_ITEMS = 30


def prepared(folder: Path, histories: list[int], negatives: int = 20) -> Path:
    """A folder of users who have the given numbers of `N_ITEMS` items."""
    rows = [
        f"u{user},{(7 * user + place) % N_ITEMS},{place}" for user, own in enumerate(histories) for place in range(own)
    ]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    flags = ["--input", str(folder / "log.csv"), "--test-negatives", str(negatives), "--output", str(folder / "data")]
    preprocessing.__main__.main(flags)
    return folder / "data"


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(), parse_constant=pytest.fail)


# 12 users with 6 items, and users who lack 2, 3 and 4 items: their series have 3, 4 and 5 distinct items of 21. In a
# validation split they have one more, since the test item may be a negative; ranked among all items they have the same.
FEW = [N_ITEMS - 2, N_ITEMS - 3, N_ITEMS - 4]


@pytest.mark.parametrize(
    ("flags", "validation"),
    [
        ([], None),
        (["--eval", "full"], None),
        (["--validation", "leave-one-out"], 1),
        (["--eval", "full", "--validation", "leave-one-out", "--arch", "gmf", "--loss", "softmax"], 1),
        (MEMBERS, 1),
    ],
    ids=["sampled", "full", "validation", "full validation", "members"],
)
def test_users_who_lack_few_items_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], validation: int | None
) -> None:
    data = prepared(tmp_path, [6] * 12 + FEW)
    layers = [] if "gmf" in flags else MLP
    train.main(["--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, *layers, "-k", "4", *flags])
    metrics = metrics_of(tmp_path / "run")
    assert metrics["series_left_out"] == 2
    assert metrics.get("validation_series_left_out") == validation
    out = " ".join(capsys.readouterr().out.split())
    assert "left out of the means: 2 test series with 4 distinct items or fewer" in out
    assert ("1 validation series" in out) == (validation is not None)
    for name in ("hr@4", "popularity_hr@4"):  # means over 13 series, not 15
        assert metrics[name] * 13 == pytest.approx(round(metrics[name] * 13))


@pytest.mark.parametrize("flags", [[], ["--eval", "full"]])
def test_a_k_at_which_every_series_is_hit_is_refused(
    tmp_path: Path, fails: Callable[..., str], flags: list[str]
) -> None:
    # The longest series has 7 distinct items, in 21 rows.
    data = prepared(tmp_path, [N_ITEMS - 5, N_ITEMS - 6, N_ITEMS - 2])
    for k in (7, 20):
        message = fails("--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, *MLP, "-k", str(k), *flags)
        assert f"--topk {k}: no series has more than 7 distinct items, so every model would hit" in message
        assert "lower it to 6 or less, or prepare the data with more" in message
    assert not (tmp_path / "run").exists()
    train.main(["--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, *MLP, "-k", "6", *flags])
    assert metrics_of(tmp_path / "run")["series_left_out"] == 2


@pytest.mark.parametrize("flags", [["--validation", "leave-one-out", *MLP], MEMBERS], ids=["epochs", "members"])
def test_a_k_at_which_every_validation_series_is_hit_is_refused(
    tmp_path: Path, fails: Callable[..., str], flags: list[str]
) -> None:
    data = prepared(tmp_path, [N_ITEMS - 5, N_ITEMS - 6, N_ITEMS - 2], negatives=0)
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, "-k", "8", *flags)
    assert "--topk 8: no series has more than 8 distinct items" in message
    assert not (tmp_path / "run").exists()
