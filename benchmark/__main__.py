"""`python -m benchmark NAME`: run one of the measurements."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from workflows.errors import run_command

# Each is a module of this package with `add_arguments` and `main`. Only the one that is named is imported: others may
# need what a machine that is measured does not have.
_MEASUREMENTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "cost-model": (
        "what GPUs could reach at most, from counted operators and datasheets",
        lambda: import_module("benchmark.cost_model"),
    ),
    "demo": (
        "MovieLens-100K from log to recommendations, with a table of results",
        lambda: import_module("benchmark.demo"),
    ),
    "gpu-check": (
        "all that only a GPU can tell: tests, parity with a CPU, traces, speed",
        lambda: import_module("benchmark.gpu_check"),
    ),
    "inference": (
        "scoring by batch size: torch, compiled, ONNX Runtime and projections",
        lambda: import_module("benchmark.inference"),
    ),
    "pipeline": (
        "raw log to prepared folder, against plain pandas: time, memory, growth",
        lambda: import_module("benchmark.pipeline"),
    ),
    "quality": (
        "HR@10 and NDCG@10 of the recipe, its parts, plain NeuMF and closed forms",
        lambda: import_module("benchmark.quality"),
    ),
    "recommend": (
        "recommendations, against a plain forward over all items: users/s, memory",
        lambda: import_module("benchmark.recommend"),
    ),
    "serve": (
        "a service under load from many clients: requests/s, latency",
        lambda: import_module("benchmark.serve"),
    ),
    "training": (
        "training, against the reference's way of it: samples/s, memory, bounds",
        lambda: import_module("benchmark.training"),
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
        parser.parse_args()  # says what is wrong, or helps
    name = sys.argv[1]
    measurement = _MEASUREMENTS[name][1]()
    measurement.add_arguments(parsers[name])
    measurement.main(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
