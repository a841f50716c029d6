"""Settings and findings of one check of `python -m benchmark gpu-check`, and the entry point of its process.

Nothing here imports torch: a check must report a result even if that import fails.
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.common.measure import Usage, measure
from benchmark.common.program import ROOT
from preprocessing.synthetic.log import Shape, parse_shape
from workflows.common.errors import run_command
from workflows.common.files import write_json

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
_NEED_GPU = ("tf32", "CUDA graphs")
LOG_COLUMNS = ("--user", "userId", "--item", "movieId", "--time", "timestamp")  # of logs written for checks


class NotPossibleError(Exception):
    """A check cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of the checks.

    Attributes:
        shape: log for speed measurements.
        factors, layers, batch_size: network for speed measurements.
        parity_shape, parity_batch, steps: computations compared between the two devices.
        training: flags of `python -m preprocessing` that choose the data of full training runs.
        epochs: of full training runs.
        scored: pairs scored at a time, and repetitions.
    """

    shape: Shape
    factors: int
    layers: tuple[int, ...]
    batch_size: int
    parity_shape: Shape
    parity_batch: int
    steps: int
    training: tuple[str, str]
    epochs: int
    scored: tuple[int, int]


SMALL = Scale(
    shape=Shape(400, 300, 12_000),
    factors=8,
    layers=(32, 16, 8),
    batch_size=4_096,
    parity_shape=Shape(300, 200, 6_000),
    parity_batch=1_024,
    steps=8,
    training=("--synthetic", "300x200x6000"),
    epochs=2,
    scored=(4_096, 3),
)
FULL = Scale(
    shape=parse_shape("ml-20m"),
    factors=64,
    layers=(256, 256, 128, 64),
    batch_size=1 << 20,
    parity_shape=Shape(20_000, 26_744, 400_000),
    parity_batch=65_536,
    steps=30,
    training=("--sample", "ml-100k"),
    epochs=14,
    scored=(1 << 20, 200),
)


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        device: "cuda", or "cpu" in a rehearsal, in which the CPU is compared with itself.
        output: the report's folder; a check may leave files there.
        work: an empty folder, deleted afterwards.
    """

    device: str
    rehearsal: bool
    scale: Scale
    output: Path
    work: Path

    @property
    def comparable(self) -> bool:
        """Whether figures are comparable with published ones."""
        return not self.rehearsal and self.scale is FULL


@dataclass(frozen=True)
class Comparison:
    """Two results that should agree to within a tolerance (None: exactly)."""

    what: str
    found: Any
    expected: Any
    tolerance: float | None
    holds: bool


@dataclass(frozen=True)
class Figure:
    """A measured value, and the reference's published value on other hardware (None: unpublished)."""

    what: str
    value: float
    unit: str
    published: float | None = None
    published_of: str = ""


