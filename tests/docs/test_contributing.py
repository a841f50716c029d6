"""CONTRIBUTING.md names make targets and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_targets_and_files_named_for_contributors_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`make ([\w-]+)", page))
    assert {"setup", "test", "lint", "demo", "gpu-contract", "gpu-check"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    named = re.findall(r"`([\w./-]+/[\w./-]+)`", page) + re.findall(r"\]\(([\w./]+)\)", page)
    assert not [name for name in named if not (ROOT / name).exists()]
