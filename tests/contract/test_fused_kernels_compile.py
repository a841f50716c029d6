"""The fused step's kernels as machine code for each GPU, made by Triton's compiler; no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from compile_fused_kernels import COMMAND, DOCS, GROUPS, LIMITS, PRECISIONS, ROOT, TABLE, in_docs

COMMITTED = json.loads(TABLE.read_text(encoding="utf-8"))
ARCHITECTURES = sorted(LIMITS)
COMPILED = [80, 90, 100, 120]


def _pinned(name: str) -> str:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    found = re.search(r"^triton==(\S+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


def _unfit() -> str | None:
    """Why nothing can be compared with the table; None if it can."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "Triton is not installed: requirements/dev.txt has it for Linux"
    pinned = _pinned("torch-gpu.txt")
    return None if found == pinned else f"the table is of Triton {pinned}, installed is {found}"


def test_tests_and_gpus_use_the_same_triton() -> None:
    assert _pinned("dev.txt") == _pinned("torch-gpu.txt")


def _compiled(*which: object, cache: Path) -> list[dict[str, object]]:
    """Rows of the table, made anew."""
    if (reason := _unfit()) is not None:
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "compile_fused_kernels.py", *map(str, which)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(importlib.util.find_spec("cudf") is not None, reason="`make test` compiles them")
def test_the_default_kernels_compile_as_the_table_says(tmp_path: Path) -> None:
    """For `--amp`, on each kind of GPU."""
    which = ("--tiles", "--architectures", *COMPILED, "--precisions", "fp16", "--groups", GROUPS[0])
    expected = [
        row
        for row in COMMITTED
        if (row["what"], row["precision"]) == (f"groups of {GROUPS[0]}", "fp16")
        and int(row["architecture"].removeprefix("sm_")) in COMPILED
    ]
    assert _compiled(*which, cache=tmp_path) == expected, f"the machine code changed; rewrite the table: {COMMAND}"


def test_all_kernels_compile_as_the_table_says(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("takes minutes; make soak")
    assert _compiled(cache=tmp_path) == COMMITTED, f"the machine code changed; rewrite the table: {COMMAND}"


def test_the_table_has_every_gpu_and_precision() -> None:
    tiles = {(row["architecture"], row["precision"], row["what"]) for row in COMMITTED if row["kernel"] == "tile_step"}
    assert tiles == {(f"sm_{a}", p, f"groups of {g}") for a in ARCHITECTURES for p in PRECISIONS for g in GROUPS}


def test_several_warps_share_a_multiprocessor_and_few_registers_are_spilled() -> None:
    for row in COMMITTED:
        if row["kernel"] == "tile_step":
            assert row["resident_warps"] >= 8, row
            assert row["spilled_bytes"] <= 700, row
        else:
            assert (row["resident_warps"] >= 16, row["spilled_bytes"]) == (True, 0), row


def test_the_documentation_shows_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert in_docs(text, COMMITTED) == text, f"rewrite the table: {COMMAND}"


def test_a_run_on_a_cpu_does_not_load_triton() -> None:
    code = "import sys, train, model.run.session, model.training.step; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"
