"""Verdicts on measured values: the speed demanded of a GPU, waits and copies of an epoch, memory on foreign GPUs.

A verdict that makes no sense here (in a rehearsal, with small data, on a GPU without a demand) is listed as left out.
No torch: tests plant the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmark.cost_model.bounds import MACHINES, REFERENCE
from benchmark.gpu_check.findings import Findings, Settings

MAX_COPIED_BYTES = 1_000_000  # from host to device, in an epoch whose rows are on the device
# Memory bandwidth in GB/s by words of the GPU's name, from NVIDIA's datasheets; the first entry that fits counts.
_BANDWIDTH = (
    ({"A100", "80GB", "PCIE"}, 1935.0),
    ({"A100", "80GB"}, MACHINES["A100 80GB"].memory_gb_per_s),
    ({"A100"}, MACHINES["A100"].memory_gb_per_s),
    ({"H100", "80GB", "HBM3"}, MACHINES["H100"].memory_gb_per_s),
    ({"H100", "PCIE"}, 2039.0),
    ({"H100", "NVL"}, 3938.0),
    ({"H200"}, MACHINES["H200"].memory_gb_per_s),
    ({"B200"}, MACHINES["B200"].memory_gb_per_s),
)
_REHEARSED, _SMALL = "needs an NVIDIA GPU", "says nothing with small data (--small)"
_WAITING = ("cudaMemcpy", "cudaFree")  # besides everything that is called ...Synchronize


def published(precision: str, devices: int = 1) -> float | None:
    """Samples/s of NVIDIA's program on one A100 or eight (DGX A100, 40 GB), "tf32" or "amp"; None for others."""
    return REFERENCE.get(("plain training", "A100", 1 << 20, devices, precision))


def demanded(gpu: str, precision: str, devices: int = 1) -> float | None:
    """Samples/s that training must reach: NVIDIA's figure for A100s, times the memory bandwidth relative to an A100's.

    Args:
        gpu: the name by which the driver knows it.
    Returns:
        None if there is no such figure, or the GPU is another one (a part of one, a slower one).
    """
    words, reference = set(re.split(r"[\s-]+", gpu.upper())), published(precision, devices)
    bandwidth = next((rate for needed, rate in _BANDWIDTH if needed <= words), None)
    if reference is None or bandwidth is None or "MIG" in words:
        return None
    return reference * bandwidth / MACHINES["A100"].memory_gb_per_s


def judge_speed(
    found: Findings, settings: Settings, what: str, samples_per_s: float, gpu: str, precision: str, devices: int = 1
) -> None:
    """Training must not be slower than what is demanded of its GPU (or GPUs)."""
    if published(precision, devices) is None:
        return
    verdict, demand = f"{what}: samples/s", demanded(gpu, precision, devices)
    if not settings.comparable:
        _leave_out(found, settings, verdict)
    elif demand is None:
        found.left_out[verdict] = f"nothing is demanded of {gpu}: its name is none of an A100, H100, H200 or B200"
    else:
        found.at_least(f"{verdict}, on {gpu}", samples_per_s, demand)


def judge_preparation(found: Findings, settings: Settings, gpu_s: float, cpu_s: float) -> None:
    """Preparing a log on the GPU, in a second run, must not take longer than on the CPU of the same machine."""
    verdict = "log to prepared folder: seconds with the GPU, against the CPU's"
    if settings.comparable:
        found.below(verdict, gpu_s, cpu_s)
    else:
        _leave_out(found, settings, verdict)


def steady_epoch(traced: Mapping[str, Any], name: str) -> tuple[float, dict[str, int]]:
    """Bytes copied from host to device in a trace, and the calls that wait for the device within the marked epoch.

    Args:
        traced: a Chrome trace of torch's profiler. It sees the calls of all libraries and threads.
        name: of the region around the epoch (`torch.profiler.record_function`).
    Returns:
        The bytes, and the number of calls by name.

    Raises:
        RuntimeError: the region is not in the trace.
    """
    events = [event for event in traced["traceEvents"] if "dur" in event]
    region = [each for each in events if each.get("cat") == "user_annotation" and each["name"] == name]
    if len(region) != 1:
        raise RuntimeError(f"the trace has {len(region)} regions {name!r}, expected one")
    start, stop = float(region[0]["ts"]), float(region[0]["ts"]) + float(region[0]["dur"])
    copied, waits = 0.0, dict[str, int]()
    for event in events:
        call = event["name"]
        if event.get("cat") == "gpu_memcpy" and "HtoD" in call:
            copied += float(event["args"]["bytes"])
        waited = event.get("cat") in ("cuda_runtime", "cuda_driver") and (
            "Synchronize" in call or call.partition("_")[0] in _WAITING
        )
        if waited and start <= float(event["ts"]) < stop:
            waits[call] = waits.get(call, 0) + 1
    return copied, waits


def judge_epoch(found: Findings, settings: Settings, what: str, copied_bytes: float, waits: Mapping[str, int]) -> None:
    """An epoch over rows on the device must neither wait for it nor copy more than a megabyte to it."""
    verdicts = f"{what}: waits in a steady epoch", f"{what}: bytes from host to device in a steady epoch"
    if settings.rehearsal:
        for verdict in verdicts:
            _leave_out(found, settings, verdict)
        return
    called = "".join(f", {call}" for call in sorted(waits))
    found.close(f"{verdicts[0]}{called}", sum(waits.values()), 0, 0.0)
    found.below(verdicts[1], copied_bytes, MAX_COPIED_BYTES)


def foreign(held: Mapping[int, Mapping[str, float]]) -> dict[tuple[int, str], float]:
    """Memory that processes hold on GPUs other than their own.

    A process's own GPU is the one where it holds most. A GPU belongs to the process that holds most of it.

    Args:
        held: MiB by process and GPU.
    Returns:
        MiB by (process, GPU).
    """
    own = {process: max(on, key=lambda gpu: on[gpu]) for process, on in held.items() if on}
    owner = {gpu: max((p for p in own if own[p] == gpu), key=lambda p: held[p][gpu]) for gpu in own.values()}
    return {(p, gpu): mib for p, on in held.items() for gpu, mib in on.items() if owner.get(gpu) != p}


def judge_memory(found: Findings, settings: Settings, held: Mapping[int, Mapping[str, float]], ranks: int) -> None:
    """Each of `ranks` processes must hold memory on a GPU of its own, and on no other; see `foreign`."""
    verdict = "ranks: places where a process holds memory of another's GPU"
    if settings.rehearsal:
        _leave_out(found, settings, verdict)
    elif not held:
        found.left_out[verdict] = "nvidia-smi shows no processes (a container needs the host's: docker run --pid=host)"
    else:
        wrong = foreign(held)
        places = "".join(f", process {process}: {mib:.0f} MiB on {gpu}" for (process, gpu), mib in wrong.items())
        found.close(f"{verdict}{places}", len(wrong), 0, 0.0)
        found.close("ranks: GPUs in use", len({gpu for on in held.values() for gpu in on}), ranks, 0.0)


def _leave_out(found: Findings, settings: Settings, verdict: str) -> None:
    found.left_out[verdict] = _REHEARSED if settings.rehearsal else _SMALL
