"""`python -m benchmark.training.run`: train one variant for some batches; prints its figures as one line of JSON.

Runs in its own process, so that the peak RSS is its own. Batches arrive as in training: the product prefetches them in
its own thread. The time to the first batch is amortised over the samples it made ready: the whole epoch or, if rows are
streamed, a block. From then on all of training is timed, including waits for batches.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import model.training.torch_step
from benchmark.common.clock import Clock
from benchmark.training.plain_training import PlainNeuMF, PlainStep, Samples, prepare_epoch
from benchmark.training.variants import (
    BETA1,
    BETA2,
    DROPOUT,
    FACTORS,
    LAYERS,
    LEARNING_RATE,
    NEGATIVES,
    PIECE,
    VARIANTS,
    Variant,
)
from model.data.batch import Batch
from model.data.dataset import open_train
from model.data.train_loader import SamplingConfig, TrainLoader
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.step import Step
from model.training.torch_step import TorchStep
from preprocessing.spec.feature_spec import read_feature_spec
from preprocessing.spec.reader import read_mapping
from workflows.common.errors import UserError, run_command

_CPU = torch.device("cpu")
_PROBE = 8192  # samples for measuring the share of active units
_SEED = 1


@dataclass(frozen=True)
class Trainer:
    """A variant, ready to train.

    Attributes:
        batches: of an epoch, in order; no work has been done yet for the first one.
        got_ready: samples that are ready when the first batch is.
        step: trains on a batch; returns the mean loss per sample.
    """

    network: nn.Module
    batches: Generator[Any, None, None]
    got_ready: int
    step: Callable[[Any], Tensor]


def _plain(variant: Variant, folder: Path, batch_size: int, clock: Clock) -> Trainer:
    spec = read_feature_spec(folder)
    table = read_mapping(folder, spec, "train", ("user", "item"))
    users, items = (torch.from_numpy(table.column(name).to_numpy().astype("int64")) for name in ("user", "item"))
    del table
    n_users, n_items = (spec.feature_spec[name].cardinality for name in ("user", "item"))
    assert isinstance(n_users, int)
    assert isinstance(n_items, int)
    network = PlainNeuMF(n_users, n_items)
    step = PlainStep(network, PIECE if variant.accumulated else None)
    clock.watch(nn.Embedding, "forward", "gather")
    clock.watch(PlainNeuMF, "forward", "forward")

    def batches() -> Generator[Samples, None, None]:
        samples = prepare_epoch(users, items, n_items, NEGATIVES)
        for start in range(0, len(samples), batch_size):
            yield samples.cut(start, start + batch_size)

    return Trainer(network, batches(), len(users) * (1 + NEGATIVES), step)


def _ours(variant: Variant, folder: Path, batch_size: int, clock: Clock) -> Trainer:
    rows, world = open_train(folder, read_feature_spec(folder), _CPU), ProcessGroup(_CPU)
    amp = variant.precision == "amp"
    config = TrainConfig(
        batch_size=batch_size,
        negative_samples=NEGATIVES,
        learning_rate=LEARNING_RATE,
        beta1=BETA1,
        beta2=BETA2,
        amp=amp,
        precision=None if amp else variant.precision,
    )
    sampling = SamplingConfig(
        batch_size=batch_size,
        per_positive=NEGATIVES,
        kind="exact",
        in_memory=variant.in_memory,
        seed=_SEED,
    )
    batches = TrainLoader(rows, sampling, world)
    shape = NeuMFConfig(
        n_users=rows.columns.n_users, n_items=rows.columns.n_items, factors=FACTORS, layers=LAYERS, dropout=DROPOUT
    )
    network = NeuMF(shape)
    if variant.kind == "compiled":
        from model.compiled import train_loops
        from model.compiled.step import CompiledStep

        clock.watch(CompiledStep, "gradients", "gather")
        clock.watch(CompiledStep, "_product", "products")
        clock.watch(train_loops, "train_block", "forward and backward")
        clock.watch(CompiledStep, "adam", "optimizer")
    else:
        clock.watch(model.training.torch_step._Gather, "apply", "gather")
        clock.watch(TorchStep, "_logits", "forward")
    step = Step(network, config, world, compiled=variant.kind == "compiled")
    if variant.in_memory:  # rows are read once per run, as in the plain variant
        with closing(batches.epoch(0)) as first:
            next(first)

    def prepared() -> Generator[Batch, None, None]:
        with closing(batches.epoch(1)) as own:
            yield from own

    got_ready = (rows.n_rows if variant.in_memory else batches.block_rows) * (1 + NEGATIVES)
    return Trainer(network, prepared(), got_ready, lambda batch: step(batch, len(batch)) / len(batch))


def run(name: str, folder: Path, batch_size: int, steps: int | None, seconds: float) -> dict[str, Any]:
    """Figures of one variant.

    Args:
        steps: batches to train on; None to start new batches for `seconds` seconds.

    Raises:
        UserError: there is no such variant, or an epoch has fewer batches.
    """
    if name not in VARIANTS:
        raise UserError(f"--variant should be one of {', '.join(VARIANTS)}; got {name}")
    if batch_size < 1 + NEGATIVES or (steps is not None and steps < 1):
        raise UserError(f"--batch_size should be {1 + NEGATIVES} or more and --steps 1 or more")
    variant, clock = VARIANTS[name], Clock()
    torch.manual_seed(_SEED)
    trainer = (_plain if variant.kind == "plain" else _ours)(variant, folder, batch_size, clock)
    if variant.kind != "compiled":
        clock.watch(Tensor, "backward", "backward")
        clock.watch(torch.optim.Adam, "step", "optimizer")
    trainer.network.train()
    with closing(trainer.batches):
        started, started_cpu = time.perf_counter(), time.process_time()
        batch = next(trainer.batches)
        start_s, start_cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
        trainer.step(batch.cut(0, min(len(batch), PIECE // (1 + NEGATIVES) * (1 + NEGATIVES))))  # warm-up
        clock.seconds = dict.fromkeys(clock.seconds, 0.0) | {"loader wait": 0.0}
        loss, samples, number = torch.zeros(()), 0, 0
        next_batch = clock.timed(lambda: next(trainer.batches, None), "loader wait")
        started, started_cpu = time.perf_counter(), time.process_time()
        while (number < steps) if steps is not None else (not number or time.perf_counter() - started < seconds):
            if number:  # the first batch was already fetched for the warm-up
                batch = next_batch()
            if batch is None or len(batch) < batch_size // (1 + NEGATIVES) * (1 + NEGATIVES):
                raise UserError(
                    f"an epoch of {folder} has fewer than {steps or number + 1} full batches of {batch_size:,}; lower "
                    "--steps, --seconds or --batch_sizes"
                )
            loss = trainer.step(batch)
            samples, number = samples + len(batch), number + 1
        train_s, stages_s = time.perf_counter() - started, dict(clock.seconds)
        train_cpu_s = time.process_time() - started_cpu  # of all threads
    start_share_s = start_s * samples / trainer.got_ready
    return {
        "variant": name,
        "batch_size": batch_size,
        "steps": number,
        "samples": samples,
        "samples_per_s": samples / (start_share_s + train_s),
        "samples_per_cpu_s": samples / (start_cpu_s * samples / trainer.got_ready + train_cpu_s),
        "start_s": start_s,
        "start_share_s": start_share_s,
        "train_s": train_s,
        "stages_s": stages_s,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "last_loss": float(loss),
        "active_units": active_units(trainer.network, batch),
        "threads": torch.get_num_threads(),
    }


@torch.no_grad()
def active_units(network: nn.Module, batch: Batch | Samples) -> list[float]:
    """Expected share of units in each hidden layer that stay active after ReLU and dropout."""
    hidden = network.hidden if isinstance(network, PlainNeuMF) else network.mlp
    assert isinstance(hidden, nn.Module)
    shares: list[float] = []

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        shares.append(float((output > 0).float().mean()) * (1.0 - DROPOUT))

    hooks = [layer.register_forward_hook(count) for layer in hidden.modules() if isinstance(layer, nn.Linear)]
    network.train()
    network(batch.users[:_PROBE].long(), batch.items[:_PROBE].long())
    for hook in hooks:
        hook.remove()
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.training.run", allow_abbrev=False)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a prepared folder")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(json.dumps(run(args.variant, args.data, args.batch_size, args.steps, args.seconds)))


if __name__ == "__main__":
    run_command(main)
