"""`python -m benchmark NAME`: run one of the measurements."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from benchmark import cost_model, demo, gpu_check, inference, pipeline, quality, recommend, serve, training
from workflows.errors import run_command


@dataclass(frozen=True)
class _Command:
    """A measurement: what it is, how it runs, and which flags it takes."""

    explanation: str
    run: Callable[[argparse.Namespace], None]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


_COMMANDS = {
    "cost-model": _Command(
        "what GPUs could reach at most, from counted operators and datasheets",
        cost_model.main,
        cost_model.add_arguments,
    ),
    "demo": _Command("MovieLens-100K from log to recommendations, with a table of results", lambda args: demo.main()),
    "inference": _Command(
        "scoring by batch size: torch, compiled, ONNX Runtime and projections", inference.main, inference.add_arguments
    ),
    "pipeline": _Command(
        "raw log to prepared folder, against plain pandas: time, memory, growth", pipeline.main, pipeline.add_arguments
    ),
    "quality": _Command(
        "HR@10 and NDCG@10 of the recipe, its parts, plain NeuMF and closed forms", quality.main, quality.add_arguments
    ),
    "recommend": _Command(
        "recommendations, against a plain forward over all items: users/s, memory",
        recommend.main,
        recommend.add_arguments,
    ),
    "serve": _Command("a service under load from many clients: requests/s, latency", serve.main, serve.add_arguments),
    "training": _Command(
        "training, against the reference's way of it: samples/s, memory, bounds", training.main, training.add_arguments
    ),
    "gpu-check": _Command(
        "all that only a GPU can tell: tests, parity with a CPU, traces, speed", gpu_check.main, gpu_check.add_arguments
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark", allow_abbrev=False)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, command in _COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.explanation, allow_abbrev=False))
    args = parser.parse_args()
    _COMMANDS[args.name].run(args)


if __name__ == "__main__":
    run_command(main)
