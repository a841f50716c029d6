"""How much memory the pipeline may take, and how finely a log is partitioned for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_MIN_PARTITIONS, _MAX_PARTITIONS = 8, 1 << 14
_PARTITION_BYTES = 8 << 20  # of the log: a few hundred thousand rows, which sort in a core's cache


def parse_bytes(text: str) -> int:
    """A size such as 1GiB, 500MB, 2g or 1073741824, in bytes.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if not found:
        raise ValueError(f"{text!r} is no size; expected one such as 1GiB or 800MB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


@dataclass(frozen=True)
class Plan:
    """Into how many partitions users are spread."""

    partitions: int

    @staticmethod
    def of(size_bytes: int, partitions: int | None, memory_limit_bytes: int | None, workers: int) -> Plan:
        """
        Args:
            size_bytes: of the log.
            partitions: how many were asked for; None: as many as suit the size.
            memory_limit_bytes: for all processes together; None: no limit.
        """
        if partitions is not None:
            return Plan(partitions)
        return Plan(min(_MAX_PARTITIONS, max(_MIN_PARTITIONS, size_bytes // _PARTITION_BYTES)))
