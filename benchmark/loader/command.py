"""`python -m benchmark loader`: rows, negatives and batches per second of an epoch that nobody trains on."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.common.data import cache_folder, prepared_folder
from benchmark.common.program import json_of
from benchmark.common.result import redraw, write_result
from benchmark.loader.plot import draw_loader
from preprocessing.synthetic.log import parse_shape
from workflows.common.errors import UserError
from workflows.common.progress import console

# Each with its unit.
STAGES = {"read": "rows", "negatives": "negatives", "merlin": "samples", "memory": "samples"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="ml-20m", metavar="SHAPE", help="ml-20m, small or USERSxITEMSxROWS")
    parser.add_argument("--batch_size", type=int, default=65_536, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="epochs, each in its own process")
    parser.add_argument("--threads", type=int, metavar="N", help="of each run (default: one per core)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the prepared data here (default: not kept)")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/loader"), metavar="DIR")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, "loader.json", {"machine", "shape", "results", "runs"}, draw_loader)
        return
    for name, value in {"batch_size": args.batch_size, "repeats": args.repeats, "threads": args.threads}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} should be 1 or more, got {value}")
    shape = parse_shape(args.shape)
    threads = ["--threads", str(args.threads)] if args.threads else []
    args.output.mkdir(parents=True, exist_ok=True)
    runs = []
    with cache_folder(args.cache) as cache:
        flags = ["--data", str(prepared_folder(shape, cache)), "--batch_size", str(args.batch_size), *threads]
        for number in range(args.repeats):
            runs.append(json_of("benchmark.training_loader", *flags))
            told = [f"{name} {runs[-1][name][f'{unit}_per_s']:,.0f} {unit}/s" for name, unit in STAGES.items()]
            console.print(f"run {number + 1}: {', '.join(told)}")
    result: dict[str, Any] = {
        "shape": asdict(shape),
        "batch_size": args.batch_size,
        "threads": runs[0]["threads"],
        "repeats": args.repeats,
        "results": {name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]}
                    for name in STAGES},
        "peak_rss_mib": statistics.median(run["peak_rss_mib"] for run in runs),
        "runs": runs,
    }  # fmt: skip
    write_result(args.output / "loader.json", result, draw_loader)
