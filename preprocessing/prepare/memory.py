"""The memory limit, and the numbers of tasks and partitions that stay within it."""

from __future__ import annotations

import math
import re
from pathlib import Path

from workflows.common.errors import UserError, bounded
from workflows.device.memory import require_disk, require_memory, shared_bytes

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_MIN_PARTITIONS, MAX_PARTITIONS = 8, 1 << 13
# Few enough rows that their columns fit a core's cache, enough that a partition is worth a task; more if there would
# be very many partitions, since each reads from every spill file.
_PARTITION_ROWS, _MANY_PARTITIONS, _MAX_PARTITION_ROWS = 150_000, 512, 400_000
# Estimates from the peak PSS of runs with 2 to 200 million rows: a process with all its imports, a task at its peak
# (a 16 MiB piece of text and its columns), and a task's bytes per log row in its partition and per negative drawn.
_PROCESS_BYTES, _TASK_BYTES, _ROW_BYTES, _NEGATIVE_BYTES = 304 << 20, 72 << 20, 240, 140
# Lower bounds, to refuse what certainly does not fit: of a worker, and of a negative while it is drawn.
_LEAST_PROCESS_BYTES, _LEAST_NEGATIVE_BYTES = 64 << 20, 16
_UNLIMITED_TASK_BYTES = 1 << 30
# On a GPU one task computes while another reads and writes; more would only divide its memory.
_GPU_TASKS = 2
# Estimates of a GPU task's peak, in bytes per row: the log's columns (three of 8) and the numbered ones (4 + 4 + 8);
# 64-bit sort keys with their permutation and the sort's second copy of both (4 × 8); the history in order (4 + 4 + 8)
# and the train rows (4 + 4 + 4), both while they are gathered from others of that size (× 2) ...
_GPU_ROW_BYTES = 3 * 8 + 16 + 4 * 8 + 2 * (16 + 12)
# ... and per negative drawn: its 64-bit item, and its row (user, item, label) beside the copy that is written.
_GPU_NEGATIVE_BYTES = 8 + 2 * 12
_GPU_SHARE = 0.5  # of the free memory; the rest is for files being decoded and encoded, and for uneven partitions
_GPU_MAX_ROWS = 1 << 29  # cuDF's columns and CuPy's sums have fewer than 2**31 rows; partitions may be uneven
# Of a log that stays in a GPU's memory, while it is grouped by partition: the columns (3 of 8) before and after, the
# partition of each row, and the sort's permutation in two copies.
_RESIDENT_ROW_BYTES = 2 * 3 * 8 + 2 + 2 * 8


def parse_bytes(text: str) -> int:
    """A size such as 1GiB, 500MB, 2g or 1073741824, in bytes.

    Raises:
        ValueError: the text is not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    size = float(found[1]) * _UNITS[found[2] or ""] if found else math.inf
    if size == math.inf:
        raise ValueError(f"{bounded(text)!r} is not a size; expected one such as 1GiB or 800MB")
    return int(size)


def threads_within(limit_bytes: int | None, cores: int, on_gpu: bool = False) -> int:
    """Number of tasks that may run concurrently in this process.

    Raises:
        UserError: the limit does not allow even one.
    """
    useful = min(cores, _GPU_TASKS) if on_gpu else cores
    if limit_bytes is None:
        return useful
    threads = (limit_bytes - _PROCESS_BYTES) // _TASK_BYTES
    if threads < 1:
        raise UserError(_too_little(limit_bytes, _PROCESS_BYTES + _TASK_BYTES, "one task at a time"))
    return min(useful, threads)


def check_workers(limit_bytes: int | None, workers: int) -> None:
    """Raises UserError if this process and its workers would exceed the limit."""
    needed = (1 + workers) * _PROCESS_BYTES + workers * _TASK_BYTES
    if limit_bytes is not None and limit_bytes < needed:
        raise UserError(_too_little(limit_bytes, needed, f"{workers} worker processes") + "; or run fewer, or none")
    require_memory(workers * _LEAST_PROCESS_BYTES, f"--workers {workers}", "start fewer, or none", shared_bytes())


def check_negatives(negatives: int, parts: int, folder: Path) -> None:
    """Check that negatives fit into memory, a part of the log at a time, and all of them on the disk.

    Args:
        negatives: of all test series, plus those written to train.
        parts: that the rows are split into.

    Raises:
        UserError: they do not.
    """
    what, remedy = f"drawing {negatives:,} negatives", "lower --test-negatives or --train-negatives"
    require_memory(_LEAST_NEGATIVE_BYTES * negatives // parts, f"{what} in {parts:,} parts", remedy)
    require_disk(negatives, folder, what, remedy)  # Parquet takes a byte or more for each


def _too_little(limit_bytes: int, needed_bytes: int, what: str) -> str:
    return (
        f"--memory-limit of {limit_bytes / 2**20:.0f} MiB is too little for {what}; "
        f"allow {-(-needed_bytes // 2**20)} MiB or more"
    )


def _task_budget(limit_bytes: int | None, tasks: int) -> int:
    return _UNLIMITED_TASK_BYTES if limit_bytes is None else max(1, (limit_bytes - _PROCESS_BYTES) // tasks)


def partitions_of(rows: int, limit_bytes: int | None, tasks: int) -> int:
    """Number of partitions for a log of about `rows` rows, of which `tasks` are processed concurrently."""
    part = min(_MAX_PARTITION_ROWS, max(_PARTITION_ROWS, rows // _MANY_PARTITIONS))
    part = max(1, min(part, _task_budget(limit_bytes, tasks) // _ROW_BYTES))
    return min(MAX_PARTITIONS, max(_MIN_PARTITIONS, rows // part))


def gpu_partitions(rows: int, negatives: int, free_bytes: int, tasks: int) -> int:
    """Number of partitions whose rows fit a GPU's memory: as few as possible, whatever the number of cores.

    Args:
        rows: rows of the log.
        negatives: negatives of all test series, plus those written to train.
        free_bytes: memory of the GPU that can be allocated (`FrameDevice.free_bytes`).
        tasks: tasks that share it.
    """
    budget = max(1, int(free_bytes * _GPU_SHARE) // tasks)
    needed = rows * _GPU_ROW_BYTES + negatives * _GPU_NEGATIVE_BYTES
    return min(MAX_PARTITIONS, max(1, -(-needed // budget), -(-(rows + negatives) // _GPU_MAX_ROWS)))


def splits_of(rows: int, negatives: int, partitions: int, limit_bytes: int | None, tasks: int) -> int:
    """Number of parts to split each partition into, so that its negatives fit in memory too.

    Args:
        rows: rows of the log.
        negatives: negatives of all test series, plus those written to train.
    """
    needed = (rows * _ROW_BYTES + negatives * _NEGATIVE_BYTES) // partitions
    return min(max(1, MAX_PARTITIONS // partitions), max(1, -(-needed // _task_budget(limit_bytes, tasks))))


def fits_gpu(rows: int, free_bytes: int) -> bool:
    """Whether a log of about `rows` rows can stay in a GPU's memory, and leave half of it to the tasks."""
    return rows * _RESIDENT_ROW_BYTES <= free_bytes // 2
