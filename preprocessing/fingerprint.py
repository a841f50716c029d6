"""The fingerprint of a prepared folder: what a run remembers of the data it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preprocessing.config import STATS_NAME
from workflows.common.files import read_json

FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of a prepared folder's content, in hexadecimal.

    Attributes:
        encoding: of the original ids of users and items, in encoded order. Two folders share it if and only if an
            encoded id means the same user or item in both.
        split: of the rows of train and test.
    """

    encoding: str
    split: str


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint in a folder's `stats.json`; None if it has none: an older folder, or not one of ours."""
    found = read_json(folder / STATS_NAME).get(FINGERPRINT)
    if not isinstance(found, dict):
        return None
    encoding, split = found.get("encoding"), found.get("split")
    return Fingerprint(encoding, split) if isinstance(encoding, str) and isinstance(split, str) else None
