"""The quality benchmark's tables and figures; see `benchmark.common.report`."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import Measured, kept_runs, table

METRICS = ("hr@10", "ndcg@10")
_DIFFERENCES = ("sampled", "expected")


def markdown(result: dict[str, Any]) -> str:
    """Metrics of each row; then its differences from plain NeuMF and the best baseline, bold beyond two errors."""
    rows = []
    for each in result["results"]:
        metrics = each["metrics"]
        sampled = [metrics[f"sampled {metric}"] for metric in METRICS]
        rows.append(
            [
                f"`{each['row']}`",
                *(f"{found['mean']:.3f} ± {found['standard_error']:.3f}" for found in sampled),
                " / ".join(f"{found['spread']:.3f}" for found in sampled) if len(sampled[0]["runs"]) > 1 else "",
                *(
                    " / ".join(f"{metrics[f'{way} {metric}']['mean']:.3f}" for metric in METRICS)
                    for way in ("expected", "full")
                ),
                f"{each['cpu_s']:.0f}",
            ]
        )
    columns = ["", *(metric.upper() for metric in METRICS), "spread over seeds", "expected", "all items", "CPU, s"]
    others = [
        name for name in ("neumf", result["best_baseline"]) if any(name in _over(each) for each in result["results"])
    ]
    parts = [table(columns, rows), kept_runs(result)]
    if not others:
        return "\n".join(filter(None, parts))
    differences = [
        [f"`{each['row']}`", *(_difference(each, other, f"{way} {metric}")
                               for other in others for way in _DIFFERENCES for metric in METRICS)]
        for each in result["results"]
    ]  # fmt: skip
    names = [f"`{other}`: {'expected ' if way == 'expected' else ''}{metric.upper()}"
             for other in others for way in _DIFFERENCES for metric in METRICS]  # fmt: skip
    parts += ["Differences:\n", table(["", *names], differences)]
    return "\n".join(filter(None, parts))


def _over(row: dict[str, Any]) -> dict[str, Any]:
    return row["metrics"][f"sampled {METRICS[0]}"]["over"]


def _difference(row: dict[str, Any], other: str, metric: str) -> str:
    found = row["metrics"][metric]["over"].get(other)
    if found is None:
        return ""
    text = f"{found['mean']:+.3f}".replace("-", "−")
    bold = "**" if abs(found["mean"]) > 2 * found["standard_error"] else ""
    return f"{bold}{text}{bold} ± {found['standard_error']:.3f}"


def measured(result: dict[str, Any]) -> list[Measured]:
    """Metrics of the same seeds and users hardly vary, so small changes count."""
    found = []
    for each in sorted(result["results"], key=lambda each: each["kind"] != "recipe"):
        for way in ("sampled", "expected"):
            for metric in METRICS:
                name = f"{each['row']}: {'expected ' if way == 'expected' else ''}{metric.upper()}"
                runs = each["metrics"][f"{way} {metric}"]["runs"]
                found.append(Measured(name, "", runs, least_change=0.01, alone=0.03))
        found.append(Measured(f"{each['row']}: CPU", "s", [run["cpu_s"] for run in each["runs"]], False))
    return found
