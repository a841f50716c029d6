"""The runs of the rows: one process per row and seed, kept so that existing runs are reused."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.common.machine import commit
from benchmark.common.measure import measure
from benchmark.common.program import ROOT
from workflows.common.files import read_json, write_json
from workflows.common.progress import console


@dataclass(frozen=True)
class Done:
    """A finished run.

    Attributes:
        command: for display, without --data and --output.
        wall_s, cpu_s: of the whole process: choosing settings, training and its own evaluation.
        peak_rss_mib: of the process and its children.
        commit: at which it ran.
    """

    folder: Path
    command: str
    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    commit: str | None


def run(program: Sequence[str], seed: int, data: Path, folder: Path) -> Done:
    """Run one of our programs into a result folder, or reuse the results of the same command.

    Raises:
        UserError: it failed; the message includes the last lines of its output.
    """
    given, source, facts = [*program, "--seed", str(seed)], str(data.resolve()), folder.with_suffix(".json")
    known, found = {"program": given, "data": source, **_configuration(program)}, read_json(facts)
    if not (known.items() <= found.items() and "commit" in found) or not folder.is_dir():
        console.print(f"python {shlex.join(given)}")
        command = ["env", "OMP_NUM_THREADS=1", sys.executable, *given, "--data", source, "--output", str(folder)]
        here = commit()
        usage = measure([*command, "--overwrite"], cwd=ROOT)
        found = {
            **known, "wall_s": usage.wall_s, "cpu_s": usage.cpu_s, "peak_rss_mib": usage.peak_rss_bytes / 2**20,
            "commit": here,
        }  # fmt: skip
        write_json(facts, found)
    figures = (found[name] for name in ("wall_s", "cpu_s", "peak_rss_mib", "commit"))
    return Done(folder, f"python {shlex.join(given)}", *figures)


def _configuration(program: Sequence[str]) -> dict[str, str]:
    """The contents of the --config file, which are part of the command."""
    if "--config" not in program:
        return {}
    return {"config": (ROOT / program[program.index("--config") + 1]).read_text(encoding="utf-8")}
