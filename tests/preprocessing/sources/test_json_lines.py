"""JSON lines, against Python's parser and the same rows in CSV and Parquet."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources import json_lines, json_records
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import DETECT, Log, LogColumns, ReadOptions
from workflows.common.errors import UserError

COLUMNS = LogColumns(user="user", item="item", time="time")
Rows = Callable[[Log], pd.DataFrame]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Log]:
    def run(*paths: Path, columns: LogColumns | None = COLUMNS, options: ReadOptions = DETECT) -> Log:
        with_rating = columns is not None and columns.rating is not None
        return open_log(paths, columns, with_rating, tmp_path_factory.mktemp("scratch"), options)

    return run


def _lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


def _row(user: Any, item: Any = 1, time: Any = 1) -> dict[str, Any]:
    return {"user": user, "item": item, "time": time}


_TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=3).map(lambda t: f" a{t}")
_MISSING = st.sampled_from([None, "", " ", "NULL"])


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([None, "", "NULL"])),
            st.one_of(_TEXTS, _MISSING),
            st.one_of(st.datetimes().map(lambda date: f" {date.isoformat()}"), _MISSING),
        ),
        min_size=1,
    ),
    piece_bytes=st.integers(1, 300),
    blank=st.sampled_from(["", "\n", " \r\n"]),
)
def test_the_same_rows_as_json_csv_and_parquet_are_the_same_log(
    fresh: Callable[[], Path],
    opened: Callable[..., Log],
    log_rows: Rows,
    rows: list[tuple[Any, ...]],
    piece_bytes: int,
    blank: str,
) -> None:
    rows = [(0, "a", "2020-01-02"), *rows]  # types are decided on values
    folder = fresh()
    records = [{"note": {"user": [user]}, "user": user, "item": item, "time": time} for user, item, time in rows]
    text = blank.join(json.dumps(record, ensure_ascii=len(blank) > 1) + "\n" for record in records)
    (folder / "json").write_text(text, encoding="utf-8")
    with (folder / "csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS.names, *rows])
    users = pa.array([user if isinstance(user, int) else None for user, _, _ in rows])
    texts = {name: pa.array([row[n] for row in rows], pa.string()) for n, name in ((1, "item"), (2, "time"))}
    pq.write_table(pa.table({"user": users, **texts}), folder / "parquet", row_group_size=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "PIECE_BYTES", piece_bytes)
        log = opened(folder / "json")
    found = log_rows(log)
    assert sum(piece.size_bytes for piece in log.pieces) == (folder / "json").stat().st_size
    assert len(found) == len(rows)
    pd.testing.assert_frame_equal(found, log_rows(opened(folder / "parquet")))
    pd.testing.assert_frame_equal(found, log_rows(opened(folder / "csv")))


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ([1, 2**63 - 1, None], [1, 2**63 - 1, None]),
        ([1, 2**63, 2**64 - 1], ["1", str(2**63), str(2**64 - 1)]),
        ([-1, 2**63], ["-1", str(2**63)]),
        ([17850.0, 1.0], [17850, 1]),
        ([17850.0, 1], [17850, 1]),
        ([1, "A2", 3.0], ["1", "A2", "3"]),
        (["1", "02"], ["1", "02"]),  # text stays text
        ([1, "NA", 2, "None"], [1, None, 2, None]),
        (["Anna", "NA", "None"], ["Anna", "NA", "None"]),
        ([float("nan"), 2, " "], [None, 2, None]),
    ],
)
def test_ids_are_integers_if_all_are_and_text_otherwise(
    tmp_path: Path, opened: Callable[..., Log], log_rows: Rows, users: list[Any], expected: list[Any]
) -> None:
    log = opened(_lines(tmp_path / "log", *map(_row, users)))
    assert log_rows(log)["user"].tolist() == expected


def test_options_and_other_files_decide_the_type_of_ids(
    tmp_path: Path, opened: Callable[..., Log], log_rows: Rows
) -> None:
    a, b = _lines(tmp_path / "a", _row(1, "2")), _lines(tmp_path / "b", _row("x", "3"))
    options = ReadOptions(whole_ids=frozenset({"item"}))
    assert log_rows(opened(a, b, options=options)).to_numpy().tolist() == [["1", 2, 1], ["x", 3, 1]]
    options = ReadOptions(text_ids=frozenset({"user"}))
    assert log_rows(opened(a, options=options)).to_numpy().tolist() == [["1", "2", 1]]


@pytest.mark.parametrize(
    ("times", "options", "expected"),
    [
        ([5, 7, "9"], DETECT, [5, 7, 9]),
        ([5, 7.5, None], DETECT, [5.0, 7.5, None]),
        (["5", " 7"], DETECT, [5, 7]),
        (["2020-01-02T03:04Z", " 2020/01/02"], DETECT, ["2020-01-02T03:04:00", "2020-01-02T00:00:00"]),
        (["01.02.2020", None], ReadOptions(time_format="%d.%m.%Y"), ["2020-02-01T00:00:00", None]),
        ([20200201, 20200202.0], ReadOptions(time_format="%Y%m%d"), ["2020-02-01T00:00:00", "2020-02-02T00:00:00"]),
    ],
)
def test_times_are_numbers_or_text(
    tmp_path: Path,
    opened: Callable[..., Log],
    log_rows: Rows,
    times: list[Any],
    options: ReadOptions,
    expected: list[Any],
) -> None:
    log = opened(_lines(tmp_path / "log", *(_row(1, 2, time) for time in times)), options=options)
    found = [time.isoformat()[:19] if hasattr(time, "isoformat") else time for time in log_rows(log)["time"]]
    assert found == expected


def test_columns_and_ratings(tmp_path: Path, opened: Callable[..., Log], log_rows: Rows) -> None:
    path = _lines(
        tmp_path / "log",
        "\ufeff",
        {"user_id": "u", "item_id": 2, "stars": 1, "timestamp": 3, "rating": "4.5"},
        {"item_id": 2, "timestamp": 3, "user_id": "v", "rating": None, "user_id2": {"rating": 1}},
    )
    assert log_rows(opened(path, columns=None)).to_numpy().tolist() == [["u", 2, 3], ["v", 2, 3]]
    rated = LogColumns(user="user_id", item="item_id", time="timestamp", rating="rating")
    assert log_rows(opened(path, columns=rated))["rating"].tolist() == [4.5, None]
    with pytest.raises(UserError, match=r"log has no column 'who'; its columns are 'user_id', 'item_id', 'stars'"):
        opened(path, columns=LogColumns(user="who", item="item_id", time="timestamp"))
    with pytest.raises(UserError, match=r"log is JSON, and --columns is for delimited text; leave it out"):
        opened(path, columns=rated, options=ReadOptions(names=("a", "b")))
    other = tmp_path / "other.csv"
    other.write_text("user_id,item_id,timestamp\n1,2,3\n")
    with pytest.raises(UserError, match=r"log is JSON, .*other\.csv is not"):
        opened(other, path, columns=rated)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user": 1, "item": 2', r"not JSON \(.*\): '\{\"user\": 1, \"item\": 2'; .*complete"),
        ('{"user":1}{"user":2}', "not JSON"),
        ("[1]", "expected a JSON object, got '\\[1\\]'"),
        ({"user": "A7"}, "column 'user' holds 'A7', expected an integer .*--text-ids"),
        ({"user": "007"}, "column 'user' holds '007', expected an integer .*leading zero"),
        ({"user": 2**63}, f"column 'user' holds '{2**63}', expected an integer"),
        ({"user": 1.5}, "column 'user' holds '1.5', expected an integer"),
        ({"user": True}, "column 'user' holds True, expected a number or UTF-8 text"),
        ({"item": {"id": 1}}, "column 'item' holds {'id': 1}, expected a number or"),
        ('{"user": 1, "item": "\\ud800"}', "column 'item' holds '.ud800', expected a number or UTF-8 text"),
        ({"time": "soon"}, "column 'time' should hold a date and time, as the first rows do, got 'soon'"),
        ({"rating": "good"}, "column 'rating' should hold a number"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [40, 1 << 20])
def test_what_does_not_fit_is_named_with_its_line(
    tmp_path: Path,
    opened: Callable[..., Log],
    log_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    line: Any,
    message: str,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(json_lines, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(json_records, "_SAMPLE_BYTES", 1)
    good = {"user": 1, "item": "a", "time": "2020-01-02", "rating": 5}
    path = _lines(tmp_path / "log", good, good, "", line, good)
    log = opened(path, columns=LogColumns(user="user", item="item", time="time", rating="rating"))
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}, line 4: {message}"):
        log_rows(log)


def test_ids_that_are_not_utf_8_are_refused(tmp_path: Path, opened: Callable[..., Log], log_rows: Rows) -> None:
    good = b'{"user": "u", "item": 1, "time": 2, "note": "\xff"}\n'  # a note may be anything
    (tmp_path / "log").write_bytes(good)
    assert len(log_rows(opened(tmp_path / "log"))) == 1
    (tmp_path / "log").write_bytes(good * 3 + good.replace(b'"u"', b'"\xff"'))
    with pytest.raises(UserError, match=r"line 4: column 'user' holds .*UTF-8 text"):
        log_rows(opened(tmp_path / "log"))


_OBJECT = '{"user": 1, "item": 2, "time": 3}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[{_OBJECT},\n{_OBJECT}]", "holds a JSON array, .*jq -c '.\\[\\]'"),
        (f"[\n {_OBJECT}\n]", "holds a JSON array"),
        ('["u1", "i1", 5]\n', "holds a JSON array"),
        (json.dumps(json.loads(_OBJECT), indent=1), "holds JSON, but its first line is not an object .*jq -c"),
        ('{"user": 1,\n"item": 2}', ".*first line is not an object"),
        ('{"data": [\n', ".*first line is not an object .*jq -c '.KEY"),
        ("{'user': 'A1'}\n", "holds Python literals .*single quotes.*ast"),
        ("{u'user': u'A1'}\n", "holds Python literals"),
    ],
)
def test_other_layouts_of_json_come_with_a_remedy(
    tmp_path: Path, opened: Callable[..., Log], text: str, message: str
) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(UserError, match=f"log {message}"):
        opened(tmp_path / "log")


def test_the_remedy_for_python_literals_works(tmp_path: Path, opened: Callable[..., Log], log_rows: Rows) -> None:
    (tmp_path / "FILE").write_text("{'user': 'A1', 'item': u'O\\'s', 'time': 5, 'ok': None}\n")
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "FILE")
    command = str(caught.value).split("convert them with ")[1].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert log_rows(opened(tmp_path / "NEW")).to_numpy().tolist() == [["A1", "O's", 5]]


@pytest.mark.parametrize("header", ["[user],[item],[time]", "{user},{item},{time}"])
def test_a_header_in_brackets_is_not_json(tmp_path: Path, opened: Callable[..., Log], header: str) -> None:
    (tmp_path / "log").write_text(f"{header}\n1,2,3\n")
    user, item, time = header.split(",")
    assert opened(tmp_path / "log", columns=LogColumns(user=user, item=item, time=time)).name == "CSV log"
