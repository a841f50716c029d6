"""`python -m benchmark.checker CSV FOLDER`: check a prepared folder against its log; prints violations as JSON.

Independent of the product: it uses none of its data code and recomputes the expected result from the raw log in plain
NumPy, in memory. Exits with status 2 if a rule is broken.

Pairs are stored as int64 keys, `user * n_items + item`. There are T series of equal length L, positive first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

from workflows.common.errors import UserError, run_command

_COLUMNS = ("userId", "movieId", "timestamp")


@dataclass
class Report:
    """`violations`: broken rules, each with its count and first case; `counts`: size of the checked data."""

    violations: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def forbid(self, what: str, broken: np.ndarray, *shown: np.ndarray) -> None:
        """Record `what` if any of `broken` (bool) is True, with the count and the first case from arrays `shown`."""
        if broken.any():
            first = int(np.argmax(broken))
            case = ", ".join(str(values[first]) for values in shown)
            self.violations[what] = f"{int(broken.sum()):,} times" + (f", first: {case}" if shown else "")

    def expect(self, what: str, found: object, expected: object) -> bool:
        """Record `what` unless the two are equal; returns whether they are."""
        if found != expected:
            self.violations[what] = f"found {found}, expected {expected}"
        return found == expected


@dataclass(frozen=True)
class _Answer:
    """The expected result for a log: its pairs, ascending; the train pairs by user, time, item; each user's held-out
    item, -1 if none; the distinct original ids in encoding order."""

    pairs: np.ndarray
    train: np.ndarray
    held_out: np.ndarray
    users: np.ndarray
    items: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """A mapping: users, items int64 [N], label float32 [N]; file int64 [N], the index of each row's file."""

    users: np.ndarray
    items: np.ndarray
    label: np.ndarray
    file: np.ndarray


def check(log: Path, folder: Path, columns: Sequence[str] = _COLUMNS) -> Report:
    """Check a prepared folder against its log, a CSV with user, item and (integer) time in `columns`."""
    report = Report()
    answer = _work_out(log, columns)
    spec = yaml.safe_load((folder / "feature_spec.yaml").read_text(encoding="utf-8"))
    _check_ids(report, folder, spec, answer)
    train, test = (_read_mapping(folder, spec, name) for name in ("train", "test"))
    report.counts = {
        "users": len(answer.users),
        "items": len(answer.items),
        "distinct_pairs": len(answer.pairs),
        "held_out": int((answer.held_out >= 0).sum()),
        "train_rows": len(train.users),
        "test_rows": len(test.users),
    }
    length = int(spec["metadata"]["test_samples_per_series"])
    in_range = [_check_rows(report, name, rows, answer) for name, rows in (("train", train), ("test", test))]
    whole = report.expect("test rows beyond the last whole series", len(test.users) % length, 0)
    if all(in_range) and whole:
        kept = _check_train(report, train, answer)
        _check_test(report, test, length, kept, answer)
    return report


