"""Checks that a steady epoch of the default loader neither waits for the GPU nor copies rows to it."""

from __future__ import annotations

from functools import partial

import torch

from benchmark.gpu_check.findings import Findings, Settings, need, prepare_log, run_check
from benchmark.gpu_check.rows import CONFIGS, epochs, network, train_config
from benchmark.gpu_check.trace import profile
from benchmark.gpu_check.verdicts import judge_epoch, steady_epoch
from benchmark.training.variants import DROPOUT
from model.data.train_loader import TrainLoader
from model.distributed.process_group import ProcessGroup
from model.training.step import Step
from preprocessing.synthetic.log import write_log
from workflows.device.torch_device import no_waits, torch_device

_REGION = "steady epoch"


def epoch(settings: Settings, found: Findings) -> None:
    """Warm up for an epoch, profile the next, and forbid waits in the one after it, in each precision."""
    need("nvtabular", "NVTabular")
    from model.data.dataset import open_train
    from preprocessing.spec.feature_spec import read_feature_spec

    device, scale = torch_device(settings.device, None), settings.scale
    log, data = settings.work / "log.csv", settings.work / "data"
    write_log(scale.parity_shape, log, 1)
    prepare_log(log, data, "cpu")
    rows, world = open_train(data, read_feature_spec(data), device), ProcessGroup(device)
    for name in found.possible(CONFIGS, settings):
        with found.attempt(name):
            batches = epochs(rows, scale.parity_batch, world)  # from device memory, where rows that fit are by default
            net = network(scale.parity_shape, scale, device, DROPOUT)
            step = Step(net, train_config(scale.parity_batch, **CONFIGS[name]), world, compiled=False)
            _train(batches, step, 0)
            traced = profile(found, settings, f"steady epoch: {name}", partial(_marked, batches, step))
            judge_epoch(found, settings, name, *steady_epoch(traced, _REGION))
            with no_waits(device):
                loss, samples = _train(batches, step, 2)
            found.below(f"{name}: mean loss of an epoch without a wait", float(loss) / samples, 0.7)


def _marked(batches: TrainLoader, step: Step) -> None:
    with torch.profiler.record_function(_REGION):
        _train(batches, step, 1)


def _train(batches: TrainLoader, step: Step, number: int) -> tuple[torch.Tensor, int]:
    """Train for an epoch; sum of the losses, on the device, and samples."""
    loss, samples = torch.zeros((), dtype=torch.float64, device=batches.device), 0
    for batch in batches.epoch(number):
        loss += step(batch, len(batch))
        samples += len(batch)
    return loss, samples


if __name__ == "__main__":
    run_check({"epoch": epoch})
