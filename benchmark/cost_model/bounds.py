"""Machine datasheets, and the upper bounds on samples/s that they imply for counted operators. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.cost_model.cost import Cost

PRECISIONS = ("fp32", "tf32", "amp")
LATER_STAGES = {"products"}  # of the fused step: all after the gradients of GMF's tables


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates of a device, from its datasheet or measured.

    Attributes:
        memory_gb_per_s: device memory bandwidth, reads plus writes.
        fp32_tflops, tf32_tflops, half_tflops: dense matrix products (without sparsity).
        host_gb_per_s: host to device.
        link_gb_per_s: one device to the others, in one direction.
        draws_per_s: random numbers; on a GPU their memory traffic takes longer.
        warp_instructions_per_s: four schedulers in each multiprocessor issue one per cycle.
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
    warp_instructions_per_s: float = math.inf

    def seconds(self, cost: Cost, precision: str) -> float:
        """Minimum time of an operator: that of its memory, its arithmetic or its instructions, whichever is longest."""
        return max(self.memory_s(cost), self.arithmetic_s(cost, precision), self.issue_s(cost))

    def memory_s(self, cost: Cost) -> float:
        return cost.bytes / (1e9 * self.memory_gb_per_s)

    def arithmetic_s(self, cost: Cost, precision: str) -> float:
        full = self.tf32_tflops if precision == "tf32" else self.fp32_tflops
        products_s = cost.fp32_flops / (1e12 * full) + cost.half_flops / (1e12 * self.half_tflops)
        return products_s + cost.draws / self.draws_per_s

    def issue_s(self, cost: Cost) -> float:
        return cost.warp_instructions / self.warp_instructions_per_s


def _warp_instructions_per_s(multiprocessors: int, clock_ghz: float) -> float:
    return 4e9 * multiprocessors * clock_ghz


# Datasheets count both directions of NVLink and PCI Express; these figures are for one. Rates given "with sparsity" are
# halved. Multiprocessors and clocks are those of the datasheets' float32 rates (A100: 108 of 64 lanes at 1.41 GHz;
# H100 and H200: 132 of 128 at 1.98; B200: 148, at the 1.965 GHz that its driver gives as the highest).
MACHINES = {
    "A100": Machine(
        memory_gb_per_s=1555,
        fp32_tflops=19.5,
        tf32_tflops=156,
        half_tflops=312,
        host_gb_per_s=32,
        link_gb_per_s=300,
        warp_instructions_per_s=_warp_instructions_per_s(108, 1.41),
        source="NVIDIA A100 Tensor Core GPU datasheet and Ampere architecture white paper: SXM4, 40 GB",
    ),
    "A100 80GB": Machine(
        memory_gb_per_s=2039,
        fp32_tflops=19.5,
        tf32_tflops=156,
        half_tflops=312,
        host_gb_per_s=32,
        link_gb_per_s=300,
        warp_instructions_per_s=_warp_instructions_per_s(108, 1.41),
        source="NVIDIA A100 Tensor Core GPU datasheet: SXM4, 80 GB",
    ),
    "H100": Machine(
        memory_gb_per_s=3350,
        fp32_tflops=67,
        tf32_tflops=494.7,
        half_tflops=989.4,
        host_gb_per_s=64,
        link_gb_per_s=450,
        warp_instructions_per_s=_warp_instructions_per_s(132, 1.98),
        source="NVIDIA H100 Tensor Core GPU datasheet and Hopper architecture white paper: SXM5, 80 GB",
    ),
    "H200": Machine(
        memory_gb_per_s=4800,
        fp32_tflops=67,
        tf32_tflops=494.7,
        half_tflops=989.4,
        host_gb_per_s=64,
        link_gb_per_s=450,
        warp_instructions_per_s=_warp_instructions_per_s(132, 1.98),
        source="NVIDIA H200 Tensor Core GPU datasheet: SXM, 141 GB",
    ),
    "B200": Machine(
        memory_gb_per_s=8000,
        fp32_tflops=80,
        tf32_tflops=1100,
        half_tflops=2250,
        host_gb_per_s=64,
        link_gb_per_s=900,
        warp_instructions_per_s=_warp_instructions_per_s(148, 1.965),
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
    """Link traffic of a device in bytes per sample: from the host, and to other devices.

    Attributes:
        early_bytes: those of `exchanged_bytes` that leave while later operators run, of the stages `LATER_STAGES`.
    """

    host_bytes: float = 0.0
    exchanged_bytes: float = 0.0
    early_bytes: float = 0.0


def bound(
    stages: Mapping[str, Mapping[str, Cost]], streams: Streams, machine: Machine, precision: str, devices: int = 1
) -> dict[str, Any]:
    """Upper bounds on the program's samples/s over all devices.

    serial: operators and link transfers run one after another (but for gradients that leave early), each operator
    limited by memory, arithmetic or the issue of instructions.
    overlapped: memory, arithmetic, issue and links of a device all run concurrently without stalls; the busiest is the
    bound.

    Args:
        stages: costs per sample of a device.
    """
    costs = [cost for operators in stages.values() for cost in operators.values()]
    stages_s = {
        name: sum(machine.seconds(cost, precision) for cost in operators.values()) for name, operators in stages.items()
    }
    stages_s |= {
        "host link": streams.host_bytes / (1e9 * machine.host_gb_per_s),
        "exchange": exchange_s(streams, stages_s, machine.link_gb_per_s),
    }
    resources_s = {
        "memory": sum(map(machine.memory_s, costs)),
        "arithmetic": sum(machine.arithmetic_s(cost, precision) for cost in costs),
        "instructions": sum(map(machine.issue_s, costs)),
        "host link": stages_s["host link"],
        "exchange": streams.exchanged_bytes / (1e9 * machine.link_gb_per_s),
    }
    return {
        "serial_samples_per_s": devices / sum(stages_s.values()),
        "overlapped_samples_per_s": devices / max(resources_s.values()),
        "busiest": max(resources_s, key=lambda name: resources_s[name]),
        "stages_ns": {name: 1e9 * seconds for name, seconds in stages_s.items()},
    }


def exchange_s(streams: Streams, stages_s: Mapping[str, float], gb_per_s: float) -> float:
    """Time per sample of the exchange between devices, except while it runs beside later operators."""
    beside_s = sum(seconds for name, seconds in stages_s.items() if name in LATER_STAGES)
    return streams.exchanged_bytes / (1e9 * gb_per_s) - min(streams.early_bytes / (1e9 * gb_per_s), beside_s)


def all_reduce_bytes(size_bytes: float, devices: int) -> float:
    """Bytes that each device sends, and receives, in a ring all-reduce of a tensor; this is the minimum."""
    return 2.0 * size_bytes * (devices - 1) / devices