@dataclass
class Findings:
    """Findings of a check so far; the check fails if any comparison does not hold.

    Attributes:
        path: JSON file updated after each comparison and figure, so that a crash or a hang loses nothing.
        left_out: parts of the check that could not run here, and why.
        facts: anything else to report.
        curves: losses by step.
        files: files left in the report's folder.
    """

    path: Path | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def equal(self, what: str, found: np.ndarray, expected: np.ndarray) -> None:
        """Compare two arrays element by element."""
        same_kind = found.shape == expected.shape and found.dtype == expected.dtype
        wrong = int((found != expected).sum()) if same_kind else max(found.size, expected.size)
        reported, wanted = (f"{values.size:,} values ({values.dtype})" for values in (found, expected))
        self._compared(Comparison(f"{what}: {wrong:,} differ", reported, wanted, None, same_kind and not wrong))

    def close(self, what: str, found: float, expected: float, tolerance: float, relative: bool = True) -> None:
        """Compare two numbers; the tolerance is relative to the expected value, or absolute if not `relative`."""
        error = abs(found - expected) / (abs(expected) if relative and expected else 1.0)
        self._compared(Comparison(what, _shown(found), _shown(expected), tolerance, error <= tolerance))

    def curves_close(self, what: str, found: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
        """Compare two loss curves at the step where they differ most."""
        if len(found) != len(expected):
            self._compared(Comparison(f"{what}: length", len(found), len(expected), None, False))
            return
        worst = max(range(len(found)), key=lambda at: _distance(found[at], expected[at]))
        self.close(f"{what}, at step {worst} of {len(found)}", found[worst], expected[worst], tolerance)

    def below(self, what: str, found: float, bound: float) -> None:
        """Check that a number is below a bound; NaN is not."""
        self._compared(Comparison(what, _shown(found), f"below {bound:g}", None, bool(found < bound)))

    def at_least(self, what: str, found: float, bound: float) -> None:
        """Check that a number reaches a bound; NaN does not."""
        self._compared(Comparison(what, _shown(found), f"at least {bound:g}", None, bool(found >= bound)))

    @contextmanager
    def attempt(self, kind: str) -> Iterator[None]:
        """Within, one kind of a check: if it fails, the others still run.

        An exception becomes a comparison that does not hold, with the last line of its message; the traceback goes to
        the check's log. A kind that is not possible here is left out.
        """
        try:
            yield
        except NotPossibleError as reason:
            self.left_out[kind] = str(reason)
        except Exception as err:
            traceback.print_exc()
            last = (str(err).strip().splitlines() or [""])[-1]
            self._compared(Comparison(kind, f"{type(err).__name__}: {last}", "no error", None, False))

    def measured(self, figure: Figure) -> None:
        self.figures.append(figure)
        self._save_so_far()

    def _compared(self, comparison: Comparison) -> None:
        self.comparisons.append(comparison)
        self._save_so_far()

    def _save_so_far(self) -> None:
        self.save(FAILED, "it did not finish")

    def save(self, status: str, reason: str) -> None:
        if self.path is None:
            return
        known = {key: value for key, value in asdict(self).items() if key != "path"}
        known["curves"] = {name: [_none_or(value) for value in curve] for name, curve in self.curves.items()}
        write_json(self.path, {"status": status, "reason": reason, **known})

    def possible(self, names: Iterable[str], settings: Settings) -> Iterator[str]:
        """The variants that can run: a rehearsal leaves out those that need a GPU."""
        for name in names:
            if settings.rehearsal and any(word in name for word in _NEED_GPU):
                self.left_out[name] = "needs an NVIDIA GPU"
            else:
                yield name


def _none_or(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float) -> float | str:
    """The value in a form that JSON can hold: it has neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)


def _distance(found: float, expected: float) -> float:
    error = abs(found - expected)
    return error if math.isfinite(error) else math.inf


def need(module: str, name: str) -> None:
    """Raise NotPossibleError if a Python module is not installed."""
    if find_spec(module) is None:
        raise NotPossibleError(f"{name} is not installed")


def ours(*argv: str | Path) -> Usage:
    """Run one of our programs to completion.

    Raises:
        UserError: it failed; the message includes the last lines of its output.
    """
    return measure([sys.executable, *argv], ROOT)


def prepare_log(log: Path, folder: Path, device: str, *flags: str) -> Usage:
    """Prepare a log written by `preprocessing.synthetic.log`."""
    return ours("-m", "preprocessing", "--input", log, *LOG_COLUMNS, "--device", device, "--output", folder, *flags)


def run_check(checks: Mapping[str, Callable[[Settings, Findings], None]], argv: Sequence[str] | None = None) -> None:
    """Command line of a process that runs one of `checks` and writes its findings as JSON to `--result`.

    Any other error ends the process and is reported by the parent.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("name", choices=checks)
    parser.add_argument("--device", required=True)
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args(argv)

    def main() -> None:
        settings = Settings(args.device, args.rehearsal, SMALL if args.small else FULL, args.output, args.work)
        found = Findings(args.result)
        try:
            checks[args.name](settings, found)
        except NotPossibleError as reason:
            found.save(NOT_RUN, str(reason))
            return
        wrong = [each.what for each in found.comparisons if not each.holds]
        if not (found.comparisons or found.figures):  # none of its kinds was possible
            found.save(NOT_RUN, "; ".join(dict.fromkeys(found.left_out.values())))
            return
        found.save(FAILED if wrong else PASSED, "; ".join(wrong))

    run_command(main)
