"""The scaling benchmark: slopes that are known by construction, and what each sweep changes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmark.common.measure import Usage
from benchmark.common.train_run import Run
from benchmark.scaling import command, sweeps
from benchmark.scaling.report import markdown, measured
from benchmark.scaling.sweeps import slope
from preprocessing.synthetic.log import Shape
from workflows.common.errors import UserError


def parsed(*flags: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Runs of train.py. Nothing runs: preparing takes 2 s and 1 ms a row to the power 1.5; training the square of the
    width."""
    found: list[tuple[str, ...]] = []

    def measure(argv: list[str], _: Path) -> Usage:
        rows = Path(argv[argv.index("--input") + 1]).read_text().count("\n") - 1
        cpu_s = 2.0 if rows == 1000 else 2.0 + 1e-3 * rows**1.5
        return Usage(9.0, cpu_s, 1, rows << 20, "")

    def train(data: Path, run: Path, *flags: str) -> Run:
        found.append((data.name, *flags))
        width = int(flags[flags.index("--factors") + 1])
        return Run(run, [], [1.0, *[1e6 / width**2] * 2], {})

    monkeypatch.setattr(sweeps, "measure", measure)
    monkeypatch.setattr(sweeps, "train", train)
    monkeypatch.setattr(command, "gpu_memory", list)
    monkeypatch.setattr(sweeps, "prepared_folder", lambda shape, cache, *flags: cache / str(shape))
    return found


def test_the_slope_is_the_power() -> None:
    points = [{"value": value, "seconds": 3.0 * value**1.25, "kept": 4.0} for value in (1, 10, 1000)]
    assert slope(points) == pytest.approx(1.25)
    assert slope(points, "kept") == pytest.approx(0.0)


def test_slopes_of_made_runs_are_found(runs: list[tuple[str, ...]], tmp_path: Path) -> None:
    command.main(parsed("--rows", "60x40x600", "--repeats", 2, "--output", tmp_path))
    result = json.loads((tmp_path / "scaling.json").read_text())
    slopes = {name: sweep["slope"] for name, sweep in result["sweeps"].items()}
    assert slopes == {
        **dict.fromkeys(("users", "items", "processes"), pytest.approx(0.0)),
        "rows": pytest.approx(1.5), "width": pytest.approx(2.0),
    }  # fmt: skip
    assert [point["value"] for point in result["sweeps"]["rows"]["points"]] == [60, 600, 6000]
    assert result["sweeps"]["rows"]["memory_slope"] == pytest.approx(1.0)
    assert all(len(point["runs"]) == 2 for sweep in result["sweeps"].values() for point in sweep["points"])
    # Each setting is trained once, and only one thing changes.
    base, values = command._FULL
    assert len(runs) == len(set(runs)) == 1 + sum(len(of_one) - 1 for of_one in values.values())
    assert {run[0] for run in runs} == {
        str(Shape(*sizes, base.rows))
        for sizes in [*((users, base.items) for users in values["users"]), *((base.users, n) for n in values["items"])]
    }
    assert all(run[run.index("--device") + 1] == "cpu" for run in runs)  # "auto" cannot be asked for --gpus 1
    lines = markdown(result).splitlines()
    assert lines[2].startswith("| rows | 60 · 600 · 6,000 | preparing a log: CPU seconds")
    assert lines[2].endswith("| 1.50 |")
    assert "peak PSS" in lines[3]
    assert measured(result)[0].values == [pytest.approx(1.5)]
    # The plot needs only the JSON.
    picture = tmp_path / "scaling.png"
    drawn = picture.read_bytes()
    picture.unlink()
    command.main(parsed("--draw", tmp_path / "scaling.json"))
    assert picture.read_bytes() == drawn


def test_every_sweep_holds_the_base() -> None:
    for base, values in (command._FULL, command._QUICK):
        assert all(getattr(base, name) in of_one for name, of_one in values.items())


def test_a_tenth_of_the_rows_must_hold_all_items(runs: list[tuple[str, ...]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="40 to"):
        command.main(parsed("--rows", "30x40x300", "--output", tmp_path))


def test_invalid_repeats_are_reported_before_anything_runs(runs: list[tuple[str, ...]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--repeats"):
        command.main(parsed("--repeats", 0, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
