"""Measured rates of the machine, and roofline bounds on samples/s from each algorithm's operations and bytes.

`python -m benchmark.training.limits` measures the rates and prints them as JSON. The counts need no torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from workflows.common.errors import run_command

_FLOAT = 4  # bytes
_ROW_FLOATS = 256  # per gathered row: 1 KB
_PASSES = 3  # one product forward and two of the same size backward, for the inputs and the weights
_ADAM_PASSES = 7  # parameter, gradient and two moments read; parameter and moments written


def counts(
    n_users: int,
    n_items: int,
    factors: int,
    layers: Sequence[int],
    negatives: int,
    batch_size: int,
    active: Sequence[float],
    dropout: float,
) -> dict[str, dict[str, float]]:
    """Minimum floating-point operations and memory traffic of each algorithm, per sample.

    dense: all layers on each sample. factorised: the first layer once for each group's user and each item of the
    table, the others on each sample. active: factorised, with the layers after the first computed only between
    non-zero units (forward: from those to the units that dropout keeps; backward: between non-zero units).

    Bytes include gathers of embedding rows, read once with gradients read and written once, and Adam's pass over all
    parameters, `_ADAM_PASSES` floats each. Activations passed between layers may stay in a cache.

    Args:
        active: share of non-zero units of each hidden layer.
    """
    half, first = layers[0] // 2, layers[1]
    head = 2 * _PASSES * (factors + layers[-1])
    pairs = list(pairwise(layers))
    later = [a * b for a, b in pairs[1:]]
    per_user = 2 * _PASSES * half * first / (1 + negatives)
    per_item = 2 * _PASSES * half * first * min(n_items / batch_size, 1.0)
    skipping = sum(
        2 * size * (share * (1.0 - dropout) + 2 * share * after)
        for size, (share, after) in zip(later, pairwise(active), strict=True)
    )
    flops = {
        "dense": 2 * _PASSES * sum(a * b for a, b in pairs) + head,
        "factorised": per_user + per_item + 2 * _PASSES * sum(later) + head,
        "active": per_user + per_item + skipping + head,
    }
    row = _FLOAT * (half + factors)
    projected = _FLOAT * (first + factors)  # an item's row of the projected table, in place of its embedding
    rows = {"dense": 2.0 * row, "factorised": row / (1 + negatives) + projected}
    rows["active"] = rows["factorised"]
    parameters = (n_users + n_items) * (half + factors) + sum(a * b + b for a, b in pairs) + factors + layers[-1] + 1
    adam = _ADAM_PASSES * _FLOAT * parameters / batch_size
    return {name: {"flops": flops[name], "gathered_bytes": _PASSES * rows[name], "adam_bytes": adam} for name in flops}


def bounds(counted: dict[str, dict[str, float]], rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Samples/s at the measured rates, for float32 and bfloat16 products: the slower of arithmetic and memory."""
    found: dict[str, dict[str, float]] = {}
    for name, each in counted.items():
        memory_s = each["gathered_bytes"] / (1e9 * rates["gather_gb_per_s"])
        memory_s += each["adam_bytes"] / (1e9 * rates["copy_gb_per_s"])
        found[name] = {
            kind: 1.0 / max(each["flops"] / (1e9 * rates[f"{kind}_gflop_per_s"]), memory_s) for kind in ("fp32", "bf16")
        }
    return found


def measure_rates(size: int, mib: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Rates with all of torch's threads.

    Args:
        size: side of the square matrices.
        mib: size of the memory copied, and of the table that rows are gathered from.
        clock: returns seconds.
    Returns:
        GFLOP/s of matrix products; GB/s of a copy and of a gather of random 1 KB rows, bytes read plus bytes written.
    """
    import torch

    def product(dtype: torch.dtype) -> float:
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        return 2 * size**3 / median_s(lambda: left @ right, clock) / 1e9

    source = torch.randn(mib * (1 << 20) // (_FLOAT * _ROW_FLOATS), _ROW_FLOATS)
    target = torch.empty_like(source)
    which = torch.randint(len(source), (len(source),))
    moved = 2 * source.numel() * _FLOAT / 1e9
    return {
        "fp32_gflop_per_s": product(torch.float32),
        "bf16_gflop_per_s": product(torch.bfloat16),
        "copy_gb_per_s": moved / median_s(lambda: target.copy_(source), clock),
        "gather_gb_per_s": moved / median_s(lambda: torch.index_select(source, 0, which, out=target), clock),
    }


def median_s(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Median of three calls, after one warm-up call."""
    taken = []
    for _ in range(4):
        started = clock()
        work()
        taken.append(clock() - started)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.training.limits", allow_abbrev=False)
    parser.add_argument("--size", type=int, default=4096, help="side of the square matrices")
    parser.add_argument("--mib", type=int, default=512, help="size of the memory copied and gathered from")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    print(json.dumps(measure_rates(args.size, args.mib)))


if __name__ == "__main__":
    run_command(main)
