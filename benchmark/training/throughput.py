"""Throughput of `train.py` by batch size, precision and number of devices: the reference's table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmark.common.data import prepared_folder
from benchmark.common.train_run import train
from benchmark.training.variants import FACTORS, LAYERS
from preprocessing.synthetic.log import Shape
from workflows.common.progress import console

EPOCHS = 4  # the first is a warm-up, the others are the repetitions
MIXED = "mixed precision"


def measure_throughput(
    shape: Shape, cache: Path, sizes: Sequence[int], devices: Sequence[int], on_gpu: bool
) -> dict[str, Any]:
    """Samples/s of whole runs, without evaluation.

    Args:
        shape: on a CPU a tenth of its rows and users is trained on.
        devices: numbers of GPUs, or of processes on the CPU.
    """
    used = shape if on_gpu else Shape(max(1, shape.users // 10), shape.items, max(shape.items, shape.rows // 10))
    data = prepared_folder(used, cache, "--test-negatives", "0")
    precisions = {"TF32" if on_gpu else "FP32": ["--precision", "tf32" if on_gpu else "fp32"], MIXED: ["--amp"]}
    network = ["--factors", str(FACTORS), "--layers", *map(str, LAYERS), "--epochs", str(EPOCHS), "--seed", "1"]
    rows = []
    for count, size, (name, precision) in product(devices, sizes, precisions.items()):
        where = ["--device", "cuda" if on_gpu else "cpu", "--gpus", str(count), "--batch_size", str(size)]
        with tempfile.TemporaryDirectory(prefix="neumf-benchmark-") as folder:
            run = train(data, Path(folder) / "run", *network, *where, *precision)
        repetitions = run.samples_per_s[1:]
        rows.append(
            {
                "devices": count,
                "batch_size": size,
                "precision": name,
                "computed_in": run.metrics["precision"],
                "samples_per_s": median(repetitions),
                "runs": repetitions,
            }
        )
        told = f"train.py, {count} × {'GPU' if on_gpu else 'CPU process'}, batches of {size:,}, {name}"
        console.print(f"{told}: {rows[-1]['samples_per_s']:,.0f} samples/s")
    return {"device": "GPU" if on_gpu else "CPU process", "rows": used.rows, "epochs": EPOCHS, "results": rows}
