"""`python -m benchmark all`: every part once, failures apart, and a page that stands alone."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmark.__main__ import _MEASUREMENTS
from benchmark.common import machine
from benchmark.peers import install
from benchmark.suite import command, parts
from benchmark.suite.parts import DATA, PARTS, PRESETS
from workflows.common.errors import UserError
from workflows.common.files import write_json

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands started. Nothing runs: `recommend` writes a result, `pipeline` fails, the others write nothing."""
    found: list[list[str]] = []

    def run_program(*argv: str, cwd: Path = Path()) -> str:
        found.append([*argv])
        if argv[:3] == ("-m", "benchmark", "pipeline"):
            raise UserError(f"pipeline ended with status 1: {HOSTILE}")
        if argv[:3] == ("-m", "benchmark", "recommend"):
            runs = [{"users": 9, "users_per_s": speed, "peak_rss_mib": 500.0} for speed in (4321.0, 1.0, 5000.0)]
            variant = {"runs": runs, "users_per_s": 4321.0, "peak_rss_mib": 500.0, "read_s": 1.0}
            whole = {"machine": machine.describe_machine(), "command": f"python -m benchmark {shlex.join(argv[2:])}"}
            target = Path(argv[-1]) / "recommend.json"
            target.parent.mkdir(exist_ok=True)
            write_json(target, {**whole, "over_plain": 2.0, "results": {"product": variant, HOSTILE: variant}})
        return ""

    monkeypatch.setattr(command, "run_program", run_program)
    monkeypatch.setattr(machine, "commit", lambda: "a1b2c3")
    return found


def run(folder: Path, preset: str = "quick") -> int:
    """The exit status."""
    try:
        command.main(argparse.Namespace(output=folder, preset=preset))
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_each_part_is_its_own_process_and_a_failing_one_takes_no_other_along(
    started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 1
    assert [argv[2] for argv in started if argv[:2] == ["-m", "benchmark"]] == [
        name for name in PARTS if not parts.left_out(name)
    ]
    assert len(started) == len(DATA["quick"]) + sum(not parts.left_out(name) for name in PARTS)
    suite = json.loads((tmp_path / command.RESULT_NAME).read_text())
    assert suite["preset"] == "quick"
    assert {name: suite["parts"][name]["status"] for name in ("data", "pipeline", "recommend")} == {
        "data": "done", "pipeline": "failed", "recommend": "done"
    }  # fmt: skip
    out = capsys.readouterr().out
    assert f"1/{len(PARTS)} pipeline" in out
    assert re.search(r"failed in \d s, \d+ s in all: pipeline ended with status 1", out)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(started: list[list[str]], tmp_path: Path) -> None:
    run(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "ended with status 1: &lt;script&gt;" in page  # the failed part's reason
    assert "<td>&lt;script&gt;alert(1)" in page  # a table's cell
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<b>4.32 k <small>users/s</small></b>" in page
    assert "median of 3: 1 to 5 k" in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_a_part_without_peers_is_left_out_with_its_reason(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "ENVIRONMENTS", tmp_path)
    run(tmp_path / "out")
    assert not [argv for argv in started if "peers" in argv]
    assert "make peers" in (tmp_path / "out" / "index.html").read_text()


def test_results_of_the_same_commit_and_command_are_kept(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times() -> int:
        return sum(argv[2] == "recommend" for argv in started)

    for _ in range(2):
        run(tmp_path)
    assert times() == 1
    assert json.loads((tmp_path / command.RESULT_NAME).read_text())["parts"]["recommend"]["status"] == "kept"
    run(tmp_path, "full")  # another command
    assert times() == 2
    monkeypatch.setattr(machine, "commit", lambda: "d4e5f6-dirty")
    for _ in range(2):  # changed files: nobody knows whether they are the same
        run(tmp_path, "full")
    assert times() == 4


def test_runs_of_another_commit_are_not_taken_for_this_one(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quality" / "runs").mkdir(parents=True)  # of a run that was stopped, or of somebody else
    run(tmp_path)
    (tmp_path / "recommend" / "runs").mkdir()
    monkeypatch.setattr(machine, "commit", lambda: "d4e5f6")
    run(tmp_path)
    assert not (tmp_path / "recommend" / "runs").exists()
    assert (tmp_path / "recommend" / "recommend.json").exists()
    assert (tmp_path / "quality" / "runs").exists()


def test_a_failed_part_does_not_show_an_old_result(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    monkeypatch.setattr(machine, "commit", lambda: "d4e5f6")

    def fail(*argv: str, cwd: Path = Path()) -> str:
        raise UserError("no luck")

    monkeypatch.setattr(command, "run_program", fail)
    assert run(tmp_path) == 1
    assert "4.32 k" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_flags_of_a_preset_are_those_of_its_commands(preset: str) -> None:
    for name, part in PARTS.items():
        if name in _MEASUREMENTS:
            parser = argparse.ArgumentParser()
            _MEASUREMENTS[name][1]().add_arguments(parser)
            flags: dict[str, Any] = vars(
                parser.parse_args(shlex.split(part.flags(preset).format(data="d", output="o")))
            )
            assert flags["output"]
