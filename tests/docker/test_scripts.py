"""The scripts in docker/, run with a stand-in for Python (md5sum, srun) if that is enough.

tests/test_multinode.py runs those for several machines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from preprocessing.sources.unpack import _MD5

ROOT = Path(__file__).parent.parent.parent


def run_script(
    name: str, *arguments: str, python: Path, cwd: Path, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python), **variables}
    command = ["bash", str(ROOT / "docker" / name), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A `python` that prints its working directory and its arguments, one per line."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def arguments_of(done: subprocess.CompletedProcess[str], folder: Path) -> list[str]:
    """The arguments passed to Python, which must have run in `folder`."""
    stood, *arguments = done.stdout.splitlines()
    assert Path(stood) == folder
    return arguments


@pytest.mark.parametrize(
    "given",
    [[], ["--data", "/data/a folder"], ["-e", "3", "--amp"], ["--device_name", "x"], ["--log_path", "--gpus.json"]],
)
def test_training_defaults_to_eight_gpus_with_amp(echo: Path, tmp_path: Path, given: list[str]) -> None:
    done = run_script("run_training.sh", *given, python=echo, cwd=tmp_path)
    # It runs in the user's working directory, so that relative paths work.
    assert arguments_of(done, tmp_path) == [str(ROOT / "train.py"), "--amp", "--gpus", "8", *given]


@pytest.mark.parametrize(
    "given",
    [
        ["--device", "cpu"],
        ["--device=cpu"],
        ["--gpus", "1"],
        ["-e", "2", "--gpus=2", "-s", "1"],
        ["--gpus", "1", "--device", "cuda"],
    ],
)
def test_an_explicit_device_replaces_the_default(echo: Path, tmp_path: Path, given: list[str]) -> None:
    done = run_script("run_training.sh", *given, python=echo, cwd=tmp_path)
    assert arguments_of(done, tmp_path) == [str(ROOT / "train.py"), "--amp", *given]


def test_the_defaults_of_preparation_are_the_references(echo: Path, tmp_path: Path) -> None:
    done = run_script("prepare_dataset.sh", python=echo, cwd=tmp_path)
    expected = ["-m", "preprocessing", "--input", "/data/ml-20m", "--output", "/data/cache/ml-20m"]
    assert arguments_of(done, tmp_path) == expected
    done = run_script("prepare_dataset.sh", "ml-1m", "--seed", "3", python=echo, cwd=tmp_path)
    expected = [part.replace("ml-20m", "ml-1m") for part in expected]
    assert arguments_of(done, tmp_path) == [*expected, "--seed", "3"]


@pytest.mark.parametrize("place", ["raw/ml-20m.zip", "raw.zip"])
def test_a_zip_is_used_if_nothing_is_unpacked(echo: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / place).touch()
    given = ["ml-20m", str(tmp_path / "raw"), str(tmp_path / "cache out"), "--seed", "3"]
    expected = ["-m", "preprocessing", "--input", str(tmp_path / place), "--output", given[2], "--seed", "3"]
    assert arguments_of(run_script("prepare_dataset.sh", *given, python=echo, cwd=tmp_path), tmp_path) == expected
    (tmp_path / "raw" / "ratings.csv").touch()
    expected[3] = given[1]
    assert arguments_of(run_script("prepare_dataset.sh", *given, python=echo, cwd=tmp_path), tmp_path) == expected


@pytest.mark.parametrize("file", ["ratings.csv", "ratings.dat"])
def test_raw_may_contain_a_folder_named_after_the_data_set(echo: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "raw" / "ml-1m").mkdir(parents=True)
    (tmp_path / "raw" / "ml-1m" / file).touch()
    (tmp_path / "raw" / "ml-1m.zip").touch()  # the archive it was unpacked from
    done = run_script("prepare_dataset.sh", "ml-1m", "raw", "cache", python=echo, cwd=tmp_path)
    assert arguments_of(done, tmp_path)[3] == str(tmp_path / "raw" / "ml-1m")


def test_paths_are_relative_to_the_working_directory(echo: Path, tmp_path: Path) -> None:
    done = run_script("prepare_dataset.sh", "mine", "raw", "cache", python=echo, cwd=tmp_path)
    expected = ["-m", "preprocessing", "--input", str(tmp_path / "raw"), "--output", str(tmp_path / "cache")]
    assert arguments_of(done, tmp_path) == expected


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set without a known name, in the reference's format."""
    folder = tmp_path_factory.mktemp("raw")
    rows = [(user, (user * 7 + step * 3) % 30, 100 + step) for user in range(12) for step in range(8)]
    text = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (folder / "ratings.csv").write_text("user_id,item_id,timestamp\n" + text)
    return folder


