"""Profiles of training steps, and the share of time the GPU is idle."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import profiler

from benchmark.gpu_check.findings import Figure, Findings, Settings, run_check
from benchmark.gpu_check.rows import CONFIGS, WARM_UPS, ResidentRows, epochs, network, train_config
from benchmark.training.variants import DROPOUT
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.training.step import Step
from workflows.device.torch_device import synchronize, torch_device

_TRACED = 5  # steps
_ON_GPU, _ON_CPU = ("kernel", "gpu_memcpy", "gpu_memset"), ("cpu_op",)


def trace(settings: Settings, found: Findings) -> None:
    """Profile some steps of the same batch in each precision."""
    device, scale = torch_device(settings.device, None), settings.scale
    rows, world = ResidentRows.generate(scale.parity_shape, device), ProcessGroup(device)
    for size in (scale.parity_batch, scale.batch_size):
        batch = next(epochs(rows, size, world).epoch(0))
        for name in found.possible(CONFIGS, settings):
            with found.attempt(f"batches of {size:,}: {name}"):
                _trace(found, settings, name, size, batch)


def _trace(found: Findings, settings: Settings, name: str, size: int, batch: Batch) -> None:
    """Profile steps after a warm-up."""
    device, scale = torch_device(settings.device, None), settings.scale
    net = network(scale.parity_shape, scale, device, DROPOUT)
    step = Step(net, train_config(size, **CONFIGS[name]), ProcessGroup(device), compiled=False)

    def run(steps: int) -> None:
        for _ in range(steps):
            step(batch, len(batch))

    run(WARM_UPS)
    profile(found, settings, f"batches of {size:,}: {name}", partial(run, _TRACED))


def profile(found: Findings, settings: Settings, what: str, run: Callable[[], None]) -> dict[str, Any]:
    """Profile `run` until the device has finished. The figure is the idle time in per cent.

    Returns:
        The Chrome trace, which is also written to the report's folder.
    """
    device = torch_device(settings.device, None)
    synchronize(device)
    with profiler.profile(activities=profiler.supported_activities()) as profiled:
        run()
        synchronize(device)
    name = f"trace-{re.sub('[^a-z0-9]+', '-', what)}.json.gz"
    profiled.export_chrome_trace(str(settings.output / name))
    found.files.append(name)
    with gzip.open(settings.output / name, "rt", encoding="utf-8") as file:
        traced: dict[str, Any] = json.load(file)
    idle = idle_share(traced, _ON_CPU if settings.rehearsal else _ON_GPU)
    found.measured(Figure(f"idle, {what}", 100.0 * idle, "%"))
    return traced


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
