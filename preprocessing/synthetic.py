"""A log like MovieLens-20M without its data: long tails of users and items, distinct pairs, sessions with ties.

Rows are made by blocks of whole users, so that memory does not grow with the log. A shuffled log is a true random
permutation: each row goes to a random bucket on disk, and each bucket is permuted when it is read back.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from workflows.counters import mix
from workflows.errors import UserError

Ids = Literal["int", "text", "int64"]

_KNOWN = {"ml-20m": (138_493, 26_744, 20_000_263), "small": (2_000, 1_000, 100_000)}
_MAX_IDS, _MAX_ROWS = 100_000_000, 10_000_000_000
_MIN_PER_USER = 20  # as in MovieLens
_BLOCK_ROWS, _BUCKET_ROWS, _RACE_CELLS = 1 << 20, 1 << 20, 1 << 22
_FIRST_S, _LAST_S = 789_652_009, 1_427_784_002  # MovieLens-20M: January 1995 to March 2015
_SESSION_GAP_S = 20 * 86_400
# MovieLens-20M's shares of the ratings 0.5, 1.0 … 5.0 in 256ths.
_RATING_SHARES = (3, 9, 4, 18, 11, 55, 28, 71, 20, 37)
_RATING_TEXTS = tuple(f"{step / 2:.1f}" for step in range(1, 11))
_RATING_TABLE = np.repeat(np.arange(10, dtype=np.uint8), _RATING_SHARES)
_ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("time", "<i4"), ("rating", "u1")])


@dataclass(frozen=True)
class Shape:
    """How many users and items a log has (each occurs), and how many rows, all of them distinct pairs."""

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
                f"a synthetic log of {self.users:,} users and {self.items:,} items, each of which occurs, without "
                f"repeated pairs has {max(self.users, self.items):,} to {self.users * self.items:,} rows, "
                f"got {self.rows:,}; name another number of rows"
            )

    def __str__(self) -> str:
        return f"{self.users}x{self.items}x{self.rows}"


def parse_shape(text: str) -> Shape:
    """`ml-20m`, `small` or USERSxITEMSxROWS.

    Raises:
        UserError: it is none of these, or no log has that shape.
    """
    if text in _KNOWN:
        return Shape(*_KNOWN[text])
    found = re.fullmatch(r"(\d{1,12})x(\d{1,12})x(\d{1,12})", text, re.ASCII)
    if not found:
        raise UserError(f"a synthetic shape is {', '.join(_KNOWN)} or USERSxITEMSxROWS (1000x500x20000), got {text!r}")
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
    """Write a CSV `userId,movieId,rating,timestamp`, whole or not at all; a file that is there is replaced.

    Args:
        seed: 0 or more; same shape, seed and flags, same bytes.
        shuffled: rows in random order; otherwise by user, then time.
        ids: "int" as in MovieLens (users 1 … U, items with gaps), "text" (17 characters), or "int64" (any 64 bits).
        progress: called now and then with a number of rows; all calls add up to `shape.rows`.
    """
    user_names = _names(np.arange(1, shape.users + 1), ids, "u")
    gaps = np.random.default_rng([seed, 1]).integers(1, 10, shape.items)  # MovieLens' ids have such gaps
    item_names = _names(np.cumsum(gaps), ids, "i")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as folder:
        blocks = _shuffle(_blocks(shape, seed), shape.rows, seed, Path(folder), progress) if shuffled else None
        partial = Path(folder) / "log.csv"
        with partial.open("wb") as file:
            file.write(b"userId,movieId,rating,timestamp\n")
            for rows in blocks or _blocks(shape, seed):
                _write_rows(rows, user_names, item_names, file)
                progress(len(rows) / 2 if shuffled else len(rows))
        partial.replace(path)


def _names(numbers: np.ndarray, ids: Ids, prefix: str) -> pa.Array:
    """What stands in the file for each number: itself, or its hash (a bijection) as text or integer."""
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
            "rating": pa.array(_RATING_TEXTS).take(pa.array(rows["rating"])),
            "time": pa.array(rows["time"]),
        }
    )
    pa.csv.write_csv(table, file, pa.csv.WriteOptions(include_header=False, quoting_style="none"))


def _shuffle(
    blocks: Iterator[np.ndarray], n_rows: int, seed: int, folder: Path, progress: Callable[[float], None]
) -> Iterator[np.ndarray]:
    """All rows in random order, by way of files in `folder`."""
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
        rows = np.fromfile(path, dtype=_ROW)
        path.unlink()
        yield rows[rng.permutation(len(rows))]


def _blocks(shape: Shape, seed: int) -> Iterator[np.ndarray]:
    """The log by user, then time, in blocks of whole users with about `_BLOCK_ROWS` rows."""
    rng = np.random.default_rng([seed, 3])
    counts = _counts(shape, rng)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # The logarithm of popularity falls with the root of the rank, about as in MovieLens-20M.
    weights = np.exp(-11 * np.sqrt(rng.permutation(shape.items) / shape.items))
    # So that every item occurs, each is given to one row beforehand.
    lanes = np.arange(shape.items + 1) * shape.rows // shape.items
    given_rows = lanes[:-1] + rng.integers(0, np.diff(lanes))
    given_items = rng.permutation(shape.items)
    first = 0
    while first < shape.users:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK_ROWS, side="right")) - 1)
        low, high = np.searchsorted(given_rows, [starts[first], starts[last]])
        owners = np.searchsorted(starts, given_rows[low:high], side="right") - 1 - first
        given = owners * shape.items + given_items[low:high]
        keys = _distinct_pairs(counts[first:last], given, weights, rng)
        yield _with_times(keys, counts[first:last], first, shape.items, rng)
        first = last


def _counts(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Rows of each user, int64 [U]: a floor plus a lognormal tail, scaled and capped to add up to `shape.rows`."""
    floor = min(_MIN_PER_USER, shape.rows // shape.users)
    tail = rng.lognormal(0.0, 1.38, shape.users)  # the ratio of mean to median that MovieLens-20M has above its 20
    # The keenest user of MovieLens-20M rated a third of the movies; a dense log needs more.
    cap = shape.items // 3
    if cap * shape.users < 2 * shape.rows:
        cap = shape.items

    def scaled(by: float) -> np.ndarray:
        return np.minimum(floor + np.floor(np.minimum(by * tail, cap)).astype(np.int64), cap)

    low, high = 0.0, cap / tail.min()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).sum() <= shape.rows else (low, middle)
    counts = scaled(low)
    while short := shape.rows - int(counts.sum()):
        counts[np.flatnonzero(counts < cap)[:short]] += 1
    return counts


