"""`python -m benchmark recommend`: users/s and memory of recommendation, the product against a plain forward."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmark.common.program import json_of
from benchmark.common.result import redraw, write_result
from benchmark.recommend.plot import draw_recommend
from workflows.common.errors import UserError
from workflows.common.progress import console

_MEASURED = ("users_per_s", "read_s", "peak_rss_mib")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="DIR", help="run folder written by train.py")
    what.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")
    parser.add_argument("--users", type=int, default=2000, metavar="N", help="users for the product")
    parser.add_argument("--all", action="store_true", help="all users for the product, like --all of the command")
    parser.add_argument("--plain-users", type=int, default=50, metavar="N", help="users for the plain forward")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="runs of each variant, in turn; reports medians"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of each run (default: one per core)")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/recommend"), metavar="DIR")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, "recommend.json", {"machine", "over_plain", "results"}, draw_recommend)
        return
    counts = {"--users": args.users, "--plain-users": args.plain_users, "--repeats": args.repeats}
    for flag, count in {**counts, "--threads": args.threads or 1}.items():
        if count < 1:
            raise UserError(f"{flag} should be 1 or more, got {count}")
    threads = ["--threads", str(args.threads)] if args.threads else []
    ways = {"product": [] if args.all else ["--users", str(args.users)], "plain": ["--users", str(args.plain_users)]}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(args.repeats):
        for name, flags in ways.items():
            run = json_of(
                "benchmark.recommend.run", "--variant", name, "--run", str(args.run.resolve()), *flags, *threads
            )
            runs[name].append(run)
            console.print(
                f"{name}, run {number + 1}: {run['users_per_s']:,.1f} users/s, {run['peak_rss_mib']:,.0f} MiB"
            )
    results = {
        name: {**{key: statistics.median(run[key] for run in found) for key in _MEASURED}, "runs": found}
        for name, found in runs.items()
    }
    table = Table("", "users", "users/s", "read, s", "peak RSS, MiB")
    for name, result in results.items():
        n_users = result["runs"][0]["users"]
        table.add_row(name, f"{n_users:,}", *(f"{result[key]:,.1f}" for key in _MEASURED))
    console.print(table)
    over_plain = results["product"]["users_per_s"] / results["plain"]["users_per_s"]
    console.print(f"{over_plain:.1f} times as many users/s as the plain forward")
    result = {"over_plain": over_plain, "results": results}
    write_result(args.output / "recommend.json", result, draw_recommend)
