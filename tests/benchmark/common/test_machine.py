"""The description of the machine is accurate and valid JSON."""

from __future__ import annotations

import json
import platform
import subprocess
from typing import Any

import numpy as np
import pytest

from benchmark.common.machine import describe_machine


def test_the_description_matches_this_process() -> None:
    facts = json.loads(json.dumps(describe_machine()))
    assert facts["cores"] >= 1
    assert facts["cpu"]
    assert facts["memory_bytes"] > 1 << 28
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["numpy"] == np.__version__


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert describe_machine()["commit"] is None
