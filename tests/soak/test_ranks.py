"""Soak tests: ranks never deadlock, and a killed run can always be resumed.

A few repetitions each; `make soak` runs many.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parent.parent
N_USERS, N_ITEMS, LENGTH = 40, 50, 8
FREEZES, KILLS = (3, 50), (2, 20)  # in `make test`, in `make soak`
MEASURED = {"train_throughput", "eval_throughput", "time_to_best_model", "peak_rss_mib"}
FLAGS = "--device cpu -f 4 --layers 8 4 -l 0.01 -k 3 -s 1"
PATIENCE_S = 240.0

pytestmark = pytest.mark.usefixtures("forked")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    few, many = FREEZES if "freeze" in metafunc.function.__name__ else KILLS
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(many if metafunc.config.getoption("--soak") else few))


def write_data(folder: Path, rng: random.Random) -> int:
    """Write a prepared folder with partitions of very uneven sizes, some empty; returns the number of rows."""
    sizes = [rng.choice([0, 1, 2, rng.randrange(1, 20)]) for _ in range(rng.randrange(1, 6))]
    sizes.append(max(1, N_USERS - sum(sizes)))
    users = [user for user in range(N_USERS) if user < sum(sizes)]
    files: dict[str, list[str]] = {"train": [], "test": []}
    rows, first = 0, 0
    for part, size in enumerate(sizes):
        train: list[tuple[int, int, float]] = []
        test: list[tuple[int, int, float]] = []
        for user in users[first : first + size]:
            items = rng.sample(range(N_ITEMS), N_ITEMS)
            own = rng.randrange(1, 30)
            train += [(user, item, 1.0) for item in items[:own]]
            test += [(user, item, float(not place)) for place, item in enumerate(items[own : own + LENGTH])]
        first += size
        rows += len(train)
        for mapping, content in (("train", train), ("test", test)):
            (folder / mapping).mkdir(parents=True, exist_ok=True)
            files[mapping].append(f"{mapping}/part-{part}.parquet")
            columns = list(zip(*content, strict=True)) or [(), (), ()]
            types = {"user": pa.int32(), "item": pa.int32(), "label": pa.float32()}
            arrays = [pa.array(column, kind) for column, kind in zip(columns, types.values(), strict=True)]
            pq.write_table(pa.table(arrays, names=list(types)), folder / files[mapping][-1])
    features = ["user", "item", "label"]
    spec = {
        "channel_spec": {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        "feature_spec": {"user": {"cardinality": N_USERS}, "item": {"cardinality": N_ITEMS}, "label": {}},
        "metadata": {"test_samples_per_series": LENGTH, "time_ordered": True},
        "source_spec": {
            mapping: [{"type": "parquet", "features": features, "files": names}] for mapping, names in files.items()
        },
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    return rows


def train(*flags: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, output


def metrics_of(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name not in MEASURED}


def test_ranks_with_uneven_partitions_never_deadlock(tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    rows, ranks, negatives = write_data(tmp_path / "data", rng), 2 + number % 3, rng.randrange(1, 5)
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    batch = rng.choice([ranks, 7, 16, 64, 100_000])
    finished(train(*places, *FLAGS.split(), *f"-e 2 -b {batch} -n {negatives} --gpus {ranks}".split()))
    lines = [json.loads(line[5:]) for line in (tmp_path / "run" / "log.json").read_text().splitlines()]
    epochs = [line["data"] for line in lines if line["type"] == "LOG" and line["step"] in ([0], [1])]
    samples = [epoch["train_throughput"] * epoch["train_epoch_time"] for epoch in epochs]
    assert samples == pytest.approx([rows * (1 + negatives)] * 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An uninterrupted run and its duration."""
    folder = tmp_path_factory.mktemp("whole")
    write_data(folder / "data", random.Random(0))
    started = time.monotonic()
    finished(train("--data", str(folder / "data"), "--output", str(folder / "run"), *RUN))
    return folder, time.monotonic() - started


RUN = [*FLAGS.split(), *["-e", "12", "-b", "64", "--validation", "leave-one-out"]]


def test_a_run_killed_at_any_moment_resumes_to_the_same_result(
    tmp_path: Path, whole: tuple[Path, float], number: int
) -> None:
    rng = random.Random(number)
    folder, whole_s = whole
    output = tmp_path / "run"
    flags = ["--data", str(folder / "data"), "--output", str(output), *RUN]
    for _ in range(2):  # the resumed run is killed as well
        process = train(*flags)
        try:
            process.communicate(timeout=rng.uniform(0.3, 1.0) * whole_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        # A run killed before it has written anything starts again.
        if output.exists():
            flags = ["--resume", str(output)]
    finished(train(*flags))
    assert metrics_of(output) == metrics_of(folder / "run")
    assert (output / "model.safetensors").read_bytes() == (folder / "run" / "model.safetensors").read_bytes()