def test_a_small_data_set_is_prepared_once_and_verified(echo: Path, raw: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "mine"
    places = ["mine", str(raw), str(cache)]
    more = ["--partitions", "1", "--valid_negative", "15"]
    done = run_script("prepare_dataset.sh", *places, *more, python=Path(sys.executable), cwd=tmp_path)
    assert "12 users" in done.stdout
    assert "Warning" not in done.stdout + done.stderr
    spec = yaml.safe_load((cache / "feature_spec.yaml").read_text())
    assert spec["feature_spec"]["user"]["cardinality"] == 12
    assert spec["metadata"]["test_samples_per_series"] == 16

    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    again = run_script("prepare_dataset.sh", *places, *more, python=echo, cwd=tmp_path)
    assert "prepared already" in again.stdout
    assert "-m" not in again.stdout.split()  # Python was not started
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before

    verified = run_script("verify_dataset.sh", *places, python=Path(sys.executable), cwd=tmp_path)
    assert f"{cache}: PASSED" in verified.stdout
    next((cache / "train").iterdir()).write_bytes(b"broken")
    refused = run_script("verify_dataset.sh", *places, python=Path(sys.executable), cwd=tmp_path, code=2)
    assert "PASSED" not in refused.stdout
    assert refused.stderr.count("error: ") == 1


@pytest.fixture
def md5sum(tmp_path: Path) -> dict[str, str]:
    """Environment in which every file has the checksum of GroupLens' ml-1m.zip."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "md5sum").write_text(f"#!/bin/sh\necho '{_MD5['ml-1m.zip']}  -'\n")
    (folder / "md5sum").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("place", ["raw/ml-1m.zip", "raw.zip"])
def test_an_archive_is_verified_by_its_checksum(echo: Path, tmp_path: Path, md5sum: dict[str, str], place: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / place).write_bytes(b"not GroupLens'")
    given = ["ml-1m", "raw", "cache"]
    done = run_script("verify_dataset.sh", *given, python=echo, cwd=tmp_path, **md5sum)
    assert done.stdout.splitlines() == [
        f"{tmp_path / place}: PASSED, its md5 is GroupLens'",
        f"{tmp_path / 'cache'}: not prepared yet (docker/prepare_dataset.sh)",
    ]
    refused = run_script("verify_dataset.sh", *given, python=echo, cwd=tmp_path, code=2)
    assert f"{tmp_path / place}: expected md5 {_MD5['ml-1m.zip']}, found " in refused.stderr


def test_a_missing_checksum_is_reported(echo: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    done = run_script("verify_dataset.sh", "mine", "raw", "cache", python=echo, cwd=tmp_path)
    assert "there is no mine.zip with a checksum to compare" in done.stdout
    assert done.stdout.splitlines()[2:5] == ["-m", "preprocessing", "--check"]
    (tmp_path / "raw.zip").touch()
    done = run_script("verify_dataset.sh", "mine", "raw", "cache", python=echo, cwd=tmp_path)
    assert "raw.zip: no known checksum" in done.stdout


def test_checksums_match_those_required_to_read_an_archive() -> None:
    text = (ROOT / "docker" / "verify_dataset.sh").read_text()
    known = dict(re.findall(r"^  \[([\w-]+)\]=([0-9a-f]{32})$", text, re.MULTILINE))
    assert {f"{name}.zip" for name in known} >= set(_MD5)
    assert all(known[name.removesuffix(".zip")] == md5 for name, md5 in _MD5.items())


# --- Benchmarks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A `python -m benchmark` with two of the three benchmarks, and demo; it prints its arguments."""
    path = tmp_path / "python"
    path.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        "  '-m benchmark --help') echo 'usage: python -m benchmark [-h] {demo,pipeline,inference} ...' ;;\n"
        "  *broken) exit 7 ;;\n"
        '  *) echo "ran $*" ;;\nesac\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("given", "ran"),
    [
        ([], ["pipeline", "inference"]),
        (["--quick"], ["pipeline --quick", "inference --quick"]),
        (["inference", "demo"], ["inference", "demo"]),
        (["pipeline", "--rows", "10x10x100"], ["pipeline --rows 10x10x100"]),
    ],
)
def test_the_benchmarks_that_exist_are_run(benchmark: Path, tmp_path: Path, given: list[str], ran: list[str]) -> None:
    done = run_script("run_benchmark.sh", *given, python=benchmark, cwd=tmp_path)
    lines = [line.removeprefix("ran -m benchmark ") for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert lines == ran


def test_a_failing_benchmark_stops_the_script(benchmark: Path, tmp_path: Path) -> None:
    done = run_script("run_benchmark.sh", "--broken", python=benchmark, cwd=tmp_path, code=7)
    assert done.stdout.splitlines() == ["== python -m benchmark pipeline --broken"]


def test_the_real_command_lists_its_benchmarks(tmp_path: Path) -> None:
    done = run_script("run_benchmark.sh", "nothing", python=Path(sys.executable), cwd=tmp_path, code=2)
    assert re.fullmatch(r"error: there is no measurement nothing; there are .*\bpipeline\b.*\n", done.stderr)


# --- Several machines ---------------------------------------------------------------------------------------------


def test_torchrun_gets_the_rank_of_the_node(echo: Path, tmp_path: Path) -> None:
    done = run_script("torchrun_multinode.sh", "2", "1", "gpu-0", "-e", "3", python=echo, cwd=tmp_path)
    launcher = "-m torch.distributed.run --nnodes 2 --node_rank 1 --nproc_per_node gpu --master_addr gpu-0"
    program = [str(ROOT / "train.py"), "--amp", "-e", "3"]
    assert arguments_of(done, tmp_path) == [*launcher.split(), "--master_port", "29500", *program]
    variables = {"PROCESSES_PER_NODE": "4", "MASTER_PORT": "1234"}
    done = run_script("torchrun_multinode.sh", "2", "0", "gpu-0", python=echo, cwd=tmp_path, **variables)
    assert "--nproc_per_node 4 --master_addr gpu-0 --master_port 1234" in done.stdout.replace("\n", " ")


@pytest.fixture
def srun(tmp_path: Path) -> dict[str, str]:
    """Environment of a batch job whose srun prints its working directory and its arguments, one per line."""
    (tmp_path / "srun").write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/project"}


def test_slurm_starts_the_tasks(srun: dict[str, str], tmp_path: Path) -> None:
    done = run_script("slurm.sub", "-e", "3", python=Path("/bin/python"), cwd=tmp_path, **srun)
    expected = ["--kill-on-bad-exit=1", "/bin/python", "/project/train.py", "--amp", "-e", "3"]
    assert arguments_of(done, tmp_path) == expected


def test_slurm_starts_the_tasks_in_containers(srun: dict[str, str], tmp_path: Path) -> None:
    variables = {**srun, "IMAGE": "neumf-pipeline:ngc", "MOUNTS": "/data:/data"}
    done = run_script("slurm.sub", "-e", "3", python=Path("python"), cwd=tmp_path, **variables)
    options = ["--kill-on-bad-exit=1", "--container-image=neumf-pipeline:ngc", "--container-workdir=/workspace/neumf"]
    mounts = ["--container-mounts=/data:/data"]
    assert arguments_of(done, tmp_path) == [*options, *mounts, "python", "train.py", "--amp", "-e", "3"]


def test_slurm_is_asked_for_one_task_per_gpu() -> None:
    text = (ROOT / "docker" / "slurm.sub").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.+)$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    body = text.split("set -euo")[1]
    assert "#SBATCH" not in body  # sbatch reads none after the first command


