"""The parts of `python -m benchmark all`, with the flags of each preset, and the data that they share.

`{data}` is the folder of that data, in the folder `{output}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.common.report import Measured
from benchmark.demo import SETTINGS
from benchmark.inference import report as inference
from benchmark.loader import report as loader
from benchmark.peers import install
from benchmark.peers import report as peers
from benchmark.pipeline import report as pipeline
from benchmark.quality import report as quality
from benchmark.recommend import report as recommend
from benchmark.scaling import report as scaling
from benchmark.training import report as training
from workflows.common.files import read_json

PRESETS = ("quick", "full")


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        what: the question that it answers.
        quick, full: flags of `python -m benchmark NAME`; --output is added.
        report: its tables and figures, see `benchmark.common.report`.
    """

    what: str
    quick: str
    full: str
    report: ModuleType

    def flags(self, preset: str) -> str:
        return self.quick if preset == "quick" else self.full


_QUICK = "20000x10000x1000000"  # users x items x rows
_ML_20M = "138493x26744x20000263"
_NETWORK = "--factors 64 --layers 256 256 128 64 --epochs 1 --batch_size 65536"

# What is made once: (folder, command that makes it), in this order.
DATA: dict[str, dict[str, str]] = {
    "quick": {
        "ml-100k": "-m preprocessing --sample ml-100k --output {data}/ml-100k",
        "run": f"train.py --data {{data}}/ml-100k --output {{data}}/run {SETTINGS} --epochs 3 --seed 1",
    },
    "full": {
        "ml-100k": "-m preprocessing --sample ml-100k --output {data}/ml-100k",
        f"{_ML_20M}-seed1": f"-m preprocessing --synthetic ml-20m --output {{data}}/{_ML_20M}-seed1",
        "run": f"train.py --data {{data}}/{_ML_20M}-seed1 --output {{data}}/run {_NETWORK} --seed 1",
    },
}
PARTS = {
    "pipeline": Part(
        "From a raw log to a prepared folder, against plain pandas",
        quick=f"--rows {_QUICK} --cache {{data}}",
        full="--cache {data}",
        report=pipeline,
    ),
    "loader": Part(
        "Loading epochs without training",
        quick=f"--shape {_QUICK} --cache {{data}}",
        full="--cache {data}",
        report=loader,
    ),
    "training": Part(
        "Training, against the reference's method",
        quick=f"--shape {_QUICK} --batch_sizes 65536 --seconds 2 --variants plain compiled torch --cache {{data}}",
        full="--cache {data}",
        report=training,
    ),
    "inference": Part(
        "Scoring by batch size",
        quick="--batch_sizes 1,16,256,4096,65536 --num_batches 50 --max_samples 100000 --repeats 3",
        full="--max_samples 4000000 --repeats 3",
        report=inference,
    ),
    "recommend": Part(
        "Recommending from all items, against a plain forward pass",
        quick="--run {data}/run --all --plain-users 300",
        full="--run {data}/run",
        report=recommend,
    ),
    "quality": Part(
        "How well the models rank",
        quick="--data {data}/ml-100k --seeds 1 --rows popularity ease neumf recipe",
        full="--data {data}/ml-100k",
        report=quality,
    ),
    "peers": Part(
        "Other recommenders on the same data",
        quick="--data {data}/ml-100k --runs {output}/quality/runs --models neumf implicit-als cornac-bpr --trials 1",
        full="--data {data}/ml-100k --runs {output}/quality/runs --seeds 1 2 3 4 5 --speed ml-20m --cache {data}",
        report=peers,
    ),
    "scaling": Part(
        "Growth with rows, users, items, width and processes",
        quick="--quick --cache {data}",
        full="--cache {data}",
        report=scaling,
    ),
}


def left_out(name: str) -> str:
    """Why a part is not run; empty if it is."""
    if name == "peers" and not any(map(install.python_of, install.peers())):
        return "no other recommender is installed; `make peers` installs them"
    return ""


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """A part's result in the output folder of `all`, or in a folder of results alone; empty if there is none."""
    return read_json(folder / name / f"{name}.json") or read_json(folder / f"{name}.json")


def markdown(name: str, result: dict[str, Any]) -> str:
    """A part's tables."""
    return PARTS[name].report.markdown(result)


def measured(name: str, result: dict[str, Any]) -> list[Measured]:
    """A part's figures; the first is its headline."""
    return PARTS[name].report.measured(result)
