"""`python -m benchmark pipeline`: raw log → prepared folder, our process against a pandas process, then the plot."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark.common.data import SEED, cache_folder
from benchmark.common.measure import Usage, measure
from benchmark.common.program import ROOT
from benchmark.common.result import redraw, write_result
from benchmark.pipeline.plot import draw_pipeline
from preprocessing.synthetic.log import Ids, Shape, parse_shape, write_log
from workflows.common.errors import UserError
from workflows.common.progress import console, stage

_STAGE = re.compile(r"^(?P<name>\w[\w ]*): [\d,]+ \w+ in (?P<seconds>[\d.]+) s\b", re.MULTILINE)
_MEASURED = ("wall_s", "cpu_s", "peak_rss_bytes", "peak_pss_bytes")


@dataclass(frozen=True)
class Case:
    """One kind of log."""

    name: str
    ids: Ids
    shuffled: bool


CASES = (
    Case("sorted, integers", "int", False),
    Case("shuffled, integers", "int", True),
    Case("shuffled, text ids", "text", True),
    Case("shuffled, 64-bit ids", "int64", True),
)
SHUFFLED = CASES[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", default="ml-20m", metavar="SHAPE", help="ml-20m, small or USERSxITEMSxROWS")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each command; reports medians")
    parser.add_argument("--quick", action="store_true", help="smoke test with a small log, two kinds and one run")
    parser.add_argument("--memory-limit", metavar="SIZE", help="passed to the pipeline (1GiB)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the generated logs here (default: not kept)")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/pipeline"), metavar="DIR")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, "pipeline.json", {"machine", "shape", "cases"}, draw_pipeline)
        return
    if args.repeats < 1:
        raise UserError(f"--repeats should be 1 or more, got {args.repeats}")
    shape = parse_shape("small" if args.quick else args.rows)
    cases, repeats = (CASES[1:3], 1) if args.quick else (CASES, args.repeats)
    flags = ["--memory-limit", args.memory_limit] if args.memory_limit else []
    args.output.mkdir(parents=True, exist_ok=True)
    with cache_folder(args.cache) as cache, tempfile.TemporaryDirectory(prefix="work-", dir=cache) as work:
        result: dict[str, Any] = {
            "shape": asdict(shape),
            "repeats": repeats,
            "cases": [_compare(case, shape, repeats, flags, cache, Path(work)) for case in cases],
        }
    write_result(args.output / "pipeline.json", result, draw_pipeline)


def log_file(shape: Shape, case: Case, cache: Path) -> Path:
    path = cache / f"{shape}-{'shuffled' if case.shuffled else 'sorted'}-{case.ids}-seed{SEED}.csv"
    if not path.exists():
        with stage(f"generate {path.name}", shape.rows, "rows") as running:
            write_log(shape, path, SEED, shuffled=case.shuffled, ids=case.ids, progress=running.advance)
    return path


def our_command(log: Path, output: Path, flags: Sequence[str]) -> list[str]:
    command = ["-m", "preprocessing", "--input", str(log), "--output", str(output), "--overwrite"]
    return [sys.executable, *command, "--device", "cpu", *flags]


def _compare(case: Case, shape: Shape, repeats: int, flags: Sequence[str], cache: Path, work: Path) -> dict[str, Any]:
    """Run both pipelines in turn on one log, and the checker on our output."""
    log = log_file(shape, case, cache)
    prepared = work / "ours"
    commands = {
        "ours": our_command(log, prepared, flags),
        "baseline": [sys.executable, "-m", "benchmark.baseline_pipeline", str(log), str(work / "baseline")],
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for number in range(repeats):
        for name, command in commands.items():
            usage = measure(command, ROOT)
            runs[name].append(_run(usage, _stages_of_ours if name == "ours" else _stages_of_baseline))
            _tell(f"{case.name}, {name}, run {number + 1}", usage)
    size = log.stat().st_size
    summary = {name: _summary(list_of_runs, shape.rows, size) for name, list_of_runs in runs.items()}
    ratios = {name: summary["baseline"][name] / summary["ours"][name] for name in _MEASURED}
    checked = json.loads(measure([sys.executable, "-m", "benchmark.checker", str(log), str(prepared)], ROOT).output)
    return {
        **asdict(case),
        "rows": shape.rows,
        "csv_bytes": size,
        **summary,
        "baseline_over_ours": ratios,
        "check": checked,
    }


def _run(usage: Usage, stages: Callable[[str], dict[str, float]]) -> dict[str, Any]:
    return {**{name: getattr(usage, name) for name in _MEASURED}, "stages_s": stages(usage.output)}


def _stages_of_ours(output: str) -> dict[str, float]:
    return {found["name"]: float(found["seconds"]) for found in _STAGE.finditer(output)}


def _stages_of_baseline(output: str) -> dict[str, float]:
    return json.loads(output.splitlines()[-1])["steps_s"]


def _summary(runs: Sequence[dict[str, Any]], rows: int, size: int) -> dict[str, Any]:
    """Medians over runs (also of each stage), rates from the median wall time, and the runs themselves."""
    medians = {name: statistics.median(run[name] for run in runs) for name in _MEASURED}
    stages = {name: statistics.median(run["stages_s"][name] for run in runs) for name in runs[0]["stages_s"]}
    rates = {"rows_per_s": rows / medians["wall_s"], "bytes_per_s": size / medians["wall_s"]}
    return {**medians, **rates, "stages_s": stages, "runs": list(runs)}


def _tell(what: str, usage: Usage) -> None:
    console.print(f"{what}: {usage.wall_s:.2f} s, CPU {usage.cpu_s:.2f} s, PSS {usage.peak_pss_bytes >> 20:,} MiB")