def _distinct_pairs(counts: np.ndarray, given: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw each user's items without replacement, in proportion to `weights`.

    Args:
        counts: int64 [S], how many items each user has.
        given: int64, keys (`user * n_items + item`) that must be among them.
    Returns:
        int64 [sum of counts] distinct keys, ascending.
    """
    n_items = len(weights)
    # Who wants many would draw the popular ones again and again.
    eager = counts > n_items // 16
    of_eager = eager[given // n_items]
    raced = _race(np.flatnonzero(eager), counts, given[of_eager], weights, rng)
    cumulative = np.cumsum(weights / weights.sum())
    wanted = np.where(eager, 0, counts)
    keys = np.sort(given[~of_eager])
    while len(keys) < wanted.sum():
        missing = wanted - np.bincount(keys // n_items, minlength=len(counts))
        owners = np.repeat(np.arange(len(counts)), missing)
        items = np.minimum(np.searchsorted(cumulative, rng.random(len(owners)), side="right"), n_items - 1)
        drawn = np.unique(owners * n_items + items)
        if len(keys):
            drawn = drawn[keys[np.minimum(np.searchsorted(keys, drawn), len(keys) - 1)] != drawn]
        keys = np.sort(np.concatenate([keys, drawn]), kind="stable")  # merges two sorted runs
    return np.sort(np.concatenate([keys, raced]), kind="stable")


def _race(
    users: np.ndarray, counts: np.ndarray, given: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The same draw by an exponential race (Efraimidis and Spirakis 2006): the first `count` items to arrive win."""
    n_items = len(weights)
    won = [np.empty(0, dtype=np.int64)]
    step = max(1, _RACE_CELLS // n_items)
    for start in range(0, len(users), step):
        runners = users[start : start + step]
        arrivals = rng.exponential(size=(len(runners), n_items)) / weights
        owners, items = np.divmod(given, n_items)
        here = np.isin(owners, runners)
        arrivals[np.searchsorted(runners, owners[here]), items[here]] = 0.0
        order = np.argsort(arrivals, axis=1)
        wins = np.arange(n_items) < counts[runners, None]
        won.append((runners[:, None] * n_items + order)[wins])
    return np.sort(np.concatenate(won))


def _with_times(keys: np.ndarray, counts: np.ndarray, first: int, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Rows in time order: each user rates in a random order, within sessions some seconds apart, ties included."""
    owners = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(owners + rng.random(len(keys)))
    gaps = rng.integers(0, 16, len(keys))
    breaks = rng.random(len(keys)) < 1 / 40
    gaps[breaks] = rng.exponential(_SESSION_GAP_S, int(breaks.sum())).astype(np.int64)
    elapsed = np.cumsum(gaps)
    ends = np.cumsum(counts)
    elapsed -= np.repeat(elapsed[ends - counts], counts)
    # Whoever would outlast the log is faster; each begins at random, early enough to end within it.
    span = _LAST_S - _FIRST_S
    lasted = elapsed[ends - 1]
    elapsed = np.where(np.repeat(lasted > span, counts), elapsed * (span / np.repeat(lasted, counts).clip(1)), elapsed)
    begins = _FIRST_S + np.floor(rng.random(len(counts)) * (span - np.minimum(lasted, span)))
    rows = np.empty(len(keys), dtype=_ROW)
    rows["user"] = first + owners
    rows["item"] = keys[order] % n_items
    rows["time"] = np.repeat(begins, counts) + elapsed
    rows["rating"] = _RATING_TABLE[rng.integers(0, 256, len(keys), dtype=np.uint8)]
    return rows
