"""`python -m benchmark.training_loader`: load an epoch without training; prints its figures as one line of JSON."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmark.training.variants import NEGATIVES
from model.data.batch import Batch
from model.data.dataset import open_train
from model.data.train_loader import SamplingConfig, TrainLoader
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.feature_spec import read_feature_spec
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.common.errors import run_command
from workflows.sampling.candidates import Candidates
from workflows.sampling.negatives import row_negatives

_CPU = torch.device("cpu")
_SEED = 1


def measure_loader(folder: Path, batch_size: int) -> dict[str, Any]:
    """Wall and CPU seconds for one epoch of each: reading rows in blocks of whole users; drawing their negatives; all
    batches, streamed and from memory (`--loader`), with the seconds to the first batch."""
    rows = open_train(folder, read_feature_spec(folder), _CPU)
    found: dict[str, Any] = {"rows": rows.n_rows, "threads": torch.get_num_threads()}
    found["read"] = _timed(partial(_samples, map(Batch.from_columns, rows.whole_users(BLOCK_ROWS, _CPU))), "rows")
    found["negatives"] = {"negatives": 0, "wall_s": 0.0, "cpu_s": 0.0}
    for block in map(Batch.from_columns, rows.whole_users(BLOCK_ROWS, _CPU)):
        drawn = _timed(partial(_draw, block, Candidates(rows.columns.n_items)), "negatives")
        found["negatives"] = {name: value + drawn[name] for name, value in found["negatives"].items()}
    found["negatives"]["negatives_per_s"] = found["negatives"]["negatives"] / found["negatives"]["wall_s"]
    for loader in ("merlin", "memory"):
        sampling = SamplingConfig(
            batch_size=batch_size, per_positive=NEGATIVES, kind="exact", in_memory=loader == "memory", seed=_SEED
        )
        batches = TrainLoader(rows, sampling, ProcessGroup(_CPU))
        if sampling.in_memory:
            _samples(batches.epoch(0))  # rows are read once per run
        epoch = batches.epoch(1)
        first = _timed(partial(_samples, islice(epoch, 1)), "samples")
        rest = _timed(partial(_samples, epoch), "samples")
        total = {name: first[name] + rest[name] for name in ("samples", "wall_s", "cpu_s")}
        found[loader] = {**total, "samples_per_s": total["samples"] / total["wall_s"], "first_batch_s": first["wall_s"]}
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def _draw(block: Batch, candidates: Candidates) -> int:
    return row_negatives(block.users, block.items, candidates, NEGATIVES, _SEED)[0].numel()


def _samples(batches: Iterable[Batch]) -> int:
    return sum(map(len, batches))


def _timed(work: Callable[[], int], what: str) -> dict[str, float]:
    """Number of things that `work` produces, its wall and CPU seconds (all threads), and the rate."""
    started, cpu_started = time.perf_counter(), time.process_time()
    number = work()
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return {what: number, "wall_s": wall_s, "cpu_s": cpu_s, f"{what}_per_s": number / wall_s}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.training_loader", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a prepared folder")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(json.dumps(measure_loader(args.data, args.batch_size)))


if __name__ == "__main__":
    run_command(main)
