"""The pipeline benchmark: the order of its runs, its conclusions, and one real run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.common.measure import Usage
from benchmark.pipeline import command
from benchmark.pipeline.report import markdown, measured
from workflows.common.errors import UserError

_ROOT = Path(__file__).parents[2]
_PNG = b"\x89PNG"


def _args(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands started. Nothing runs: ours takes 1, 9, 2 s in turn, the baseline ten times as long."""
    started: list[list[str]] = []
    seconds = {1: 1.0, 2: 9.0, 0: 2.0}

    def measure(command: list[str], _: Path) -> Usage:
        started.append(command)
        module = command[2]
        if module == "benchmark.checker":
            return Usage(1.0, 1.0, 1, 1, '{"violations": {}, "counts": {"users": 30}}')
        number = sum(other[2] == module for other in started) % 3
        if module == "preprocessing":
            output = "CSV log: 9 bytes\nread: 1,234 bytes in 0.5 s (2 k bytes/s)\nmake it: 9 rows in 1.5 s (6 rows/s)\n"
            return Usage(seconds[number], 1.0, 200, 100, output)
        return Usage(10 * seconds[number], 2.0, 800, 500, 'noise\n{"steps_s": {"read": 3.0}}\n')

    monkeypatch.setattr(command, "measure", measure)
    return started


def test_processes_take_turns_and_medians_are_reported(commands: list[list[str]], tmp_path: Path) -> None:
    command.main(_args("--rows", "30x40x300", "--repeats", "3", "--output", str(tmp_path), "--memory-limit", "1GiB"))
    assert [command[2] for command in commands[:7]] == [
        *["preprocessing", "benchmark.baseline_pipeline"] * 3,
        "benchmark.checker",
    ]
    ours = commands[0]
    assert ours[-2:] == ["--memory-limit", "1GiB"]
    log = ours[ours.index("--input") + 1]
    assert all(log in command for command in commands[:7])
    assert not Path(log).exists()  # without --cache nothing is kept
    result = json.loads((tmp_path / "pipeline.json").read_text())
    assert [case["name"] for case in result["cases"]] == [case.name for case in command.CASES]
    case = result["cases"][0]
    assert [run["wall_s"] for run in case["ours"]["runs"]] == [1.0, 9.0, 2.0]
    assert case["ours"]["wall_s"] == 2.0
    assert case["ours"]["rows_per_s"] == 150
    assert case["ours"]["bytes_per_s"] == case["csv_bytes"] / 2
    assert case["ours"]["stages_s"] == {"read": 0.5, "make it": 1.5}
    assert case["baseline"]["stages_s"] == {"read": 3.0}
    assert case["baseline_over_ours"] == {"wall_s": 10, "cpu_s": 2, "peak_rss_bytes": 4, "peak_pss_bytes": 5}
    assert case["check"]["violations"] == {}
    assert result["machine"]["cores"]
    assert result["shape"] == {"users": 30, "items": 40, "rows": 300}
    row = next(line for line in markdown(result).splitlines() if line.startswith("| sorted, integers "))
    assert row.split("|")[2:] == [" 2.00 ", " 20.0 ", " 10.0 × ", " 1.00 ", " 2.00 ", " 0 ", " 0 ", ""]
    headline = measured(result)[0]
    assert (headline.what, headline.unit, headline.more_is_better) == (
        "log prepared: shuffled, integers",
        "rows/s",
        True,
    )
    assert len(headline.values) == 3


def test_generated_logs_are_kept_in_the_cache(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    argv = ["--rows", "30x40x300", "--repeats", "1", "--output", "results", "--cache", "cache"]
    command.main(_args(*argv))
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == len(command.CASES)
    assert {Path(command[command.index("--input") + 1]) for command in commands if "--input" in command} == set(kept)
    command.main(_args(*argv))
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--rows", "20m"], "ml-20m"),
    ],
)
def test_invalid_settings_are_reported_before_anything_runs(
    commands: list[list[str]], tmp_path: Path, argv: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        command.main(_args(*argv, "--output", str(tmp_path / "out")))
    assert not commands
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["no json", "[]", '{"cases": []}'])
def test_only_a_result_can_be_redrawn(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        command.main(_args("--draw", str(tmp_path / "x.json")))


def test_as_a_process(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "benchmark", "pipeline"]
    argv = ["--quick", "--output", str(tmp_path), "--cache", str(tmp_path / "cache")]
    done = subprocess.run([*run, *argv], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    target = tmp_path / "pipeline.json"
    result: dict[str, Any] = json.loads(target.read_text())
    assert result["command"].startswith("python -m benchmark pipeline --quick")
    for case in result["cases"]:
        assert case["check"]["violations"] == {}
        assert case["check"]["counts"]["distinct_pairs"] == case["rows"] == 100_000
        for name in ("ours", "baseline"):
            assert 0 < case[name]["wall_s"] < 600
            assert case[name]["peak_pss_bytes"] > 20 << 20
            assert case[name]["stages_s"]
    assert not list((tmp_path / "cache").glob("work-*"))
    # The plot needs only the JSON.
    picture = target.with_suffix(".png")
    drawn = picture.read_bytes()
    assert drawn.startswith(_PNG)
    picture.unlink()
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    subprocess.run([*run, "--draw", str(target)], cwd=_ROOT, capture_output=True, check=True)
    assert picture.read_bytes() == drawn
