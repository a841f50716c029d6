"""The tables and figures of the comparison with other recommenders; see `benchmark.common.report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmark.common.report import Measured, kept_runs, table

_METRICS = ("sampled hr@10", "sampled ndcg@10", "expected hr@10", "expected ndcg@10", "full hr@10", "full ndcg@10")


def markdown(result: dict[str, Any]) -> str:
    """Quality with cost, what did not run, and speed."""
    parts = [_quality(result), kept_runs(result), _differences(result), _failures(result), _speed(result)]
    return "\n".join(part for part in parts if part)


def measured(result: dict[str, Any]) -> list[Measured]:
    """Metrics of the same seeds and users hardly vary, so small changes count."""
    found = []
    done = [each for each in result["results"] if "error" not in each]
    for each in sorted(done, key=lambda each: each["row"] != "recipe"):
        for metric in _METRICS[:4]:
            name = f"{_name(each)}: {metric.removeprefix('sampled ')}"
            found.append(Measured(name, "", each["metrics"][metric]["runs"], least_change=0.01, alone=0.03))
        found.append(Measured(f"{_name(each)}: CPU", "s", [run["cpu_s"] for run in each["runs"]], False))
    return found


def _quality(result: dict[str, Any]) -> str:
    head = (
        "row", "HR@10", "NDCG@10", "expected", "all items", "load, s", "train, s", "samples/s", "users/s", "MiB",
        "lines", "to quality, s",
    )  # fmt: skip
    rows = []
    for each in result["results"]:
        if "error" in each:
            continue
        metrics, runs = each["metrics"], each["runs"]
        sampled = [_with_error(metrics[name]) for name in _METRICS[:2]]
        means = [f"{metrics[name]['mean']:.3f}" for name in _METRICS]
        rows.append((
            _name(each), *sampled, " / ".join(means[2:4]), " / ".join(means[4:]),
            _mean(runs, lambda run: run["load_cpu_s"], "{:.1f}"),
            _mean(runs, lambda run: run.get("train_cpu_s", run["cpu_s"]), "{:.0f}"),
            _mean(runs, _samples_per_s, "{:,.0f}"),
            _mean(runs, lambda run: result["data"]["users"] / run["recommend_cpu_s"], "{:,.0f}"),
            _mean(runs, lambda run: run["peak_rss_mib"], "{:,.0f}"),
            str(each["lines"] or ""),
            f"{each['curve']['within']['cpu_s']:.0f}" if each.get("curve") else "",
        ))  # fmt: skip
    return table(head, rows)


def _differences(result: dict[str, Any]) -> str:
    """Each tuned peer against the recipe, paired by user."""
    rows = []
    for each in result["results"]:
        if "error" not in each and each["row"] != "recipe":
            over = [each["metrics"][name]["over_recipe"] for name in _METRICS[:4]]
            rows.append((_name(each), *map(_difference, over)))
    return table(("minus `recipe`", "HR@10", "NDCG@10", "expected HR@10", "expected NDCG@10"), rows)


def _failures(result: dict[str, Any]) -> str:
    rows = [(_name(each), " ".join(each["error"].split())) for each in result["results"] if "error" in each]
    return table(("did not run", "error"), rows) if rows else ""


def _speed(result: dict[str, Any]) -> str:
    speed = result["speed"]
    if not speed:
        return ""
    rows = []
    for each in speed["results"]:
        figures: tuple[str, ...]
        if "error" in each:
            figures = (" ".join(each["error"].split()), "", "", "")
        else:
            speeds = (f"{each[name]:,.0f}" for name in ("per_s", "per_cpu_s"))
            ratios = (each.get(f"ours_over_{name}") for name in ("per_s", "per_cpu_s"))
            figures = (*speeds, *(f"{ratio:.1f}" if ratio else "" for ratio in ratios))
        rows.append((each["what"], f"`{each['row']}`", f"{each['rows']:,}", *figures))
    return table(("measured", "row", "interactions", "per s", "per CPU s", "ours by", "ours by, CPU"), rows)


def _name(each: dict[str, Any]) -> str:
    return f"`{each['row']}`" if each["kind"] != "tuned" else f"`{each['row']}`, tuned"


def _samples_per_s(run: dict[str, Any]) -> float | None:
    if "samples_per_s" in run:
        return run["samples_per_s"]
    return run["samples"] / run["train_cpu_s"] if run.get("samples") else None


def _mean(runs: Sequence[dict[str, Any]], figure: Callable[[dict[str, Any]], Any], form: str) -> str:
    try:
        values = [figure(run) for run in runs]
    except KeyError:  # not measured for this row
        return ""
    return form.format(sum(values) / len(values)) if None not in values else ""


def _with_error(metric: dict[str, Any]) -> str:
    return f"{metric['mean']:.3f} ± {metric['standard_error']:.3f}"


def _difference(metric: dict[str, Any]) -> str:
    """Bold if it is more than two standard errors."""
    mean, error = metric["mean"], metric["standard_error"]
    sign = f"{mean:+.3f}".replace("-", "−")
    return f"{f'**{sign}**' if abs(mean) > 2 * error else sign} ± {error:.3f}"
