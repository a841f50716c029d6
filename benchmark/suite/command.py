"""`python -m benchmark all`: every part in its own process, one JSON each, and a page of them all."""

from __future__ import annotations

import argparse
import resource
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmark.common.machine import describe_machine
from benchmark.common.program import run_program
from benchmark.suite.page import PAGE_NAME, write_suite
from benchmark.suite.parts import DATA, PARTS, PRESETS, left_out, read_part
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.common.progress import console

RESULT_NAME = "suite.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="results of an interrupted run go on")
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="quick: minutes on 2 cores; full: hours")


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        SystemExit: with status 1, a part has failed; the page says which and why.
    """
    output: Path = args.output
    output.mkdir(parents=True, exist_ok=True)
    suite: dict[str, Any] = {
        "machine": describe_machine(),
        "command": f"python -m benchmark {shlex.join(sys.argv[1:])}",
        "preset": args.preset,
        "parts": {},
    }
    started = time.perf_counter()
    for number, name in enumerate(["data", *PARTS]):
        console.print(f"{number}/{len(PARTS)} {name} …")
        began = time.perf_counter()
        try:
            found = _make_data(args.preset, output) if name == "data" else _run_part(name, args.preset, output)
        except UserError as err:
            found = {"status": "failed", "reason": str(err)}
        now = time.perf_counter()
        suite["parts"][name] = {**found, "seconds": now - began}
        reason = f": {found['reason']}" if found["reason"] else ""
        console.print(f"  {found['status']} in {now - began:.0f} s, {now - started:.0f} s in all{reason}")
        write_json(output / RESULT_NAME, suite)
        write_suite(output, suite)
    console.print(f"page: {output / PAGE_NAME}")
    if any(part["status"] == "failed" for part in suite["parts"].values()):
        sys.exit(1)


def _make_data(preset: str, output: Path) -> dict[str, str]:
    """Make the folders that are not there yet."""
    data = (output / "data").resolve()
    for folder, command in DATA[preset].items():
        if not (data / folder).exists():
            run_program(*shlex.split(command.format(data=shlex.quote(str(data)))))
    return {"status": "done", "reason": ""}


def _run_part(name: str, preset: str, output: Path) -> dict[str, Any]:
    """Run a part, unless its result is of the same commit, machine and command.

    Raises:
        UserError: it failed; the message includes the last lines of its output.
    """
    if reason := left_out(name):
        return {"status": "left out", "reason": reason}
    places = {"data": output / "data", "output": output}
    flags = PARTS[name].flags(preset).format(**{key: shlex.quote(str(path)) for key, path in places.items()})
    argv = [name, *shlex.split(flags), "--output", str(output / name)]
    known, machine = read_part(output, name), describe_machine()
    same = known.get("command") == f"python -m benchmark {shlex.join(argv)}" and known.get("machine") == machine
    if same and machine["commit"] and not machine["commit"].endswith("-dirty"):
        return {"status": "kept", "reason": "measured before, by the same command at the same commit"}
    if (output / name / f"{name}.json").exists():  # of another commit, and so are its runs
        shutil.rmtree(output / name)
    before_s = _cpu_s()
    run_program("-m", "benchmark", *argv, cwd=Path.cwd())  # nothing samples it from outside: that would cost time
    return {"status": "done", "reason": "", "cpu_s": _cpu_s() - before_s}


def _cpu_s() -> float:
    """CPU seconds of all processes that this one has waited for, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
