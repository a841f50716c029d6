"""The GPU check without a GPU: how checks end, how results are compared, and a real rehearsal on the CPU."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.gpu_check import arrays, command, training
from benchmark.gpu_check.command import Check
from benchmark.gpu_check.findings import FULL, SMALL, Figure, Findings, NotPossibleError, Settings, run_check
from benchmark.gpu_check.page import write_report
from benchmark.gpu_check.speed import _samples_per_s
from benchmark.gpu_check.trace import idle_share
from workflows.common.errors import UserError

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
        place.mkdir()
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
    figure = _samples_per_s(settings, "training from memory, tf32", 1.0, {"tf32": 22.6e6})
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


# --- The checks -------------------------------------------------------------------------------------------------


def test_prepared_folders_are_compared_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_PREPARED", {"exact": ()})
    settings = settings_for(tmp_path)
    found = Findings()
    arrays.preprocessing(settings, found)
    assert all(each.holds for each in found.comparisons)
    compared = {each.what for each in found.comparisons}
    assert "exact: train/part-00000.parquet, columns that differ" in compared
    assert "exact: categories/user.parquet, columns that differ" in compared
    prepared = settings.work / "exact-0"
    (prepared / "train" / "more.parquet").touch()

    def copied(log: Path, folder: Path, *flags: str) -> None:
        shutil.copytree(tmp_path / "whole", folder)
        if folder.name.endswith("1"):
            part = folder / "test" / "part-00000.parquet"
            table = pq.read_table(part)
            items = table.column("item").to_numpy().copy()
            items[-1] += 1
            pq.write_table(table.set_column(1, "item", pa.array(items)), part)
            (folder / "train" / "part-00001.parquet").unlink()
            (folder / "stats.json").write_text('{"users": 3}')

    (prepared / "train" / "more.parquet").unlink()
    shutil.move(prepared, tmp_path / "whole")
    shutil.rmtree(settings.work)
    settings.work.mkdir()
    monkeypatch.setattr(arrays, "prepare_log", copied)
    found = Findings()
    arrays.preprocessing(settings, found)
    wrong = [each.what for each in found.comparisons if not each.holds]
    assert wrong == [
        "exact: Parquet files of the same names",
        "exact: test/part-00000.parquet, columns that differ",
        "exact: entries of stats.json that differ",
    ]


def test_full_training_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, ...]] = []

    def trained(*argv: str | Path) -> None:
        flags = tuple(map(str, argv))
        if flags[0] == "-m":
            return
        runs.append(flags)
        run, off = Path(flags[flags.index("--output") + 1]), 0.1 * ("--amp" in flags)
        run.mkdir()
        epochs = [{"train_loss": 0.6 + off, "hr@10": 0.3}, {"train_loss": 0.5, "hr@10": 0.5}]
        lines = [{"type": "METADATA"}, *({"type": "LOG", "step": [at], "data": data} for at, data in enumerate(epochs))]
        (run / "log.json").write_text("".join(f"DLLL {json.dumps(line)}\n" for line in lines))
        (run / "metrics.json").write_text(json.dumps({"hr@10": 0.5 + off}))

    monkeypatch.setattr(training, "ours", trained)
    settings = settings_for(tmp_path, rehearsal=False, device="cuda")
    found = Findings()
    training.training(settings, found)
    assert len(runs) == 5
    assert "--cuda-graphs" in runs[-1]
    assert [run[run.index("--device") + 1] for run in runs] == ["cpu", *["cuda"] * 4]
    wrong = [each.what for each in found.comparisons if not each.holds]
    assert wrong == [
        f"{name}: {what}"
        for name in ("amp", "amp, with CUDA graphs")
        for what in ("loss of epoch, at step 0 of 2", "HR@10")
    ]


def test_ranks_need_several_gpus(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleError, match="there is one GPU"):
        training.ranks(settings_for(tmp_path, rehearsal=False, device="cuda"), Findings())


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
    only = ["environment", "arrays", "sampling", "preprocessing", "steps", "trace", "throughput"]
    command = [sys.executable, "-m", "benchmark", "gpu-check", "--device", "cpu", "--small", "--only", *only]
    output = tmp_path / "report"
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = report_of(output)["checks"]
    assert {name: checks[name]["status"] for name in only} == {
        **dict.fromkeys(only, "passed"),
        "preprocessing": "not run",
    }
    assert checks["preprocessing"]["reason"] == "NVTabular is not installed"
    assert checks["steps"]["curves"].keys() == {"reference: CPU, fp32", "cpu, fp32", "cpu, bf16", "cpu, fp16"}
    assert "tf32" in checks["steps"]["left_out"]
    assert len(checks["arrays"]["comparisons"]) == 19
    for file in checks["trace"]["files"]:
        with gzip.open(output / file, "rt") as trace:
            assert json.load(trace)["traceEvents"]
    figures = checks["throughput"]["figures"] + checks["trace"]["figures"]
    assert all(each["value"] >= 0 and each["published"] is None for each in figures)
    page = (output / "report.html").read_text()
    assert "none of these figures was measured on one" in page
    assert "--small" in page
