"""`python -m benchmark serve`: load test of the service with many concurrent clients, using wrk."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from benchmark.common.machine import describe_machine
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.common.progress import console

_STOP_S = 60
# Each request asks for one user, drawn at random. wrk counts failures, and reports times in microseconds.
_SCRIPT = """
local users = {%s}
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function request()
  return wrk.format(nil, nil, nil, '{"users": [' .. users[math.random(#users)] .. '], "k": %d}')
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\n{"requests": %%d, "duration_s": %%f, "failed": %%d, "p50_ms": %%f, "p90_ms": %%f, '
    .. '"p99_ms": %%f, "max_ms": %%f}\\n', summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, latency:percentile(50) / 1e3,
    latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder written by train.py")
    parser.add_argument("--clients", type=int, default=100, metavar="N", help="concurrent connections, always busy")
    parser.add_argument("--seconds", type=int, default=60, metavar="N")
    parser.add_argument("-k", type=int, default=10, metavar="K", help="items per user")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/serve.json"), metavar="FILE")


def main(args: argparse.Namespace) -> None:
    if shutil.which("wrk") is None:
        raise UserError("wrk, which generates the load, is not installed (Debian, Ubuntu: apt-get install wrk)")
    users = _users(args.run)
    with _service(args.run) as (process, address):
        _load(address, users, args.k, args.clients, seconds=2)  # warm-up
        before = _counters(address)
        result = _load(address, users, args.k, args.clients, args.seconds)
        n_calls, n_users, cpu_s = _counters(address) - before
        rss_mib = psutil.Process(process.pid).memory_info().rss / 2**20
    result |= {
        "requests_per_s": result["requests"] / result["duration_s"],
        "cpu_ms_per_request": 1e3 * cpu_s / n_users,
        "users_per_call": n_users / n_calls,
        "rss_mib": rss_mib,
    }
    settings = {"run": str(args.run), "clients": args.clients, "seconds": args.seconds, "k": args.k}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, {"machine": describe_machine(), "settings": settings, "result": result})
    table = Table("measure", "value")
    for name, value in result.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.2f}")
    console.print(table)
    console.print(f"wrote {args.output}")


def _users(run: Path) -> list[str]:
    """Original ids of all users a run was trained on, as text."""
    from model.recommend.recommender import Recommender  # torch and Merlin, which not all benchmarks need

    recommender = Recommender.load(run, device="cpu")
    return [str(user) for user in recommender.users.originals(recommender.trained)]


@contextmanager
def _service(run: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve the run on a free local port: the process and its address; stopped on exit."""
    command = [sys.executable, "-m", "model.serve", "--run", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise UserError(f"{' '.join(command)} did not start")
            yield process, line.split()[-1]
            process.terminate()
            if process.wait(_STOP_S):
                raise UserError(f"the service ended with status {process.returncode} when it was stopped")
        finally:
            process.kill()


def _load(address: str, users: Sequence[str], k: int, clients: int, seconds: int) -> dict[str, Any]:
    """Generate load; returns wrk's report."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua", encoding="utf-8") as script:
        # JSON within a Lua string: both escape with backslashes, and ASCII JSON needs nothing else.
        bodies = (json.dumps(json.dumps(user)) for user in users)
        script.write(_SCRIPT % (", ".join(bodies), k))
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", script.name]
        ran = subprocess.run([*command, f"{address}/recommend"], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise UserError(f"wrk failed:\n{ran.stdout}{ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1])


def _counters(address: str) -> np.ndarray:
    """Totals of the service so far: scoring calls, users scored, CPU seconds."""
    with urllib.request.urlopen(f"{address}/metrics") as response:
        lines = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines() if line[:1] != "#")
    names = ("neumf_batch_users_count", "neumf_batch_users_sum", "process_cpu_seconds_total")
    return np.array([float(lines[name]) for name in names])
