"""The loader benchmark: medians of processes, and one real run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.loader import command
from benchmark.loader.report import markdown, measured
from workflows.common.errors import UserError


def parsed(*flags: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


def test_medians_of_processes_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1e6, 9e6, 2e6])

    def run(module: str, *flags: str) -> dict[str, Any]:
        speed = next(speeds)
        found: dict[str, Any] = {
            name: {f"{unit}_per_s": speed, "wall_s": 1.0, "cpu_s": 2.0} for name, unit in command.STAGES.items()
        }
        return {**found, "threads": 2, "peak_rss_mib": 300.0}

    monkeypatch.setattr(command, "json_of", run)
    monkeypatch.setattr(command, "prepared_folder", lambda shape, cache: cache / "data")
    command.main(parsed("--shape", "30x40x300", "--output", tmp_path))
    result = json.loads((tmp_path / "loader.json").read_text())
    assert result["results"]["merlin"] == {"samples_per_s": 2e6, "wall_s": 1.0, "cpu_s": 2.0}
    assert "| batches, streamed | 2.0 | 1.00 | 2.00 |" in markdown(result)
    headline = measured(result)[0]
    assert (headline.what, headline.unit, headline.values) == ("batches, streamed", "samples/s", [1e6, 9e6, 2e6])


@pytest.mark.usefixtures("forked")
def test_one_real_run(tmp_path: Path) -> None:
    command.main(parsed("--shape", "60x40x600", "--batch_size", 50, "--repeats", 1, "--output", tmp_path))
    result = json.loads((tmp_path / "loader.json").read_text())
    (run,) = result["runs"]
    assert run["merlin"]["samples"] == run["memory"]["samples"] == 5 * run["rows"]
    assert run["negatives"]["negatives"] == 4 * run["rows"]
    picture = tmp_path / "loader.png"
    picture.unlink()
    command.main(parsed("--draw", tmp_path / "loader.json"))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flag", ["--batch_size", "--repeats", "--threads"])
def test_counts_below_one_are_rejected(flag: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=flag):
        command.main(parsed(flag, 0, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
