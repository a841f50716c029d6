"""`python -m benchmark NAME`: run one benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from workflows.common.errors import run_command

# Each benchmark is a module with `add_arguments` and `main`. Only the selected one is imported: the others may need
# packages that are missing on the machine being measured.
_MEASUREMENTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "all": (
        "every part of the suite, as JSONs and one page",
        lambda: import_module("benchmark.suite.command"),
    ),
    "compare": (
        "two folders of results: what got worse beyond noise",
        lambda: import_module("benchmark.suite.compare"),
    ),
    "cost-model": (
        "upper bounds on GPU throughput, from operator counts and datasheets",
        lambda: import_module("benchmark.cost_model.command"),
    ),
    "demo": (
        "MovieLens-100K from log to recommendations, with a table of results",
        lambda: import_module("benchmark.demo"),
    ),
    "gpu-check": (
        "all checks that need a GPU: tests, parity with the CPU, traces, speed",
        lambda: import_module("benchmark.gpu_check.command"),
    ),
    "inference": (
        "scoring speed by batch size: torch, compiled, ONNX Runtime, projections",
        lambda: import_module("benchmark.inference.command"),
    ),
    "loader": (
        "loading epochs without training: rows/s, negatives/s, samples/s",
        lambda: import_module("benchmark.loader.command"),
    ),
    "peers": (
        "other recommenders and ours, ranked by the same code: quality, speed, time to quality",
        lambda: import_module("benchmark.peers.command"),
    ),
    "pipeline": (
        "raw log to prepared folder, against plain pandas: time, memory",
        lambda: import_module("benchmark.pipeline.command"),
    ),
    "quality": (
        "HR@10 and NDCG@10 of the recipe, ablations, plain NeuMF and baselines",
        lambda: import_module("benchmark.quality.command"),
    ),
    "recommend": (
        "recommendation, against a plain forward over all items: users/s, memory",
        lambda: import_module("benchmark.recommend.command"),
    ),
    "scaling": (
        "growth with rows, users, items, width and processes, with slopes",
        lambda: import_module("benchmark.scaling.command"),
    ),
    "serve": (
        "load test of the service with many clients: requests/s, latency",
        lambda: import_module("benchmark.serve"),
    ),
    "training": (
        "training, against the reference's method: samples/s, memory, bounds",
        lambda: import_module("benchmark.training.command"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="name", required=True)
    parsers = {
        name: subparsers.add_parser(name, help=explanation, allow_abbrev=False)
        for name, (explanation, _) in _MEASUREMENTS.items()
    }
    if len(sys.argv) < 2 or sys.argv[1] not in parsers:
        parser.parse_args()  # prints the error or the help text
    name = sys.argv[1]
    measurement = _MEASUREMENTS[name][1]()
    measurement.add_arguments(parsers[name])
    measurement.main(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
