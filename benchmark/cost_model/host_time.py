"""What the bounds of operators leave out: launches, copies, the start of an epoch, evaluation. By formula; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmark.cost_model.bounds import Machine
from benchmark.cost_model.cost import Cost
from benchmark.training import variants as settings

OPERATOR_S = 10e-6  # assumed: what the host needs to launch one operator from Python
PARTITIONS = (150_000, 16 << 20, 64 << 20)  # rows: a CPU's partition, and a GPU's
SERIES = 101  # candidates of a test series
_BLOCK_ROWS, _ROW_BYTES = 1 << 20, 12  # a streamed block: user, item, label
# Stages whose calls are those of a step; the loader's run once for many steps.
EACH_STEP = {"batch", "gather", "forward", "backward", "tiles", "products", "optimizer"}

Stages = Mapping[str, Mapping[str, Cost]]


def launches(step: Stages) -> int:
    """Operators that the host launches in a step."""
    return sum(cost.calls for stage, operators in step.items() if stage in EACH_STEP for cost in operators.values())


def partition(stages: Stages, host_bytes: float, machine: Machine, rows: int) -> dict[str, float]:
    """Seconds to prepare a partition, and interactions/s: kernels, launches and copies one after another.

    Args:
        stages: costs per interaction, with the calls of a partition.
        host_bytes: between host and device, per interaction.
    """
    costs = [cost for operators in stages.values() for cost in operators.values()]
    found = {
        "kernels_s": rows * sum(machine.memory_s(cost) for cost in costs),
        "launches_s": OPERATOR_S * sum(cost.calls for cost in costs),
        "copies_s": rows * host_bytes / (1e9 * machine.host_gb_per_s),
    }
    return {**found, "interactions_per_s": rows / sum(found.values())}


def epoch(
    step: Stages,
    evaluation: Stages,
    sample_s: float,
    machine: Machine,
    shape: tuple[int, int],
    batch: int,
    devices: int,
) -> dict[str, float]:
    """Seconds of an epoch's parts, and samples/s of training in it.

    Launches overlap with the kernels of earlier operators, as do copies of streamed rows, so the slowest of the three
    sets the pace; but the first step waits for the first block of rows.

    Args:
        step: costs per sample of a device, with the calls of a step.
        evaluation: costs per candidate, in float32.
        sample_s: device time per sample, including the exchange between devices.
        shape: users (with a test series each) and interactions.
        batch: samples over all devices.
    """
    users, rows = shape
    samples = rows * (1 + settings.NEGATIVES)
    steps, own_rows = math.ceil(samples / batch), rows / devices
    outside_graph = 1 + sum(cost.calls for cost in step["optimizer"].values())
    candidate_s = sum(machine.seconds(cost, "fp32") for costs in evaluation.values() for cost in costs.values())
    copied_s = _ROW_BYTES / (1e9 * machine.host_gb_per_s)
    found = {
        "steps": steps,
        "kernels_s": samples / devices * sample_s,
        "launches_s": OPERATOR_S * launches(step) * steps,
        "graph_launches_s": OPERATOR_S * outside_graph * steps,  # with --cuda-graphs
        "streamed_copies_s": own_rows * copied_s,
        "streamed_start_s": min(own_rows, _BLOCK_ROWS) * copied_s,
        "evaluation_s": users * SERIES / devices * candidate_s,
    }
    resident_s = max(found["kernels_s"], found["launches_s"])
    streamed_s = found["streamed_start_s"] + max(resident_s, found["streamed_copies_s"])
    return {
        **found,
        "resident_samples_per_s": samples / resident_s,
        "streamed_samples_per_s": samples / streamed_s,
        "resident_with_evaluation_s": resident_s + found["evaluation_s"],
    }
