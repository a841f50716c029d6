"""`python -m benchmark gpu-check`: all checks that need a GPU, in one report; can be rehearsed on a CPU.

Each check runs in its own process with a time limit, and the report is rewritten after each, so that a crash or a hang
costs only that check.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.common.machine import describe_machine
from benchmark.common.program import ROOT
from benchmark.gpu_check.findings import FAILED, NOT_RUN
from benchmark.gpu_check.page import REPORT_NAME, RESULT_NAME, write_report
from workflows.common.errors import UserError
from workflows.common.files import check_output, read_json, staged_folder
from workflows.common.progress import console
from workflows.device.torch_device import gpu_index

_LAST_LINES = 25


@dataclass(frozen=True)
class Check:
    """One check: its module, its description, and its time limit in seconds."""

    module: str
    what: str
    limit_s: float


# In the order in which they run: the most telling first.
CHECKS = {
    "environment": Check(
        "benchmark.gpu_check.machine",
        "GPUs, driver, versions, compiler, memory; torch computes on the device",
        300,
    ),
    "arrays": Check("benchmark.gpu_check.arrays", "splits, negatives, ids: array code on CuPy against NumPy", 300),
    "sampling": Check("benchmark.gpu_check.arrays", "negatives: torch tensors against NumPy", 300),
    "steps": Check("benchmark.gpu_check.training", "losses of the same steps: each precision, CUDA graphs, CPU", 600),
    "fused": Check("benchmark.gpu_check.fused", "the fused step: kernels, parity with the torch step, samples/s", 900),
    "epoch": Check("benchmark.gpu_check.epoch", "a steady epoch of the default loader: no wait, no rows copied", 600),
    "throughput": Check("benchmark.gpu_check.speed", "samples/s of training from memory and of scoring", 900),
    "trace": Check("benchmark.gpu_check.trace", "profiles of steps; share of time the GPU is idle", 600),
    "preprocessing": Check(
        "benchmark.gpu_check.folders", "logs prepared with cuDF and with pandas, file by file", 1200
    ),
    "pipeline": Check("benchmark.gpu_check.speed", "log to folder, Loader, train.py: rows/s and samples/s", 1800),
    "training": Check(
        "benchmark.gpu_check.training",
        "losses and HR@10 of train.py: precisions, validation, members, features",
        1800,
    ),
    "ranks": Check("benchmark.gpu_check.training", "train.py --gpus N: losses, memory of each GPU, samples/s", 1800),
    "tests": Check("benchmark.gpu_check.machine", "the tests marked gpu", 900),
}
# For a short visit to a GPU, in this order.
SETS = {
    "first": ("environment", "arrays", "sampling", "steps", "fused", "epoch"),
    "speed": ("throughput", "trace"),
    "whole-way": ("preprocessing", "pipeline", "training"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse without a GPU")
    parser.add_argument("--small", action="store_true", help="smoke test with small data and networks")
    parser.add_argument(
        "--only", nargs="+", choices=[*SETS, *CHECKS], default=list(CHECKS), metavar="NAME",
        help="; ".join([*(f"{name}: {' '.join(checks)}" for name, checks in SETS.items()), ", ".join(CHECKS)]),
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("gpu-report"), metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report")


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: there is no GPU, or the report may not be written; nothing has been written then.
    """
    rehearsal = args.device == "cpu"
    try:
        gpu_index(args.device, None)
    except UserError:
        raise UserError(
            "gpu-check needs an NVIDIA GPU that torch can use, and there is none; to rehearse it on a CPU, run "
            "`python -m benchmark gpu-check --device cpu --small` (make gpu-check DEVICE=cpu)"
        ) from None
    check_output(args.output, args.overwrite, _is_report)
    output = args.output.absolute()
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "command": f"python -m benchmark {shlex.join(sys.argv[1:])}",
        "device": args.device,
        "rehearsal": rehearsal,
        "small": args.small,
        "checks": {
            name: {"what": check.what, "status": NOT_RUN, "reason": "not asked for"} for name, check in CHECKS.items()
        },
    }
    asked = {name for given in args.only for name in SETS.get(given, (given,))}
    for name in asked:
        report["checks"][name]["reason"] = "not reached"
    flags = ["--device", args.device, *(["--rehearsal"] if rehearsal else []), *(["--small"] if args.small else [])]
    with staged_folder(output, args.overwrite, _is_report) as folder:
        write_report(folder, report)
    for name in CHECKS:
        if name in asked:
            report["checks"][name] = {"what": CHECKS[name].what, **_made(name, flags, output)}
            write_report(output, report)
            _tell(name, report["checks"][name])
    console.print(f"report in {args.output / REPORT_NAME}")
    if any(check["status"] == FAILED for check in report["checks"].values()):
        sys.exit(1)


def _is_report(folder: Path) -> bool:
    return {"machine", "checks", "rehearsal"} <= read_json(folder / RESULT_NAME).keys()


def _tell(name: str, result: dict[str, Any]) -> None:
    reason = f": {result['reason']}" if result["reason"] else ""
    console.print(f"{name}: {result['status']} in {result['seconds']:.0f} s{reason}")
    for what, why in result.get("left_out", {}).items():
        console.print(f"  left out: {what}: {why}")


def _made(name: str, flags: Sequence[str], output: Path) -> dict[str, Any]:
    """Run a check in its own process: its status, reason, seconds and findings."""
    check, log = CHECKS[name], output / f"{name}.log"
    with tempfile.TemporaryDirectory(prefix="neumf-gpu-check-") as folder:
        work, result = Path(folder) / "work", Path(folder) / "result.json"
        work.mkdir()
        places = ["--output", str(output), "--work", str(work), "--result", str(result)]
        started = time.perf_counter()
        ended = _run([sys.executable, "-m", check.module, name, *flags, *places], log, check.limit_s)
        found = read_json(result)
        if not found or ended:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            found |= {"status": FAILED, "reason": "\n".join([ended or "it reported no result", *last])}
        if not log.stat().st_size:
            log.unlink()
        return {**found, "seconds": time.perf_counter() - started}


def _run(command: Sequence[str], log: Path, limit_s: float) -> str:
    """Run a command until it exits or hits the limit, then kill its children; returns the error, or an empty string."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"it took longer than {limit_s:g} s and was killed"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it has its own session: this reaches its children
            process.wait()
    if status < 0:
        return f"it was killed by signal {signal.Signals(-status).name}"
    return f"it exited with status {status}" if status else ""
