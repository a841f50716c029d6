"""The GPU architectures that the GPU libraries are compiled for, read from their binaries (`make gpu-contract`)."""

from __future__ import annotations

import importlib.util
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

# docs/gpu.md lists the cards; the driver compiles the PTX of the newest one for later cards.
MACHINE_CODE = {75, 80, 86, 90, 100, 120}
LIBRARIES = {"libcudf": "lib64/libcudf.so", "cupy": "cuda/thrust.*.so"}
PTX, CUBIN = 1, 2  # kinds of fat binary entries


def sections(data: mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", data, 40)
    size, number, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(number)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        yield data[start : data.find(b"\0", start)].decode(), offset, length


def fat_binary_entries(path: Path) -> Iterator[tuple[int, int]]:
    """Kind and architecture (75 for sm_75) of each entry in the fat binaries that nvcc embeds in a library."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, offset, length in sections(data):
            if name != ".nv_fatbin":
                continue
            at = offset
            while (at := data.find(b"\x50\xed\x55\xba", at, offset + length)) >= 0:
                _, _, header, content = struct.unpack_from("<IHHQ", data, at)
                at, end = at + header, at + header + content
                while at < end:
                    kind, _, header, content = struct.unpack_from("<HHIQ", data, at)
                    (architecture,) = struct.unpack_from("<I", data, at + 28)
                    yield kind, architecture
                    at += header + content


@pytest.mark.parametrize("package", LIBRARIES)
def test_gpus_since_turing_have_machine_code_and_later_ones_have_ptx(package: str) -> None:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed; `make gpu-contract` installs and checks it")
    (library,) = Path(found.origin).parent.glob(LIBRARIES[package])
    entries = set(fat_binary_entries(library))
    assert {architecture for kind, architecture in entries if kind == CUBIN} >= MACHINE_CODE
    assert {architecture for kind, architecture in entries if kind == PTX} == {max(MACHINE_CODE)}
