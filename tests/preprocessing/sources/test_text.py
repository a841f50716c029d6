from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources import quoting, sniff, text
from preprocessing.sources.delimited import csv_log
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from preprocessing.sources.text import TextFormat, first_row, text_pieces
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_COLUMNS = LogColumns(user="who", item="what", time="when")


def _open(path: Path, columns: LogColumns = _COLUMNS) -> Log:
    return csv_log([SourceFile(path, str(path), path)], columns, with_rating=False)


def _written(rows: list[list[Any]], delimiter: str = ",", newline: str = "\n", always_quote: bool = False) -> str:
    out = io.StringIO()
    quoting = csv.QUOTE_ALL if always_quote else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=delimiter, lineterminator=newline, quoting=quoting).writerows(rows)
    return out.getvalue()


_INTEGERS = st.integers(-(2**63), 2**63 - 1)
# Text ids: wrapped in letters, so they are not numbers, not null spellings, and have no surrounding blanks.
_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=6).map(
    "ü{}ü".format
)


@settings(max_examples=30, deadline=None)
@given(
    ids=st.one_of(
        st.lists(st.tuples(_INTEGERS, _INTEGERS), min_size=1, max_size=20),
        st.lists(st.tuples(_WORDS, _WORDS), min_size=1, max_size=20),
    ),
    delimiter=st.sampled_from([",", "\t", ";", "|"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    quote=st.booleans(),
    bom=st.booleans(),
    last_newline=st.booleans(),
    piece_bytes=st.integers(1, 80),
)
def test_pieces_cover_every_row_once(
    fresh: Callable[[], Path],
    log_rows: Callable[[Log], pd.DataFrame],
    ids: list[tuple[Any, Any]],
    delimiter: str,
    newline: str,
    quote: bool,
    bom: bool,
    last_newline: bool,
    piece_bytes: int,
) -> None:
    rows = [[what, "x, y;z|\t", number, who] for number, (who, what) in enumerate(ids)]
    content = _written([["what", "other", "when", "who"], *rows], delimiter, newline, quote)
    path = fresh() / "log.txt"
    path.write_text(
        ("\ufeff" if bom else "") + (content if last_newline else content.rstrip("\r\n")), "utf-8", newline=""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", piece_bytes)
        log = _open(path)
    found = log_rows(log)
    assert list(found.itertuples(index=False, name=None)) == [(who, what, n) for n, (who, what) in enumerate(ids)]
    rows_bytes = path.stat().st_size - path.read_bytes().index(b"\n") - 1
    assert log.size_bytes == rows_bytes
    if piece_bytes == 1:
        assert len(log.pieces) == len(ids)


@settings(max_examples=30, deadline=None)
@given(
    notes=st.lists(st.text(st.sampled_from('a",\n')), min_size=1, max_size=12).filter(lambda n: "\n" in "".join(n)),
    piece_bytes=st.integers(1, 40),
)
def test_rows_with_quoted_newlines_are_not_split(
    fresh: Callable[[], Path], log_rows: Callable[[Log], pd.DataFrame], notes: list[str], piece_bytes: int
) -> None:
    rows = [[f"u{number}", note, f"i{number}", number] for number, note in enumerate(notes)]
    path = fresh() / "log.csv"
    path.write_text(_written([["who", "note", "what", "when"], *rows]), newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", piece_bytes)
        found = log_rows(_open(path))
    expected = [(f"u{number}", f"i{number}", number) for number in range(len(notes))]
    assert list(found.itertuples(index=False, name=None)) == expected


def test_an_unclosed_quote_does_not_swallow_rows(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    lines = ["who,what,when,note", "a,x,1,fine", 'b,y,2,"open', "c,x,3,fine", "d,y,4,fine"]
    assert log_rows(_open(write_lines("log.csv", lines)))["when"].tolist() == [1, 2, 3, 4]  # every line is whole
    path = write_lines("log.csv", [*lines, 'e,x,5,"a, b"'])
    with pytest.raises(UserError, match=r"log\.csv, line 3: a quoted field .*--quoting none"):
        _open(path)


def test_inch_marks_within_text_are_read_literally(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", 'ann,5" pipe,1', 'bob,7" pipe,2', 'cid,9",3'])))
    assert found["what"].tolist() == ['5" pipe', '7" pipe', '9"']
    assert found["who"].tolist() == ["ann", "bob", "cid"]


@pytest.mark.parametrize("spelling", ["", '""', "NULL", "null", "NaN", "nan", "\\N"])
@pytest.mark.parametrize("values", [("1", "2", "3"), ("ann", "tea", "2020-01-02"), ("ann", "tea", "1.5")])
def test_missing_values_are_null_for_every_type(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], spelling: str, values: tuple[str, ...]
) -> None:
    lines = ["who,what,when"]
    for missing in range(3):
        lines += [",".join(spelling if place == missing else value for place, value in enumerate(values))]
    lines += [",".join(values)] * 2
    found = log_rows(_open(write_lines("log.csv", lines)))
    diagonal = [[place == missing for place in range(3)] for missing in range(3)]
    assert found.isna().to_numpy().tolist() == [*diagonal, [False] * 3, [False] * 3]


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        (["1500000000", "-3"], [1_500_000_000, -3]),
        (["1.5", "2", "3e2"], [1.5, 2.0, 300.0]),
        (["2020-01-02", "1969-12-31"], [dt.datetime(2020, 1, 2), dt.datetime(1969, 12, 31)]),
        (
            ["2020-01-02 03:04:05", "2020-01-02T03:04:05.250", "2020-01-02 03:04"],
            [
                dt.datetime(2020, 1, 2, 3, 4, 5),
                dt.datetime(2020, 1, 2, 3, 4, 5, 250_000),
                dt.datetime(2020, 1, 2, 3, 4),
            ],
        ),
        (
            ["2020-01-02T03:04:05Z", "2020-01-02T05:04:06+02:00"],
            [dt.datetime(2020, 1, 2, 3, 4, second, tzinfo=dt.UTC) for second in (5, 6)],
        ),
        (["9999-12-31", "0001-01-01"], [dt.datetime(9999, 12, 31), dt.datetime(1, 1, 1)]),
        (
            ["2020-01-02T03:04:05.1234567", "2020-01-02"],
            [pd.Timestamp(2020, 1, 2, 3, 4, 5, 123_456, nanosecond=700), dt.datetime(2020, 1, 2)],
        ),
    ],
)
def test_times_may_be_integers_floats_or_dates(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], spelled: list[str], expected: list[Any]
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", *(f"1,2,{time}" for time in spelled)])))
    assert found["when"].tolist() == expected


def test_ids_with_leading_zeros_are_text(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", "007,01,1", "010,02,2", "7,1,3"])))
    assert found["who"].tolist() == ["007", "010", "7"]
    assert found["what"].tolist() == ["01", "02", "1"]


def test_one_leading_zero_in_the_first_rows_makes_a_column_text(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", "7,1,1", "007,0,2", "8,1,3", "9,1,4"])))
    assert found["who"].tolist() == ["7", "007", "8", "9"]
    assert found["what"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("spelling", ["NA", "N/A", "None"])
def test_words_that_could_be_ids_are_not_null(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], spelling: str
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", f"{spelling},tea,1", f"ann,{spelling},2"])))
    assert found["who"].tolist() == [spelling, "ann"]
    assert found["what"].tolist() == ["tea", spelling]


@pytest.mark.parametrize("padded", ["007", "-07", '"007"', " 007", "00"])
@pytest.mark.parametrize("column", ["who", "what"])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 10, 1 << 20])
def test_a_leading_zero_beyond_the_first_rows_is_refused(
    write_lines: Callable[..., Path],
    log_rows: Callable[[Log], pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    padded: str,
    column: str,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(sniff, "_SNIFF_BYTES", 60)  # the types are inferred long before
    monkeypatch.setattr(sniff, "_SNIFF_ROWS", 2)
    monkeypatch.setattr(text, "PIECE_BYTES", piece_bytes)
    bad = f"{padded},5,6" if column == "who" else f"5,{padded},6"
    path = write_lines("log.csv", ["who,what,when", *["10,200,03"] * 40, bad, *["4,0,6"] * 10])
    with pytest.raises(UserError, match=rf"log\.csv, line 42: column '{column}' holds '.*' among integers"):
        log_rows(_open(path))


def test_other_zeros_are_not_refused(write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]) -> None:
    # 0 itself, zeros inside numbers, and leading zeros in times and unread columns.
    path = write_lines("log.csv", ["who,what,when,note", "0,100,007,007", "-10,0,0010,00", "105,1001,05,x"])
    assert log_rows(_open(path)).to_numpy().tolist() == [[0, 100, 7], [-10, 0, 10], [105, 1001, 5]]


@pytest.mark.parametrize("time", ["yesterday", "31/12/2020", "12:30", "2020-01-01T25:00", "Jan 3 2020", "0x10"])
def test_times_that_are_neither_numbers_nor_dates_are_refused_on_opening(
    write_lines: Callable[..., Path], time: str
) -> None:
    path = write_lines("log.csv", ["who,what,when", *[f"1,2,{time}"] * 3])
    with pytest.raises(UserError, match=rf"log\.csv: column 'when' holds '{time}'; expected times as .*ISO 8601"):
        _open(path)  # before any piece is read


def test_non_ascii_digits_are_text(write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", "١,1,1", "٢,1,2"])))
    assert found["who"].tolist() == ["١", "٢"]


def test_blanks_around_integer_ids_do_not_make_them_text(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who, what, when", "1, 2, 3", "4, 5, 6"])))
    assert found.to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("bad", "column", "expected"),
    [
        ("ann,2,3", "who", "an integer"),
        ("1,tea,3", "what", "an integer"),
        ("1,2,yesterday", "when", "an integer"),
        ("1,2.5,3", "what", "an integer"),
        ("1,+2,3", "what", "an integer"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [10, 1 << 20])
def test_a_value_of_the_wrong_type_is_reported_with_file_line_and_column(
    write_lines: Callable[..., Path],
    log_rows: Callable[[Log], pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
    column: str,
    expected: str,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(text, "PIECE_BYTES", piece_bytes)
    path = write_lines("log.csv", ["who,what,when", *["1,2,3"] * 20, bad, *["4,5,6"] * 20])
    with pytest.raises(UserError, match=rf"log\.csv, line 22: column '{column}' should hold {expected}"):
        log_rows(_open(path))


@pytest.mark.parametrize("bad", ["2020-13-45", "2020-02-01Z", "2020-02-01 03:04.5", "1.2.2020"])
def test_an_impossible_date_is_reported_with_its_line(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], bad: str
) -> None:
    path = write_lines("log.csv", ["who,what,when", "1,2,2020-01-01", "1,3,2020-01-02 03:04", f"1,4,{bad}"])
    with pytest.raises(UserError, match="line 4: column 'when' should hold a date and time"):
        log_rows(_open(path))


@pytest.mark.parametrize("rating", ["2020-01-01", "2020-01-01T02:03:04Z", "good"])
def test_a_non_numeric_rating_is_reported_with_its_line(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], rating: str
) -> None:
    path = write_lines("log.csv", ["who,what,when,stars", f"1,2,3,{rating}", f"1,3,4,{rating}"])
    with pytest.raises(UserError, match=rf"log\.csv, line 2: column 'stars' should hold a number.*'{rating}'"):
        log_rows(_open(path, replace(_COLUMNS, rating="stars")))


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (['1,"two\nlines",2,3'], 4),  # a row that spans two lines
        ([f"1,{'long' * 50_000},2,3"], 3),  # beyond the csv module's default field limit
        (["1,x,2,3\r4,y,5,6"], 4),
    ],
)
def test_an_error_is_located_after_rows_of_any_kind(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], before: list[str], line: int
) -> None:
    path = write_lines("log.csv", ["who,note,what,when", *before, "7,z,eight,9", *["1,x,2,3"] * 9])
    with pytest.raises(UserError, match=rf"log\.csv, line {line}: column 'what'.*'eight'"):
        log_rows(_open(path))


@pytest.mark.parametrize(("bad", "got"), [("1,2", 2), ("1,2,3,4", 4), ("1", 1)])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_line_with_the_wrong_number_of_columns_is_reported(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], bad: str, got: int, newline: str
) -> None:
    path = write_lines("log.csv", ["who,what,when", "1,2,3", "1,3,3", bad, "1,4,4"], newline)
    with pytest.raises(UserError, match=rf"log\.csv, line 4: expected 3 columns \(who, what, when\), got {got}"):
        log_rows(_open(path))


def test_unread_columns_may_hold_anything(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    path = write_lines("log.csv", ["a,who,b,what,when", "1,1,x,2,3", "x,4,,5,6"])
    assert log_rows(_open(path)).to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]


def test_text_in_another_encoding_is_refused(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("who,what,when\n1,thé,1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"log\.csv.*encoding"):
        log_rows(_open(path))


def test_bare_carriage_returns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("who,what,when\r1,2,3\r4,5,6\r", newline="")
    with pytest.raises(UserError, match=r"log\.csv ends its lines with a carriage return alone"):
        _open(path)


def test_a_carriage_return_among_line_feeds_ends_a_row(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    path = tmp_path / "log.csv"
    path.write_text("who,what,when\n1,2,3\r4,5,6\n7,8,9\n", newline="")
    assert log_rows(_open(path)).to_numpy().tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize("ending", ["", "\n", "\n\n\n\n\n\n\n\n", "\r\n\r\n"])
def test_trailing_blank_lines_are_not_rows(
    tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(text, "PIECE_BYTES", 6)
    path = tmp_path / "log.csv"
    path.write_text("who,what,when\n1,2,3\n4,5,6" + ending, newline="")
    assert log_rows(_open(path)).to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), ("\n \n", "is empty"), ("\0\1", "not a UTF-8 text file")]
)
def test_empty_and_binary_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(UserError, match=rf"log\.csv.*{message}"):
        _open(tmp_path / "log.csv")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_header_without_rows_is_refused(tmp_path: Path, ending: str) -> None:
    (tmp_path / "log.csv").write_text("who,what,when" + ending, newline="")
    with pytest.raises(UserError, match=r"log\.csv has no rows"):
        _open(tmp_path / "log.csv")


def test_missing_columns_are_listed_with_the_existing_ones(write_lines: Callable[..., Path]) -> None:
    path = write_lines("log.csv", ["who,b,c", "1,2,3"])
    with pytest.raises(UserError, match=r"log\.csv has no column 'what', 'when'; its columns are 'who', 'b', 'c'"):
        _open(path)


@pytest.mark.parametrize("header", ["who,what,when,what", "who,what, when,when"])
def test_a_repeated_column_is_refused(write_lines: Callable[..., Path], header: str) -> None:
    path = write_lines("log.csv", [header, ",".join("12345"[: header.count(",") + 1])])
    with pytest.raises(UserError, match=r"log\.csv: column '\w+' appears more than once; rename one"):
        _open(path)


def test_a_repeated_unread_column_is_harmless(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    path = write_lines("log.csv", ["note,who,what,note,when", "x,1,2,y,3"])
    assert log_rows(_open(path)).to_numpy().tolist() == [[1, 2, 3]]


def test_a_column_name_may_contain_the_delimiter(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    path = write_lines("log.csv", ['who,"a, b",what,when', "1,x,2,3"])
    assert log_rows(_open(path)).to_numpy().tolist() == [[1, 2, 3]]


def test_a_two_character_delimiter_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(b"\xef\xbb\xbf1::2\n3::4\n")
    form = TextFormat(Dialect("::"), ("a", "b"), types=(("b", pa.int64()),))
    start = first_row(path, header=False)
    assert [piece.read().to_pydict() for piece in text_pieces(path, form, "a.dat", start)] == [{"b": [2, 4]}]


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.one_of(st.just(""), st.text(st.sampled_from('a",\n'), max_size=6).map(lambda note: note + "x")), min_size=1
    ),
    newline=st.sampled_from(["\n", "\r\n"]),
    header=st.booleans(),
    piece_bytes=st.integers(1, 60),
)
def test_a_rows_location_is_its_first_line(
    fresh: Callable[[], Path], rows: list[str], newline: str, header: bool, piece_bytes: int
) -> None:
    # Blank lines ("") are not rows; notes hold newlines and quotes; each row stores its line number.
    content = "who,note,what,when" + newline if header else ""
    for note in rows:
        line = content.count("\n") + 1
        content += _written([[f"u{line}", note, "tea", line]], newline=newline) if note else newline
    if not any(rows):
        return
    path = fresh() / "log.csv"
    path.write_text(content, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", piece_bytes)
        patch.setattr(quoting, "_BLOCK_BYTES", piece_bytes)
        options = ReadOptions(names=None if header else ("who", "note", "what", "when"), quoting="minimal")
        pieces = csv_log([SourceFile(path, "log.csv", path)], _COLUMNS, False, options).pieces
    for piece in pieces:
        for row, line in enumerate(piece.read().column("when").to_pylist()):
            assert piece.place(row) == f"log.csv, line {line}"


@pytest.mark.parametrize("blank", [" ", "\t ", "\u3000"])
def test_blank_text_is_null(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], blank: str
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", f"{blank},tea,1", f"{blank}ann{blank},x,2"])))
    assert found["who"].tolist() == [None, "ann"]


def test_blanks_alone_are_missing_among_numbers(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    found = log_rows(_open(write_lines("log.csv", ["who,what,when", "1,2,3", " ,2,\t", "NULL ,  7\u3000,8"])))
    assert found.to_numpy().tolist() == [[1, 2, 3], [None, 2, None], [None, 7, 8]]
