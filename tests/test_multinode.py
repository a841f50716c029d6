"""Several machines: real processes connected over TCP, as started by torchrun and SLURM, and as Dask's workers.

All tests run over loopback; if network namespaces can be created (root on Linux), also between two namespaces with
separate addresses, as between machines.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest

import preprocessing.__main__

ROOT = Path(__file__).parent.parent
# train.py runs with --amp, as started by docker/*.sh and docker/slurm.sub.
FLAGS = shlex.split("--device cpu -e 2 -s 1 -b 256 -f 4 --layers 16 8 -l 0.01 --without progress tensorboard curves")
PREPARE = shlex.split("--user user --item item --time time --test-negatives 20 --partitions 4 --device cpu")
MEASURED = {"train_throughput", "eval_throughput", "time_to_best_model", "peak_rss_mib"}
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PROCESSES_PER_NODE": "1"}
PATIENCE_S = 60

Result = tuple[int, str]  # exit status and output


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    columns = {"user": rng.integers(0, 40, 500), "item": rng.integers(0, 50, 500), "time": np.arange(500)}
    path = tmp_path_factory.mktemp("multinode") / "log.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def data(log: Path) -> Path:
    """A folder prepared by this process."""
    folder = log.parent / "prepared"
    preprocessing.__main__.main(["--input", str(log), *PREPARE, "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def of_one_node(data: Path) -> dict[str, Any]:
    """Metrics of `--gpus 2` on one machine."""
    output = data.parent / "one"
    command = [sys.executable, str(ROOT / "train.py"), "--amp", "--gpus", "2", *flags(data, output)]
    ((status, said),) = together([Started(command)])
    assert status == 0, said
    return metrics_of(output)


def flags(data: Path, output: Path) -> list[str]:
    return [*FLAGS, "--data", str(data), "--output", str(output)]


def metrics_of(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name not in MEASURED}


@dataclass(frozen=True)
class Started:
    """A command of one node, with its own environment variables and working directory."""

    command: Sequence[str]
    variables: dict[str, str] | None = None
    folder: Path = ROOT


@contextmanager
def running(nodes: Sequence[Started]) -> Iterator[list[tuple[subprocess.Popen[bytes], IO[bytes]]]]:
    """The processes of all nodes and their outputs; all their children are stopped at the end of the block."""
    with ExitStack() as stack:
        processes = []
        for node in nodes:
            said = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                node.command,
                cwd=node.folder,
                env={**ENVIRONMENT, **(node.variables or {})},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            stack.callback(end, process)
            processes.append((process, said))
        yield processes


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def together(nodes: Sequence[Started]) -> list[Result]:
    """Run the commands of all nodes concurrently and wait for them."""
    with running(nodes) as processes:
        results = []
        for process, said in processes:
            status = process.wait(PATIENCE_S)
            said.seek(0)
            results.append((status, said.read().decode()))
        return results


def free_port(first: int = 0, last: int = 0) -> int:
    """A free loopback port, from a range if given."""
    for port in range(first, last + 1):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise AssertionError(f"no port of {first} to {last} is free")


# --- torchrun -----------------------------------------------------------------------------------------------------


def torchrun(rank: int, address: str, *more: str) -> list[str]:
    """The command of node `rank` of two, as in docs/containers.md."""
    return ["bash", str(ROOT / "docker" / "torchrun_multinode.sh"), "2", str(rank), address, *more]


def test_two_nodes_by_torchrun_train_as_one(tmp_path: Path, data: Path, of_one_node: dict[str, Any]) -> None:
    output, port = tmp_path / "run", {"MASTER_PORT": str(free_port())}
    (first, said), (second, whisper) = together(
        [Started(torchrun(rank, "127.0.0.1", *flags(data, output)), port) for rank in (0, 1)]
    )
    assert (first, second) == (0, 0), said + whisper
    assert metrics_of(output) == of_one_node
    assert "results in" in said
    assert "results in" not in whisper  # only process 0 prints


def test_a_node_without_the_data_fails_the_run(tmp_path: Path, data: Path) -> None:
    port, output = {"MASTER_PORT": str(free_port())}, tmp_path / "run"
    (first, said), (second, why) = together(
        [
            Started(torchrun(rank, "127.0.0.1", *flags(folder, output)), port)
            for rank, folder in enumerate([data, tmp_path / "nowhere"])
        ]
    )
    assert first != 0, said
    assert second != 0
    assert "error: " in why
    assert "nowhere" in why
    assert not (output / "metrics.json").exists()


# --- SLURM --------------------------------------------------------------------------------------------------------

# Emulates srun for a step of two tasks on two nodes; SLURM gives their names as a range.
SRUN = """#!{python}
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    del command[0]
step = {{"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.[1-2]", "SLURM_LOCALID": "0"}}
tasks = [subprocess.Popen(command, env={{**os.environ, **step, "SLURM_PROCID": str(rank)}}) for rank in (0, 1)]
sys.exit(max(task.wait() for task in tasks))
"""


def test_two_tasks_of_slurm_train_as_one(tmp_path: Path, data: Path, of_one_node: dict[str, Any]) -> None:
    srun, output = tmp_path / "srun", tmp_path / "run"
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    job = free_port(20_000, 29_999) - 20_000  # the port is derived from the job id
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(job),
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    script = ["bash", str(ROOT / "docker" / "slurm.sub"), *flags(data, output)]
    ((status, said),) = together([Started(script, variables, tmp_path)])
    assert status == 0, said
    assert metrics_of(output) == of_one_node
    assert said.count("results in") == 1


# --- Two network namespaces: separate addresses and loopback interfaces ----------------------------------------------


@dataclass(frozen=True)
class Node:
    """A network namespace with its end of the virtual cable."""

    namespace: str
    interface: str
    address: str

    @property
    def inside(self) -> list[str]:
        """Prefix of commands that run on this node."""
        return ["ip", "netns", "exec", self.namespace]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two nodes connected by a virtual cable."""
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces: ip (iproute2) is not installed")
    pair = [Node(f"neumf{os.getpid()}-{n}", f"nm{os.getpid()}-{n}", f"198.18.0.{n + 1}") for n in (0, 1)]
    with ExitStack() as stack:
        for node in pair:
            made = ip("netns", "add", node.namespace)
            if made.returncode:
                pytest.skip(f"no network namespaces: {made.stderr.strip()}")
            stack.callback(ip, "netns", "del", node.namespace)
        ends = [["name", node.interface, "netns", node.namespace] for node in pair]
        made = ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        if made.returncode:
            pytest.skip(f"no cable between network namespaces: {made.stderr.strip()}")
        for node in pair:
            for command in (
                ["address", "add", f"{node.address}/24", "dev", node.interface],
                ["link", "set", node.interface, "up"],
                ["link", "set", "lo", "up"],
            ):
                done = ip("-n", node.namespace, *command)
                assert done.returncode == 0, done.stderr
        yield pair


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_two_hosts_train_as_one(tmp_path: Path, data: Path, of_one_node: dict[str, Any], nodes: list[Node]) -> None:
    output = tmp_path / "run"
    # As on most machines, a host's own name resolves to loopback, so the interface between the hosts must be found.
    started = [
        Started([*node.inside, *torchrun(rank, nodes[0].address, *flags(data, output))], {})
        for rank, node in enumerate(nodes)
    ]
    (first, said), (second, whisper) = together(started)
    assert (first, second) == (0, 0), said + whisper
    assert metrics_of(output) == of_one_node


