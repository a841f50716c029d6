"""What a check of a prepared folder has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error) or worth knowing (note).

    Attributes:
        where: file, row, or place in the spec.
        what: what is wrong, with what was expected and found.
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
