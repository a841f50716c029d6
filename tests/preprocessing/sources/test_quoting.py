"""Which quotes count, and where text may be split, checked against a character-by-character reader of RFC 4180."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources import quoting
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.quoting import Quoting, quoting_of
from workflows.common.errors import UserError


@dataclass
class _Read:
    """Rows by RFC 4180: where their lines are, and the line of the first field that breaks the rules (0: none does)."""

    rows: list[tuple[int, int, str]]  # line, end offset, text
    broken: int


def _by_the_rules(content: str, delimiter: str = ",") -> _Read:
    rows: list[tuple[int, int, str]] = []
    state, begin, line, first, opened = "begin", 0, 1, 1, 0
    for place, character in enumerate(content):
        line += character == "\n"
        if state == "quoted":
            state = "closed" if character == '"' else "quoted"
        elif character == '"' and state in ("begin", "closed"):
            opened = line if state == "begin" else opened
            state = "quoted"
        elif character in ("\n", "\r"):
            rows.append((first, place + 1, content[begin:place]))
            state, begin, first = "begin", place + 1, line
        elif character == delimiter:
            state = "begin"
        elif state in ("closed", "blanks"):
            if character != " ":
                return _Read(rows, opened)
            state = "blanks"
        else:
            state = "plain"
    rows.append((first, len(content), content[begin:]))
    return _Read([row for row in rows if row[2]], opened if state == "quoted" else 0)


def _lines(text: str) -> list[str]:
    return [line for line in re.split("[\r\n]", text) if line]


def _is_suspicious(lines: list[str], n_fields: int) -> bool:
    whole = [line.count(",") == n_fields - 1 for line in lines]
    return len(whole) > 1 and all(whole[:-1] if len(whole) > 2 else whole)


def _decide(path: Path, n_fields: int, block: int = 1 << 17, every: int = 1, **given: str) -> Quoting:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quoting, "_BLOCK_BYTES", block)
        return quoting_of(path, "log.csv", Dialect(","), n_fields, every=every, **given)  # type: ignore[arg-type]


_FIELDS = st.one_of(
    st.text(st.sampled_from('ab",\n'), max_size=5).map(lambda text: '"' + text.replace('"', '""') + '"'),
    st.sampled_from(["", "a", "bc", '5" pipe', 'x"', '"a" ']),
)
_ROWS = st.lists(st.lists(_FIELDS, min_size=1, max_size=4).map(",".join), min_size=1, max_size=12)
_ANY = st.text(st.sampled_from('ab",\n '), max_size=40)


@settings(max_examples=150)
@given(
    content=st.one_of(_ROWS.map("\n".join), _ANY),
    newline=st.sampled_from(["\n", "\r\n"]),
    block=st.integers(1, 30),
    every=st.integers(1, 40),
)
def test_cuts_fall_on_lines_that_begin_outside_quotes(
    fresh: Callable[[], Path], content: str, newline: str, block: int, every: int
) -> None:
    content = content.replace("\n", newline)
    path = fresh() / "log.csv"
    path.write_text(content, newline="")
    read = _by_the_rules(content)
    if read.broken:
        with pytest.raises(UserError, match=rf"^log\.csv, line {read.broken}: a quoted field"):
            _decide(path, 3, 1, given="minimal")
        with pytest.raises(UserError, match="a quoted field"):
            _decide(path, 3, block, given="minimal")
        return
    found = _decide(path, 3, block, every, given="minimal")
    assert found.in_use
    if not any(len(_lines(text)) > 1 for _, _, text in read.rows):
        assert found.cuts is None
        return
    assert found.cuts is not None
    rows_before = {end: number + 1 for number, (_, end, _) in enumerate(read.rows)}
    for cut, rows in found.cuts:
        assert rows == sum(end <= cut for end in rows_before)
        assert not content[:cut] or content[:cut].endswith("\n") or cut == len(content)
    offsets = [cut for cut, _ in found.cuts]
    assert all(later - earlier >= every for earlier, later in zip([0, *offsets], offsets[:-1], strict=False))
    assert offsets[-1] == len(content)


@settings(max_examples=150)
@given(content=st.one_of(_ROWS.map("\n".join), _ANY), n_fields=st.integers(1, 3), block=st.integers(1, 30))
def test_quotes_count_if_every_quoted_field_ends_as_it_should(
    fresh: Callable[[], Path], content: str, n_fields: int, block: int
) -> None:
    path = fresh() / "log.csv"
    path.write_text(content, newline="")
    read = _by_the_rules(content)
    whole = [line.count(",") == n_fields - 1 for line in _lines(content)]
    suspects = [line for line, _, text in read.rows if _is_suspicious(_lines(text), n_fields)]
    if read.broken:
        enclosed = len(re.findall(r'(?m)(?:^|(?<=,))"[^"\n]*"(?=,|$)', content))
        if all(whole) and 2 * enclosed < len(whole):
            assert _decide(path, n_fields, block) == Quoting(in_use=False)
            return
        with pytest.raises(UserError, match=r"line \d+: a quoted field .*--quoting none"):
            _decide(path, n_fields, block)
    elif suspects:
        with pytest.raises(UserError, match=rf"^log\.csv, line {suspects[0]}: .*--quoting none .*--quoting minimal"):
            _decide(path, n_fields, block)
    else:
        assert _decide(path, n_fields, block).in_use
    assert _decide(path, n_fields, block, given="none") == Quoting(in_use=False)


def test_only_lines_that_could_be_rows_of_the_log_are_suspicious(write_lines: Callable[..., Path]) -> None:
    header = 'user,text,"time"'
    review = write_lines("log.csv", [header, '1,"good, cheap', 'fast, too",5', '2,"a, b', '1 of 2, 3 of 4",6'])
    rows = write_lines("log.csv", [header, '1,"a,4', "2,b,5", ",,", '3,c",NA', "4,d,7"])
    given = {"start": len(header) + 1, "time": 2, "every": 1}
    assert quoting_of(review, "log", Dialect(","), 3, **given).cuts is not None  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^log, line 2: "):
        quoting_of(rows, "log", Dialect(","), 3, **given)  # type: ignore[arg-type]


def test_a_field_in_quotes_is_no_reason_to_expect_them_in_others(write_lines: Callable[..., Path]) -> None:
    names = ["Abba", '"Heroes"', "Can", '"Weird Al" Yankovic', "Blur"]
    path = write_lines("log.tsv", [f"{number},{name}" for number, name in enumerate(names)])
    assert not _decide(path, 2).in_use
    path = write_lines("log.csv", [f'"{number}","{name}"' for number, name in enumerate(names)])
    with pytest.raises(UserError, match="line 2: a quoted field goes on after its closing quote"):
        _decide(path, 2)


@pytest.mark.parametrize("delimiter", ["::", " ", "§"])
@pytest.mark.parametrize("block", [1, 1 << 17])
def test_long_delimiters_and_comments(
    write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, delimiter: str, block: int
) -> None:
    monkeypatch.setattr(quoting, "_BLOCK_BYTES", block)
    lines = [["1", '"a b c'], ['# c"', "5"], ["d"], ['# x"'], ["3", '"e"', '"f"']]
    path = write_lines("log", [delimiter.join(line) for line in lines])
    found = quoting_of(path, "log", Dialect(delimiter, comment="#"), 3, every=1)
    assert found.cuts is not None
    assert found.cuts[-1][1] == 3


@pytest.mark.parametrize("end", ['"', 'c"', '#\n3,c"', '#"'])
@pytest.mark.parametrize("block", [1, 1 << 17])
def test_rows_within_a_field_are_noticed_whatever_ends_it(
    write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, end: str, block: int
) -> None:
    monkeypatch.setattr(quoting, "_BLOCK_BYTES", block)
    path = write_lines("log.csv", ["1,x", '1,"a', "2,b", *end.split("\n")])
    with pytest.raises(UserError, match=r"^log\.csv, line 2: a quoted field begins here and runs over lines"):
        quoting_of(path, "log.csv", Dialect(",", comment="#"), 2, every=1)