def _work_out(log: Path, columns: Sequence[str]) -> _Answer:
    options = pa.csv.ConvertOptions(include_columns=list(columns), strings_can_be_null=True)
    table = pa.csv.read_csv(log, convert_options=options).drop_null()
    users, user_ids = _encode(table.column(columns[0]))
    items, item_ids = _encode(table.column(columns[1]))
    times = table.column(columns[2]).to_numpy()
    pairs = users * len(item_ids) + items
    # Duplicate pairs keep their earliest time.
    order = np.lexsort((times, pairs))
    pairs, times = pairs[order], times[order]
    first = np.diff(pairs, prepend=-1) != 0
    pairs, times = pairs[first], times[first]
    # At equal times the greater item is the later one: lexsort is stable and pairs are sorted.
    by_time = pairs[np.lexsort((times, pairs // len(item_ids)))]
    counts = np.bincount(pairs // len(item_ids), minlength=len(user_ids))
    last = np.cumsum(counts) - 1
    has_test = (counts > 1) & (counts < len(item_ids))
    held_out = np.where(has_test, by_time[last] % len(item_ids), -1)
    return _Answer(pairs, np.delete(by_time, last[has_test]), held_out, user_ids, item_ids)


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(int64 code of each row's id, the distinct ids), numbers sorted by value, text by code point."""
    encoded = column.dictionary_encode().combine_chunks()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    order = np.argsort(distinct)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    return number[encoded.indices.to_numpy()], distinct[order]


def _read_mapping(folder: Path, spec: dict[str, Any], name: str) -> _Rows:
    paths = [folder / file for chunk in spec["source_spec"].get(name, []) for file in chunk["files"]]
    outside = [path for path in paths if not path.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise UserError(f"{folder}: its spec lists {outside[0]}, which is outside the folder; prepare the folder again")
    parts = [pq.read_table(path, columns=["user", "item", "label"]) for path in paths]
    column = {
        key: np.concatenate([np.empty(0, kind), *(part.column(key).to_numpy() for part in parts)])
        for key, kind in (("user", np.int64), ("item", np.int64), ("label", np.float32))
    }
    file = np.repeat(np.arange(len(parts)), [part.num_rows for part in parts])
    return _Rows(column["user"], column["item"], column["label"], file)


def _check_ids(report: Report, folder: Path, spec: dict[str, Any], answer: _Answer) -> None:
    for name, expected in (("user", answer.users), ("item", answer.items)):
        report.expect(f"{name} cardinality", spec["feature_spec"][name]["cardinality"], len(expected))
        table = pq.read_table(folder / "categories" / f"{name}.parquet")
        if report.expect(f"number of {name} ids", table.num_rows, len(expected)):
            ids, originals = table.column("id").to_numpy(), table.column("original").to_numpy()
            wrong = (ids != np.arange(len(ids))) | (originals != expected)
            report.forbid(f"{name} id is not the place of its original among all", wrong, ids, originals)


def _check_rows(report: Report, name: str, rows: _Rows, answer: _Answer) -> bool:
    """Check the rules common to both mappings; returns whether all ids are in range."""
    outside = (rows.users < 0) | (rows.users >= len(answer.users))
    outside |= (rows.items < 0) | (rows.items >= len(answer.items))
    report.forbid(f"{name} id beyond its cardinality", outside, rows.users, rows.items)
    falls = (np.diff(rows.users) < 0) & (np.diff(rows.file) == 0)
    report.forbid(f"{name} users do not ascend within a file", falls, rows.users[1:])
    users, runs = np.unique(rows.users[np.diff(rows.users, prepend=-1) != 0], return_counts=True)
    report.forbid(f"{name} rows of a user lie apart", runs > 1, users)
    return not outside.any()


def _check_train(report: Report, rows: _Rows, answer: _Answer) -> np.ndarray:
    """Check the train rows; returns their positive pairs, ascending."""
    pairs = rows.users * len(answer.items) + rows.items
    positive = rows.label > 0
    kept = np.sort(pairs[positive])
    report.forbid("train pair occurs twice", np.diff(kept) == 0, *np.divmod(kept[1:], len(answer.items)))
    report.forbid("train negative is a train positive", _among(pairs[~positive], kept), pairs[~positive])
    in_order = pairs[positive]
    in_order = in_order[np.argsort(in_order // len(answer.items), kind="stable")]
    if report.expect("number of train positives", len(in_order), len(answer.train)):
        wrong = in_order != answer.train
        report.forbid("train pair out of the order of time and item", wrong, *np.divmod(in_order, len(answer.items)))
    return kept


def _check_test(report: Report, rows: _Rows, length: int, train: np.ndarray, answer: _Answer) -> None:
    n_items = len(answer.items)
    users, items, label = (column.reshape(-1, length) for column in (rows.users, rows.items, rows.label))
    owner = users[:, 0]
    report.forbid("series of several users", (users != users[:, :1]).any(axis=1), owner)
    report.forbid("series without its positive first", (label != (np.arange(length) == 0)).any(axis=1), owner)
    series = np.bincount(owner, minlength=len(answer.users))
    report.forbid("user without a series", (series == 0) & (answer.held_out >= 0), np.arange(len(series)))
    report.forbid("user with a series too many", series > (answer.held_out >= 0), np.arange(len(series)))
    report.forbid("held-out item is not the last", items[:, 0] != answer.held_out[owner], owner, items[:, 0])
    positives = owner * n_items + items[:, 0]
    report.forbid("held-out pair is in train", _among(positives, train), owner, items[:, 0])
    written = np.sort(np.concatenate([train, positives]))
    report.forbid("pair of the log is lost", ~_among(answer.pairs, written), *np.divmod(answer.pairs, n_items))
    report.forbid("pair is not in the log", ~_among(written, answer.pairs), *np.divmod(written, n_items))
    seen = _among((users * n_items + items)[:, 1:].ravel(), answer.pairs)
    report.forbid("negative is a positive of the user", seen, users[:, 1:].ravel(), items[:, 1:].ravel())
    counts = np.bincount(answer.pairs // n_items, minlength=len(answer.users))
    distinct = (np.diff(np.sort(items[:, 1:], axis=1), axis=1, prepend=-1) != 0).sum(axis=1)
    too_few = distinct < np.minimum(length - 1, n_items - counts[owner])
    report.forbid("negatives of a series repeat", too_few, owner)


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Whether each value occurs in `ascending`."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.checker", allow_abbrev=False)
    parser.add_argument("log", type=Path, metavar="CSV", help="the raw log")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder that `python -m preprocessing` wrote")
    parser.add_argument("--columns", nargs=3, default=_COLUMNS, metavar=("USER", "ITEM", "TIME"))
    args = parser.parse_args()
    report = check(args.log, args.folder, args.columns)
    print(json.dumps(asdict(report), indent=2))
    if report.violations:
        raise UserError(f"{args.folder} breaks {len(report.violations)} rules for a folder prepared from {args.log}")


if __name__ == "__main__":
    run_command(main)