def test_workers_of_two_hosts_prepare_as_one(tmp_path: Path, log: Path, data: Path, nodes: list[Node]) -> None:
    # See tests/preprocessing/test_clusters.py for more tests over loopback.
    dask, address = [sys.executable, "-m", "dask"], f"{nodes[0].address}:8786"
    quiet = ["--no-dashboard", "--interface"]
    scheduler = Started([*nodes[0].inside, *dask, "scheduler", "--no-jupyter", *quiet, nodes[0].interface])
    workers = []
    for node in nodes:
        folder = tmp_path / node.namespace
        folder.mkdir()
        worker = [*dask, "worker", address, "--nthreads", "1", "--memory-limit", "0", *quiet, node.interface]
        workers.append(Started([*node.inside, *worker, "--local-directory", str(folder)], folder=folder))
    wait = f"from distributed import Client; Client('{address}', timeout='30s').wait_for_workers(2, 30)"
    shutil.copy(log, tmp_path / "log.csv")
    prepare = [sys.executable, "-m", "preprocessing", "--scheduler", address, "--input", "log.csv", *PREPARE]
    with running([scheduler, *workers]):
        # The job runs on the second host, outside the workers' folders: relative paths refer to its own.
        for command in ([sys.executable, "-c", wait], [*prepare, "--output", "prepared"]):
            ((status, said),) = together([Started([*nodes[1].inside, *command], folder=tmp_path)])
            assert status == 0, said
    assert contents(tmp_path / "prepared") == contents(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
