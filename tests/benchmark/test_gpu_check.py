"""The GPU check without a GPU: how checks end, how results are compared, and a real rehearsal on the CPU."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmark.common.measure import Usage
from benchmark.common.train_run import Run
from benchmark.gpu_check import arrays, command, epoch, folders, memory, rows, speed, training
from benchmark.gpu_check.command import Check
from benchmark.gpu_check.findings import FULL, SMALL, Figure, Findings, NotPossibleError, Settings, run_check
from benchmark.gpu_check.memory import holders, watch_memory
from benchmark.gpu_check.page import write_report
from benchmark.gpu_check.speed import _samples_per_s
from benchmark.gpu_check.trace import idle_share
from benchmark.gpu_check.verdicts import (
    demanded,
    foreign,
    judge_epoch,
    judge_memory,
    judge_preparation,
    judge_speed,
    steady_epoch,
)
from model.data.batch import Batch
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG"


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


# --- How checks end ---------------------------------------------------------------------------------------------

# Stands in for Python: does what the check's name says.
CHECK_PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys, time
name, result = sys.argv[3], pathlib.Path(sys.argv[sys.argv.index("--result") + 1])
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
if name == "hang":
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    (output / "child").write_text(str(child.pid))
    while True:
        pass
print("last words of", name, flush=True)
if name == "crash":
    os.abort()
if name == "error":
    sys.exit("error: no such thing")
if name == "unfit":
    result.write_text(json.dumps({{"status": "not run", "reason": "there is one GPU"}}))
elif name != "silent":
    holds = name == "fine"
    compared = {{"what": "a <b>", "found": 1.5, "expected": "nan", "tolerance": None, "holds": holds}}
    figure = {{"what": "training, tf32", "value": 2.5e6, "unit": "samples/s", "published": 22.6e6, "published_of": "A"}}
    status = {{"status": "passed", "reason": ""}} if holds else {{"status": "failed", "reason": "a <b>"}}
    more = {{"left_out": {{"tf32": "needs an NVIDIA GPU"}}, "facts": {{"GPUs": ["x"]}}, "files": []}}
    result.write_text(json.dumps({{**status, "comparisons": [compared], "figures": [figure],
                                  "curves": {{"one": [0.7, 0.6]}}, **more}}))
"""
ENDS = ("crash", "hang", "error", "silent", "unfit", "wrong", "fine")


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that end in every possible way."""
    program = tmp_path / "python"
    program.write_text(CHECK_PROGRAM)
    program.chmod(0o755)
    monkeypatch.setattr(command.sys, "executable", str(program))
    limits = {"hang": 2.0}
    checks = {name: Check("some.module", f"ends in {name}", limits.get(name, 60.0)) for name in ENDS}
    monkeypatch.setattr(command, "CHECKS", checks)


@pytest.mark.usefixtures("pretended")
def test_a_failing_check_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "report"
    with pytest.raises(SystemExit) as ended:
        command.main(arguments("--device", "cpu", "--output", str(output)))
    assert ended.value.code == 1
    checks = report_of(output)["checks"]
    assert {name: check["status"] for name, check in checks.items()} == {
        **dict.fromkeys(ENDS, "failed"),
        "unfit": "not run",
        "fine": "passed",
    }
    assert checks["crash"]["reason"].startswith("it was killed by signal SIGABRT\nlast words of crash")
    assert checks["hang"]["reason"].startswith("it took longer than 2 s")
    assert "error: no such thing" in checks["error"]["reason"]
    assert checks["silent"]["reason"].startswith("it reported no result")
    assert checks["unfit"]["reason"] == "there is one GPU"
    assert 2.0 <= checks["hang"]["seconds"] < 60.0
    child = int((output / "child").read_text())
    until = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "a child process of a check is still running"
    page = (output / "report.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "a <b>" not in page
    assert "22,600,000" in page
    for name in ("throughput.png", "losses.png"):
        assert (output / name).read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert "unfit: not run in" in printed
    assert "left out: tf32: needs an NVIDIA GPU" in printed


@pytest.mark.usefixtures("pretended")
def test_checks_that_were_not_asked_for_say_so(tmp_path: Path) -> None:
    command.main(arguments("--device", "cpu", "--only", "fine", "unfit", "--output", str(tmp_path / "report")))
    report = report_of(tmp_path / "report")
    assert report["checks"]["crash"] == {"what": "ends in crash", "status": "not run", "reason": "not asked for"}
    assert report["rehearsal"]
    assert "Rehearsed on a CPU" in (tmp_path / "report" / "report.html").read_text()


def test_sets_of_checks_can_be_asked_for() -> None:
    assert {name for checks in command.SETS.values() for name in checks} <= command.CHECKS.keys()
    assert not command.SETS.keys() & command.CHECKS.keys()
    assert [name for checks in command.SETS.values() for name in checks] == list(command.CHECKS)[:-2]  # the same order
    assert arguments("--only", "first", "tests").only == ["first", "tests"]


@pytest.mark.usefixtures("pretended")
def test_a_set_runs_its_checks_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SETS", {"good": ("unfit", "fine")})
    command.main(arguments("--device", "cpu", "--only", "good", "--output", str(tmp_path / "report")))
    reasons = {name: check["reason"] for name, check in report_of(tmp_path / "report")["checks"].items()}
    assert [name for name, reason in reasons.items() if reason != "not asked for"] == ["unfit", "fine"]


@pytest.mark.usefixtures("pretended")
def test_only_a_report_is_overwritten(tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--only", "fine", "--output")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(UserError, match="was not written by this command"):
        command.main(arguments(*flags, str(tmp_path / "other"), "--overwrite"))
    command.main(arguments(*flags, str(tmp_path / "report")))
    (tmp_path / "report" / "old").touch()
    with pytest.raises(UserError, match="exists already"):
        command.main(arguments(*flags, str(tmp_path / "report")))
    command.main(arguments(*flags, str(tmp_path / "report"), "--overwrite"))
    assert not (tmp_path / "report" / "old").exists()


def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmark", "gpu-check", "--output", str(tmp_path / "report")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "gpu-check needs an NVIDIA GPU" in done.stderr
    assert "--device cpu --small" in done.stderr
    assert not list(tmp_path.iterdir())


# --- Comparisons and results ------------------------------------------------------------------------------------


def test_arrays_must_match_in_values_shape_and_dtype() -> None:
    found = Findings()
    three = np.arange(3)
    for other in (three, np.array([0, 2, 2]), three.astype(np.int32), np.arange(4)):
        found.equal("x", other, three)
    assert [each.holds for each in found.comparisons] == [True, False, False, False]
    assert found.comparisons[1].what == "x: 1 differ"


def test_numbers_must_match_to_within_the_tolerance() -> None:
    nan = float("nan")
    found = Findings()
    for value in (101.0, 99.0, 101.1, nan):
        found.close("x", value, 100.0, 0.01)
    found.close("x", 0.62, 0.6, 0.03, relative=False)
    found.close("x", 0.64, 0.6, 0.03, relative=False)
    found.curves_close("x", [1.0, 2.0, 3.3], [1.0, 2.0, 3.0], 0.05)
    found.curves_close("x", [1.0, nan], [1.0, 2.0], 0.05)
    found.curves_close("x", [1.0], [1.0, 2.0], 0.05)
    found.below("x", 0.5, 0.7)
    found.below("x", nan, 0.7)
    assert [each.holds for each in found.comparisons] == [
        *(True, True, False, False), *(True, False), *(False, False, False), *(True, False),
    ]  # fmt: skip
    assert found.comparisons[6].what == "x, at step 2 of 3"
    json.dumps([each.found for each in found.comparisons], allow_nan=False)


def settings_for(folder: Path, **more: Any) -> Settings:
    places = {name: folder / name for name in ("output", "work")}
    for place in places.values():
        place.mkdir(parents=True)
    return Settings(**{"device": "cpu", "rehearsal": True, "scale": SMALL, **places, **more})


def test_only_a_rehearsal_leaves_out_variants_that_need_a_gpu(tmp_path: Path) -> None:
    names = ["fp32", "tf32", "amp, with CUDA graphs"]
    here, there = Findings(), Findings()
    settings = settings_for(tmp_path)
    assert list(here.possible(names, settings)) == ["fp32"]
    assert list(here.left_out) == names[1:]
    on_gpu = Settings("cuda", False, SMALL, settings.output, settings.work)
    assert list(there.possible(names, on_gpu)) == names


@pytest.mark.parametrize(
    ("rehearsal", "scale", "known"), [(False, FULL, 22.6e6), (False, SMALL, None), (True, FULL, None)]
)
def test_published_figures_appear_only_beside_the_same_workload(
    tmp_path: Path, rehearsal: bool, scale: Any, known: float | None
) -> None:
    settings = settings_for(tmp_path, rehearsal=rehearsal, scale=scale)
    figure = _samples_per_s(settings, "training from memory, tf32", 1.0, 22.6e6)
    assert figure.published == known
    assert bool(figure.published_of) == (known is not None)


def test_a_check_writes_its_result_to_a_file(tmp_path: Path) -> None:
    def wrong(settings: Settings, found: Findings) -> None:
        found.facts["device"] = settings.device
        found.curves["loss"] = [0.5, float("nan")]
        found.below("x", 3.0, 2.0)

    def unfit(settings: Settings, found: Findings) -> None:
        raise NotPossibleError("there is one GPU")

    def broken(settings: Settings, found: Findings) -> None:
        found.measured(Figure("x", 2.0, "samples/s"))
        raise RuntimeError("out of memory")

    checks = {"wrong": wrong, "unfit": unfit, "broken": broken}
    for name in checks:
        places = [f"--{place}={tmp_path / place}" for place in ("output", "work")]
        result = ["--result", str(tmp_path / name)]
        with pytest.raises(RuntimeError) if name == "broken" else nullcontext():
            run_check(checks, [name, "--device", "cpu", "--small", *places, *result])
    wrong_told, unfit_told, broken_told = (json.loads((tmp_path / name).read_text()) for name in checks)
    assert (wrong_told["status"], wrong_told["reason"], wrong_told["facts"]) == ("failed", "x", {"device": "cpu"})
    assert wrong_told["curves"] == {"loss": [0.5, None]}
    assert (unfit_told["status"], unfit_told["reason"]) == ("not run", "there is one GPU")
    assert broken_told["status"] == "failed"
    assert broken_told["figures"][0]["value"] == 2.0  # figures so far are kept


def test_idle_time_counts_overlapping_events_once() -> None:
    def event(start: float, length: float, kind: str = "kernel") -> dict[str, Any]:
        return {"ts": str(start), "dur": length, "cat": kind}

    # Busy 0 – 10 (two overlap), 20 – 30 (one nested), 30 – 40: 30 of 40.
    events = [event(0, 6), event(4, 6), event(20, 10), event(22, 3, "gpu_memcpy"), event(30, 10)]
    others = [event(10, 10, "cpu_op"), {"ts": 12, "cat": "kernel"}, {"ph": "M"}]
    kinds = ("kernel", "gpu_memcpy")
    assert idle_share({"traceEvents": [*others, *reversed(events)]}, kinds) == pytest.approx(0.25)
    assert idle_share({"traceEvents": [event(5, 0)]}, kinds) == 0.0
    with pytest.raises(RuntimeError, match="does not see the device"):
        idle_share({"traceEvents": others[:1]}, kinds)


def test_a_report_without_results_is_a_page(tmp_path: Path) -> None:
    machine = {"commit": None, "cpu": "x", "cores": 2, "python": "3.11"}
    checks = {"steps": {"what": "losses", "status": "not run", "reason": "not reached"}}
    write_report(tmp_path, {"machine": machine, "command": "c", "rehearsal": False, "small": True, "checks": checks})
    assert "not reached" in (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


# --- Verdicts, on planted values ------------------------------------------------------------------------------


def wrong_of(found: Findings) -> list[str]:
    return [each.what for each in found.comparisons if not each.holds]


def on_gpu(folder: Path, **more: Any) -> Settings:
    return settings_for(folder, **{"device": "cuda", "rehearsal": False, "scale": FULL, **more})


def test_one_kind_failing_does_not_hide_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    found = Findings()
    with found.attempt("exact"):
        raise RuntimeError("several lines\nCUDA error: an illegal memory access")
    with found.attempt("text ids"):
        raise NotPossibleError("cuDF is not installed")
    with found.attempt("popularity"):
        found.below("popularity: x", 1.0, 2.0)
    assert [(each.what, each.holds) for each in found.comparisons] == [("exact", False), ("popularity: x", True)]
    assert found.comparisons[0].found == "RuntimeError: CUDA error: an illegal memory access"
    assert found.left_out == {"text ids": "cuDF is not installed"}
    assert "Traceback" in capsys.readouterr().err


def test_a_check_with_no_possible_kind_has_not_run(tmp_path: Path) -> None:
    def none(settings: Settings, found: Findings) -> None:
        with found.attempt("exact"):
            raise NotPossibleError("CuPy is not installed")

    places = [f"--{place}={tmp_path / place}" for place in ("output", "work", "result")]
    run_check({"none": none}, ["none", "--device", "cpu", *places])
    told = json.loads((tmp_path / "result").read_text())
    assert (told["status"], told["reason"]) == ("not run", "CuPy is not installed")


@pytest.mark.parametrize(
    ("gpu", "precision", "devices", "demand"),
    [
        ("NVIDIA A100-SXM4-40GB", "tf32", 1, 22.6e6),
        ("A100-PCIE-40GB", "amp", 1, 34.1e6),
        ("NVIDIA A100-SXM4-40GB", "tf32", 8, 110e6),
        ("NVIDIA A100-SXM4-40GB", "amp", 8, 143e6),
        ("NVIDIA A100-SXM4-80GB", "tf32", 1, 22.6e6 * 2039 / 1555),
        ("NVIDIA A100 80GB PCIe", "tf32", 1, 22.6e6 * 1935 / 1555),
        ("NVIDIA H100 80GB HBM3", "amp", 1, 34.1e6 * 3350 / 1555),
        ("NVIDIA H200", "tf32", 1, 22.6e6 * 4800 / 1555),
        ("NVIDIA B200", "amp", 8, 143e6 * 8000 / 1555),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "tf32", 1, None),
        ("NVIDIA GH200 480GB", "tf32", 1, None),
        ("NVIDIA H100 64GB HBM2", "tf32", 1, None),
        ("Tesla T4", "tf32", 1, None),
        ("NVIDIA GeForce RTX 4090", "amp", 1, None),
        ("NVIDIA A100-SXM4-40GB", "tf32", 4, None),
        ("NVIDIA A100-SXM4-40GB", "fp32", 1, None),
        ("CPU", "tf32", 1, None),
    ],
)
def test_the_demand_follows_memory_bandwidth(gpu: str, precision: str, devices: int, demand: float | None) -> None:
    assert demanded(gpu, precision, devices) == (None if demand is None else pytest.approx(demand))


def test_a_low_speed_fails(tmp_path: Path) -> None:
    settings, a100 = on_gpu(tmp_path), "NVIDIA A100-SXM4-40GB"
    found = Findings()
    for speed_now in (22.6e6, 22.5e6, float("nan")):
        judge_speed(found, settings, "training", speed_now, a100, "tf32")
    judge_speed(found, settings, "training", 1.0, a100, "fp32")  # nothing was published
    assert [each.holds for each in found.comparisons] == [True, False, False]
    assert not found.left_out
    judge_speed(found, settings, "training", 1.0, "Tesla T4", "tf32")
    assert "Tesla T4" in found.left_out["training: samples/s"]


def test_verdicts_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    rehearsal, found = settings_for(tmp_path, scale=FULL), Findings()
    judge_speed(found, rehearsal, "training", 1.0, "CPU", "tf32")
    judge_preparation(found, rehearsal, 2.0, 1.0)
    judge_epoch(found, rehearsal, "fp32", 1e9, {"cudaStreamSynchronize": 3})
    judge_memory(found, rehearsal, {1: {"a": 1.0, "b": 2.0}}, 2)
    assert not found.comparisons
    assert len(found.left_out) == 5
    assert set(found.left_out.values()) == {"needs an NVIDIA GPU"}
    small = Settings("cuda", False, SMALL, rehearsal.output, rehearsal.work)
    found = Findings()
    judge_speed(found, small, "training", 1.0, "NVIDIA H200", "tf32")
    judge_preparation(found, small, 2.0, 1.0)
    assert not found.comparisons
    judge_epoch(found, small, "fp32", 1e9, {})  # holds for any size
    assert wrong_of(found) == ["fp32: bytes from host to device in a steady epoch"]


def test_preparing_on_the_gpu_must_not_take_longer(tmp_path: Path) -> None:
    found = Findings()
    judge_preparation(found, on_gpu(tmp_path), 3.0, 4.0)
    judge_preparation(found, on_gpu(tmp_path / "new"), 4.1, 4.0)
    assert [each.holds for each in found.comparisons] == [True, False]


def event(category: str, name: str, start: float, **more: Any) -> dict[str, Any]:
    return {"ts": start, "dur": 1.0, "cat": category, "name": name, **more}


def epoch_trace(*more: dict[str, Any]) -> dict[str, Any]:
    """A steady epoch from 100 to 200 µs, with 3,000 bytes copied to the device, and waits before and after it."""
    return {
        "traceEvents": [
            {"ts": 100.0, "dur": 100.0, "cat": "user_annotation", "name": "epoch"},
            event("gpu_user_annotation", "epoch", 110.0),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 120.0, args={"bytes": 1000}),
            event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 250.0, args={"bytes": 2000}),  # queued within
            event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 130.0, args={"bytes": 1 << 30}),
            event("cuda_runtime", "cudaLaunchKernel", 140.0),
            event("cuda_runtime", "cudaMemcpyAsync", 141.0),
            event("cuda_runtime", "cudaDeviceSynchronize", 99.0),
            event("cuda_runtime", "cudaDeviceSynchronize", 200.0),
            {"ph": "M", "name": "process_name"},
            *more,
        ]
    }


def test_waits_and_copies_are_read_from_a_trace(tmp_path: Path) -> None:
    assert steady_epoch(epoch_trace(), "epoch") == (3000.0, {})
    waiting = (
        event("cuda_runtime", "cudaStreamSynchronize", 100.0),
        event("cuda_runtime", "cudaStreamSynchronize", 150.0, tid=7),  # of another thread
        event("cuda_driver", "cuEventSynchronize", 199.0),
        event("cuda_runtime", "cudaFree", 160.0),
    )
    copied, waits = steady_epoch(epoch_trace(*waiting), "epoch")
    assert waits == {"cudaStreamSynchronize": 2, "cuEventSynchronize": 1, "cudaFree": 1}
    found, settings = Findings(), on_gpu(tmp_path)
    judge_epoch(found, settings, "amp", copied, {})
    assert not wrong_of(found)
    judge_epoch(found, settings, "amp", copied, waits)
    judge_epoch(found, settings, "tf32", 1_000_001.0, {})
    assert wrong_of(found) == [
        "amp: waits in a steady epoch, cuEventSynchronize, cudaFree, cudaStreamSynchronize",
        "tf32: bytes from host to device in a steady epoch",
    ]
    with pytest.raises(RuntimeError, match="0 regions 'other'"):
        steady_epoch(epoch_trace(), "other")


def test_memory_on_a_foreign_gpu_is_found(tmp_path: Path) -> None:
    good = {11: {"a": 5000.0}, 12: {"b": 4800.0}}
    assert foreign(good) == {}
    # Rank 1 has a context on the first GPU; so does the launcher, which should use none.
    assert foreign({11: {"a": 5000.0}, 12: {"a": 400.0, "b": 4800.0}}) == {(12, "a"): 400.0}
    assert foreign({**good, 10: {"a": 300.0}}) == {(10, "a"): 300.0}
    # Both ranks on one GPU.
    assert foreign({11: {"a": 5000.0}, 12: {"a": 4800.0}}) == {(12, "a"): 4800.0}
    found, settings = Findings(), on_gpu(tmp_path)
    judge_memory(found, settings, good, 2)
    assert not wrong_of(found)
    judge_memory(found, settings, {**good, 10: {"a": 300.0}}, 2)
    judge_memory(found, settings, {11: {"a": 5000.0}}, 2)
    judge_memory(found, settings, {}, 2)
    verdict = "ranks: places where a process holds memory of another's GPU"
    assert wrong_of(found) == [f"{verdict}, process 10: 300 MiB on a", "ranks: GPUs in use"]
    assert "--pid=host" in found.left_out[verdict]


def test_memory_is_sampled_while_a_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    snapshots = iter([{9: {"a": 100.0}}, {9: {"a": 100.0}, 11: {"a": 50.0}}, {11: {"a": 40.0, "b": 7.0}}])

    def planted() -> dict[int, dict[str, float]]:
        found = next(snapshots, None)
        if found is None:
            told.set()
        return found or {}

    monkeypatch.setattr(memory, "holders", planted)
    monkeypatch.setattr(memory, "_INTERVAL_S", 1e-3)
    ended, held = watch_memory(lambda: told.wait(60.0))
    assert ended
    assert held == {11: {"a": 50.0, "b": 7.0}}  # 9 was there before


def test_nvidia_smi_says_who_holds_what(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "GPU-a, 11, 500\\nGPU-b, 11, [N/A]\\nGPU-b, 12, 20\\nNo running processes found"
    monkeypatch.setattr(memory, "_QUERY", [sys.executable, "-c", f"print('{lines}')"])
    assert holders() == {11: {"GPU-a": 500.0, "GPU-b": 0.0}, 12: {"GPU-b": 20.0}}
    monkeypatch.setattr(memory, "_QUERY", ["/no/such/nvidia-smi"])
    assert holders() == {}


# --- The checks, with planted failures ------------------------------------------------------------------------


def test_a_wrong_value_and_a_failing_kind_are_both_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = arrays.row_negatives

    def planted(users: Any, items: Any, candidates: Any, *more: Any) -> Any:
        negatives, exists = original(users, items, candidates, *more)
        if isinstance(users, torch.Tensor) and len(users):
            if candidates.cdf is not None and candidates.items is None:
                raise RuntimeError("no such kernel")
            if candidates.since is not None:
                negatives[0, 0] += 1
        return negatives, exists

    monkeypatch.setattr(arrays, "row_negatives", planted)
    found = Findings()
    arrays.sampling(settings_for(tmp_path), found)
    expected = [
        name
        for log in ("log", "few unseen items")
        for name in (
            f"{log}, popularity",
            f"{log}, time-aware: train negatives: 1 differ",
            f"{log}, popularity, time-aware: train negatives: 1 differ",
        )
    ]
    assert wrong_of(found) == expected
    assert {"no rows, exact: test negatives: 0 differ", "few unseen items, uniform: train negatives: 0 differ"} <= {
        each.what for each in found.comparisons
    }


def test_prepared_folders_are_compared_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    for name in ("train", "test"):
        (whole / name).mkdir(parents=True)
        for part in range(2):
            pq.write_table(pa.table({"user": [1, 2], "item": [3, 4]}), whole / name / f"part-0000{part}.parquet")
    (whole / "stats.json").write_text('{"users": 2}')
    (whole / "feature_spec.yaml").write_text("metadata: {}")
    commands: list[tuple[str, ...]] = []

    def prepared(*argv: str | Path) -> None:
        flags = tuple(map(str, argv))
        commands.append(flags)
        folder, on_device = Path(flags[-1]), flags[flags.index("--device") + 1] == "cuda"
        if on_device and folder.name.startswith("text ids"):
            raise UserError("ended with status 1:\nMemoryError: out of memory")
        shutil.copytree(whole, folder)
        if on_device:
            (folder / "stats.json").write_text('{"users": 2, "rows_read_on_gpu": 7}')
        if on_device and folder.name == "exact":
            table = pa.table({"user": [1, 2], "item": [3, 5]})
            pq.write_table(table, folder / "test" / "part-00000.parquet")
            (folder / "train" / "part-00001.parquet").unlink()
            (folder / "stats.json").write_text('{"users": 3, "rows_read_on_gpu": 7}')

    monkeypatch.setattr(folders, "ours", prepared)
    monkeypatch.setattr(folders, "frame_device", lambda name: FrameDevice(on_cpu=True))
    monkeypatch.setattr(folders, "need", lambda *names: None)
    settings, found = on_gpu(tmp_path, scale=SMALL), Findings()
    folders.preprocessing(settings, found)
    assert wrong_of(found) == [
        "exact: Parquet files of the same names",
        "exact: test/part-00000.parquet, columns that differ",
        "exact: entries of stats.json that differ",
        "text ids, few unseen items, empty partitions",
    ]
    assert found.facts["extended ids of a workflow: rows_read_on_gpu"] == 7
    assert "side features, transcoded" in found.left_out  # at full size only
    # Each side goes on from its own folders.
    extended = [flags for flags in commands if "--extend" in flags]
    assert [Path(flags[flags.index("--workflow") + 1]).parent.name for flags in extended] == ["here", "there"]


def planted_run(flags: tuple[str, ...], folder: Path, losses: list[float], hit_rate: float) -> Run:
    metrics = {"hr@10": hit_rate, "ndcg@10": hit_rate / 2}
    return Run(folder, losses if "--members" not in flags else [], [1e6, 3e6, 5e6], metrics)


def test_full_training_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, ...]] = []

    def trained(settings: Settings, data: Path, name: str, *argv: str | Path) -> Run:
        flags = tuple(map(str, argv))
        runs.append(flags)
        on_device = flags[flags.index("--device") + 1] == "cuda"
        if on_device and "tf32" in flags:
            return planted_run(flags, settings.work, [0.6, 0.5], 0.502)  # ranked with TF32 products
        off = 0.1 * ("--amp" in flags) + 0.2 * (on_device and "--members" in flags)
        if on_device and "--validation" in flags and not off:
            raise UserError("ended with status 1:\nid 7 is out of range")
        return planted_run(flags, settings.work, [0.6 + off, 0.5], 0.5 + off)

    monkeypatch.setattr(training, "train", trained)
    monkeypatch.setattr(training, "ours", lambda *argv: None)
    monkeypatch.setattr(training, "need", lambda *names: None)
    found = Findings()
    training.training(on_gpu(tmp_path), found)
    assert [run[run.index("--device") + 1] for run in runs] == ["cpu", *["cuda"] * 5, *["cpu", "cuda"] * 3]
    assert wrong_of(found) == [
        *(
            f"{name}: {what}"
            for name in ("amp", "amp, with CUDA graphs")
            for what in ("loss of epoch, at step 0 of 2", "HR@10")
        ),
        "tf32: hr@10 while training, against a test in fp32",
        "tf32: ndcg@10 while training, against a test in fp32",
        "validation",
        "members: HR@10",
    ]


def test_ranks_need_several_gpus(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleError, match="there is one GPU"):
        training.ranks(settings_for(tmp_path, rehearsal=False, device="cuda"), Findings())


def test_ranks_are_judged_by_losses_memory_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(settings: Settings, data: Path, name: str, *argv: str | Path) -> Run:
        flags = tuple(map(str, argv))
        off = 0.005 * (flags[flags.index("--gpus") + 1] == "8")  # within the tolerance of streamed epochs only
        run = planted_run(flags, settings.work, [0.6 + off], 0.5)
        return replace(run, samples_per_s=[1.0, 120e6, 120e6])

    def watched(work: Any) -> Any:
        return work(), {number: {f"GPU-{number}": 9000.0} for number in range(8)} | {3: {"GPU-0": 400.0, "GPU-3": 9e3}}

    monkeypatch.setattr(training, "train", trained)
    monkeypatch.setattr(training, "watch_memory", watched)
    monkeypatch.setattr(training, "gpu_index", lambda name, count: None)
    monkeypatch.setattr(training, "gpu_name", lambda device: "NVIDIA A100-SXM4-40GB")
    for name in ("ours", "need", "write_log", "prepare_log"):
        monkeypatch.setattr(training, name, lambda *given: None)
    found = Findings()
    training.ranks(on_gpu(tmp_path), found)
    stray = "ranks: places where a process holds memory of another's GPU, process 3: 400 MiB on GPU-0"
    assert wrong_of(found) == [
        "memory: loss of epoch, at step 0 of 1",
        stray,
        stray,
        "train.py --gpus 8, amp: samples/s, on NVIDIA A100-SXM4-40GB",  # 120 M reach TF32's 110 M, not 143 M
    ]
    assert [(figure.value, figure.published) for figure in found.figures] == [(120e6, 110e6), (120e6, 143e6)]


def test_the_pipeline_is_judged_by_time_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, ...]] = []

    def prepared(log: Path, folder: Path, device: str, *flags: str) -> Usage:
        folder.mkdir(exist_ok="--overwrite" in flags)
        (folder / "stats.json").write_text('{"rows_read_on_gpu": 10000132}')
        wall_s = {"cpu": 6.0, "cuda": 40.0}[device] - 33.0 * ("--overwrite" in flags)
        return Usage(wall_s, 0.0, 0, 0, "")

    def trained(settings: Settings, data: Path, name: str, *argv: str | Path) -> Run:
        runs.append(tuple(map(str, argv)))
        assert data.name == "data-gpu"
        return replace(planted_run((), settings.work, [], 0.5), samples_per_s=[1e6, 30e6, 32e6])

    monkeypatch.setattr(speed, "prepare_log", prepared)
    monkeypatch.setattr(speed, "train", trained)
    monkeypatch.setattr(speed, "write_log", lambda *given: None)
    monkeypatch.setattr(speed, "frame_device", lambda name: FrameDevice(on_cpu=True))
    monkeypatch.setattr(speed, "torch_device", lambda name, count: torch.device("cpu"))
    monkeypatch.setattr(speed, "gpu_name", lambda device: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setenv("CUPY_CACHE_DIR", "")
    found = Findings()
    speed.pipeline(on_gpu(tmp_path), found)
    assert wrong_of(found) == [
        "log to prepared folder: seconds with the GPU, against the CPU's",  # 7 s in the second run, against 6 s
        "Loader",  # there is no folder to load: the rest goes on
        "train.py, amp: samples/s, on NVIDIA A100-SXM4-40GB",  # 31 M, enough for TF32 only
    ]
    figures = {figure.what: figure.value for figure in found.figures}
    assert figures["first run longer than the second (kernels compiled)"] == 33.0
    assert figures["rows read on the GPU"] == pytest.approx(50.0, abs=0.1)
    assert [flags[-1] for flags in runs] == ["tf32", "--amp"]
    assert all("--loader" not in flags for flags in runs)


def test_a_wait_in_a_steady_epoch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded: list[bool] = []

    @contextmanager
    def planted(device: torch.device) -> Iterator[None]:
        guarded.append(True)
        yield
        guarded.pop()

    class Waits(epoch.Step):
        def __call__(self, batch: Batch, total: int) -> torch.Tensor:
            if guarded and self.precision != "fp32":
                raise RuntimeError("called a synchronizing CUDA operation")
            return super().__call__(batch, total)

    def resident(folder: Path, spec: Any, device: torch.device) -> rows.ResidentRows:
        return rows.ResidentRows.generate(SMALL.parity_shape, device)

    monkeypatch.setattr(epoch, "no_waits", planted)
    monkeypatch.setattr(epoch, "Step", Waits)
    monkeypatch.setattr(epoch, "CONFIGS", {"bf16": {"precision": "bf16"}, "fp32": {"precision": "fp32"}})
    monkeypatch.setattr("model.data.dataset.open_train", resident)
    monkeypatch.setattr("preprocessing.spec.feature_spec.read_feature_spec", lambda folder: None)
    for name in ("write_log", "prepare_log"):
        monkeypatch.setattr(epoch, name, lambda *given: None)
    found, settings = Findings(), settings_for(tmp_path)
    epoch.epoch(settings, found)
    assert [(each.what, each.found) for each in found.comparisons if not each.holds] == [
        ("bf16", "RuntimeError: called a synchronizing CUDA operation")
    ]
    assert [each.what for each in found.comparisons][1:] == ["fp32: mean loss of an epoch without a wait"]
    assert "fp32: waits in a steady epoch" in found.left_out
    assert found.files == ["trace-steady-epoch-bf16.json.gz", "trace-steady-epoch-fp32.json.gz"]
    assert all((settings.output / name).is_file() for name in found.files)


HIDDEN = """
    betterproto bokeh dask distributed fastapi google.protobuf httptools merlin npy_append_array nvtabular onnx
    onnxruntime pandas prometheus_client safetensors scipy tensorboardX tensorflow_metadata tqdm uvicorn
