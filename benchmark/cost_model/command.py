"""`python -m benchmark cost-model`: upper bounds on GPU samples/s, from operator counts and datasheets.

A model, not a measurement: nothing here runs on a GPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmark.common.machine import describe_machine
from benchmark.common.result import redraw
from benchmark.cost_model.bounds import MACHINES, PRECISIONS, REFERENCE, Streams, all_reduce_bytes, bound
from benchmark.cost_model.cost import Cost
from benchmark.cost_model.host_time import OPERATOR_S, PARTITIONS, epoch, partition
from benchmark.cost_model.plot import draw_cost_model
from benchmark.cost_model.realistic import realistic
from benchmark.cost_model.scaling import CLUSTERS, SIZES, scaling
from benchmark.training import variants as settings
from preprocessing.synthetic.log import Shape, parse_shape
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.common.progress import console

_LABEL = "a model of counted operators and datasheets, not a measurement on a GPU"
_DEVICES = 8
_PROGRAMS = {
    "plain training": "reference's way",
    "training": "torch step",
    "fused training": "fused step",
    "inference": "inference",
    "evaluation": "evaluation",
    "preprocessing": "preprocessing, rows",
}
_UNSHOWN = {("evaluation", "tf32"), *(("preprocessing", name) for name in PRECISIONS)}  # always float32; own table
# Precisions of the products of a counted step.
_PRODUCTS = {"fp32": ("fp32", "tf32"), "tf32": ("tf32",), "amp": ("amp",)}
_QUICK = {"size": 512, "mib": 16}  # matrix size and memory used to measure rates
_LEAST = 1000  # samples per device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="ml-20m", metavar="SHAPE", help="ml-20m, small or USERSxITEMSxROWS")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[65_536, 1 << 20], metavar="N", help="total over all devices"
    )
    parser.add_argument("--quick", action="store_true", help="smoke test with a small shape and batch")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/cost-model"), metavar="DIR")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, "cost-model.json", {"label", "shape", "bounds", "counts", "this_machine"}, draw_cost_model)
        return
    least = _LEAST * _DEVICES
    shape, sizes = (parse_shape("small"), [least]) if args.quick else (parse_shape(args.shape), args.batch_sizes)
    if min(sizes) < least:
        raise UserError(f"--batch_sizes should be {least:,} or more, got {min(sizes)}")
    args.output.mkdir(parents=True, exist_ok=True)
    result = _result(shape, sizes, args.quick)
    target = args.output / "cost-model.json"
    write_json(target, result)
    draw_cost_model(result, target.with_suffix(".png"))
    _show(result)
    console.print(f"wrote {target} and its plot")


def _result(shape: Shape, batch_sizes: Sequence[int], quick: bool) -> dict[str, Any]:
    from benchmark.cost_model.check import check_on_this_machine  # imports torch

    programs = list(_programs(shape, batch_sizes))
    return {
        "label": _LABEL,
        "machine": describe_machine(),
        "command": f"python -m benchmark {shlex.join(sys.argv[1:])}",
        "shape": asdict(shape),
        "network": {"factors": settings.FACTORS, "layers": settings.LAYERS, "dropout": settings.DROPOUT},
        "negatives": settings.NEGATIVES,
        "machines": {name: {**asdict(machine), "draws_per_s": None} for name, machine in MACHINES.items()},
        "counts": [program.to_json() for program in programs],
        "bounds": [found for program in programs for found in _bounds(program)],
        "operator_s": OPERATOR_S,
        "partitions": list(_partitions(programs)),
        "epochs": list(_epochs(programs, shape, max(batch_sizes))),
        "scaling": [
            {"size": name, "batch_size": size, "devices": devices, **scaling(users, items, size, devices)}
            for name, (users, items) in SIZES.items()
            for size, devices in CLUSTERS
        ],
        "this_machine": check_on_this_machine(shape, min(batch_sizes), **(_QUICK if quick else {})),
    }


@dataclass(frozen=True, kw_only=True)
class _Program:
    """Costs per unit, counted on one device.

    Attributes:
        precision: "fp32", "tf32" or "amp".
        batch_size: total over all devices; None if not applicable.
    """

    program: str
    precision: str
    stages: Mapping[str, Mapping[str, Cost]]
    streams: Streams
    batch_size: int | None = None
    devices: int = 1
    unit: str = "sample"

    def to_json(self) -> dict[str, Any]:
        """Adds the total of each stage."""
        known = asdict(self)
        for stage, operators in self.stages.items():
            total = asdict(Cost.sum(operators.values()))
            known["stages"][stage] = {"total": total, "operators": known["stages"][stage]}
        return known


def _programs(shape: Shape, batch_sizes: Sequence[int]) -> Iterator[_Program]:
    from benchmark.cost_model import stages as stages
    from benchmark.cost_model.fused import count_fused

    batches, plain_batches = stages.count_batches(shape), stages.count_plain_batches(shape)
    gradient_bytes, early_bytes = 4.0 * stages.parameters(shape), 4.0 * settings.FACTORS * (shape.users + shape.items)
    for precision in ("fp32", "amp"):
        for size, devices in product(batch_sizes, (1, _DEVICES)):
            own = size // devices
            exchanged = all_reduce_bytes(gradient_bytes, devices) / own
            for name, plain, before in (("training", False, batches), ("plain training", True, plain_batches)):
                step = stages.count_training(shape, own, precision, plain)
                yield _Program(
                    program=name,
                    precision=precision,
                    stages={**before.stages, **step.stages},
                    streams=Streams(before.host_bytes, exchanged),
                    batch_size=size,
                    devices=devices,
                )
        for size, devices in product(batch_sizes, (1, _DEVICES)):
            own, fused_precision = size // devices, "amp" if precision == "amp" else "tf32"
            yield _Program(
                program="fused training",
                precision=fused_precision,
                stages=count_fused(shape, own, fused_precision, devices).stages,
                # A reduce-scatter and an all-gather move what an all-reduce does; that of GMF's gradients leaves early.
                streams=Streams(
                    exchanged_bytes=all_reduce_bytes(gradient_bytes, devices) / own,
                    early_bytes=all_reduce_bytes(early_bytes, devices) / 2 / own,
                ),
                batch_size=size,
                devices=devices,
            )
        largest = max(batch_sizes)
        found = stages.count_inference(shape, largest, precision)
        yield _Program(
            program="inference", precision=precision, stages=found.stages, streams=Streams(), batch_size=largest
        )
    for name, count in (("evaluation", stages.count_evaluation), ("preprocessing", stages.count_preprocessing)):
        found = count(shape)
        streams = Streams(found.host_bytes)
        yield _Program(program=name, precision="fp32", stages=found.stages, streams=streams, unit=found.unit)


def _bounds(program: _Program) -> Iterator[dict[str, Any]]:
    """Bounds and realistic figures on every machine; float32 products also as TF32."""
    name, size, devices = program.program, program.batch_size, program.devices
    for precision, (machine, datasheet) in product(_PRODUCTS[program.precision], MACHINES.items()):
        # The fused step's few float32 products are TF32 in mixed precision, too.
        rate = "tf32" if name == "fused training" else precision
        found = {
            "machine": machine,
            "program": name,
            "precision": precision,
            "batch_size": size,
            "devices": devices,
            **bound(program.stages, program.streams, datasheet, rate, devices),
            "published_samples_per_s": REFERENCE.get((name, machine, size, devices, precision)),
        }
        if size is not None:
            step = (program.stages, program.streams, datasheet, rate, size // devices, devices)
            found["realistic_samples_per_s"] = realistic(*step)
            found["realistic_with_graphs_samples_per_s"] = realistic(*step, graphs=True)
        yield found


def _partitions(programs: Sequence[_Program]) -> Iterator[dict[str, Any]]:
    """Preprocessing on every machine, by size of the partitions."""
    (found,) = (each for each in programs if each.program == "preprocessing")
    for (name, machine), rows in product(MACHINES.items(), PARTITIONS):
        yield {"machine": name, "rows": rows, **partition(found.stages, found.streams.host_bytes, machine, rows)}


def _epochs(programs: Sequence[_Program], shape: Shape, batch_size: int) -> Iterator[dict[str, Any]]:
    """Epochs of the torch step on every machine."""
    (evaluation,) = (each for each in programs if each.program == "evaluation")
    for program in programs:
        if (program.program, program.batch_size) == ("training", batch_size):
            exchange = Streams(exchanged_bytes=program.streams.exchanged_bytes)
            for precision, (name, machine) in product(_PRODUCTS[program.precision], MACHINES.items()):
                sample_s = 1.0 / bound(program.stages, exchange, machine, precision)["serial_samples_per_s"]
                yield {
                    "machine": name,
                    "precision": precision,
                    "devices": program.devices,
                    "batch_size": batch_size,
                    **epoch(
                        *(program.stages, evaluation.stages, sample_s, machine),
                        *((shape.users, shape.rows), batch_size, program.devices),
                    ),
                }


def _show(result: Mapping[str, Any]) -> None:
    """Print serial bounds and realistic figures at the largest batch size, and the model's accuracy on this machine."""
    size = max(each["batch_size"] or 0 for each in result["bounds"])
    rows: dict[tuple[str, str, str], list[str]] = {}
    for found in result["bounds"]:
        if found["batch_size"] in (size, None) and (found["program"], found["precision"]) not in _UNSHOWN:
            what = (found["program"], found["precision"], str(found["devices"]))
            rows.setdefault(what, []).append(_cell(found))
    table = Table("million/s: at most, realistic", "", "devices", *MACHINES)
    for program, precision, devices in sorted(rows, key=lambda what: (list(_PROGRAMS).index(what[0]), what[2])):
        table.add_row(_PROGRAMS[program], precision, devices, *rows[program, precision, devices])
    console.print(table)
    sizes = Table(f"interactions/s, by rows of a partition (a launch takes {1e6 * OPERATOR_S:.0f} µs)", *MACHINES)
    for rows_each in PARTITIONS:
        speeds = [each["interactions_per_s"] for each in result["partitions"] if each["rows"] == rows_each]
        sizes.add_row(f"{rows_each:,}", *(f"{speed / 1e6:,.0f} million" for speed in speeds))
    console.print(sizes)
    console.print(f"Not measured: {result['label']}. In brackets: NVIDIA's published figures for its own program.")
    for name in ("torch step", "plain step"):
        found = result["this_machine"][name]
        console.print(
            f"This CPU, one thread, {name}: predicted {found['predicted_samples_per_s']:,.0f}, measured "
            f"{found['measured_samples_per_s']:,.0f} samples/s, {found['predicted_over_measured']:.2f} ×"
        )


def _cell(found: Mapping[str, Any]) -> str:
    """The bound, below it the realistic figure (the published one), in millions per second."""
    likely, published = found.get("realistic_samples_per_s"), found["published_samples_per_s"]
    shown = f"{found['serial_samples_per_s'] / 1e6:,.1f}" + (f"\n{likely / 1e6:,.1f}" if likely else "")
    return shown + (f" ({published / 1e6:.1f})" if published else "")
