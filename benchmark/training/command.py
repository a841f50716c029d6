"""`python -m benchmark training`: samples/s and memory of training, the product against the reference's method."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.common.data import cache_folder, prepared_folder
from benchmark.common.program import json_of
from benchmark.common.result import redraw, write_result
from benchmark.training import variants as settings
from benchmark.training.limits import bounds, counts
from benchmark.training.plot import draw_training
from benchmark.training.throughput import measure_throughput
from benchmark.training.variants import VARIANTS, applies
from preprocessing.synthetic.log import Shape, parse_shape
from workflows.common.errors import UserError
from workflows.common.progress import console
from workflows.device.facts import gpu_memory

_MEASURED = ("samples_per_s", "start_s", "start_share_s", "train_s", "peak_rss_mib")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="ml-20m", metavar="SHAPE", help="ml-20m, small or USERSxITEMSxROWS")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[65_536, 1 << 20], metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="batches per run (default: by --seconds)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="start new batches for this long")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each variant; reports medians")
    parser.add_argument("--threads", type=int, metavar="N", help="of each run (default: one per core)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument(
        "--devices", type=int, nargs="*", metavar="N",
        help="for the table of throughputs: numbers of GPUs, on a CPU of processes (default: 1 and all; CPU: 1 2)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="smoke test with small data, batch and number of steps")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the prepared data here (default: not kept)")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/training"), metavar="DIR")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, "training.json", {"machine", "shape", "threads", "results", "bounds"}, draw_training)
        return
    if args.quick:
        shape, sizes, steps, repeats = parse_shape("small"), [4096], args.steps or 2, 1
    else:
        shape, sizes, steps, repeats = parse_shape(args.shape), args.batch_sizes, args.steps, args.repeats
    n_gpus = len(gpu_memory())
    devices = _devices(args.devices, n_gpus)
    _check(sizes, steps, repeats, args.threads, devices)
    threads = ["--threads", str(args.threads)] if args.threads else []
    args.output.mkdir(parents=True, exist_ok=True)
    with cache_folder(args.cache) as cache:
        data = prepared_folder(shape, cache)
        of_data = ["--data", str(data), *threads]
        loader = json_of("benchmark.training_loader", *of_data, "--batch_size", str(sizes[0]))
        limits = json_of(
            "benchmark.training.limits", *threads, *(["--size", "1024", "--mib", "64"] if args.quick else [])
        )
        throughput = measure_throughput(shape, cache, sizes, devices, n_gpus > 0) if devices else None
        results = []
        for size in sizes:
            names = [name for name in args.variants if applies(name, size)]
            flags = [*of_data, "--batch_size", str(size)]
            flags += ["--steps", str(steps)] if steps else ["--seconds", str(args.seconds)]
            results += _compare(names, size, repeats, flags)
    result: dict[str, Any] = {
        "shape": asdict(shape),
        "repeats": repeats,
        "threads": results[0]["runs"][0]["threads"],
        "network": {"factors": settings.FACTORS, "layers": settings.LAYERS, "dropout": settings.DROPOUT},
        "negatives": settings.NEGATIVES,
        "loader": loader,
        "limits": limits,
        "throughput": throughput,
        "bounds": [_bounds(size, shape, limits, results) for size in sizes],
        "results": results,
    }
    write_result(args.output / "training.json", result, draw_training)


def _devices(asked: Sequence[int] | None, n_gpus: int) -> Sequence[int]:
    """Numbers of devices: those asked for, else one and all GPUs; on a CPU one and two processes."""
    return sorted({1, n_gpus or 2}) if asked is None else asked


def _check(sizes: Sequence[int], steps: int | None, repeats: int, threads: int | None, devices: Sequence[int]) -> None:
    least = 1 + settings.NEGATIVES
    if min(sizes) < least:
        raise UserError(f"--batch_sizes should be {least} or more, got {min(sizes)}")
    for name, value in {
        "repeats": repeats,
        "steps": steps,
        "threads": threads,
        "devices": min(devices, default=None),
    }.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} should be 1 or more, got {value}")


def _compare(names: Sequence[str], size: int, repeats: int, flags: Sequence[str]) -> list[dict[str, Any]]:
    """Run all variants in turn, repeatedly; medians of each, and its ratio to `plain`."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(repeats):
        for name in names:
            run = json_of("benchmark.training.run", "--variant", name, *flags)
            runs[name].append(run)
            speed, memory = f"{run['samples_per_s']:,.0f} samples/s", f"{run['peak_rss_mib']:,.0f} MiB"
            console.print(f"batches of {size:,}, {name}, run {number + 1}: {speed}, {memory}")
    results = [{"batch_size": size, **_summary(name, of_one)} for name, of_one in runs.items()]
    plain = next((result["samples_per_s"] for result in results if result["variant"] == "plain"), None)
    return [{**result, "over_plain": result["samples_per_s"] / plain if plain else None} for result in results]


def _summary(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over runs (also of each stage), and the runs themselves."""
    return {
        "variant": name,
        "what": VARIANTS[name].what,
        **{key: statistics.median(run[key] for run in runs) for key in _MEASURED},
        "stages_s": {stage: statistics.median(run["stages_s"][stage] for run in runs) for stage in runs[0]["stages_s"]},
        "active_units": [
            statistics.median(layer) for layer in zip(*(run["active_units"] for run in runs), strict=True)
        ],
        "runs": list(runs),
    }


def _bounds(size: int, shape: Shape, limits: dict[str, float], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and bounds at a batch size, with the active units measured by its runs."""
    found = [result["active_units"] for result in results if result["batch_size"] == size]
    active = [statistics.median(layer) for layer in zip(*found, strict=True)]
    counted = counts(
        shape.users, shape.items, settings.FACTORS, settings.LAYERS, settings.NEGATIVES, size, active, settings.DROPOUT
    )
    return {"batch_size": size, "active_units": active, "per_sample": counted, "samples_per_s": bounds(counted, limits)}
