"""Soak tests: ranks never deadlock, and a killed run can always be resumed.

A few repetitions each; `make soak` runs many.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from soak_commands import Commands, clear, finish, is_alive, start, unused_shared_memory

ROOT = Path(__file__).parents[2]
N_USERS, N_ITEMS, LENGTH = 40, 50, 8
FREEZES, KILLS = (2, 50), (1, 20)  # in `make test`, in `make soak`
RANK_KILLS = (2, 40)  # half of them with --members
MEASURED = {"train_throughput", "eval_throughput", "time_to_best_model", "peak_rss_mib"}
FLAGS = "--device cpu -f 4 --layers 8 4 -l 0.01 -k 3 -s 1"
PATIENCE_S = 240.0

pytestmark = pytest.mark.usefixtures("forked")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kinds = {"freeze": FREEZES, "deadlock": FREEZES, "of_two_ranks": RANK_KILLS}
    few, many = next((counts for word, counts in kinds.items() if word in metafunc.function.__name__), KILLS)
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


def test_ranks_with_uneven_partitions_never_deadlock(
    tmp_path: Path, number: int, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(number)
    rows, ranks, negatives = write_data(tmp_path / "data", rng), 2 + number % 3, rng.randrange(1, 5)
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    batch = rng.choice([ranks, 7, 16, 64, 100_000])
    finished(train(*places, *FLAGS.split(), *f"-e 2 -b {batch} -n {negatives} --gpus {ranks}".split()))
    lines = [json.loads(line[5:]) for line in (tmp_path / "run" / "log.json").read_text().splitlines()]
    epochs = [line["data"] for line in lines if line["type"] == "LOG" and line["step"] in ([0], [1])]
    samples = [epoch["train_throughput"] * epoch["train_epoch_time"] for epoch in epochs]
    assert samples == pytest.approx([rows * (1 + negatives)] * 2)
    record_property("runs of 2 to 4 ranks on uneven partitions", 1)


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
    tmp_path: Path, whole: tuple[Path, float], number: int, record_property: Callable[[str, object], None]
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
            record_property("kills of one process, resumed", 1)
        # A run killed before it has written anything starts again.
        if output.exists():
            flags = ["--resume", str(output)]
    finished(train(*flags))
    assert metrics_of(output) == metrics_of(folder / "run")
    assert (output / "model.safetensors").read_bytes() == (folder / "run" / "model.safetensors").read_bytes()


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that the launcher has started: they share the pipe that tells them of its end."""
    own, pipes = _pipes("self"), _pipes(launcher.pid)
    others = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [pid for pid in others if pid not in (os.getpid(), launcher.pid) and _pipes(pid) & (pipes - own)]


def _pipes(process: int | str) -> set[str]:
    found = set()
    with suppress(OSError):
        for file in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                found.add(str(file.readlink()))
    return {name for name in found if name.startswith("pipe:")}


def _kill_one(launcher: subprocess.Popen[str], rng: random.Random, after_s: float) -> bool:
    """Kill a rank or the launcher after a while; the others end, and a killed rank is reported.

    Returns:
        False if they had ended before.
    """
    left = unused_shared_memory()
    try:
        output, _ = launcher.communicate(timeout=after_s)
        assert launcher.returncode == 0, output
        return False
    except subprocess.TimeoutExpired:
        ranks = ranks_of(launcher)
    victim = rng.choice([launcher.pid, *ranks, *ranks])
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    output, _ = launcher.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in output, output
    if victim != launcher.pid and launcher.returncode:
        assert launcher.returncode == 128 + signal.SIGKILL, output
        assert re.search(r"error: rank [01] of 2 was killed by SIGKILL", output), output
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_alive, ranks)):
        assert time.monotonic() < deadline, "ranks outlive their launcher"
        time.sleep(0.01)
    while not unused_shared_memory() <= left:  # another program's may be on its way out
        assert time.monotonic() < deadline, "shared memory is left"
        time.sleep(0.1)
    return launcher.returncode != 0


@pytest.fixture(scope="module")
def two_ranks(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], Path, float]]:
    """Undisturbed runs by two ranks: flags, run folder, duration."""
    made = {}
    for name in ("train", "members"):
        output = tmp_path_factory.mktemp("two") / "run"
        flags, started = [*commands.flags(name, output), "--gpus", "2"], time.monotonic()
        finish(flags)
        made[name] = flags, output, time.monotonic() - started
    return made


def test_a_kill_of_one_of_two_ranks(
    tmp_path: Path, two_ranks: dict[str, tuple[list[str], Path, float]], number: int,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    rng = random.Random(number)
    flags, whole, whole_s = two_ranks[("train", "members")[number % 2]]
    output = tmp_path / "run"
    flags = [str(output) if flag == str(whole) else flag for flag in flags]
    after_s = rng.uniform(0.1, 1.0) * whole_s
    while not _kill_one(start(flags), rng, after_s):
        clear(output)
        after_s *= 0.8
    record_property("kills of two ranks", 1)
    finish(["train.py", "--resume", str(output)] if output.exists() else flags)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert metrics_of(output) == metrics_of(whole)
