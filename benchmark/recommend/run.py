"""`python -m benchmark.recommend.run`: run one recommendation variant; prints its figures as one line of JSON.

Runs in its own process, so that the peak RSS is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.common.clock import Clock
from model.data.run_data import RunData
from model.network.checkpoint import load_run
from model.recommend.recommender import Recommender
from model.recommend.user_data import PreparedInteractions
from model.recommend.writers import write_recommendations
from workflows.common.errors import run_command

VARIANTS = ("product", "plain")
_K = 10
_CPU = torch.device("cpu")
_PAIRS = 1 << 16  # scored at a time by the plain variant
_SEED = 1


def product(run: Path, size: int | None) -> dict[str, Any]:
    """Recommend to a file, like `python -m model.recommend`: for `size` users, one pass over train, then the rankings.

    Without a size, for all users, train is read part by part between the rankings, and reading counts as ranking.
    """
    recommender = Recommender.load(run, device="cpu")
    users = recommender.users.originals(sample(recommender.trained, size)).tolist()
    recommender.recommend(users[:1], _K)  # warm-up
    clock = Clock()
    clock.watch(PreparedInteractions, "of_users", "read")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = recommender.recommend_all(_K) if size is None else iter([recommender.recommend(users, _K)])
        write_recommendations(Path(folder) / "recommendations.parquet", found, None, overwrite=False)
        total_s = time.perf_counter() - started
    read_s = clock.seconds.get("read", 0.0)
    return {"users": len(users), "read_s": read_s, "rank_s": total_s - read_s}


@torch.inference_mode()
def plain(run: Path, size: int | None) -> dict[str, Any]:
    """The network's own forward over all items, some users at a time, then the top unseen items."""
    loaded = load_run(run, _CPU)
    data = RunData.load(loaded)
    started = time.perf_counter()
    known = PreparedInteractions(data.folder, data.spec, data.columns).of_users(
        sample(np.flatnonzero(data.trained), size)
    )
    read_s = time.perf_counter() - started
    model, items = loaded.model, torch.arange(len(data.items))
    n_users = max(1, _PAIRS // len(items))
    for number, start in enumerate((0, *range(0, len(known.users), n_users))):
        if number == 1:  # the first block runs twice, as a warm-up
            started = time.perf_counter()
        block = known.take(known.users[start : start + n_users])
        columns = [torch.from_numpy(values).repeat_interleave(len(items)) for values in (block.users, *block.row_side)]
        logits = model(columns[0], items.repeat(len(block.users)), *columns[1:]).reshape(-1, len(items))
        owners, seen = (torch.from_numpy(column) for column in block.history.pairs(np.arange(len(block.users))))
        logits[owners, seen] = -torch.inf
        logits.topk(min(_K, len(items)))
    return {"users": len(known.users), "read_s": read_s, "rank_s": time.perf_counter() - started}


def sample(users: np.ndarray, size: int | None) -> np.ndarray:
    """A random sample of users, ascending; all of them if there is no size."""
    return np.sort(np.random.default_rng(_SEED).permutation(users)[:size])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.recommend.run", allow_abbrev=False)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR")
    parser.add_argument("--users", type=int, metavar="N", help="size of a random sample (default: all)")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    figures = (product if args.variant == "product" else plain)(args.run, args.users)
    figures |= {
        "users_per_s": figures["users"] / figures["rank_s"],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
