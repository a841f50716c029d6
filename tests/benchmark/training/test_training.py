"""The training benchmark: the order of its runs, its conclusions, the counts, and one real run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.common.train_run import Run
from benchmark.training import command, throughput
from benchmark.training.limits import bounds, counts, measure_rates
from benchmark.training.report import markdown, measured
from benchmark.training.variants import VARIANTS, applies
from preprocessing.synthetic.log import Shape
from workflows.common.errors import UserError

_ROOT = Path(__file__).parents[3]
_PNG = b"\x89PNG"
_STAGES = {
    "plain": {"forward", "backward"},
    "compiled, in memory": {"products", "forward and backward"},
    "torch": {"forward", "backward"},
}
_RATES = {"fp32_gflop_per_s": 100.0, "bf16_gflop_per_s": 400.0, "copy_gb_per_s": 10.0, "gather_gb_per_s": 5.0}


def _args(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


def _value(flags: tuple[str, ...], name: str) -> str:
    return flags[flags.index(name) + 1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands started. Nothing runs: `plain` has 100, 300, 200 samples/s in turn, the others ten times as many."""
    found: list[tuple[str, ...]] = []

    def prepared(shape: Shape, cache: Path, *flags: str) -> Path:
        found.append(("preprocessing", str(shape), *flags))
        return cache / "data"

    def trained(data: Path, run: Path, *flags: str) -> Run:
        found.append(("train.py", *flags))
        speed = 1000.0 * int(_value(flags, "--gpus")) * (2 if "--amp" in flags else 1)
        return Run(run, [], [1.0, speed, 9 * speed, 2 * speed], {"precision": "fp32"})

    def run(module: str, *flags: str) -> dict[str, Any]:
        found.append((module, *flags))
        if module != "benchmark.training.run":
            return _RATES if module == "benchmark.training.limits" else {"rows": 300}
        name = _value(flags, "--variant")
        number = sum(other[:3] == (module, "--variant", name) for other in found) % 3
        return {
            "samples_per_s": {1: 100.0, 2: 300.0, 0: 200.0}[number] * (1 if name == "plain" else 10),
            "start_s": 5.0,
            "start_share_s": 1.0,
            "train_s": 2.0,
            "peak_rss_mib": 300.0,
            "stages_s": {"gradients": 1.5},
            "active_units": [0.25, 0.25, 0.25],
            "threads": 2,
        }

    monkeypatch.setattr(command, "json_of", run)
    monkeypatch.setattr(command, "prepared_folder", prepared)
    monkeypatch.setattr(throughput, "prepared_folder", prepared)
    monkeypatch.setattr(throughput, "train", trained)
    return found


def test_processes_take_turns_and_medians_are_reported(started: list[tuple[str, ...]], tmp_path: Path) -> None:
    argv = ["--shape", "30x40x300", "--batch_sizes", "100", "131072", "--repeats", "3", "--output", str(tmp_path)]
    command.main(_args(*argv, "--variants", "plain", "plain accumulated", "compiled", "--devices"))
    runs = [(_value(each, "--variant"), _value(each, "--batch_size"), each[-2:]) for each in started[3:]]
    before = ["preprocessing", "benchmark.training_loader", "benchmark.training.limits"]
    assert [each[0] for each in started[:3]] == before
    # Accumulation needs batches of more than one piece; without --steps a run is limited by --seconds.
    length = ("--seconds", "15.0")
    assert runs[:6] == [("plain", "100", length), ("compiled", "100", length)] * 3
    assert runs[6:] == [(name, "131072", length) for name in ("plain", "plain accumulated", "compiled")] * 3
    result = json.loads((tmp_path / "training.json").read_text())
    plain, compiled = (each for each in result["results"] if each["batch_size"] == 100)
    assert (plain["samples_per_s"], plain["over_plain"]) == (200, 1)
    assert (compiled["samples_per_s"], compiled["over_plain"]) == (2000, 10)
    assert compiled["stages_s"] == {"gradients": 1.5}
    assert [run["samples_per_s"] for run in plain["runs"]] == [100, 300, 200]
    assert result["limits"] == _RATES
    assert result["loader"] == {"rows": 300}
    assert result["bounds"][0]["samples_per_s"].keys() == {"dense", "factorised", "active"}
    assert result["shape"] == {"users": 30, "items": 40, "rows": 300}
    assert result["machine"]["cores"]
    assert "| `compiled` | 2,000 (10.0 ×); 300 |" in markdown(result)
    assert [each.what for each in measured(result)][:2] == [
        "training: compiled, batches of 131,072",
        "peak RSS: compiled, batches of 131,072",
    ]


