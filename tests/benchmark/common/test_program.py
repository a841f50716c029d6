"""Our programs, run by benchmarks."""

from __future__ import annotations

import pytest

from benchmark.common.program import json_of, run_program
from workflows.common.errors import UserError


@pytest.mark.usefixtures("forked")
def test_a_failing_program_says_why() -> None:
    flags = ["--variant", "x", "--data", ".", "--batch_size", "9", "--steps", "1"]
    with pytest.raises(UserError, match=r"(?s)exited with status 2: .*should be one of plain"):
        run_program("-m", "benchmark.training.run", *flags)


@pytest.mark.usefixtures("forked")
def test_the_last_line_is_read() -> None:
    assert json_of("benchmark.training.limits", "--size", "8", "--mib", "1").keys() == {
        *("fp32_gflop_per_s", "bf16_gflop_per_s", "copy_gb_per_s", "gather_gb_per_s")
    }
