"""Several text files as one log, and text without a header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from preprocessing.sources.delimited import csv_log
from preprocessing.sources.detect import open_log
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from preprocessing.sources.text import TextFormat, text_pieces
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_COLUMNS = LogColumns(user="who", item="what", time="when")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def written(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content, newline="")
        return tmp_path / name

    return written


def _open(*paths: Path, columns: LogColumns | None = _COLUMNS, names: Sequence[str] | None = None) -> Log:
    return csv_log(
        [SourceFile(path, path.name, path) for path in paths],
        columns,
        with_rating=False,
        options=ReadOptions(names=tuple(names) if names else None),
    )


def test_columns_are_matched_by_name_in_each_file(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    a = write("a.csv", "who,what,when\n1,2,3\n")
    b = write("b.tsv", "x\twhen\twho\twhat\n0\t6\t4\t5\n")
    assert log_rows(_open(a, b)).to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]
    c = write("c.csv", "who,what\n1,2\n")
    with pytest.raises(UserError, match=r"^c\.csv has no column 'when'; its columns are 'who', 'what'"):
        _open(a, b, c)


def test_files_without_rows_are_skipped(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    empty = [write("0.csv", ""), write("1.csv", "other\n"), write("2.csv", "who,what,when\r\n\r\n")]
    full = write("3.csv", "who,what,when\n1,2,3\n")
    log = _open(*empty, full)
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 3]]
    assert len(log.pieces) == 1
    with pytest.raises(UserError, match=r"^2\.csv has no rows"):
        _open(empty[2], empty[2])


def test_text_ids_in_one_file_make_ids_text_in_all_files(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    a = write("a.csv", "who,what,when\n" + "1,2,3\n" * 100)
    b = write("b.csv", "who,what,when\nann,5,6\n")
    c = write("c.csv", "who,what,when\n7,08,6\n")
    found = log_rows(_open(a, b, c))
    assert found.iloc[[0, 100, 101]].to_numpy().tolist() == [["1", "2", 3], ["ann", "5", 6], ["7", "08", 6]]


def test_a_file_with_empty_first_rows_does_not_affect_the_types(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    a = write("a.csv", "who,what,when\n,,\nNULL,nan,\n")
    b = write("b.csv", "who,what,when\nann,5,2024-01-31\n")
    found = log_rows(_open(a, b))
    assert found.isna().all(axis=1).tolist() == [True, True, False]
    assert found.loc[2, "when"] == pd.Timestamp(2024, 1, 31)


@pytest.mark.parametrize(
    ("first", "second", "kind", "unit_per_s"),
    [
        ("2024-01-31 00:00:01", "2024-01-31T00:00:02Z", pa.timestamp("us"), 10**6),
        ("2024-01-31 00:00:01", "2024-01-31 00:00:02.0000000", pa.timestamp("ns"), 10**9),
        ("2024-01-31 02:00:01+02:00", "2024-01-31T00:00:02.0000000Z", pa.timestamp("ns", "UTC"), 10**9),
    ],
)
def test_dates_in_different_files_share_one_type(
    write: Callable[[str, str], Path], first: str, second: str, kind: pa.DataType, unit_per_s: int
) -> None:
    paths = [write(f"{n}.csv", f"who,what,when\n1,2,{time}\n") for n, time in enumerate((first, second))]
    columns = [piece.read().column("when") for piece in _open(*paths).pieces]
    assert [column.type for column in columns] == [kind, kind]
    a, b = (column.cast(pa.int64())[0].as_py() for column in columns)
    assert b - a == unit_per_s


def test_integers_and_floats_in_different_files_become_floats(write: Callable[[str, str], Path]) -> None:
    paths = [write(f"{n}.csv", f"who,what,when\n1,2,{time}\n") for n, time in enumerate(("5", "4.5"))]
    assert [piece.read().column("when").to_pylist() for piece in _open(*paths).pieces] == [[5.0], [4.5]]


def test_numbers_in_one_file_and_dates_in_another_are_refused(write: Callable[[str, str], Path]) -> None:
    a, b = (write(f"{n}.csv", f"who,what,when\n1,2,{time}\n") for n, time in enumerate(("5", "2024-01-31")))
    with pytest.raises(UserError, match=r"times are numbers in 0\.csv and dates in 1\.csv"):
        _open(a, b)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_text_without_a_header_is_read_by_the_given_names(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame], delimiter: str, bom: str
) -> None:
    rows = [["1", "tea, hot" if delimiter == "\t" else "tea", "4.5", "9"], ["2", "x", "3", "8"]]
    path = write("log", bom + "".join(delimiter.join(row) + "\n" for row in rows))
    log = _open(path, columns=None, names=["user", "item", "rating", "time"])
    assert log.columns == LogColumns(user="user", item="item", time="time")
    assert log_rows(log).to_numpy().tolist() == [[1, rows[0][1], 9], [2, "x", 8]]
    own = LogColumns(user="d", item="a", time="c")
    assert log_rows(_open(path, columns=own, names=["a", "b", "c", "d"]))["d"].tolist() == [9, 8]


def test_a_single_row_without_a_header_is_a_log(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    log = _open(write("log", "1,2,3"), names=["who", "what", "when"])
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 3]]
    assert log.pieces[0].place(0) == "log, line 1"


@pytest.mark.parametrize("names", [["user", "item", "time"], ["user", "item", "rating", "time", "more"]])
def test_the_number_of_names_must_match_the_number_of_fields(
    write: Callable[[str, str], Path], names: list[str]
) -> None:
    fits = write("fits", ",".join("1" * len(names)) + "\n")
    log = write("log", "1,2,3,4\n")
    with pytest.raises(UserError, match=rf"^log: expected {len(names)} fields per row, .*\(user, .*got 4: '1,2,3,4'"):
        _open(fits, log, columns=None, names=names)


def test_a_header_despite_given_names_is_detected(write: Callable[[str, str], Path]) -> None:
    with pytest.raises(UserError, match=r"^log names its columns in its first line; leave out --columns"):
        _open(write("log", "user, item,time\n1,2,3\n"), columns=None, names=["user", "item", "time"])


@pytest.mark.parametrize("header", ['"wh\no",what,when', 'who,"what,when'])
def test_a_column_name_with_a_newline_is_refused(write: Callable[[str, str], Path], header: str) -> None:
    with pytest.raises(UserError, match=r"^log, line 1: a column name is not closed or contains a newline"):
        _open(write("log", header + "\n1,2,3\n"), columns=None)


def test_ids_written_as_1_0_are_integers(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    (tmp_path / "whole.csv").write_text("user_id,item_id,timestamp\n1,7,1\n2,8,2\n")
    (tmp_path / "gaps.csv").write_text("user_id,item_id,timestamp\n1.0,7,3\n,8,4\n9007199254740993.00,9,5\n")
    log = open_log([tmp_path / "whole.csv", tmp_path / "gaps.csv"], None, False, tmp_path / "scratch")
    assert log_rows(log)["user_id"].tolist() == [1, 2, 1, None, 2**53 + 1]


# --- Types ------------------------------------------------------------------------------------------------------


def _log(path: Path, **options: Any) -> Log:
    return csv_log([SourceFile(path, path.name, path)], _COLUMNS, False, ReadOptions(**options))


@pytest.mark.parametrize("word", ["NA", "N/A", "n/a", "None", "none", "<NA>", "#N/A", " NA ", "nan"])
def test_words_for_missing_values_are_missing_among_numbers(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], word: str
) -> None:
    lines = ["who,what,when", f"{word},1,9", *[f"{word},tea,{word}", f"5,{word},8"] * 3, "6.0,tea,7"]
    found = log_rows(_log(write_lines("log.csv", lines)))
    assert found["who"].tolist() == [None, *[None, 5] * 3, 6]
    assert found["when"].tolist() == [9, *[None, 8] * 3, 7]
    text = None if word == "nan" else word.strip()
    assert found["what"].tolist() == ["1", *["tea", text] * 3, "tea"]


def test_a_word_for_a_missing_value_after_the_first_rows(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    lines = ["who,what,when", *["1,x,2.5"] * 12_000, "NA,NA,n/a", "2.0,y,3"]
    found = log_rows(_log(write_lines("log.csv", lines)))
    assert found.iloc[[0, 12_000, 12_001]].to_numpy().tolist() == [[1, "x", 2.5], [None, "NA", None], [2, "y", 3]]


def test_ids_beyond_64_bits_are_text(write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]) -> None:
    hashes = [2**64 - 1, 2**63, 5, 2**63 - 1]
    path = write_lines("log.csv", ["who,what,when", *(f"{one},{-one},{n}" for n, one in enumerate(hashes))])
    found = log_rows(_log(path))
    assert found["who"].tolist() == [str(one) for one in hashes]
    assert found["what"].tolist() == [str(-one) for one in hashes]
    late = write_lines("log.csv", ["who,what,when", *["1,2,3"] * 12_000, f"{2**63},2,3"])
    with pytest.raises(UserError, match=r"^log\.csv, line 12002: column 'who' .* below 2\^63, got .*--text-ids user"):
        log_rows(_log(late))


@pytest.mark.parametrize("bad", ["85123A", "007", "1.5", "+1"])
def test_ids_that_turn_out_to_be_text_can_be_read_as_text(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], bad: str
) -> None:
    path = write_lines("log.csv", ["who,what,when", *["1,2,3"] * 12_000, f"5.0,{bad},4"])
    with pytest.raises(UserError, match=r"^log\.csv, line 12002: column 'what' .*--text-ids item"):
        log_rows(_log(path))
    found = log_rows(_log(path, text_ids=frozenset(["item"])))
    assert found.iloc[[0, 12_000]].to_numpy().tolist() == [[1, "2", 3], [5, bad, 4]]
    found = log_rows(_log(path, text_ids=frozenset(["user", "item"])))
    assert found.iloc[12_000].tolist() == ["5.0", bad, 4]


def test_ids_that_have_to_be_integers(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    path = write_lines("log.csv", ["who,what,when", "NA,a,1", "None,b,2", "NA,5,3"])
    assert log_rows(_log(path))["who"].tolist() == [None] * 3
    with pytest.raises(UserError, match=r"^log\.csv, line 2: column 'what' should hold an integer .*got 'a'") as found:
        log_rows(_log(path, whole_ids=frozenset(["user", "item"])))
    assert "--text-ids" not in str(found.value)


@pytest.mark.parametrize("length", [100_000, 2_000_000])
def test_types_are_decided_on_whole_rows(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], length: int
) -> None:
    rows = [f'"{"long, " * (length // 6)}\nend",ann,tea,2024-01-31', *["ok,bob,tea,2024-02-01"] * 3]
    columns = ",".join(f"column {number}" for number in range(length // 12))
    for name, lines in (("row", ["note,who,what,when", *rows]), ("header", [f"who,what,when,{columns}"])):
        lines += [] if name == "row" else ["ann,tea,2024-01-31" + "," * columns.count(",") + ","]
        found = log_rows(_log(write_lines("log.csv", lines)))
        assert found["who"].tolist() == ["ann", "bob", "bob", "bob"][: len(found)]
        assert found.loc[0, "when"] == pd.Timestamp(2024, 1, 31)


def test_a_column_may_begin_with_many_missing_values(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    path = write_lines("log.csv", ["who,what,when", *[",1,2"] * 30_000, "ann,1,2"])
    assert log_rows(_log(path))["who"].tolist()[-2:] == [None, "ann"]


@pytest.mark.parametrize(("bad", "column"), [("1,th\xe9,1", "what"), ("\xe91,tea,1", "who"), ("1,tea,\xe9", "when")])
def test_bytes_that_are_not_utf8_are_located(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], bad: str, column: str
) -> None:
    path = write_lines("log.csv", ["who,what,when", *["1,tea,2"] * 3000, bad], encoding="latin-1")
    with pytest.raises(UserError, match=rf"^log\.csv, line 3002: column '{column}' is not UTF-8: .*--encoding latin-1"):
        log_rows(_log(path))
    path = write_lines("log.csv", ["qui,quoi,\xe9t\xe9", "1,2,3"], encoding="latin-1")
    with pytest.raises(UserError, match=r"no column 'who'.*not UTF-8; name the encoding with --encoding"):
        _log(path)


# --- Delimiters, quotes, comments -------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "::", " ", "  \t"])
def test_delimiters_are_recognised(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], delimiter: str
) -> None:
    rows = [["1", "tt1454468", "10", "1365029107"], ["2", "tt5", "7.5", "1365029108"]]
    lines = [delimiter.join(row) for row in rows]
    names = ["who", "what", "stars", "when"]
    for log in (
        _log(write_lines("log.dat", lines), names=tuple(names)),
        _log(write_lines("log.dat", [delimiter.join(names), *lines])),
    ):
        assert log_rows(log).to_numpy().tolist() == [[1, "tt1454468", 1365029107], [2, "tt5", 1365029108]]


@pytest.mark.parametrize("delimiter", ["^", " | ", "<sep>", "§", "\x01", "a"])
def test_any_delimiter_can_be_named(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], delimiter: str
) -> None:
    row = delimiter.join(["1", "x,y;z\tw", "3"])
    names = ("who", "what", "when")
    log = _log(write_lines("log", [row]), names=names, delimiter=delimiter)
    assert log_rows(log).to_numpy().tolist() == [[1, "x,y;z\tw", 3]]
    if delimiter not in "what":
        log = _log(write_lines("log", [delimiter.join(names), row]), delimiter=delimiter)
        assert log_rows(log).to_numpy().tolist() == [[1, "x,y;z\tw", 3]]


def test_other_delimiters_have_to_be_named(write_lines: Callable[..., Path]) -> None:
    advice = r"recognised delimiters are tab ; \| , :: and runs of blanks; name another one with --delimiter"
    with pytest.raises(UserError, match=rf"^log has no column .*'who\^what\^when'.*{advice}"):
        _log(write_lines("log", ["who^what^when", "1^2^3"]))
    with pytest.raises(UserError, match=rf"^log: expected 3 fields per row, .*got 1: '1\^2\^3'.*{advice}"):
        _log(write_lines("log", ["1^2^3"]), names=("who", "what", "when"))


_KONECT = ["% bip weighted posweighted", "% 3 2 2", "1 2 3 1365029107", "2\t5 1  1365029108 "]
_SNAP = ["# Directed graph: friends.txt", "# Nodes: 3 Edges: 2", "# who\twhat\twhen", "1\t2\t9", "2\t5\t8"]


@pytest.mark.parametrize(
    ("lines", "names", "expected"),
    [
        (_KONECT, ("who", "what", "weight", "when"), [[1, 2, 1365029107], [2, 5, 1365029108]]),
        (_SNAP, ("who", "what", "when"), [[1, 2, 9], [2, 5, 8]]),
        (_SNAP, None, [[1, 2, 9], [2, 5, 8]]),
        (["# exported, today", "# by me", "who,what,when", "1,2,3"], None, [[1, 2, 3]]),
        (["#who,what,when", "1,2,3"], None, [[1, 2, 3]]),
        (["#x,y,z", "", "who,what,when", "#1,2,3", "%,2,4"], None, [["#1", 2, 3], ["%", 2, 4]]),
        (["#1,2,3", "%,2,4"], ("who", "what", "when"), [["#1", 2, 3], ["%", 2, 4]]),
        (["#a,b,3", "c,d,4"], ("who", "what", "when"), [["#a", "b", 3], ["c", "d", 4]]),
        (["#", "#a,b,3", "c,d,4"], ("who", "what", "when"), [["#a", "b", 3], ["c", "d", 4]]),
    ],
)
def test_comments_before_the_rows(
    write_lines: Callable[..., Path],
    log_rows: Callable[[Log], pd.DataFrame],
    lines: list[str],
    names: tuple[str, ...] | None,
    expected: list[list[Any]],
) -> None:
    log = _log(write_lines("log", lines), names=names)
    assert log_rows(log).to_numpy().tolist() == expected
    assert log.pieces[-1].place(0) == f"log, line {len(lines) - len(expected) + 1}"


def test_comments_anywhere(write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]) -> None:
    lines = ["-- by 'me", "who,what,when", "1,b,3", '-- "x', '4,"a', '--b",5', "--"]
    found = log_rows(_log(write_lines("log.csv", lines), comment="--"))
    assert found.to_numpy().tolist() == [[1, "b", 3], [4, "a\n--b", 5]]
    with pytest.raises(UserError, match=r"^log\.csv, line 8: column 'when' .*'nine'"):
        log_rows(_log(write_lines("log.csv", [*lines, "7,8,nine"]), comment="--"))
    with pytest.raises(UserError, match=r"line 3: expected 3 columns .*, got 1: '# x'; .*--comment '#'"):
        log_rows(_log(write_lines("log.csv", ["who,what,when", "1,2,3", "# x"])))


def test_a_header_with_a_mark_is_one_only_if_its_names_are_asked_for(write_lines: Callable[..., Path]) -> None:
    columns = LogColumns(user="#who", item="what", time="when")
    path = write_lines("log", ["#who,what,when", "1,2,3"])
    assert csv_log([SourceFile(path, "log", path)], columns, False).columns == columns


def test_lone_quotes_swallow_no_rows(write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame]) -> None:
    lines = [
        "who\twhen\twhat",
        'u1\t1\t"Heroes',
        "u1\t2\tDeep Dish",
        'u2\t3\t"Heroes',
        'u3\t4\t"Weird Al" Y',
        "u3\t5\tB",
    ]
    found = log_rows(_log(write_lines("plays.tsv", lines)))
    assert found["what"].tolist() == ['"Heroes', "Deep Dish", '"Heroes', '"Weird Al" Y', "B"]
    closed = [*lines[:3], 'u2\t3\tHeroes"', "u3\t4\tX"]
    with pytest.raises(UserError, match=r"^plays\.tsv, line 2: a quoted field begins here and runs over lines"):
        _log(write_lines("plays.tsv", closed))
    assert log_rows(_log(write_lines("plays.tsv", closed), quoting="none"))["when"].tolist() == [1, 2, 3, 4]
    assert log_rows(_log(write_lines("plays.tsv", closed), quoting="minimal"))["when"].tolist() == [1, 4]


def test_rows_that_vanish_in_others_are_noticed(write_lines: Callable[..., Path]) -> None:
    path = write_lines("log.csv", ['1,"2', '3,4"'])
    form = TextFormat(Dialect(","), ("a", "b"), types=(("a", pa.int64()),))
    (piece,) = text_pieces(path, form, "log.csv")  # without the scan that would find the quotes
    with pytest.raises(UserError, match=r"^log\.csv, line 1 ff\.: read 1 rows from 2 lines"):
        piece.read()