def test_throughput_has_the_references_table(started: list[tuple[str, ...]], tmp_path: Path) -> None:
    argv = ["--shape", "300x20x3000", "--batch_sizes", "100", "--repeats", "1", "--variants", "compiled"]
    command.main(_args(*argv, "--devices", "1", "4", "--output", str(tmp_path)))
    runs = [each for each in started if each[0] == "train.py"]
    assert [(_value(run, "--gpus"), "--amp" in run) for run in runs] == [
        (devices, mixed) for devices in "14" for mixed in (False, True)
    ]
    assert ("preprocessing", "30x20x300", "--test-negatives", "0") in started  # a tenth, on a CPU
    result = json.loads((tmp_path / "training.json").read_text())
    assert next(each["runs"] for each in result["throughput"]["results"]) == [1000, 9000, 2000]
    lines = markdown(result).splitlines()
    assert [line for line in lines if line.startswith(("| 1 |", "| 4 |"))] == [
        "| 1 | 100 | 2,000 | 4,000 | 2.00 | 1.00 | 1.00 |",
        "| 4 | 100 | 8,000 | 16,000 | 2.00 | 4.00 | 4.00 |",
    ]


def test_without_plain_there_is_no_ratio(started: list[tuple[str, ...]], tmp_path: Path) -> None:
    argv = ["--shape", "30x40x300", "--batch_sizes", "100", "--repeats", "1", "--threads", "1", "--variants", "torch"]
    command.main(_args(*argv, "--output", str(tmp_path), "--devices"))
    assert all(_value(each, "--threads") == "1" for each in started[1:])
    assert json.loads((tmp_path / "training.json").read_text())["results"][0]["over_plain"] is None


def test_counts_of_a_tiny_network_match_counts_by_hand() -> None:
    counted = counts(10, 20, 2, (8, 4, 2), 3, 40, (0.25, 0.5), 0.5)
    # Layers 8·4 and 4·2, head 2 + 2; a multiplication and an addition each, three products each.
    assert counted["dense"]["flops"] == 6 * (32 + 8) + 6 * 4
    # The user's half of the first layer for one sample in four, the item's for 20 items in 40 samples.
    shared = 6 * 16 / 4 + 6 * 16 * 20 / 40
    assert counted["factorised"]["flops"] == shared + 6 * 8 + 6 * 4
    # Forward a quarter of the inputs to half of the outputs; backward, twice, a quarter to half of the outputs.
    assert counted["active"]["flops"] == shared + 2 * 8 * (0.25 * 0.5 + 2 * 0.25 * 0.5) + 6 * 4
    assert counted["dense"]["gathered_bytes"] == 3 * 4 * 2 * (4 + 2)
    assert counted["factorised"]["gathered_bytes"] == 3 * 4 * ((4 + 2) / 4 + (4 + 2))
    assert counted["dense"]["adam_bytes"] == 7 * 4 * (30 * 6 + (32 + 4) + (8 + 2) + 5) / 40


