"""Measurements of a GPU: how much of the time it idles between steps, and samples/s beside what NVIDIA published."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import profiler

from benchmark.gpu_check_findings import Figure, Findings, Settings, need, ours, prepare_log, run_check
from benchmark.gpu_check_rows import ResidentRows, epochs, network, train_config
from model.batches import Batch
from model.step import Step
from model.world import World
from preprocessing.synthetic import write_log
from workflows.device import frame_device, synchronize, torch_device, torch_precision
from workflows.errors import UserError
from workflows.folders import read_json

_A100 = "NVIDIA's NCF, ML-20m, one A100"
_PUBLISHED_TRAINING = {"tf32": 22.6e6, "amp": 34.1e6}
_PUBLISHED_SCORING = {"tf32": 57.5e6, "fp16": 82.7e6}
_CONFIGS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "amp": {"amp": True},
    "amp, with CUDA graphs": {"amp": True, "cuda_graphs": True},
}
_DROPOUT, _UNTRAINED_LOSS = 0.5, 0.7
_WARM_UPS, _TRACED = 5, 5  # steps; graphs are recorded in the fourth
_ON_GPU, _ON_CPU = ("kernel", "gpu_memcpy", "gpu_memset"), ("cpu_op",)


def trace(settings: Settings) -> Findings:
    """A profile of some steps in each precision, and how much of the time the GPU computed nothing."""
    found, device = Findings(), torch_device(settings.device, None)
    scale = settings.scale
    shape = scale.parity_shape
    rows = ResidentRows.of(shape, device)
    for size in (scale.parity_batch, scale.batch_size):
        batches = list(islice(epochs(rows, size, World(device)).epoch(0), 1)) * (_WARM_UPS + _TRACED)
        for name in found.possible(_CONFIGS, settings):
            net = network(shape, scale, device, _DROPOUT)
            step = Step(net, train_config(size, **_CONFIGS[name]), World(device), kernels=False)
            file = f"trace-{size}-{name.replace(', ', '-').replace(' ', '-')}.json.gz"
            idle = _traced(step, batches, device, settings.output / file, settings.rehearsal)
            found.figures.append(Figure(f"idle, batches of {len(batches[0]):,}, {name}", idle, "%"))
            found.files.append(file)
    return found


def _traced(step: Step, batches: Sequence[Batch], device: torch.device, path: Path, rehearsal: bool) -> float:
    """Profile the steps after the warm-up into a Chrome trace; the share of the time without work, in per cent."""
    for batch in batches[:_WARM_UPS]:
        step(batch, len(batch))
    synchronize(device)
    with profiler.profile(activities=profiler.supported_activities()) as profiled:
        for batch in batches[_WARM_UPS:]:
            step(batch, len(batch))
        synchronize(device)
    profiled.export_chrome_trace(str(path))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return 100.0 * idle_share(json.load(file), _ON_CPU if rehearsal else _ON_GPU)


def idle_share(traced: dict[str, Any], categories: Iterable[str]) -> float:
    """The share of the time from the first to the last event of some categories in which there is none.

    Args:
        traced: a Chrome trace.

    Raises:
        RuntimeError: there is no such event.
    """
    wanted = set(categories)
    events = sorted(
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in traced["traceEvents"]
        if event.get("cat") in wanted and "dur" in event
    )
    if not events:
        raise RuntimeError(
            f"the trace has no event of {', '.join(sorted(wanted))}: the profiler does not see the device"
        )
    busy, until = 0.0, events[0][0]
    for start, stop in events:
        busy += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return 1.0 - busy / (until - events[0][0]) if until > events[0][0] else 0.0


def throughput(settings: Settings) -> Findings:
    """Samples/s of training from memory (negatives, shuffle and steps of an epoch), and of scoring."""
    found, device = Findings(), torch_device(settings.device, None)
    rows = ResidentRows.of(settings.scale.shape, device)
    for name in found.possible(_CONFIGS, settings):
        speed, loss = _train(settings, rows, _CONFIGS[name], device)
        found.figures.append(_samples_per_s(settings, f"training from memory, {name}", speed, _PUBLISHED_TRAINING))
        found.below(f"training from memory, {name}: mean loss of an epoch", loss, _UNTRAINED_LOSS)
    for name in found.possible(("fp32", "tf32", "fp16"), settings):
        speed = _score(settings, name, device)
        found.figures.append(_samples_per_s(settings, f"scoring, {name}", speed, _PUBLISHED_SCORING))
    return found


def _samples_per_s(settings: Settings, what: str, value: float, published: dict[str, float]) -> Figure:
    """A figure, beside what is published of the precision that its name ends with."""
    known = published.get(what.rpartition(", ")[2]) if settings.comparable else None
    return Figure(what, value, "samples/s", known, _A100 if known else "")


def _train(settings: Settings, rows: ResidentRows, config: dict[str, Any], device: torch.device) -> tuple[float, float]:
    """Samples/s of a whole epoch, after some steps to warm up, and its mean loss."""
    scale, world = settings.scale, World(device)
    net = network(scale.shape, scale, device, _DROPOUT)
    step = Step(net, train_config(scale.batch_size, **config), world)
    batches = epochs(rows, scale.batch_size, world)
    for batch in islice(batches.epoch(0), _WARM_UPS):
        step(batch, len(batch))
    synchronize(device)
    started, samples, loss = time.perf_counter(), 0, torch.zeros((), device=device, dtype=torch.float64)
    for batch in batches.epoch(1):
        loss += step(batch, len(batch))
        samples += len(batch)
    synchronize(device)
    return samples / (time.perf_counter() - started), float(loss) / samples


@torch.inference_mode()
def _score(settings: Settings, precision: str, device: torch.device) -> float:
    """Pairs scored per second by the network's forward, as the reference's inference does it."""
    scale = settings.scale
    dtype = torch_precision(precision, device)
    net = network(scale.shape, scale, device, _DROPOUT).eval()
    net = net if dtype is None else net.to(dtype)
    pairs, repeats = scale.scored
    users = torch.randint(scale.shape.users, (pairs,), device=device)
    items = torch.randint(scale.shape.items, (pairs,), device=device)
    for _ in range(_WARM_UPS):
        net(users, items)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        net(users, items)
    synchronize(device)
    return pairs * repeats / (time.perf_counter() - started)


def pipeline(settings: Settings) -> Findings:
    """Raw log to prepared folder, rows/s of the Loader, and samples/s of `train.py`, which streams them."""
    need("nvtabular", "NVTabular")
    found, shape = Findings(), settings.scale.shape
    log, data = settings.work / "log.csv", settings.work / "data"
    write_log(shape, log, 1)
    try:
        found.facts["frames"] = frame_device(settings.device).frames.__name__
        where = settings.device
    except UserError as err:
        found.left_out["preparing on the GPU"] = str(err).partition(";")[0]
        where = "cpu"
    usage = prepare_log(log, data, where)
    found.figures.append(Figure(f"log to prepared folder, --device {where}", shape.rows / usage.wall_s, "rows/s"))
    found.figures.append(Figure("Loader, from the folder to the device", _loaded(settings, data), "rows/s"))
    for name in found.possible(("fp32", "tf32", "amp"), settings):
        speed = _streamed(settings, data, ["--amp"] if name == "amp" else ["--precision", name], name)
        found.figures.append(_samples_per_s(settings, f"train.py, streamed, {name}", speed, _PUBLISHED_TRAINING))
    return found


def _loaded(settings: Settings, data: Path) -> float:
    """Train rows per second that arrive on the device, in the second pass over them."""
    from model.data import open_train
    from preprocessing.feature_spec import read_feature_spec

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
    """Mean samples/s of the epochs of a run, as `metrics.json` has them."""
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
    run_check({"trace": trace, "throughput": throughput, "pipeline": pipeline})
