"""Commands killed at any moment: the old output or the new one is at its place, and the next run tidies up."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from soak_commands import FILES, TRAINING, Commands, clear, finish, output_of, put, start, tree

# In `make test`, in `make soak`.
KILLS = {"preparation": (1, 100), "training": (1, 60), "recommend, export, test": (1, 40)}
_NAMES = {
    "preparation": ("prepare", "tensors", "transcode"),
    "training": ("validated", "members", "train"),
    "recommend, export, test": (*FILES[1:], "export.embeddings", "test"),
}
# What depends on the time, or on where the run lies.
_VARIES = (
    "log.json", "metrics.json", "config.json", "config.yaml", "tensorboard", "curves.png", "last", "stages",
    "README.md",
)  # fmt: skip
MEASURED = {"train_throughput", "eval_throughput", "time_to_best_model", "peak_rss_mib"}
Whole = Callable[[str, int], tuple[Path, float]]
Record = Callable[[str, object], None]
pytestmark = pytest.mark.usefixtures("forked")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        soaks = metafunc.config.getoption("--soak")
        metafunc.parametrize(
            "kind,number", [(kind, number) for kind, counts in KILLS.items() for number in range(counts[soaks])]
        )


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a command writes with a seed when undisturbed, and its duration; made once."""
    known: dict[tuple[str, int], tuple[Path, float]] = {}

    def made(name: str, seed: int) -> tuple[Path, float]:
        if (name, seed) not in known:
            output, started = output_of(name, tmp_path_factory.mktemp("whole")), time.monotonic()
            finish(commands.flags(name, output, seed))
            known[name, seed] = output, time.monotonic() - started
        return known[name, seed]

    return made


def killed(process: subprocess.Popen[str], after_s: float) -> bool:
    """Kill a command unless it ends first; returns whether it was killed."""
    try:
        status, output = process.communicate(timeout=after_s)[0], process.returncode
        assert output == 0, status
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


def content_of(output: Path) -> dict[str, Any]:
    """The files of an output, and its metrics, as far as they are the same in every run."""
    files: dict[str, Any] = {name: file for name, file in tree(output).items() if not name.startswith(_VARIES)}
    if (output / "metrics.json").is_file():
        metrics = json.loads((output / "metrics.json").read_text())
        files["metrics"] = {name: value for name, value in metrics.items() if name not in MEASURED}
    return files


def check(
    commands: Commands, whole: Whole, kind: str, name: str, rng: random.Random, folder: Path, record: Record
) -> None:
    """Kill a command that replaces an output, look at what is there, and repeat it."""
    output, (new, whole_s) = output_of(name, folder), whole(name, 1)
    flags, after_s = [*commands.flags(name, output), "--overwrite"], rng.uniform(0.0, 0.8) * whole_s
    has_old, is_killed = rng.random() < 0.7, False
    old = tree(whole(name, 2)[0]) if has_old else {}
    while not is_killed:  # earlier, if it has ended before
        clear(output)
        if has_old:
            put(whole(name, 2)[0], output)
        is_killed = killed(start(flags), after_s)
        after_s *= 0.8
    record(f"kills of {kind}", 1)
    if not output.exists():
        assert not old
    elif tree(output) != old:
        if name in TRAINING:
            finish(["train.py", "--resume", str(output)])
            assert not [file for file in tree(output) if ".neumf." in file]
        assert content_of(output) == content_of(new)
    finish(flags)
    assert [path.name for path in folder.iterdir()] == [output.name]
    assert content_of(output) == content_of(new)


def test_a_command_killed_at_any_moment(
    tmp_path: Path, commands: Commands, whole: Whole, kind: str, number: int, record_property: Record
) -> None:
    names = _NAMES[kind]
    check(commands, whole, kind, names[number % len(names)], random.Random(number), tmp_path, record_property)


@pytest.mark.parametrize("name", ["train", "members"])
def test_a_run_killed_before_its_first_state_starts_anew(tmp_path: Path, commands: Commands, name: str) -> None:
    output = tmp_path / "out"
    process = start(commands.flags(name, output))
    while not list(tmp_path.iterdir()):  # until the stage is there
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert not output.exists()
    finish(commands.flags(name, output))
    assert list(tmp_path.iterdir()) == [output]
