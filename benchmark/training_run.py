"""`python -m benchmark.training_run`: one variant trains for some batches; its figures as one line of JSON.

A process of its own, so that its peak of resident memory is its own. Getting samples ready is timed over a whole epoch
and charged by the sample; steps are timed over the batches trained on, after a step to warm up.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import model.step
from benchmark.plain_training import PlainNeuMF, PlainStep, Samples, prepare_epoch
from benchmark.training_variants import (
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
from model.batches import EpochBatches, SamplingConfig
from model.config import TrainConfig
from model.data import open_train
from model.neumf import NeuMF, NeuMFConfig
from model.samples import Batch
from model.torch_step import TorchStep
from model.world import World
from preprocessing.chunks import read_mapping
from preprocessing.feature_spec import read_feature_spec
from workflows.errors import UserError, run_command

_CPU = torch.device("cpu")
_PROBE = 8192  # samples that the share of active units is counted on
_SEED = 1


@dataclass
class Clock:
    """Seconds by stage, for stages that are methods of some class."""

    seconds: dict[str, float] = field(default_factory=dict)

    def watch(self, owner: Any, method: str, stage: str) -> None:
        """Charge all calls of `owner.method` to a stage from now on."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **more: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **more)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

        setattr(owner, method, timed)


@dataclass(frozen=True)
class Trainer:
    """A variant, ready to train.

    Attributes:
        prepare_s_per_sample: seconds to get a sample ready, taken over an epoch.
        batches: batches to train on, in order.
        step: trains on one of them and gives the loss of a sample.
    """

    network: nn.Module
    prepare_s_per_sample: float
    batches: Iterator[Any]
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
    started = time.perf_counter()
    samples = prepare_epoch(users, items, n_items, NEGATIVES)
    prepare_s = time.perf_counter() - started
    step = PlainStep(network, PIECE if variant.accumulated else None)
    clock.watch(PlainStep, "gradients", "gradients")
    starts = range(0, len(samples), batch_size)
    batches = (samples.cut(start, start + batch_size) for start in starts)
    return Trainer(network, prepare_s / len(samples), batches, step)


def _ours(variant: Variant, folder: Path, batch_size: int, clock: Clock) -> Trainer:
    rows, world = open_train(folder, read_feature_spec(folder), _CPU), World(_CPU)
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
    batches = EpochBatches(rows, sampling, world)
    shape = NeuMFConfig(
        n_users=rows.columns.n_users, n_items=rows.columns.n_items, factors=FACTORS, layers=LAYERS, dropout=DROPOUT
    )
    network = NeuMF(shape)
    if variant.kind == "kernels":
        from model.kernel_step import KernelStep

        clock.watch(KernelStep, "gradients", "gradients")
        clock.watch(KernelStep, "adam", "adam")
    else:
        clock.watch(TorchStep, "gradients", "gradients")
    if not variant.chunked:
        model.step.CHUNK_SAMPLES = batch_size  # what the step reads when it is made
    step = model.step.Step(network, config, world, kernels=variant.kind == "kernels")
    next(batches.epoch(0))  # from memory: rows are read once a run, like the plain one's
    started = time.perf_counter()
    samples = sum(len(batch) for batch in batches.epoch(1))
    prepare_s = time.perf_counter() - started

    def prepared() -> Iterator[Batch]:
        for batch in batches.epoch(2):
            yield batch if variant.grouped else batch.take(torch.randperm(len(batch)))

    return Trainer(network, prepare_s / samples, prepared(), lambda batch: step(batch, len(batch)) / len(batch))


def run(name: str, folder: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """The figures of one variant.

    Raises:
        UserError: there is no such variant, or an epoch has fewer batches.
    """
    if name not in VARIANTS:
        raise UserError(f"--variant should be one of {', '.join(VARIANTS)}; got {name}")
    if batch_size < 1 + NEGATIVES or steps < 1:
        raise UserError(f"--batch_size should be {1 + NEGATIVES} or more and --steps 1 or more")
    variant, clock = VARIANTS[name], Clock()
    torch.manual_seed(_SEED)
    trainer = (_plain if variant.kind == "plain" else _ours)(variant, folder, batch_size, clock)
    if variant.kind != "kernels":
        clock.watch(torch.optim.Adam, "step", "adam")
    trainer.network.train()
    batch = next(trainer.batches)
    trainer.step(batch.cut(0, min(len(batch), PIECE // (1 + NEGATIVES) * (1 + NEGATIVES))))
    clock.seconds.clear()
    loss, samples, step_s = torch.zeros(()), 0, 0.0
    for number in range(steps):
        if number:  # the first one has been drawn for the warm-up already
            batch = next(trainer.batches, None)
        if batch is None or len(batch) < batch_size // (1 + NEGATIVES) * (1 + NEGATIVES):
            raise UserError(f"an epoch of {folder} has no {steps} whole batches of {batch_size:,}; lower one of them")
        started = time.perf_counter()
        loss = trainer.step(batch)
        step_s += time.perf_counter() - started
        samples += len(batch)
    prepare_s = trainer.prepare_s_per_sample * samples
    peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "variant": name,
        "batch_size": batch_size,
        "steps": steps,
        "samples": samples,
        "samples_per_s": samples / (prepare_s + step_s),
        "prepare_s": prepare_s,
        "step_s": step_s,
        "stages_s": dict(clock.seconds),
        "peak_rss_mib": peak_rss_mib,
        "last_loss": float(loss),
        "active_units": active_units(trainer.network, batch),
        "threads": torch.get_num_threads(),
    }


@torch.no_grad()
def active_units(network: nn.Module, batch: Batch | Samples) -> list[float]:
    """The share of the units of each hidden layer that ReLU and dropout leave, expected over dropout's draws."""
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
    parser = argparse.ArgumentParser(prog="python -m benchmark.training_run", allow_abbrev=False)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a prepared folder")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(json.dumps(run(args.variant, args.data, args.batch_size, args.steps)))


if __name__ == "__main__":
    run_command(main)
