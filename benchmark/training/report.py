"""The training benchmark's tables and figures; see `benchmark.common.report`."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import Measured, number, table
from benchmark.training.throughput import MIXED


def markdown(result: dict[str, Any]) -> str:
    sizes = [bound["batch_size"] for bound in result["bounds"]]
    found = {(each["variant"], each["batch_size"]): each for each in result["results"]}

    def cell(variant: str, size: int) -> str:
        if (variant, size) not in found:
            return ""
        each = found[variant, size]
        ratio = f" ({each['over_plain']:.1f} ×)" if each["over_plain"] and variant != "plain" else ""
        return f"{each['samples_per_s']:,.0f}{ratio}; {each['peak_rss_mib']:,.0f}"

    names = dict.fromkeys(each["variant"] for each in result["results"])
    head = f"{result['shape']['rows']:,} interactions: samples/s (ratio to `plain`); peak RSS, MiB"
    rows = [[f"`{name}`", *(cell(name, size) for size in sizes)] for name in names]
    variants = table([head, *(f"batches of {size:,}" for size in sizes)], rows)
    return "\n".join([variants, *(_throughput(result["throughput"]) if result["throughput"] else [])])


def _throughput(found: dict[str, Any]) -> list[str]:
    """The reference's table."""
    speeds = {(each["devices"], each["batch_size"], each["precision"]): each for each in found["results"]}
    full = next(name for *_, name in speeds if name != MIXED)
    least = min(count for count, *_ in speeds)
    rows = []
    for count, size in dict.fromkeys((count, size) for count, size, _ in speeds):
        plain, mixed = (speeds[count, size, name]["samples_per_s"] for name in (full, MIXED))
        scaling = [f"{speeds[count, size, name]['samples_per_s'] / speeds[least, size, name]['samples_per_s']:.2f}"
                   for name in (full, MIXED)]  # fmt: skip
        rows.append([str(count), f"{size:,}", number(plain), number(mixed), f"{mixed / plain:.2f}", *scaling])
    computed = {each["computed_in"] for each in found["results"] if each["precision"] == MIXED}
    columns = ["CPU processes" if found["device"] == "CPU process" else "GPUs", "batch size"]
    columns += [f"throughput, {name}, samples/s" for name in (full, MIXED)] + [f"speed-up ({full} to {MIXED})"]
    columns += [f"strong scaling, {name}" for name in (full, MIXED)]
    told = f"`train.py`, {found['rows']:,} interactions, median of {found['epochs'] - 1} epochs after the first"
    return [f"{told}; {MIXED} computed in {', '.join(sorted(computed))}:\n", table(columns, rows)]


def measured(result: dict[str, Any]) -> list[Measured]:
    ours = [each for each in result["results"] if not each["variant"].startswith("plain")]
    ours.sort(key=lambda each: (each["variant"] != "compiled", -each["batch_size"]))
    found = []
    for each in ours:
        name = f"{each['variant']}, batches of {each['batch_size']:,}"
        found += [
            Measured(f"training: {name}", "samples/s", [run["samples_per_s"] for run in each["runs"]]),
            Measured(f"peak RSS: {name}", "MiB", [run["peak_rss_mib"] for run in each["runs"]], False),
        ]
    throughput = result["throughput"] or {"results": []}
    for each in throughput["results"]:
        name = f"train.py, {each['devices']} × {throughput['device']}, batches of {each['batch_size']:,}"
        found.append(Measured(f"{name}, {each['precision']}", "samples/s", each["runs"]))
    return found
