"""`python -m benchmark scaling`: growth with rows, users, items, width and processes, and the slope of each."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.common.data import cache_folder
from benchmark.common.result import redraw, write_result
from benchmark.scaling.plot import draw_scaling
from benchmark.scaling.sweeps import Point, Setting, slope, sweep_rows, sweep_training
from preprocessing.synthetic.log import Shape, parse_shape
from workflows.common.errors import UserError
from workflows.device import DEVICES
from workflows.device.facts import gpu_memory

# The network and data that training grows from, and the values of each sweep. They hold the base's own value.
_FULL = (
    Setting(users=80_000, items=20_000, rows=2_000_000, batch_size=65_536, width=64),
    {
        "users": (20_000, 80_000, 320_000, 1_280_000),
        "items": (5_000, 20_000, 80_000, 320_000),
        "width": (16, 32, 64, 128),
        "processes": (1, 2, 4),
    },
)
_QUICK = (
    Setting(users=20_000, items=10_000, rows=100_000, batch_size=16_384, width=32),
    {"users": (5_000, 20_000, 80_000), "items": (2_500, 10_000, 40_000), "width": (16, 32, 64), "processes": (1, 2)},
)
# Fewer rows drown in the noise of the start-up that is taken off.
_QUICK_ROWS = [Shape(rows // 100, 2_000, rows) for rows in (1_000_000, 2_000_000, 4_000_000)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", default="ml-20m", metavar="SHAPE",
        help="logs of a tenth, all and ten times the rows of ml-20m, small or USERSxITEMSxROWS",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs, or epochs after the first")
    parser.add_argument("--quick", action="store_true", help="small data and networks, one run of each log")
    parser.add_argument("--memory-limit", metavar="SIZE", help="passed to the pipeline (1GiB)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="of training")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the generated data here (default: not kept)")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/scaling"), metavar="DIR")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, "scaling.json", {"machine", "base", "sweeps"}, draw_scaling)
        return
    if args.repeats < 1:
        raise UserError(f"--repeats should be 1 or more, got {args.repeats}")
    shapes, repeats = (_QUICK_ROWS, 1) if args.quick else (_tenfold(parse_shape(args.rows)), args.repeats)
    base, values = _QUICK if args.quick else _FULL
    flags = ["--memory-limit", args.memory_limit] if args.memory_limit else []
    found = "cuda" if gpu_memory() else "cpu"
    device = found if args.device == "auto" else args.device  # --gpus takes no "auto" without a GPU
    args.output.mkdir(parents=True, exist_ok=True)
    sweeps: dict[str, list[Point]] = {}
    known: dict[Setting, Point] = {}
    with cache_folder(args.cache) as cache:
        sweeps["rows"] = sweep_rows(shapes, repeats, flags, cache)
        for name in values:
            sweeps[name] = sweep_training(name, values[name], base, args.repeats + 1, device, cache, known)
    result: dict[str, Any] = {
        "repeats": args.repeats,
        "base": asdict(base),
        "sweeps": {name: {"slope": slope(points), "points": points} for name, points in sweeps.items()},
    }
    result["sweeps"]["rows"]["memory_slope"] = slope(sweeps["rows"], "peak_pss_bytes")
    write_result(args.output / "scaling.json", result, draw_scaling)


def _tenfold(shape: Shape) -> list[Shape]:
    """A tenth of the rows, all, and ten times as many, with users in proportion."""
    tenth = Shape(max(1, shape.users // 10), shape.items, max(1, shape.rows // 10))
    return [tenth, shape, Shape(shape.users * 10, shape.items, shape.rows * 10)]
