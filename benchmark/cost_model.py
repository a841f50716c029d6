"""`python -m benchmark cost-model`: samples/s that GPUs could reach, from counted operators and datasheets.

A model, not a measurement: nothing here runs on a GPU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmark import training_variants as settings
from benchmark.cost_model_bounds import MACHINES, PRECISIONS, REFERENCE, Streams, all_reduce_bytes, bound
from benchmark.cost_model_cost import Cost
from benchmark.cost_model_plot import draw_cost_model
from benchmark.cost_model_scaling import CLUSTERS, SIZES, scaling
from benchmark.machine import describe_machine
from preprocessing.synthetic import Shape, parse_shape
from workflows.errors import UserError
from workflows.folders import write_json
from workflows.progress import console

_LABEL = "a model of counted operators and datasheets, not a measurement on a GPU"
_DEVICES = 8
_COLUMNS = (
    ("plain training", "tf32"),
    ("plain training", "amp"),
    ("training", "tf32"),
    ("training", "amp"),
    ("inference", "tf32"),
    ("inference", "amp"),
    ("evaluation", "fp32"),
    ("preprocessing", "fp32"),
)
_LEAST = 1000  # samples of a device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="ml-20m", metavar="SHAPE", help="ml-20m, small or USERSxITEMSxROWS")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[65_536, 1 << 20], metavar="N", help="over all devices"
    )
    parser.add_argument("--quick", action="store_true", help="a small shape and batch, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/cost-model"), metavar="DIR")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only draw the picture of a result")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        picture = args.draw.with_suffix(".png")
        draw_cost_model(_read_result(args.draw), picture)
        console.print(f"wrote {picture}")
        return
    least = _LEAST * _DEVICES
    shape, sizes = (parse_shape("small"), [least]) if args.quick else (parse_shape(args.shape), args.batch_sizes)
    if min(sizes) < least:
        raise UserError(f"--batch_sizes should be {least:,} or more, got {min(sizes)}")
    args.output.mkdir(parents=True, exist_ok=True)
    from benchmark.cost_model_check import check_on_this_machine  # it loads torch

    counted = list(_counts(shape, sizes))
    result: dict[str, Any] = {
        "label": _LABEL,
        "machine": describe_machine(),
        "command": f"python -m benchmark {shlex.join(sys.argv[1:])}",
        "shape": asdict(shape),
        "network": {"factors": settings.FACTORS, "layers": settings.LAYERS, "dropout": settings.DROPOUT},
        "negatives": settings.NEGATIVES,
        "machines": {name: {**asdict(machine), "draws_per_s": None} for name, machine in MACHINES.items()},
        "counts": [_described(each) for each in counted],
        "bounds": [found for each in counted for found in _bounds(each)],
        "scaling": [
            {"size": name, "batch_size": size, "devices": devices, **scaling(users, items, size, devices)}
            for name, (users, items) in SIZES.items()
            for size, devices in CLUSTERS
        ],
        "this_machine": check_on_this_machine(shape, min(sizes), **({"size": 512, "mib": 16} if args.quick else {})),
    }
    target = args.output / "cost-model.json"
    write_json(target, result)
    draw_cost_model(result, target.with_suffix(".png"))
    _show(result)
    console.print(f"wrote {target} and its picture")


def _counts(shape: Shape, batch_sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Each program: what it is, its stages, and what goes over its links."""
    from benchmark import cost_model_stages as stages

    batches, plain_batches = stages.count_batches(shape), stages.count_plain_batches(shape)
    gradient_bytes = 4.0 * stages.parameters(shape)
    what: dict[str, Any]
    for precision in ("fp32", "amp"):
        for size in batch_sizes:
            for devices in (1, _DEVICES):
                own = size // devices
                exchanged = all_reduce_bytes(gradient_bytes, devices) / own
                what = {"precision": precision, "batch_size": size, "devices": devices}
                for program, plain, before in (("training", False, batches), ("plain training", True, plain_batches)):
                    step = stages.count_training(shape, own, precision, plain)
                    streams = Streams(before.host_bytes, exchanged)
                    yield {"program": program, **what, "stages": {**before.stages, **step.stages}, "streams": streams}
        inference = stages.count_inference(shape, max(batch_sizes), precision)
        what = {"precision": precision, "batch_size": max(batch_sizes), "devices": 1}
        yield {"program": "inference", **what, "stages": inference.stages, "streams": Streams()}
    for program, found in (
        ("evaluation", stages.count_evaluation(shape)),
        ("preprocessing", stages.count_preprocessing(shape)),
    ):
        what = {"precision": "fp32", "batch_size": None, "devices": 1}
        yield {"program": program, **what, "stages": found.stages, "streams": Streams(found.host_bytes)}


def _described(counted: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON: of each stage the sums per sample, and each operator's."""
    stages = {
        stage: {
            "total": asdict(Cost.sum(operators.values())),
            "operators": {name: asdict(cost) for name, cost in operators.items()},
        }
        for stage, operators in counted["stages"].items()
    }
    return {**counted, "stages": stages, "streams": asdict(counted["streams"])}


def _bounds(counted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """On every machine; products of float32 also as TF32."""
    what = {name: counted[name] for name in ("program", "batch_size", "devices")}
    for precision in PRECISIONS:
        if (precision == "amp") == (counted["precision"] == "amp"):
            for name, machine in MACHINES.items():
                found = bound(counted["stages"], counted["streams"], machine, precision, counted["devices"])
                published = REFERENCE.get((what["program"], name, what["batch_size"], what["devices"], precision))
                yield {"machine": name, "precision": precision, **what, **found, "published_samples_per_s": published}


def _show(result: Mapping[str, Any]) -> None:
    """The bounds at the largest batch size, one operator after the other, and how the model does on this machine."""
    size = max(each["batch_size"] or 0 for each in result["bounds"])
    table = Table("million/s at most", *(f"{program}, {precision}" for program, precision in _COLUMNS))
    for devices in (1, _DEVICES):
        for machine in MACHINES:
            cells = []
            for program, precision in _COLUMNS:
                what = (machine, devices, program, precision)
                found = [
                    each
                    for each in result["bounds"]
                    if (each["machine"], each["devices"], each["program"], each["precision"]) == what
                    and each["batch_size"] in (size, None)
                ]
                cells += [_cell(found[0]) if found else ""]
            table.add_row(f"{devices} × {machine}", *cells)
    console.print(table)
    console.print(f"Not measured: {result['label']}. In brackets: what NVIDIA published for its program.")
    for name in ("torch step", "plain step"):
        found = result["this_machine"][name]
        console.print(
            f"This CPU, one thread, {name}: predicted {found['predicted_samples_per_s']:,.0f}, measured "
            f"{found['measured_samples_per_s']:,.0f} samples/s, {found['predicted_over_measured']:.2f} ×"
        )


def _cell(found: Mapping[str, Any]) -> str:
    published = found["published_samples_per_s"]
    return f"{found['serial_samples_per_s'] / 1e6:,.1f}" + (f" ({published / 1e6:.1f})" if published else "")


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UserError(f"{path} is no JSON ({err}); name the cost-model.json that this command wrote") from None
    if not isinstance(result, dict) or not {"label", "shape", "bounds", "counts", "this_machine"} <= result.keys():
        raise UserError(f"{path} is no result of this command; name the cost-model.json that it wrote")
    return result
