"""The comparison of speed: smaller logs for slow peers, and the log in RecBole's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.peers import speed
from benchmark.peers.fit import OverLimitError
from preprocessing.synthetic.log import Shape
from workflows.common.errors import UserError

_SHAPE = Shape(1000, 50, 20_000)
_PYTHON = Path("python")


def largest(tmp_path: Path, error: Exception, manages: int, seconds: float = 1.0) -> dict[str, Any]:
    """The result of a peer that fails on shares larger than `manages`, and takes so long for the smallest."""

    def measured(data: speed._Data, share: int, python: Path, limit_s: float) -> dict[str, Any]:
        assert (python, limit_s) == (_PYTHON, 600.0)
        if share < manages:
            raise error
        return {"rows": data.shape(share).rows, "run": {"wall_s": seconds * 100 / share}}

    return speed._largest(speed._Data(_SHAPE, tmp_path), 600.0, "training", "slow", measured)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "python_of", lambda peer: _PYTHON)


@pytest.mark.usefixtures("installed")
def test_a_peer_is_measured_on_the_largest_share_within_the_limit(tmp_path: Path) -> None:
    error = OverLimitError("over 600 s")
    assert largest(tmp_path, error, 1) == {"rows": 20_000, "run": {"wall_s": 100.0}, "larger": None}
    found = largest(tmp_path, error, 10)
    assert (found["rows"], found["larger"]) == (2_000, {"rows": 20_000, "error": "over 600 s"})
    assert largest(tmp_path, error, 1000)["error"] == "over 600 s, with 200 interactions"


@pytest.mark.usefixtures("installed")
def test_a_share_that_would_take_far_too_long_is_not_tried(tmp_path: Path) -> None:
    error = AssertionError("tried")
    found = largest(tmp_path, error, 10, seconds=13.0)
    assert (found["rows"], found["larger"]) == (2_000, {"rows": 20_000, "error": "would take about 1300 s"})
    assert largest(tmp_path, error, 1, seconds=11.0)["larger"] is None


@pytest.mark.usefixtures("installed")
def test_a_peer_that_crashes_is_not_tried_on_more_but_keeps_what_it_managed(tmp_path: Path) -> None:
    error = UserError("status 1: KeyError")
    crash = {"rows": 2_000, "error": "status 1: KeyError"}
    assert largest(tmp_path, error, 100) == {"rows": 200, "run": {"wall_s": 1.0}, "larger": crash}
    assert largest(tmp_path, error, 1000)["error"] == "status 1: KeyError, with 200 interactions"


def test_a_peer_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "python_of", lambda peer: None)
    monkeypatch.setattr(speed, "error_of", lambda peer: "no wheel")
    assert largest(tmp_path, UserError(), 1)["error"] == "no wheel"


def test_recbole_reads_the_rows_of_our_log(tmp_path: Path) -> None:
    data = speed._Data(Shape(30, 20, 300), tmp_path)
    ours = data.log(1).read_text().splitlines()
    theirs = data.atomic_file(1).read_text().splitlines()
    assert ours[0] == "userId,movieId,rating,timestamp"
    assert theirs[0] == "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    assert len(ours) == 301
    assert [line.split(",") for line in ours[1:]] == [line.split("\t") for line in theirs[1:]]