# --- All scripts --------------------------------------------------------------------------------------------------

SCRIPTS = sorted(path.name for path in (ROOT / "docker").iterdir() if os.access(path, os.X_OK))


def test_the_scripts_are_found() -> None:
    references = {"prepare_dataset.sh", "verify_dataset.sh", "run_training.sh", "run_benchmark.sh"}
    assert set(SCRIPTS) == references | {"torchrun_multinode.sh", "slurm.sub"}


@pytest.mark.parametrize("asked", ["--help", "-h"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_prints_help(name: str, asked: str, tmp_path: Path) -> None:
    done = run_script(name, asked, python=Path("/nowhere/python"), cwd=tmp_path)
    assert f"docker/{name} [" in done.stdout or f"docker/{name} NODES" in done.stdout
    assert done.stderr == ""
    assert not [line for line in done.stdout.splitlines() if line.startswith(("#!", "set -", "# "))]


MISTAKES = {
    "four places": ("prepare_dataset.sh", ["a", "b", "c", "d"], "expected [NAME] [RAW] [CACHE]"),
    "a path for a name": ("prepare_dataset.sh", ["/data/ml-1m"], "NAME is the name of a data set"),
    "nothing to verify": ("verify_dataset.sh", ["mine", "raw", "cache"], "neither"),
    "a flag to verify": ("verify_dataset.sh", ["mine", "--check"], "got --check"),
    "no such measurement": ("run_benchmark.sh", ["speed"], "there is no measurement speed"),
    "no node": ("torchrun_multinode.sh", ["2"], "expected NODES RANK ADDRESS"),
    "no number of nodes": ("torchrun_multinode.sh", ["two", "0", "host"], "NODES should be a number from 1"),
    "one node too far": ("torchrun_multinode.sh", ["2", "2", "host"], "RANK should be 0 to 1, got 2"),
    "an odd rank": ("torchrun_multinode.sh", ["9", "08", "host"], "RANK should be 0 to 8, got 08"),
    "a flag for a host": ("torchrun_multinode.sh", ["2", "0", "--amp"], "ADDRESS should be the host"),
    "no job": ("slurm.sub", ["-e", "3"], "this is a job for sbatch"),
}


@pytest.mark.parametrize(("name", "given", "part"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gives_one_clear_line(
    name: str, given: list[str], part: str, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    done = run_script(name, *given, python=benchmark, cwd=tmp_path, code=2)
    assert re.fullmatch(r"error: .+\n", done.stderr)
    assert part in done.stderr
    assert done.stdout == ""


def test_a_failure_is_propagated(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    run_script("run_training.sh", python=broken, cwd=tmp_path, code=7)
    run_script("run_benchmark.sh", python=broken, cwd=tmp_path, code=7)
    (tmp_path / "cache").mkdir()
    run_script("verify_dataset.sh", "x", "raw", "cache", python=broken, cwd=tmp_path, code=7)
    run_script("prepare_dataset.sh", "x", str(tmp_path), str(tmp_path / "out"), python=broken, cwd=tmp_path, code=7)