def test_the_slower_of_arithmetic_and_memory_is_the_bound() -> None:
    each = {"flops": 1000.0, "gathered_bytes": 10.0, "adam_bytes": 20.0}
    found = bounds({"arithmetic": each, "memory": {**each, "flops": 1.0}}, _RATES)
    assert found["arithmetic"] == {"fp32": pytest.approx(1e8), "bf16": pytest.approx(1 / (2e-9 + 2e-9))}
    assert found["memory"]["fp32"] == pytest.approx(2.5e8)


def test_rates_are_measured() -> None:
    rates = measure_rates(64, 1)
    assert rates.keys() == _RATES.keys()
    assert min(rates.values()) > 0


def test_accumulation_needs_more_than_one_piece() -> None:
    assert [applies("plain accumulated", size) for size in (65_536, 65_537)] == [False, True]
    assert all(applies(name, 5) for name in VARIANTS if name != "plain accumulated")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--steps", "0"], "--steps"),
        (["--threads", "0"], "--threads"),
        (["--devices", "0", "1"], "--devices"),
        (["--batch_sizes", "100", "4"], "5 or more"),
        (["--shape", "20m"], "ml-20m"),
    ],
)
def test_invalid_settings_are_reported_before_anything_runs(
    started: list[tuple[str, ...]], tmp_path: Path, argv: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        command.main(_args(*argv, "--output", str(tmp_path / "out")))
    assert not started
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["no json", "[]", '{"results": []}'])
def test_only_a_result_can_be_redrawn(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        command.main(_args("--draw", str(tmp_path / "x.json")))


@pytest.mark.usefixtures("forked")
def test_as_a_process(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "benchmark", "training"]
    names = ["plain", "compiled, in memory", "torch"]
    argv = [
        "--quick",
        "--output",
        str(tmp_path),
        "--cache",
        str(tmp_path / "cache"),
        "--variants",
        *names,
        "--devices",
        "1",
    ]
    done = subprocess.run([*run, *argv], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    target = tmp_path / "training.json"
    result: dict[str, Any] = json.loads(target.read_text())
    assert result["command"].startswith("python -m benchmark training --quick")
    assert [each["variant"] for each in result["results"]] == names
    for each in result["results"]:
        (of_one,) = each["runs"]
        assert of_one["samples"] == 2 * (4096 if each["variant"] == "plain" else 4095)  # whole groups
        timed_s = of_one["start_share_s"] + of_one["train_s"]
        assert of_one["samples_per_s"] == pytest.approx(of_one["samples"] / timed_s)
        assert each["stages_s"].keys() == _STAGES[each["variant"]] | {"gather", "optimizer", "loader wait"}
        assert sum(each["stages_s"].values()) <= each["train_s"]
        assert each["peak_rss_mib"] > 100
        assert all(0 < share < 0.5 for share in each["active_units"])
        assert 0.3 < of_one["last_loss"] < 0.8
    assert (
        result["bounds"][0]["samples_per_s"]["active"]["fp32"] > result["bounds"][0]["samples_per_s"]["dense"]["fp32"]
    )
    loader, samples = result["loader"], 5 * result["loader"]["rows"]
    assert loader["read"]["rows"] == loader["rows"]
    assert loader["negatives"]["negatives"] == 4 * loader["rows"]
    assert loader["merlin"]["samples"] == loader["memory"]["samples"] == samples
    assert [each["precision"] for each in result["throughput"]["results"]] == ["FP32", "mixed precision"]
    assert all(len(each["runs"]) == 3 and min(each["runs"]) > 0 for each in result["throughput"]["results"])
    # The plot needs only the JSON.
    picture = target.with_suffix(".png")
    drawn = picture.read_bytes()
    assert drawn.startswith(_PNG)
    picture.unlink()
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    command.main(_args("--draw", str(target)))
    assert picture.read_bytes() == drawn


@pytest.mark.usefixtures("forked")
def test_an_invalid_setting_ends_the_process_with_status_2() -> None:
    command = [sys.executable, "-m", "benchmark", "training", "--repeats", "0"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--repeats" in done.stderr
