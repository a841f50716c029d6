"""`python -m benchmark compare A B`: what got worse from one folder of results to another.

A change is one beyond noise if the medians differ by more than a bound: three times the pooled median absolute
deviation of the repetitions, or a least change (5 %, quality 1 %) if that is larger. With a single repetition on either
side nothing is known of the spread, and the bound is fixed (25 %, quality 3 %).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmark.common.machine import machine_line
from benchmark.common.report import Measured, number
from benchmark.suite.parts import PARTS, measured, read_part
from workflows.common.errors import UserError
from workflows.common.progress import console

_DEVIATIONS = 3.0
_PLACES = {"--output", "--cache", "--data", "--run", "--runs"}  # flags of a path


@dataclass(frozen=True)
class Change:
    """A figure in both folders.

    Attributes:
        relative: change of the median, positive if it got better.
        bound: smallest relative change beyond noise.
    """

    part: str
    before: Measured
    after: Measured
    relative: float
    bound: float

    @property
    def verdict(self) -> str:
        if abs(self.relative) <= self.bound:
            return "same"
        return "better" if self.relative > 0 else "worse"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A", help="folder of `python -m benchmark all`, or of JSONs alone")
    parser.add_argument("after", type=Path, metavar="B")


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: there is nothing to compare.
        SystemExit: with status 1, a figure got worse beyond noise.
    """
    changes = [change for name in PARTS for change in _changes(name, args.before, args.after)]
    if not changes:
        raise UserError(
            f"{args.before} and {args.after} have no part's result in common; pass two folders that "
            "`python -m benchmark all` wrote with the same --preset"
        )
    table = Table()
    for head in ("part", "figure", str(args.before), str(args.after), "change", "noise", ""):
        table.add_column(head, overflow="fold")  # a pipe is 80 columns wide
    styles = {"worse": "red", "better": "green", "same": ""}
    for each in changes:
        texts = [f"{number(median(found.values))} {found.unit}" for found in (each.before, each.after)]
        sign = 1 if each.before.more_is_better else -1
        figures = [f"{sign * each.relative:+.1%}", f"±{each.bound:.1%}"]
        table.add_row(each.part, each.before.what, *texts, *figures, each.verdict, style=styles[each.verdict])
    console.print(table)
    worse = [change for change in changes if change.verdict == "worse"]
    console.print(f"{len(changes)} figures compared: {len(worse)} worse beyond noise")
    if worse:
        sys.exit(1)


def _changes(name: str, before: Path, after: Path) -> list[Change]:
    """The figures that a part has in both folders.

    Raises:
        UserError: a result is not one of this part, or the two were measured with other settings.
    """
    results = [read_part(folder, name) for folder in (before, after)]
    if not all(results):
        if any(results):
            missing = after if results[0] else before
            console.print(f"{name}: no result in {missing}, so it is not compared")
        return []
    try:
        settings = [_settings(result["command"]) for result in results]
        machines = [machine_line({**result["machine"], "commit": ""}) for result in results]
        old, new = ({each.what: each for each in measured(name, result)} for result in results)
        changes = [compared(name, old[what], new[what]) for what in old if what in new]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as err:
        raise UserError(f"{name}: a result in {before} or {after} is not one of this version ({err!r})") from None
    if settings[0] != settings[1]:
        raise UserError(
            f"{name}: measured with other settings, which cannot be compared: `{settings[0]}` in {before}, "
            f"`{settings[1]}` in {after}; measure both with the same --preset"
        )
    if machines[0] != machines[1]:
        console.print(f"{name}: other machines or versions: {machines[0]} in {before}, {machines[1]} in {after}")
    return changes


def _settings(command: str) -> str:
    """A command without the flags that name places."""
    words = shlex.split(command)
    return shlex.join(word for index, word in enumerate(words) if not {word, words[max(0, index - 1)]} & _PLACES)


def compared(part: str, before: Measured, after: Measured) -> Change:
    """Compare a figure with itself in another run; see the module for the rule."""
    middle, now = median(before.values), median(after.values)
    relative = (now - middle) / abs(middle) if middle else 0.0
    if min(len(before.values), len(after.values)) < 2:
        bound = before.alone
    else:
        bound = max(before.least_change, _DEVIATIONS * _deviation(before.values, after.values) / (abs(middle) or 1.0))
    return Change(part, before, after, relative if before.more_is_better else -relative, bound)


def _deviation(*repetitions: Sequence[float]) -> float:
    """Median absolute deviation, of each run's repetitions from its own median."""
    return median(abs(value - median(values)) for values in repetitions for value in values)
