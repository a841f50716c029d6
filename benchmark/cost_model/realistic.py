"""What a step may reach in practice: the times of `benchmark.cost_model.bounds` at usual efficiencies. No torch.

A model, not a measurement: efficiencies are what others measured on such GPUs, or assumed. NVIDIA's published figures
for its own program check them (docs/cost-model.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmark.cost_model.bounds import Machine, Streams, exchange_s
from benchmark.cost_model.cost import Cost
from benchmark.cost_model.host_time import OPERATOR_S, launches

# Shares of the datasheets' rates; docs/cost-model.md has the sources.
STREAMED = 0.80  # memory: copies reach 1,355 of 1,555 GB/s on an A100, 2,573 of 3,350 on an H100
GATHERED = 0.60  # memory, rows of 128 to 1,024 bytes at random places or with atomic additions; assumed
PRODUCTS = 0.60  # matrix products, here of 64 to 256 columns; assumed
ISSUED = 0.40  # instructions: a tile's registers leave three warps a scheduler, which wait for their operands; assumed
LINKED = 0.75  # NCCL: 232 of 300 GB/s on eight A100s for gigabytes, somewhat less for the 127 MB of a step
HOST_LINKED = 0.80  # copies from pinned memory: 25 of 32 GB/s
TOGETHER = 0.80  # several devices: NVIDIA's program on eight A100s, against what the rest of this model expects of it
GAP_S = 2e-6  # from a kernel's last results to the next one's full speed, in a graph too; assumed

ROW_OPERATORS = {
    *("index_select", "index_add_", "embedding", "embedding_dense_backward"),
    *("gather_rows", "segment_sum"),
}

Stages = Mapping[str, Mapping[str, Cost]]


def realistic(
    stages: Stages,
    streams: Streams,
    machine: Machine,
    precision: str,
    batch: int,
    devices: int = 1,
    graphs: bool = False,
) -> float:
    """Samples/s over all devices.

    The device's operators run one after another, while the host launches later ones and copies rows: the slowest of the
    three sets the pace. Then gradients are exchanged, except for those that leave early, beside later operators.

    Args:
        stages: costs per sample of a device, with the calls of a step.
        batch: samples of a step on each device.
        graphs: whether the host launches a step at once.
    """
    stages_s = {
        name: sum(_seconds(operator, cost, machine, precision) for operator, cost in operators.items())
        for name, operators in stages.items()
    }
    gaps_s = GAP_S * launches(stages) / batch
    launched_s = OPERATOR_S * (1 if graphs else launches(stages)) / batch
    copied_s = streams.host_bytes / (1e9 * machine.host_gb_per_s * HOST_LINKED)
    exchanged_s = exchange_s(streams, stages_s, machine.link_gb_per_s * LINKED)
    together = TOGETHER if devices > 1 else 1.0
    return together * devices / (max(sum(stages_s.values()) + gaps_s, launched_s, copied_s) + exchanged_s)


def _seconds(operator: str, cost: Cost, machine: Machine, precision: str) -> float:
    memory = GATHERED if operator in ROW_OPERATORS else STREAMED
    return max(
        machine.memory_s(cost) / memory,
        machine.arithmetic_s(cost, precision) / PRODUCTS,
        machine.issue_s(cost) / ISSUED,
    )
