"""Findings of a prepared folder's check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One problem (error) or observation (note).

    Attributes:
        where: file, row, or path in the spec.
        what: the problem, with the expected and actual values.
    """

    severity: Literal["error", "note"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}"


def error(where: str, what: str) -> Finding:
    return Finding("error", where, what)


def note(where: str, what: str) -> Finding:
    return Finding("note", where, what)
