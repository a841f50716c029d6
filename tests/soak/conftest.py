"""Inputs of the commands that are disturbed."""

from __future__ import annotations

import pytest
from soak_commands import Commands


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    made = Commands(tmp_path_factory.mktemp("inputs"))
    made.prepare_inputs()
    return made
