"""The format of `--help`."""

from __future__ import annotations

import argparse

import pytest

from workflows.common.cli import HelpFormatter


def test_defaults_are_shown_where_they_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    parser = argparse.ArgumentParser(prog="x", formatter_class=HelpFormatter)
    group = parser.add_argument_group("how it runs")
    group.add_argument("--seed", type=int, default=7, help="makes it repeatable")
    group.add_argument("--output", help="folder to write")
    parser.print_help()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("makes it repeatable (default: 7)") for line in lines)
    assert any(line.endswith("folder to write") for line in lines)
    assert "how it runs:" in lines
