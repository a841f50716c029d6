"""The image files pin the project's versions, and the files they name exist.

`make lint` checks their syntax (hadolint); docs/containers.md records what was built and run from them.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Client

from preprocessing.arguments import parse_args

ROOT = Path(__file__).parent.parent.parent
DOCKERFILES = ("Dockerfile", "cpu.Dockerfile")
PATIENCE_S = 60


def instructions(name: str) -> list[tuple[str, str]]:
    """Instruction and argument of each line of a Dockerfile, continuation lines joined."""
    lines = [line for line in (ROOT / "docker" / name).read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def of(name: str, instruction: str) -> list[str]:
    return [argument for kind, argument in instructions(name) if kind == instruction]


def labels(name: str) -> dict[str, str]:
    return dict(part.split("=", 1) for label in of(name, "LABEL") for part in shlex.split(label))


def ignored_but() -> list[str]:
    """The paths that .dockerignore lets in after excluding everything."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_versions_match_the_project(name: str) -> None:
    text = (ROOT / "docker" / name).read_text()
    assert "--require-hashes -r requirements/uv.txt" in text
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{labels(name)["org.opencontainers.image.version"]}"' in project
    assert f'license = "{labels(name)["org.opencontainers.image.licenses"]}"' in project


def test_uv_uses_the_systems_certificates() -> None:
    """A proxy that inspects TLS signs with a certificate that only the system knows."""
    assert re.search(r"^export UV_SYSTEM_CERTS := 1$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in DOCKERFILES:
        kinds = [(kind, argument) for kind, argument in instructions(name) if kind in ("ENV", "RUN")]
        first_run = [kind for kind, _ in kinds].index("RUN")
        assert ("ENV", 'UV_SYSTEM_CERTS="1"') in kinds[:first_run]
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():  # in the images
        pytest.skip("uv is not installed")
    described = subprocess.run([uv, "pip", "install", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--system-certs" in described
    assert "UV_SYSTEM_CERTS" in described


@pytest.mark.parametrize("name", DOCKERFILES)
def test_base_images_are_pinned_and_labelled(name: str) -> None:
    bases = [argument.split()[0] for argument in of(name, "FROM")]
    outside = {base for base in bases if ":" in base}
    assert len(outside) == 1
    assert not outside.pop().endswith(":latest")
    assert labels(name)["org.opencontainers.image.base.name"] == next(base for base in bases if ":" in base)
    assert set(re.findall(r"\$\{(\w+)\}", " ".join(bases))) <= {part.split("=")[0] for part in of(name, "ARG")}
    assert {"title", "description", "version", "revision", "licenses", "base.name"} == {
        key.removeprefix("org.opencontainers.image.") for key in labels(name)
    }


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_user_is_not_root_and_owns_the_working_directory(name: str) -> None:
    given = dict(part.split("=") for argument in of(name, "ARG") for part in shlex.split(argument) if "=" in part)
    assert of(name, "USER") == ["$USER_ID:$GROUP_ID"]
    assert int(given["USER_ID"]) > 0
    assert int(given["GROUP_ID"]) > 0
    made = next(run for run in of(name, "RUN") if "install --directory --owner=neumf" in run)
    assert {"/data", "/data/cache", of(name, "WORKDIR")[-1]} <= set(shlex.split(made))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_packages_are_locked_and_lock_files_are_in_the_image(name: str) -> None:
    inside = {path.split("/")[0] for path in ignored_but()}
    files = {file for run in of(name, "RUN") for file in re.findall(r"\b(?:requirements|docker)/[\w.-]+", run)}
    assert files >= {"requirements/merlin.txt", "requirements/sample.txt", "requirements/build.txt"}
    for file in files:
        assert (ROOT / file).is_file()
        assert file.split("/")[0] in inside
    # Everything else installed has a version.
    for run in of(name, "RUN"):
        for command in re.split(r"&&|;", run):
            if " install " in command and "pip" in command and "-r " not in command:
                assert "==" in command or "--editable ." in command


def locked(name: str) -> dict[str, str]:
    """Version of each package in a lock file."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt", "dev.txt", "build.txt", "merlin.txt", "sample.txt"])
def test_every_locked_package_has_hashes(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    entries = re.findall(r"^[\w.-]+==(?:.*\\\n)+.*$", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\S+==", text, re.MULTILINE))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_cpu_gpu_and_build_lock_files_agree_on_versions() -> None:
    gpu, torch = locked("gpu.txt"), locked("torch-gpu.txt")
    assert locked("cpu.txt").items() <= gpu.items()
    assert {name: gpu[name] for name in gpu.keys() & torch.keys()} == {name: torch[name] for name in gpu.keys() & torch}
    build = locked("build.txt")
    assert {name: gpu[name] for name in gpu.keys() & build.keys()} == {name: build[name] for name in gpu.keys() & build}
    assert f"torch=={torch['torch']}" in (ROOT / "requirements" / "torch.txt").read_text().splitlines()


def test_the_gpu_image_keeps_its_own_torch() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert "-r requirements/torch" not in text
    assert of("Dockerfile", "ENV")[0] == 'PIP_CONSTRAINT=""'
    installs = next(run for run in of("Dockerfile", "RUN") if "requirements/gpu.txt" in run)
    left_out = re.search(r"printf '%s\\n' ([\w ]+) >(\S+)", installs)
    assert left_out is not None
    assert f"--excludes {left_out[2]}" in installs
    names = locked("gpu.txt").keys() - set(left_out[1].split())
    assert {"cudf-cu13", "dask-cuda", "numpy", "pyarrow"} <= names
    assert not {"torch", "triton", "sympy", "mpmath", "networkx"} & names


def test_an_image_has_everything_the_project_needs() -> None:
    inside = ignored_but()
    assert all((ROOT / path).exists() for path in inside)
    packages = re.search(r"^packages = (.+)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    assert {name.split(".")[0] for name in json.loads(packages[1])} <= set(inside)
    # pyproject.toml names the readme and the licence, so installation needs them.
    assert {"README.md", "LICENSE", "train.py", "pyproject.toml", "docker", "configs", "requirements"} <= set(inside)


# --- compose.yaml -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def flags_of(command: list[str]) -> list[str]:
    return [word for word in command if word.startswith("--")]


def test_every_service_uses_the_image_and_mounts_the_data(compose: dict[str, Any]) -> None:
    known = {"image", "build", "volumes", "command", "entrypoint", "healthcheck", "depends_on", "deploy"}
    assert set(compose) == {"name", "x-image", "services"}
    assert set(compose["services"]) == {"scheduler", "worker", "prepare"}
    for service in compose["services"].values():
        assert set(service) <= known  # so no port is published
        assert service["image"] == "neumf-pipeline:cpu"
        assert service["volumes"] == ["${DATA:-../data}:/data"]  # log and output have the same paths in all services
        build = service["build"]
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        declared = {argument.split("=")[0] for argument in of("cpu.Dockerfile", "ARG")}
        assert set(build["args"]) <= declared
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert "healthcheck" in compose["services"][needed]


@pytest.mark.parametrize("name", ["scheduler", "worker"])
def test_dask_accepts_the_flags(compose: dict[str, Any], name: str) -> None:
    program, kind, *rest = compose["services"][name]["command"]
    assert (program, kind) == ("dask", name)
    command = [sys.executable, "-m", "dask", kind, "--help"]
    explained = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    assert not [flag for flag in flags_of(rest) if not re.search(rf"{flag}\b", explained)]


def test_the_flags_of_the_job_are_valid(compose: dict[str, Any]) -> None:
    prepare = compose["services"]["prepare"]
    assert prepare["entrypoint"][:3] == ["python", "-m", "preprocessing"]
    args = parse_args([*prepare["entrypoint"][3:], *prepare["command"]])
    scheduler = compose["services"]["scheduler"]["command"]
    assert args.scheduler == f"scheduler:{scheduler[scheduler.index('--port') + 1]}"
    assert f"tcp://{args.scheduler}" in compose["services"]["worker"]["command"]
    assert str(args.output).startswith("/data/")


@contextmanager
def dask(*argv: str) -> Iterator[None]:
    command = [sys.executable, "-m", "dask", *argv]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(number)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def test_the_scheduler_is_ready_once_a_worker_has_joined(compose: dict[str, Any], tmp_path: Path) -> None:
    port, web = free_ports(2)
    how, _, flag, code = compose["services"]["scheduler"]["healthcheck"]["test"]
    assert (how, flag) == ("CMD", "-c")
    check = [sys.executable, flag, code.replace("scheduler:8787", f"127.0.0.1:{web}")]
    host = ["--host", "127.0.0.1"]
    with (
        dask("scheduler", *host, "--port", str(port), "--dashboard-address", f"127.0.0.1:{web}", "--no-jupyter"),
        Client(f"127.0.0.1:{port}", timeout=f"{PATIENCE_S}s") as client,
    ):
        assert subprocess.run(check, timeout=PATIENCE_S, check=False).returncode == 1
        local = ["--local-directory", str(tmp_path), "--no-nanny", "--no-dashboard"]
        with dask("worker", f"127.0.0.1:{port}", *host, *local):
            client.wait_for_workers(1, timeout=PATIENCE_S)
            assert subprocess.run(check, timeout=PATIENCE_S, check=False).returncode == 0
