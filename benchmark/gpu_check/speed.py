"""GPU measurements: rows/s and samples/s, alongside NVIDIA's published figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.gpu_check.findings import Figure, Findings, Settings, need, ours, prepare_log, run_check
from benchmark.gpu_check.rows import CONFIGS, WARM_UPS, ResidentRows, epochs, network, train_config
from benchmark.training.variants import DROPOUT
from model.distributed.process_group import ProcessGroup
from model.scoring.scorer import Scorer
from model.training.step import Step
from preprocessing.synthetic.log import write_log
from workflows.common.errors import UserError
from workflows.common.files import read_json
from workflows.device.frames import frame_device
from workflows.device.torch_device import matrix_precision, mixed_dtype, synchronize, torch_device

_A100 = "NVIDIA's NCF, ML-20m, one A100"
_PUBLISHED_TRAINING = {"tf32": 22.6e6, "amp": 34.1e6}
_PUBLISHED_SCORING = {"tf32": 57.5e6, "fp16": 82.7e6}
_UNTRAINED_LOSS = 0.7


def throughput(settings: Settings, found: Findings) -> None:
    """Samples/s of in-memory training (negatives, shuffle and steps of an epoch) and of scoring."""
    device = torch_device(settings.device, None)
    net = network(settings.scale.shape, settings.scale, device, DROPOUT).eval()
    for name in found.possible(("fp32", "tf32", "fp16"), settings):
        dtype = mixed_dtype(name)
        with matrix_precision(name, device):
            speed = _score(settings, net if dtype is None else net.to(dtype), device)
        found.measured(_samples_per_s(settings, f"scoring, {name}", speed, _PUBLISHED_SCORING))
    speed = _score(settings, Scorer(net.float()), device)
    found.measured(_samples_per_s(settings, "scoring from projections, fp32", speed, {}))
    rows = ResidentRows.generate(settings.scale.shape, device)
    for name in found.possible(CONFIGS, settings):
        speed, loss = _train(settings, rows, CONFIGS[name], device)
        found.measured(_samples_per_s(settings, f"training from memory, {name}", speed, _PUBLISHED_TRAINING))
        found.below(f"training from memory, {name}: mean loss of an epoch", loss, _UNTRAINED_LOSS)


def _samples_per_s(settings: Settings, what: str, value: float, published: dict[str, float]) -> Figure:
    """A figure with the published value for the precision at the end of its name."""
    known = published.get(what.rpartition(", ")[2]) if settings.comparable else None
    return Figure(what, value, "samples/s", known, _A100 if known else "")


def _train(settings: Settings, rows: ResidentRows, config: dict[str, Any], device: torch.device) -> tuple[float, float]:
    """Samples/s of a whole epoch, after some warm-up steps, and its mean loss."""
    scale, world = settings.scale, ProcessGroup(device)
    net = network(scale.shape, scale, device, DROPOUT)
    step = Step(net, train_config(scale.batch_size, **config), world)
    batches = epochs(rows, scale.batch_size, world)
    for batch in islice(batches.epoch(0), WARM_UPS):
        step(batch, len(batch))
    synchronize(device)
    started, samples, loss = time.perf_counter(), 0, torch.zeros((), device=device, dtype=torch.float64)
    for batch in batches.epoch(1):
        loss += step(batch, len(batch))
        samples += len(batch)
    synchronize(device)
    return samples / (time.perf_counter() - started), float(loss) / samples


@torch.inference_mode()
def _score(settings: Settings, score: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> float:
    """Random user-item pairs scored per second, as in the reference's inference."""
    scale = settings.scale
    pairs, repeats = scale.scored
    users = torch.randint(scale.shape.users, (pairs,), device=device)
    items = torch.randint(scale.shape.items, (pairs,), device=device)
    for _ in range(WARM_UPS):
        score(users, items)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        score(users, items)
    synchronize(device)
    return pairs * repeats / (time.perf_counter() - started)


def pipeline(settings: Settings, found: Findings) -> None:
    """Rows/s from raw log to prepared folder and of the Loader, and samples/s of `train.py`, which streams the rows."""
    need("nvtabular", "NVTabular")
    shape = settings.scale.shape
    log, data = settings.work / "log.csv", settings.work / "data"
    write_log(shape, log, 1)
    try:
        found.facts["frames"] = frame_device(settings.device).frames.__name__
        where = settings.device
    except UserError as err:
        found.left_out["preparing on the GPU"] = str(err).partition(";")[0]
        where = "cpu"
    usage = prepare_log(log, data, where)
    found.measured(Figure(f"log to prepared folder, --device {where}", shape.rows / usage.wall_s, "rows/s"))
    found.measured(Figure("Loader, from the folder to the device", _loaded(settings, data), "rows/s"))
    for name in found.possible(("fp32", "tf32", "amp"), settings):
        speed = _streamed(settings, data, ["--amp"] if name == "amp" else ["--precision", name], name)
        found.measured(_samples_per_s(settings, f"train.py, streamed, {name}", speed, _PUBLISHED_TRAINING))


def _loaded(settings: Settings, data: Path) -> float:
    """Train rows per second that reach the device, in the second pass over the data."""
    from model.data.dataset import open_train
    from preprocessing.spec.feature_spec import read_feature_spec

    device = torch_device(settings.device, None)
    rows = open_train(data, read_feature_spec(data), device)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for _ in rows.stream(1 << 20, device):
            pass
        synchronize(device)
        seconds = time.perf_counter() - started
    return rows.n_rows / seconds


def _streamed(settings: Settings, data: Path, extra: Sequence[str], name: str) -> float:
    """Mean samples/s over the epochs of a run, from `metrics.json`."""
    scale, run = settings.scale, settings.work / f"run-{name}"
    sizes = (
        "--batch_size",
        str(scale.batch_size),
        "--factors",
        str(scale.factors),
        "--layers",
        *map(str, scale.layers),
    )
    flags = ("--epochs", "3", "--seed", "1", "--without", "progress", "tensorboard", "curves")
    ours("train.py", "--data", data, "--output", run, "--device", settings.device, *sizes, *flags, *extra)
    return float(read_json(run / "metrics.json")["train_throughput"])


if __name__ == "__main__":
    run_check({"throughput": throughput, "pipeline": pipeline})
