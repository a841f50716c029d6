"""`python -m benchmark pipeline`: raw log → prepared folder, our process against a pandas process, then the plot."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmark.common.machine import describe_machine
from benchmark.common.measure import Usage, measure
from benchmark.common.result import redraw
from benchmark.pipeline.plot import draw_pipeline
from preprocessing.synthetic.log import Ids, Shape, parse_shape, write_log
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.common.progress import console, stage

_ROOT = Path(__file__).parents[2]
_SEED = 1
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", default="ml-20m", metavar="SHAPE", help="ml-20m, small or USERSxITEMSxROWS")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each command; reports medians")
    parser.add_argument("--quick", action="store_true", help="smoke test with a small log, two kinds and one run")
    parser.add_argument("--growth", action="store_true", help="also measure a tenth and ten times the rows and users")
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
    grown = _grown(shape) if args.growth else []
    flags = ["--memory-limit", args.memory_limit] if args.memory_limit else []
    args.output.mkdir(parents=True, exist_ok=True)
    with _cache(args.cache) as cache, tempfile.TemporaryDirectory(prefix="work-", dir=cache) as work:
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "command": f"python -m benchmark {shlex.join(sys.argv[1:])}",
            "shape": asdict(shape),
            "repeats": repeats,
            "cases": [_compare(case, shape, repeats, flags, cache, Path(work)) for case in cases],
        }
        if grown:
            result["growth"] = _grow(grown, repeats, flags, cache, Path(work))
    target = args.output / "pipeline.json"
    write_json(target, result)
    draw_pipeline(result, target.with_suffix(".png"))
    console.print(f"wrote {target} and its plot")


@contextmanager
def _cache(folder: Path | None) -> Iterator[Path]:
    """The folder of generated logs: the given one, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="neumf-benchmark-") as temporary:
            yield Path(temporary)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()  # the commands run in another folder


def _log(shape: Shape, case: Case, cache: Path) -> Path:
    path = cache / f"{shape}-{'shuffled' if case.shuffled else 'sorted'}-{case.ids}-seed{_SEED}.csv"
    if not path.exists():
        with stage(f"generate {path.name}", shape.rows, "rows") as running:
            write_log(shape, path, _SEED, shuffled=case.shuffled, ids=case.ids, progress=running.advance)
    return path


def _ours(log: Path, output: Path, flags: Sequence[str]) -> list[str]:
    command = ["-m", "preprocessing", "--input", str(log), "--output", str(output), "--overwrite"]
    return [sys.executable, *command, "--device", "cpu", *flags]


def _compare(case: Case, shape: Shape, repeats: int, flags: Sequence[str], cache: Path, work: Path) -> dict[str, Any]:
    """Run both pipelines in turn on one log, and the checker on our output."""
    log = _log(shape, case, cache)
    prepared = work / "ours"
    commands = {
        "ours": _ours(log, prepared, flags),
        "baseline": [sys.executable, "-m", "benchmark.baseline_pipeline", str(log), str(work / "baseline")],
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for number in range(repeats):
        for name, command in commands.items():
            usage = measure(command, _ROOT)
            runs[name].append(_run(usage, _stages_of_ours if name == "ours" else _stages_of_baseline))
            _tell(f"{case.name}, {name}, run {number + 1}", usage)
    size = log.stat().st_size
    summary = {name: _summary(list_of_runs, shape.rows, size) for name, list_of_runs in runs.items()}
    ratios = {name: summary["baseline"][name] / summary["ours"][name] for name in _MEASURED}
    checked = json.loads(measure([sys.executable, "-m", "benchmark.checker", str(log), str(prepared)], _ROOT).output)
    return {
        **asdict(case),
        "rows": shape.rows,
        "csv_bytes": size,
        **summary,
        "baseline_over_ours": ratios,
        "check": checked,
    }


def _grown(shape: Shape) -> list[Shape]:
    """A tenth of the rows, all, and ten times as many, with users in proportion."""
    tenth = Shape(max(1, shape.users // 10), shape.items, max(1, shape.rows // 10))
    return [tenth, shape, Shape(shape.users * 10, shape.items, shape.rows * 10)]


def _grow(shapes: Sequence[Shape], repeats: int, flags: Sequence[str], cache: Path, work: Path) -> dict[str, Any]:
    """Run our pipeline on shuffled logs of three sizes; includes the marginal cost per row between sizes."""
    points = []
    for shape in shapes:
        log = _log(shape, CASES[1], cache)
        runs = []
        for number in range(repeats):
            usage = measure(_ours(log, work / "ours", flags), _ROOT)
            runs.append(_run(usage, _stages_of_ours))
            _tell(f"{shape.rows:,} rows, run {number + 1}", usage)
        points.append({**asdict(shape), **_summary(runs, shape.rows, log.stat().st_size)})
    marginal = [
        (after["wall_s"] - before["wall_s"]) / (after["rows"] - before["rows"]) for before, after in pairwise(points)
    ]
    return {
        "flags": list(flags),
        "points": points,
        "marginal_s_per_row": marginal,
        "marginal_ratio": marginal[1] / marginal[0] if marginal[0] > 0 else None,
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
