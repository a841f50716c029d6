"""`python -m benchmark compare`: regressions that are there by construction, and noise that is none."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.common.report import Measured
from benchmark.suite import compare
from benchmark.suite.compare import compared
from workflows.common.errors import UserError

MACHINE = {
    "cpu": "a processor", "cores": 2, "memory_bytes": 1 << 33, "python": "3.11", "packages": {"torch": "2"},
    "commit": "a",
}  # fmt: skip


def result(speeds: list[float], memory: float = 500.0, **changed: Any) -> dict[str, Any]:
    """A result of `python -m benchmark recommend`."""
    runs = [{"users": 9, "users_per_s": speed, "peak_rss_mib": memory} for speed in speeds]
    product = {"runs": runs, "users_per_s": speeds[0], "peak_rss_mib": memory, "read_s": 1.0}
    command = "python -m benchmark recommend --run runs/one --repeats 3 --output a/recommend"
    return {"machine": MACHINE, "command": command, "over_plain": 1, "results": {"product": product}, **changed}


def ended(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> int:
    """The exit status for two folders: one as `all` writes it, one of JSONs alone."""
    (tmp_path / "a" / "recommend").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "recommend" / "recommend.json").write_text(json.dumps(before))
    (tmp_path / "b" / "recommend.json").write_text(json.dumps(after))
    try:
        compare.main(argparse.Namespace(before=tmp_path / "a", after=tmp_path / "b"))
    except SystemExit as done:
        return int(done.code or 0)
    return 0


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([100, 100, 100], [94, 94, 94], "worse"),  # no spread: 5 % count
        ([100, 100, 100], [96, 96, 96], "same"),
        ([100, 100, 100], [106, 106, 106], "better"),
        ([90, 100, 110], [80, 90, 100], "same"),  # deviations 10, 0, 10, 10, 0, 10: median 10, so 30 % count
        ([90, 100, 110], [59, 69, 79], "worse"),
        ([100], [80, 80, 80], "same"),  # a single repetition: 25 % count
        ([100], [74], "worse"),
    ],
)
def test_a_change_beyond_noise_has_a_known_verdict(before: list[float], after: list[float], verdict: str) -> None:
    assert compared("part", Measured("", "", before), Measured("", "", after)).verdict == verdict


def test_less_is_better_for_seconds_and_small_changes_of_quality_count() -> None:
    assert compared("", Measured("", "s", [10, 10], False), Measured("", "s", [12, 12], False)).verdict == "worse"
    assert compared("", Measured("", "s", [10, 10], False), Measured("", "s", [8, 8], False)).verdict == "better"
    quality = [Measured("", "", [value] * 2, least_change=0.01) for value in (0.68, 0.67)]
    assert compared("", *quality).verdict == "worse"


def test_a_regression_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(tmp_path, result([100, 101, 102]), result([50, 51, 52])) == 1
    out = capsys.readouterr().out
    assert "-49.5%" in out
    assert "2 figures compared: 1 worse" in out


def test_more_memory_is_a_regression(tmp_path: Path) -> None:
    assert ended(tmp_path, result([100, 100]), result([100, 100], memory=600.0)) == 1


def test_a_better_run_ends_with_status_0_wherever_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = "python -m benchmark recommend --run elsewhere --repeats 3 --output b"
    after = result([200, 200], command=moved, machine={**MACHINE, "cores": 4, "commit": "b"})
    assert ended(tmp_path, result([100, 100]), after) == 0
    assert "recommend: other machines or versions: 2 cores" in capsys.readouterr().out


def test_other_settings_are_refused(tmp_path: Path) -> None:
    other = "python -m benchmark recommend --run runs/one --repeats 5 --output a/recommend"
    with pytest.raises(UserError, match="other settings"):
        ended(tmp_path, result([100, 100]), result([100, 100], command=other))


@pytest.mark.parametrize(
    "changed", [{"machine": {}}, {"results": []}, {"results": {"product": {"runs": []}}}, {"command": 1}]
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not one of this version"):
        ended(tmp_path, result([100, 100]), result([100, 100], **changed))


def test_a_part_that_only_one_run_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "loader.json").write_text('{"machine": {}}')
    with pytest.raises(UserError):
        compare.main(argparse.Namespace(before=tmp_path / "a", after=tmp_path / "b"))
    assert "loader: no result in" in capsys.readouterr().out


def test_a_folder_equals_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recommend.json").write_text(json.dumps(result([100.0, 110.0])))
    compare.main(argparse.Namespace(before=tmp_path, after=tmp_path))
    assert ": 0 worse beyond noise" in capsys.readouterr().out


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part's result in common"):
        compare.main(argparse.Namespace(before=tmp_path, after=tmp_path / "missing"))
