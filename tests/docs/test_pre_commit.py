""".pre-commit-config.yaml runs the commands of `make lint`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HOOKS = [
    hook
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repo["hooks"]
]


def lint_commands() -> list[str]:
    """The commands of `make lint`, with the Makefile's variables replaced by their values."""
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    values = dict(re.findall(r"^(\w+) := (.*)$", MAKEFILE, re.MULTILINE))
    while "$(" in recipe:
        recipe = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], recipe)
    return [line.strip() for line in recipe.splitlines()]


def hook_command(entry: str) -> str:
    """The command of a hook. pre-commit starts no shell, so a command with a glob brings its own."""
    words = shlex.split(entry)
    return words[2] if words[:2] == ["bash", "-c"] else entry


def test_pre_commit_runs_what_make_lint_runs() -> None:
    commands = lint_commands()
    assert ".venv/bin/mypy" in commands
    assert [hook_command(hook["entry"]) for hook in HOOKS] == commands


def test_hooks_check_the_whole_tree_in_the_locked_environment() -> None:
    assert len({hook["id"] for hook in HOOKS}) == len(HOOKS)
    for hook in HOOKS:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
        assert "*" not in hook["entry"] or hook["entry"].startswith("bash -c ")
