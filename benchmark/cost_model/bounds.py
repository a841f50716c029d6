"""Machine datasheets, and the upper bounds on samples/s that they imply for counted operators. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.cost_model.cost import Cost

PRECISIONS = ("fp32", "tf32", "amp")
LAYERS_STAGES = {"forward", "backward"}  # the network without gathers


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates of a device, from its datasheet or measured.

    Attributes:
        memory_gb_per_s: device memory bandwidth, reads plus writes.
        fp32_tflops, tf32_tflops, half_tflops: dense matrix products (without sparsity).
        host_gb_per_s: host to device.
        link_gb_per_s: one device to the others, in one direction.
        draws_per_s: random numbers; on a GPU their memory traffic takes longer.
        source: source of the figures.
    """

    memory_gb_per_s: float
    fp32_tflops: float
    tf32_tflops: float
    half_tflops: float
    host_gb_per_s: float
    link_gb_per_s: float
    source: str
    draws_per_s: float = math.inf

    def seconds(self, cost: Cost, precision: str) -> float:
        """Minimum time of an operator: its memory or its arithmetic time, whichever is longer."""
        return max(self.memory_s(cost), self.arithmetic_s(cost, precision))

    def memory_s(self, cost: Cost) -> float:
        return cost.bytes / (1e9 * self.memory_gb_per_s)

    def arithmetic_s(self, cost: Cost, precision: str) -> float:
        full = self.tf32_tflops if precision == "tf32" else self.fp32_tflops
        products_s = cost.fp32_flops / (1e12 * full) + cost.half_flops / (1e12 * self.half_tflops)
        return products_s + cost.draws / self.draws_per_s


# Datasheets count both directions of NVLink and PCI Express; these figures are for one. Rates given "with sparsity" are
# halved.
MACHINES = {
    "A100": Machine(
        memory_gb_per_s=1555,
        fp32_tflops=19.5,
        tf32_tflops=156,
        half_tflops=312,
        host_gb_per_s=32,
        link_gb_per_s=300,
        source="NVIDIA A100 Tensor Core GPU datasheet and Ampere architecture white paper: SXM4, 40 GB",
    ),
    "H100": Machine(
        memory_gb_per_s=3350,
        fp32_tflops=67,
        tf32_tflops=494.7,
        half_tflops=989.4,
        host_gb_per_s=64,
        link_gb_per_s=450,
        source="NVIDIA H100 Tensor Core GPU datasheet and Hopper architecture white paper: SXM5, 80 GB",
    ),
    "H200": Machine(
        memory_gb_per_s=4800,
        fp32_tflops=67,
        tf32_tflops=494.7,
        half_tflops=989.4,
        host_gb_per_s=64,
        link_gb_per_s=450,
        source="NVIDIA H200 Tensor Core GPU datasheet: SXM, 141 GB",
    ),
    "B200": Machine(
        memory_gb_per_s=8000,
        fp32_tflops=80,
        tf32_tflops=1100,
        half_tflops=2250,
        host_gb_per_s=64,
        link_gb_per_s=900,
        source="NVIDIA Blackwell architecture technical brief: HGX B200; PCI Express 5 to the host",
    ),
}

# Samples/s that NVIDIA published for its own program (NCF for PyTorch, DGX A100 with 40 GB devices).
REFERENCE: dict[tuple[str, str, int | None, int, str], float] = {
    ("plain training", "A100", 1 << 20, 1, "tf32"): 22.6e6,
    ("plain training", "A100", 1 << 20, 1, "amp"): 34.1e6,
    ("plain training", "A100", 1 << 20, 8, "tf32"): 110e6,
    ("plain training", "A100", 1 << 20, 8, "amp"): 143e6,
    ("inference", "A100", 1 << 20, 1, "tf32"): 57.5e6,
    ("inference", "A100", 1 << 20, 1, "amp"): 82.7e6,
}


@dataclass(frozen=True)
class Streams:
    """Link traffic of a device in bytes per sample: from the host, and to other devices."""

    host_bytes: float = 0.0
    exchanged_bytes: float = 0.0


def bound(
    stages: Mapping[str, Mapping[str, Cost]], streams: Streams, machine: Machine, precision: str, devices: int = 1
) -> dict[str, Any]:
    """Upper bounds on the program's samples/s over all devices.

    serial: operators and link transfers run one after another, each operator limited by memory or by arithmetic.
    overlapped: memory, arithmetic and links of a device all run concurrently without stalls; the busiest is the bound.
    fused: serial, with the other operators of the network's layers fused into its matrix products, so that only the
    products' inputs and results go through memory.

    Args:
        stages: costs per sample of a device.
    """
    costs = [cost for operators in stages.values() for cost in operators.values()]
    stages_s = {
        name: sum(machine.seconds(cost, precision) for cost in operators.values()) for name, operators in stages.items()
    }
    stages_s |= {
        "host link": streams.host_bytes / (1e9 * machine.host_gb_per_s),
        "exchange": streams.exchanged_bytes / (1e9 * machine.link_gb_per_s),
    }
    fused_s = sum(stages_s.values()) - sum(
        machine.seconds(cost, precision)
        for name in LAYERS_STAGES & stages.keys()
        for cost in stages[name].values()
        if not cost.fp32_flops + cost.half_flops
    )
    resources_s = {
        "memory": sum(map(machine.memory_s, costs)),
        "arithmetic": sum(machine.arithmetic_s(cost, precision) for cost in costs),
        "host link": stages_s["host link"],
        "exchange": stages_s["exchange"],
    }
    return {
        "serial_samples_per_s": devices / sum(stages_s.values()),
        "overlapped_samples_per_s": devices / max(resources_s.values()),
        "fused_samples_per_s": devices / fused_s,
        "busiest": max(resources_s, key=lambda name: resources_s[name]),
        "stages_ns": {name: 1e9 * seconds for name, seconds in stages_s.items()},
    }


def all_reduce_bytes(size_bytes: float, devices: int) -> float:
    """Bytes that each device sends, and receives, in a ring all-reduce of a tensor; this is the minimum."""
    return 2.0 * size_bytes * (devices - 1) / devices
