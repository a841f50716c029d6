"""Our CUDA kernels as machine code for each GPU, made by the compilers that come with CuPy; no GPU is needed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from workflows.device.kernels import OPTIONS, SOURCE

ARCHITECTURES = (75, 80, 86, 90, 100, 120)
KERNELS = re.findall(r"__global__ void (\w+)\(", SOURCE.read_text(encoding="utf-8"))
MAX_REGISTERS = 80  # of 65,536 per multiprocessor: at least six blocks of 128 threads

needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None, reason="CuPy is not installed; `make gpu-contract` installs and checks it"
)


@needs_cupy
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernels_compile_and_spill_no_registers(
    architecture: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(SOURCE.read_text(encoding="utf-8"), SOURCE.name, (), ())
    nvrtc.compileProgram(program, (*OPTIONS, f"--gpu-architecture=compute_{architecture}"))
    ptx = tmp_path / "kernels.ptx"
    ptx.write_bytes(nvrtc.getPTX(program).rstrip(b"\0"))
    (ptxas,) = (
        path
        for folder in importlib.util.find_spec("nvidia").submodule_search_locations
        for path in Path(folder).glob("cu*/bin/ptxas")
    )
    command = [ptxas, "--verbose", f"--gpu-name=sm_{architecture}", ptx, "--output-file", tmp_path / "kernels.cubin"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    registers = list(map(int, re.findall(r"Used (\d+) registers", told)))
    assert len(spilled) == len(registers) == len(KERNELS)
    assert set(spilled) == {("0", "0")}
    assert max(registers) <= MAX_REGISTERS
    named = sorted(zip(re.findall(r"entry function '(\w+)'", told), registers, strict=True))
    record_property(f"registers on sm_{architecture}", ", ".join(f"{name} {number}" for name, number in named))
