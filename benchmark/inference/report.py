"""The inference benchmark's tables and figures; see `benchmark.common.report`."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import Measured, number, table

_LATENCIES = ("mean", "p90", "p95", "p99")


def markdown(result: dict[str, Any]) -> str:
    """The reference's table for the network as it is, in each precision; then all engines side by side."""
    sizes, parts = list(result["num_batches"]), []
    where = "CPU" if result["device"] == "cpu" else result["device"]
    for found in result["engines"]:
        if found["engine"] == "eager":
            rows = [
                [
                    f"{int(size):,}",
                    f"{found[f'batch_{size}_mean_throughput']:,.0f}",
                    *(number(1000 * found[f"batch_{size}_{key}_latency"]) for key in _LATENCIES),
                ]
                for size in sizes
            ]
            columns = ["batch size", "throughput, samples/s", *(f"latency, ms: {key}" for key in _LATENCIES)]
            parts += [f"`eager` on the {where}, {found['precision'].upper()}:\n", table(columns, rows)]
    rows = [
        [
            f"{int(size):,}",
            *(
                f"{found[f'batch_{size}_mean_throughput']:,.0f} ({number(1000 * found[f'batch_{size}_p50_latency'])}; "
                f"{number(1000 * found[f'batch_{size}_p99_latency'])})"
                for found in result["engines"]
            ),
        ]
        for size in sizes
    ]
    several = len({found["precision"] for found in result["engines"]}) > 1
    names = [f"`{found['engine']}`" + (f", {found['precision']}" if several else "") for found in result["engines"]]
    parts += ["All engines: samples/s (median; p99 in ms):\n", table(["batch size", *names], rows)]
    return "\n".join(parts)


def measured(result: dict[str, Any]) -> list[Measured]:
    def most(found: dict[str, Any]) -> float:
        return max(found[f"batch_{size}_mean_throughput"] for size in result["num_batches"])

    return [
        Measured(
            f"{found['engine']}, {found['precision']}, batches of {int(size):,}",
            "samples/s",
            [run[f"batch_{size}_mean_throughput"] for run in found["runs"]],
        )
        for found in sorted(result["engines"], key=most, reverse=True)
        for size in sorted(result["num_batches"], key=lambda size: -found[f"batch_{size}_mean_throughput"])
    ]
