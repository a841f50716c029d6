"""`python -m benchmark peers`: other recommenders and ours, on the same split, ranked by the same code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmark.common.result import redraw, write_result
from benchmark.peers.comparison import Comparison
from benchmark.peers.fit import versions
from benchmark.peers.install import error_of, python_of
from benchmark.peers.models import MODELS, OURS
from benchmark.peers.plot import draw_curves, draw_peers
from benchmark.peers.report import markdown
from benchmark.peers.speed import compare_speed
from preprocessing.synthetic.log import parse_shape
from workflows.common.errors import UserError
from workflows.common.progress import console

_NAME = "peers.json"
_KEYS = {"machine", "data", "seeds", "peers", "results", "speed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, metavar="DIR", help="prepared folder with test series")
    what.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the pictures of a result")
    names = sorted({model.peer for model in MODELS.values()} - {OURS})
    parser.add_argument("--peers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME", help=f"only these: {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="S")
    parser.add_argument("--trials", type=int, default=8, metavar="N", help="settings tried besides the defaults")
    parser.add_argument("--limit_s", type=float, default=600.0, metavar="S", help="for each fit of a peer")
    parser.add_argument("--speed", metavar="SHAPE", help="also compare speed: ml-20m, small or USERSxITEMSxROWS")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the data for --speed here (default: not kept)")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark/results/peers"), metavar="DIR",
        help="its runs/ keeps all runs; existing runs are reused",
    )  # fmt: skip
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep ours here: the runs/ of the quality benchmark")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, _NAME, _KEYS, _draw)
        return
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds should be 0 or more, without duplicates, got {' '.join(map(str, args.seeds))}")
    if args.trials < 0 or args.limit_s <= 0:
        raise UserError("--trials should be 0 or more, and --limit_s above 0")
    shape = parse_shape(args.speed) if args.speed else None
    peers = list(dict.fromkeys(args.peers))
    names = [name for name in args.models or MODELS if MODELS[name].peer in (OURS, *peers)]
    output = args.output.resolve()
    own_runs = (args.runs or output / "runs").resolve()
    comparison = Comparison.create(args.data, output, own_runs, args.seeds, args.trials, args.limit_s)
    data, results = comparison.data, comparison.rows(names)
    result: dict[str, Any] = {
        "data": {
            "name": args.data.name,
            "users": data.train.columns.n_users,
            "test_users": data.test.rows.n_rows // (1 + data.drawn),
            "items": data.train.columns.n_items,
            "train_rows": data.train.n_rows,
            "negatives": data.drawn,
        },
        "seeds": args.seeds,
        "trials": args.trials,
        "limit_s": args.limit_s,
        "threads": 1,
        "peers": {peer: _environment(peer) for peer in peers},
        "results": results,
        "speed": compare_speed(shape, peers, args.limit_s, args.cache) if shape else None,
    }
    write_result(args.output / _NAME, result, _draw)


def _draw(result: dict[str, Any], path: Path) -> None:
    """Print the tables; draw `path` and, beside it, quality by time."""
    console.print(markdown(result), markup=False, soft_wrap=True)
    draw_peers(result, path)
    draw_curves(result, path.with_name("time-to-quality.png"))


def _environment(peer: str) -> dict[str, Any]:
    python = python_of(peer)
    return {"error": error_of(peer)} if python is None else {"versions": versions(python)}
