"""GPU measurements: rows/s and samples/s, alongside NVIDIA's published figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.cost_model.bounds import REFERENCE
from benchmark.gpu_check.findings import Figure, Findings, NotPossibleError, Settings, need, prepare_log, run_check
from benchmark.gpu_check.rows import CONFIGS, WARM_UPS, ResidentRows, epochs, network, train_config
from benchmark.gpu_check.runs import speed_flags, train
from benchmark.gpu_check.verdicts import judge_preparation, judge_speed, published
from benchmark.training.variants import DROPOUT
from model.distributed.process_group import ProcessGroup
from model.scoring.scorer import Scorer
from model.training.step import Step
from preprocessing.synthetic.log import write_log
from workflows.common.errors import UserError
from workflows.common.files import read_json
from workflows.device.frames import frame_device
from workflows.device.torch_device import gpu_name, matrix_precision, mixed_dtype, synchronize, torch_device

_A100 = "NVIDIA's NCF, ML-20m, one A100"
_SCORING = {"tf32": "tf32", "fp16": "amp"}  # precisions with a published figure, and its name
_UNTRAINED_LOSS = 0.7


def throughput(settings: Settings, found: Findings) -> None:
    """Samples/s of in-memory training (negatives, shuffle and steps of an epoch) and of scoring."""
    device = torch_device(settings.device, None)
    net = network(settings.scale.shape, settings.scale, device, DROPOUT).eval()
    for name in found.possible(("fp32", "tf32", "fp16"), settings):
        with found.attempt(f"scoring, {name}"), matrix_precision(name, device):
            dtype = mixed_dtype(name)
            speed = _score(settings, net if dtype is None else net.to(dtype), device)
            known = REFERENCE.get(("inference", "A100", 1 << 20, 1, _SCORING.get(name, "")))
            found.measured(_samples_per_s(settings, f"scoring, {name}", speed, known))
    with found.attempt("scoring from projections, fp32"):
        speed = _score(settings, Scorer(net.float()), device)
        found.measured(_samples_per_s(settings, "scoring from projections, fp32", speed, None))
    rows = ResidentRows.generate(settings.scale.shape, device)
    for name in found.possible(CONFIGS, settings):
        what = f"training from memory, {name}"
        with found.attempt(what):
            speed, loss = _train(settings, rows, CONFIGS[name], device)
            found.below(f"{what}: mean loss of an epoch", loss, _UNTRAINED_LOSS)
            _judged(settings, found, what, speed, device)


def _judged(settings: Settings, found: Findings, what: str, speed: float, device: torch.device) -> None:
    """Report a training speed, and judge it; the precision comes last in its name."""
    precision = what.rpartition(", ")[2]
    found.measured(_samples_per_s(settings, what, speed, published(precision)))
    judge_speed(found, settings, what, speed, gpu_name(device), precision)


def _samples_per_s(settings: Settings, what: str, value: float, published: float | None) -> Figure:
    """A figure beside a published one, if both were measured with the same work."""
    known = published if settings.comparable else None
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
    """Rows/s from raw log to prepared folder on CPU and GPU, and of the Loader; samples/s of `train.py` as started by
    default."""
    need("nvtabular", "NVTabular")
    log, device = settings.work / "log.csv", torch_device(settings.device, None)
    write_log(settings.scale.shape, log, 1)
    data = _prepare(settings, found, log)
    with found.attempt("Loader"):
        speed = _loaded(data, device)
        found.measured(Figure("Loader, from the folder to the device", speed, "rows/s"))
    for name in found.possible(("tf32", "amp"), settings):
        with found.attempt(f"train.py, {name}"):
            precision = ("--amp",) if name == "amp" else ("--precision", name)
            flags = (*speed_flags(settings.scale), "--device", settings.device, *precision)
            speed = train(settings, data, f"run-{name}", *flags).steady_samples_per_s
            _judged(settings, found, f"train.py, {name}", speed, device)


def _prepare(settings: Settings, found: Findings, log: Path) -> Path:
    """Prepare the log on the CPU, and twice on the GPU; returns a folder."""
    rows, data = settings.scale.shape.rows, settings.work / "data-cpu"
    cpu = prepare_log(log, data, "cpu")
    found.measured(Figure("log to prepared folder, --device cpu", rows / cpu.wall_s, "rows/s"))
    with found.attempt("log to prepared folder on the GPU"):
        try:
            found.facts["frames"] = frame_device(settings.device).frames.__name__
        except UserError as err:
            raise NotPossibleError(str(err).partition(";")[0]) from None
        os.environ["CUPY_CACHE_DIR"] = str(settings.work / "cupy")  # the first run compiles every kernel
        on_gpu = settings.work / "data-gpu"
        cold = warm = prepare_log(log, on_gpu, settings.device)
        if not settings.rehearsal:
            warm = prepare_log(log, on_gpu, settings.device, "--overwrite")
        for which, usage in (("first run", cold), ("second run", warm)):
            what = f"log to prepared folder, --device {settings.device}, {which}"
            found.measured(Figure(what, rows / usage.wall_s, "rows/s"))
        found.measured(Figure("first run longer than the second (kernels compiled)", cold.wall_s - warm.wall_s, "s"))
        read = read_json(on_gpu / "stats.json").get("rows_read_on_gpu")
        if read is not None:
            found.measured(Figure("rows read on the GPU", 100.0 * read / rows, "%"))
        judge_preparation(found, settings, warm.wall_s, cpu.wall_s)
        data = on_gpu
    return data


def _loaded(data: Path, device: torch.device) -> float:
    """Train rows per second that reach the device, in the second pass over the data."""
    from model.data.dataset import open_train
    from preprocessing.spec.feature_spec import read_feature_spec

    rows = open_train(data, read_feature_spec(data), device)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for _ in rows.stream(1 << 20, device):
            pass
        synchronize(device)
        seconds = time.perf_counter() - started
    return rows.n_rows / seconds


if __name__ == "__main__":
    run_check({"throughput": throughput, "pipeline": pipeline})
