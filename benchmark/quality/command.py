"""`python -m benchmark quality`: HR@10 and NDCG@10 of the recipe, its ablations, plain NeuMF and baselines."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from rich.table import Table

from benchmark.common.result import redraw, write_result
from benchmark.quality.ablations import leave_out
from benchmark.quality.data import METRICS, Data, K, Ranks
from benchmark.quality.plot import draw_quality
from benchmark.quality.rows import ROWS, Row
from benchmark.quality.run import Done, run
from benchmark.quality.statistics import difference, estimate, spread
from benchmark.quality_baselines import SCORES_NAME
from model.network.checkpoint import load_run
from model.scoring.scorer import Scorer
from workflows.common.errors import UserError
from workflows.common.progress import console

_NAME = "quality.json"
_AGAINST = ("neumf", "neumf-on-test", "recipe")  # and the best baseline
Values = dict[str, npt.NDArray[np.float64]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, metavar="DIR", help="prepared folder with test series")
    what.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], metavar="S")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark/results/quality"), metavar="DIR",
        help="its runs/ keeps all runs; existing runs are reused",
    )  # fmt: skip


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, _NAME, {"machine", "data", "seeds", "results"}, draw_quality)
        return
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds should be 0 or more, without duplicates, got {' '.join(map(str, args.seeds))}")
    names, data, runs = list(dict.fromkeys(args.rows)), Data.load(args.data), args.output.resolve() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[Done]] = {name: [] for name in names}
    values: dict[str, Values] = {}
    for name in names:
        row, ranks = ROWS[name], []
        for seed in args.seeds if row.seeded else args.seeds[:1]:
            done[name].append(run(row.program, seed, args.data, runs / f"{_first_of(row)}-{seed}"))
            ranks.append(_ranks(row, done[name][-1].folder, data).metrics())
        values[name] = {metric: np.stack([each[metric] for each in ranks]) for metric in ranks[0]}
        console.print(_line(name, values[name]))
    best = max((name for name in names if ROWS[name].kind == "baseline"), key=lambda name: _of(values[name]),
               default=None)  # fmt: skip
    result = {
        "data": {"users": len(values[names[0]]["full hr@10"][0]), "negatives": data.drawn},
        "seeds": args.seeds,
        "best_baseline": best,
        "results": [_result(name, done[name], values, best) for name in names],
    }
    write_result(args.output / _NAME, result, draw_quality)
    console.print(_table(result))


def _first_of(row: Row) -> str:
    """The first row with the same program; they share a run."""
    return next(name for name, other in ROWS.items() if other.program == row.program)


def _ranks(row: Row, folder: Path, data: Data) -> Ranks:
    if row.kind == "baseline":
        scores = safetensors.torch.load_file(folder / SCORES_NAME)["scores"]
        return data.ranks(lambda users: scores[users])
    found = load_run(folder, torch.device("cpu"))
    if row.part is not None:
        leave_out(row.part, found, torch.from_numpy(data.histories().sum(0)))
    return data.ranks(Scorer(found.model).all_items)


def _of(values: Values) -> float:
    """Criterion for choosing between models: the expected metrics, which have the least noise."""
    return float(sum(values[f"expected {metric}"].mean() for metric in METRICS))


def _line(name: str, values: Values) -> str:
    figures = [f"{metric.upper()} {values[f'sampled {metric}'].mean():.4f}" for metric in METRICS]
    return f"{name}: {', '.join(figures)}"


def _result(name: str, done: list[Done], values: dict[str, Values], best: str | None) -> dict[str, Any]:
    others = {other for other in (*_AGAINST, best) if other in values} - {name}
    metrics = {
        metric: {
            **asdict(estimate(found)),
            "spread": spread(found),
            "over": {other: asdict(difference(found, values[other][metric])) for other in sorted(others)},
            "runs": found.mean(1).tolist(),
        }
        for metric, found in values[name].items()
    }
    return {
        "row": name,
        "what": ROWS[name].what,
        "kind": ROWS[name].kind,
        "commands": [each.command for each in done],
        "cpu_s": float(np.mean([each.cpu_s for each in done])),
        "wall_s": float(np.mean([each.wall_s for each in done])),
        "runs": [{"cpu_s": each.cpu_s, "wall_s": each.wall_s, "commit": each.commit} for each in done],
        "metrics": metrics,
    }


def _table(result: dict[str, Any]) -> Table:
    table = Table("", title=f"± standard error; {result['data']['users']:,} test users, top {K}")
    for way in ("", "expected ", "full "):
        for metric in METRICS:
            table.add_column(f"{way}{metric.upper()}", no_wrap=not way)
    table.add_column("CPU, s")
    for each in result["results"]:
        figures = [f"{found['mean']:.3f}" for found in each["metrics"].values()]
        for number, metric in enumerate(METRICS):
            figures[number] += f" ± {each['metrics'][f'sampled {metric}']['standard_error']:.3f}"
        table.add_row(each["row"], *figures, f"{each['cpu_s']:.0f}")
    return table
