"""The scripts of docs/daily.md, with the real commands: a first day, two days in a row, and one that fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workflows.operators.saved import read_categories

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("forked")

N_USERS, N_ITEMS = 12, 40
# Stands in for `python` in a script: ends the script at a command that has not run yet, to be run by the test.
_PYTHON = """#!/bin/bash
number=$(($(cat "$STATE/number") + 1))
echo $number > "$STATE/number"
if [ -e "$STATE/$number" ]; then exit "$(cat "$STATE/$number")"; fi
printf '%s\\0' "$@" > "$STATE/command"
exit 99
"""


def run_script(folder: Path, name: str, *arguments: str) -> tuple[int, list[str]]:
    """Run a script of the page; returns its status, and what each of its Python commands printed.

    The commands are forked by the fork server, which bash cannot do: after each the script starts again, and skips it.
    """
    page = (ROOT / "docs" / "daily.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"```bash\n(# {name} .*?)```", page, re.DOTALL)
    state = Path(tempfile.mkdtemp(dir=folder))
    (state / "python").write_text(_PYTHON)
    (state / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{state}:{os.environ['PATH']}", "STATE": str(state)}
    printed: list[str] = []
    while True:
        (state / "number").write_text("0")
        script = subprocess.run(
            ["bash", "-c", code, name, str(folder), *arguments], env=environment, capture_output=True, text=True
        )
        assert script.stderr == ""
        if script.returncode != 99:
            return script.returncode, printed
        command = (state / "command").read_text().split("\0")[:-1]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        printed.append(done.stdout + done.stderr)
        (state / str(len(printed))).write_text(str(done.returncode))


def write_log(folder: Path, day: str, rows: list[tuple[str, str, int]]) -> None:
    pd.DataFrame(rows, columns=["user", "item", "time"]).to_csv(folder / "logs" / f"{day}.csv", index=False)


def check_day(shop: Path, day: str, before: str, seen: dict[str, set[str]]) -> None:
    """Everyone is recommended ten items not seen, and no id has another number than on the day before."""
    assert (shop / "days" / "latest").readlink() == Path(day)
    recommended = pd.read_csv(shop / "days" / day / "recs.csv").groupby("user")["item"].agg(set).to_dict()
    assert recommended.keys() == seen.keys()
    for user, items in recommended.items():
        assert len(items) == 10
        assert not items & seen[user]
    for column in ("user", "item"):
        old, new = (read_categories(shop / "days" / one / "data", column).tolist() for one in (before, day))
        assert new[: len(old)] == old


def test_two_days_in_a_row_and_one_that_fails(tmp_path: Path) -> None:
    shop, rng = tmp_path, np.random.default_rng(0)
    (shop / "logs").mkdir()
    seen = {f"u {n}": {f"i{item:02}" for item in rng.permutation(N_ITEMS)[:6]} for n in range(N_USERS)}
    rows = [(user, item, 1000 + n) for user, items in seen.items() for n, item in enumerate(sorted(items))]
    rows += [("u 0", f"i{item:02}", 900 + item) for item in range(N_ITEMS // 2)]
    rows += [("u 1", f"i{item:02}", 900 + item) for item in range(N_ITEMS // 2, N_ITEMS)]
    for user, item, _ in rows:
        seen[user].add(item)
    write_log(shop, "history", rows)
    status, _ = run_script(shop, "first.sh")
    assert status == 0
    days = {
        "2026-01-02": [
            ("u 3", "i a new one", 2000),
            ("a new one", "i00", 2001),
            ("a new one", "i07", 2002),
            ("7", "i01", 2003),
        ],
        "2026-01-03": [
            ("7", "i02", 3000),
            ("u 4", "0", 3001),
            ("a new one", "0", 3002),
            ("u 4", "1", 3003),
            ("x", "1", 3004),
        ],
    }
    known, before = (N_USERS, N_ITEMS), "first"
    for (day, more), new in zip(days.items(), ((2, 1), (1, 2)), strict=True):
        write_log(shop, day, more)
        for user, item, _ in more:
            seen.setdefault(user, set()).add(item)
        status, (prepared, trained, _) = run_script(shop, "daily.sh", day)
        assert status == 0
        assert f"added to the encoding: {new[0]} users, {new[1]} items" in prepared
        now = known[0] + new[0], known[1] + new[1]
        assert (
            f"carried over {known[0]} of {now[0]} users and {known[1]} of {now[1]} items from {shop}/days/latest/run; "
            f"{new[0]} and {new[1]} are new\n"
        ) in trained
        check_day(shop, day, before, seen)
        known, before = now, day
    (shop / "logs" / "2026-01-04.csv").write_text("user,item,time\nu 1,i00,yesterday\n")
    status, (failed,) = run_script(shop, "daily.sh", "2026-01-04")
    assert status == 2
    assert "2026-01-04.csv" in failed
    assert not (shop / "days" / "2026-01-04").exists()
    (shop / "logs" / "2026-01-04.csv").unlink()
    status, (failed,) = run_script(shop, "daily.sh", "2026-01-03")  # its own output would be its input
    assert status == 2
    assert "which this command reads" in failed
    check_day(shop, "2026-01-03", "2026-01-02", seen)
