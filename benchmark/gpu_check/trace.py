"""Profiles of training steps, and the share of time the GPU is idle."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice, repeat
from typing import Any

from torch import profiler

from benchmark.gpu_check.findings import Figure, Findings, Settings, prepare_log, run_check
from benchmark.gpu_check.rows import CONFIGS, WARM_UPS, ResidentRows, epochs, network, train_config
from benchmark.training.variants import DROPOUT
from model.data.batch import Batch
from model.data.train_loader import TrainLoader
from model.distributed.process_group import ProcessGroup
from model.training.step import Step
from preprocessing.synthetic.log import write_log
from workflows.device.torch_device import synchronize, torch_device

_TRACED, _STREAMED = 5, 16  # steps; 16 batches cover two blocks of the Loader's rows
_ON_GPU, _ON_CPU = ("kernel", "gpu_memcpy", "gpu_memset"), ("cpu_op",)


def trace(settings: Settings, found: Findings) -> None:
    """Profile some steps in each precision, alone and fed by the Loader."""
    device, scale = torch_device(settings.device, None), settings.scale
    rows, world = ResidentRows.generate(scale.parity_shape, device), ProcessGroup(device)
    alone = {size: next(epochs(rows, size, world).epoch(0)) for size in (scale.parity_batch, scale.batch_size)}
    streamed = _streamed(settings, world) if find_spec("nvtabular") is not None else None
    if streamed is None:
        found.left_out["steps fed by the Loader"] = "NVTabular is not installed"
    for name in found.possible(CONFIGS, settings):
        for size, batch in alone.items():
            _trace(found, settings, f"step alone, {name}", CONFIGS[name], size, repeat(batch), _TRACED)
        if streamed is not None:
            batches = streamed.epoch(0)
            _trace(found, settings, f"fed by the Loader, {name}", CONFIGS[name], scale.parity_batch, batches, _STREAMED)


def _streamed(settings: Settings, world: ProcessGroup) -> TrainLoader:
    """Epochs over a prepared folder, streamed as in `train.py`."""
    from model.data.dataset import open_train
    from preprocessing.spec.feature_spec import read_feature_spec

    log, data = settings.work / "log.csv", settings.work / "data"
    write_log(settings.scale.parity_shape, log, 1)
    prepare_log(log, data, "cpu")
    rows = open_train(data, read_feature_spec(data), world.device)
    return epochs(rows, settings.scale.parity_batch, world, in_memory=False)


def _trace(
    found: Findings,
    settings: Settings,
    what: str,
    config: dict[str, Any],
    size: int,
    batches: Iterator[Batch],
    steps: int,
) -> None:
    """Profile steps after a warm-up into a Chrome trace; the figure is the idle time in per cent."""
    device, scale = torch_device(settings.device, None), settings.scale
    net = network(scale.parity_shape, scale, device, DROPOUT)
    step = Step(net, train_config(size, **config), ProcessGroup(device), compiled=False)
    for batch in islice(batches, WARM_UPS):
        step(batch, len(batch))
    synchronize(device)
    with profiler.profile(activities=profiler.supported_activities()) as profiled:
        for batch in islice(batches, steps):
            step(batch, len(batch))
        synchronize(device)
    name = f"trace-{size}-{what.replace(', ', '-').replace(' ', '-')}.json.gz"
    profiled.export_chrome_trace(str(settings.output / name))
    with gzip.open(settings.output / name, "rt", encoding="utf-8") as file:
        idle = idle_share(json.load(file), _ON_CPU if settings.rehearsal else _ON_GPU)
    found.measured(Figure(f"idle, batches of {size:,}: {what}", 100.0 * idle, "%"))
    found.files.append(name)


def idle_share(traced: dict[str, Any], categories: Iterable[str]) -> float:
    """Share of the time between the first and the last event of the given categories in which none is running.

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


if __name__ == "__main__":
    run_check({"trace": trace})
