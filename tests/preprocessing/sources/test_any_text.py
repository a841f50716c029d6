"""Logs in any spelling are read as Python's csv module reads them, and no row vanishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import PACKINGS, tarred, zipped
from random_logs import ONE_BYTE, RandomLog, logs_with_lone_quotes, random_logs

from preprocessing.sources import quoting, text
from preprocessing.sources.delimited import csv_log
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

COLUMNS = LogColumns(user="user", item="item", time="time")


def read(path: Path, options: ReadOptions, piece_bytes: int = 1 << 20) -> list[tuple[Any, ...]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", piece_bytes)
        patch.setattr(quoting, "_BLOCK_BYTES", piece_bytes)
        return rows_of(csv_log([SourceFile(path, "the log", path)], COLUMNS, False, options))


def rows_of(log: Log) -> list[tuple[Any, ...]]:
    table = pa.concat_tables([piece.read().select(COLUMNS.names) for piece in log.pieces])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def written(folder: Path, log: RandomLog) -> Path:
    (folder / "log").write_text(log.text, "utf-8", newline="")
    return folder / "log"


@settings(max_examples=100)
@given(random_logs(), st.integers(1, 60))
def test_any_spelling_is_read(fresh: Callable[[], Path], log: RandomLog, piece_bytes: int) -> None:
    path = written(fresh(), log)
    given = replace(log.options, quoting="minimal" if log.quoted else "none")
    assert read(path, given, piece_bytes) == log.rows
    if not log.quoted:
        return
    if not log.is_ambiguous:
        assert read(path, log.options, piece_bytes) == log.rows
        return
    with pytest.raises(UserError, match="--quoting none"):
        read(path, log.options, piece_bytes)


@settings(max_examples=100)
@given(
    random_logs(quoted=True, delimiters=ONE_BYTE, comments=[None]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1", "cp1252"]),
    st.sampled_from([*PACKINGS, "zip", "tar", "none"]),
)
def test_the_rows_are_those_of_pythons_csv_module(
    fresh: Callable[[], Path], log: RandomLog, encoding: str, packing: str
) -> None:
    members = [("log.csv", log.text.encode(encoding))]
    archives = {"zip": zipped(members), "tar": tarred(members), "none": members[0][1]}
    packed = archives[packing] if packing in archives else PACKINGS[packing](members[0][1])
    path, scratch = fresh() / "log", fresh()
    path.write_bytes(packed)
    marked = encoding in ("utf-8", "utf-8-sig", "utf-16")  # the default, or by a byte order mark
    options = replace(
        log.options,
        quoting="minimal",
        text_ids=frozenset(["user", "item"]),
        encoding=None if marked else encoding,
    )
    found = rows_of(open_log(path, COLUMNS, False, scratch, options))
    expected = log.read_by_csv()
    assert len(found) == len(expected)
    for row, spelled in zip(found, expected, strict=True):
        assert all(one is None or one == other.strip() for one, other in zip(row[:2], spelled[:2], strict=True))


@settings(max_examples=100)
@given(logs_with_lone_quotes(), st.integers(1, 60))
def test_no_row_vanishes_by_a_quote(fresh: Callable[[], Path], log: RandomLog, piece_bytes: int) -> None:
    try:
        found = read(written(fresh(), log), log.options, piece_bytes)
    except UserError:  # said aloud
        return
    assert len(found) == len(log.rows)
