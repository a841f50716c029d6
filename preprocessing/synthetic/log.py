"""Synthetic logs that resemble MovieLens-20M: long-tailed users and items, distinct pairs, sessions with ties.

Memory grows with users and items, not with rows. A shuffled log is a true random permutation: each row goes to a
random bucket on disk, and each bucket is permuted when read back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from preprocessing.synthetic.rows import ROW, row_blocks
from workflows.common.errors import UserError, bounded
from workflows.common.staging import StagedFolder
from workflows.device.memory import require_disk, require_memory
from workflows.sampling.counter_rng import mix

Ids = Literal["int", "text", "int64"]

_KNOWN = {"ml-20m": (138_493, 26_744, 20_000_263), "small": (2_000, 1_000, 100_000)}
_MAX_IDS, _MAX_ROWS = 100_000_000, 10_000_000_000
_BUCKET_ROWS = 1 << 20
_ID_BYTES, _ROW_BYTES = 24, 18  # lower bounds: of the arrays over users and items, and of a row as text
_RATINGS = tuple(f"{step / 2:.1f}" for step in range(1, 11))


@dataclass(frozen=True)
class Shape:
    """Numbers of users and items (each occurs at least once) and of rows (distinct pairs)."""

    users: int
    items: int
    rows: int

    def __post_init__(self) -> None:
        if not (0 < self.users <= _MAX_IDS and 0 < self.items <= _MAX_IDS and 0 < self.rows <= _MAX_ROWS):
            raise UserError(
                f"a synthetic log has 1 to {_MAX_IDS:,} users and items and 1 to {_MAX_ROWS:,} rows, got {self}"
            )
        if not max(self.users, self.items) <= self.rows <= self.users * self.items:
            raise UserError(
                f"a synthetic log of {self.users:,} users and {self.items:,} items, where each occurs and no pair "
                f"repeats, has {max(self.users, self.items):,} to {self.users * self.items:,} rows, "
                f"got {self.rows:,}; choose another number of rows"
            )

    def __str__(self) -> str:
        return f"{self.users}x{self.items}x{self.rows}"


def parse_shape(text: str) -> Shape:
    """Parse `ml-20m`, `small` or USERSxITEMSxROWS.

    Raises:
        UserError: the text is none of these, or no log can have that shape.
    """
    if text in _KNOWN:
        return Shape(*_KNOWN[text])
    found = re.fullmatch(r"(\d{1,12})x(\d{1,12})x(\d{1,12})", text, re.ASCII)
    if not found:
        raise UserError(
            f"a synthetic shape is {', '.join(_KNOWN)} or USERSxITEMSxROWS (1000x500x20000), got {bounded(text)!r}"
        )
    users, items, rows = map(int, found.groups())
    return Shape(users, items, rows)


def write_log(
    shape: Shape,
    path: Path,
    seed: int,
    *,
    shuffled: bool = True,
    ids: Ids = "int",
    progress: Callable[[float], None] = lambda rows: None,
) -> None:
    """Write a CSV `userId,movieId,rating,timestamp`.

    Args:
        seed: 0 or more; the same shape, seed and flags give the same bytes.
        shuffled: rows in random order; otherwise sorted by user, then time.
        ids: "int" as in MovieLens (users 1 … U, items with gaps), "text" (17 characters), or "int64" (any 64 bits).
        progress: called periodically with a number of rows; the calls add up to `shape.rows`.
    """
    require_memory(_ID_BYTES * (shape.users + shape.items), f"a synthetic log {shape}", "lower the numbers of ids")
    row_bytes = _ROW_BYTES + (ROW.itemsize if shuffled else 0)
    require_disk(row_bytes * shape.rows, path.absolute().parent, f"a synthetic log {shape}", "lower the number of rows")
    user_names = _names(np.arange(1, shape.users + 1), ids, "u")
    gaps = np.random.default_rng([seed, 1]).integers(1, 10, shape.items)  # MovieLens ids have such gaps
    item_names = _names(np.cumsum(gaps), ids, "i")
    with closing(StagedFolder(path)) as staged:  # for the buckets
        blocks = row_blocks(shape.users, shape.items, shape.rows, seed)
        if shuffled:
            blocks = _shuffle(blocks, shape.rows, seed, staged.folder, progress)
        with path.open("wb") as file:
            file.write(b"userId,movieId,rating,timestamp\n")
            for rows in blocks:
                _write_rows(rows, user_names, item_names, file)
                progress(len(rows) / 2 if shuffled else len(rows))


def _names(numbers: np.ndarray, ids: Ids, prefix: str) -> pa.Array:
    """The id written for each number: itself, or its hash (a bijection) as text or integer."""
    if ids == "int":
        return pa.array(numbers)
    hashed = mix(numbers)
    if ids == "int64":
        return pa.array(hashed)
    return pa.array([f"{prefix}{number:016x}" for number in hashed.view(np.uint64).tolist()])


def _write_rows(rows: np.ndarray, user_names: pa.Array, item_names: pa.Array, file: BinaryIO) -> None:
    table = pa.table(
        {
            "user": user_names.take(pa.array(rows["user"])),
            "item": item_names.take(pa.array(rows["item"])),
            "rating": pa.array(_RATINGS).take(pa.array(rows["rating"])),
            "time": pa.array(rows["time"]),
        }
    )
    pa.csv.write_csv(table, file, pa.csv.WriteOptions(include_header=False, quoting_style="none"))


def _shuffle(
    blocks: Iterator[np.ndarray], n_rows: int, seed: int, folder: Path, progress: Callable[[float], None]
) -> Iterator[np.ndarray]:
    """All rows in random order, bucketed through files in `folder`."""
    rng = np.random.default_rng([seed, 2])
    paths = [folder / f"{number}.rows" for number in range(-(-n_rows // _BUCKET_ROWS))]
    for rows in blocks:
        bucket = rng.integers(0, len(paths), len(rows), dtype=np.uint16)
        grouped = rows[np.argsort(bucket, kind="stable")]
        ends = np.cumsum(np.bincount(bucket, minlength=len(paths)))
        for path, part in zip(paths, np.split(grouped, ends[:-1]), strict=True):
            with path.open("ab") as file:
                part.tofile(file)
        progress(len(rows) / 2)
    for path in paths:
        rows = np.fromfile(path, dtype=ROW)
        path.unlink()
        yield rows[rng.permutation(len(rows))]
