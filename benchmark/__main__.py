"""`python -m benchmark NAME`: run one of the measurements."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from workflows.errors import run_command

# Each is a module of this package with `add_arguments` and `main`. Only the one that is named is imported: others may
# need what a machine that is measured does not have.
_MEASUREMENTS = {
    "cost-model": "what GPUs could reach at most, from counted operators and datasheets",
    "demo": "MovieLens-100K from log to recommendations, with a table of results",
    "gpu-check": "all that only a GPU can tell: tests, parity with a CPU, traces, speed",
    "inference": "scoring by batch size: torch, compiled, ONNX Runtime and projections",
    "pipeline": "raw log to prepared folder, against plain pandas: time, memory, growth",
    "quality": "HR@10 and NDCG@10 of the recipe, its parts, plain NeuMF and closed forms",
    "recommend": "recommendations, against a plain forward over all items: users/s, memory",
    "serve": "a service under load from many clients: requests/s, latency",
    "training": "training, against the reference's way of it: samples/s, memory, bounds",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="name", required=True)
    parsers = {
        name: subparsers.add_parser(name, help=explanation, allow_abbrev=False)
        for name, explanation in _MEASUREMENTS.items()
    }
    if len(sys.argv) < 2 or sys.argv[1] not in parsers:
        parser.parse_args()  # says what is wrong, or helps
    name = sys.argv[1]
    measurement = import_module(f"benchmark.{name.replace('-', '_')}")
    measurement.add_arguments(parsers[name])
    measurement.main(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