"""


def test_a_rehearsal_needs_neither_a_gpu_nor_merlin(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import sys\nfor name in {HIDDEN.split()}:\n    sys.modules[name] = None\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    only = ["environment", "arrays", "sampling", "preprocessing", "steps", "epoch", "trace", "throughput"]
    command = [sys.executable, "-m", "benchmark", "gpu-check", "--device", "cpu", "--small", "--only", *only]
    output = tmp_path / "report"
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = report_of(output)["checks"]
    assert {name: checks[name]["status"] for name in only} == {
        **dict.fromkeys(only, "passed"),
        **dict.fromkeys(("preprocessing", "epoch"), "not run"),
    }
    assert checks["preprocessing"]["reason"] == checks["epoch"]["reason"] == "NVTabular is not installed"
    assert checks["steps"]["curves"].keys() == {"reference: CPU, fp32", "cpu, fp32", "cpu, bf16", "cpu, fp16"}
    assert "tf32" in checks["steps"]["left_out"]
    assert len(checks["arrays"]["comparisons"]) == 3 * (7 + 5 * 3)  # logs; columns of histories, kinds of negatives
    assert len(checks["sampling"]["comparisons"]) == 3 * 5 * 3
    for file in checks["trace"]["files"]:
        with gzip.open(output / file, "rt") as trace:
            assert json.load(trace)["traceEvents"]
    figures = checks["throughput"]["figures"] + checks["trace"]["figures"]
    assert all(each["value"] >= 0 and each["published"] is None for each in figures)
    page = (output / "report.html").read_text()
    assert "none of these figures was measured on one" in page
    assert "--small" in page
