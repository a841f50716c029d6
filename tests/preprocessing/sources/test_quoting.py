"""Safe split offsets of text, checked against a character-by-character scanner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.sources import quoting
from preprocessing.sources.quoting import ends_in_quotes, quoted_cuts
from workflows.common.errors import UserError


def has_quoted_newlines(path: Path, delimiter: str, display_name: str) -> bool:
    return quoted_cuts(path, delimiter, display_name, path.stat().st_size) is not None


def _line_starts(content: str, delimiter: str) -> tuple[list[int], bool, int]:
    """(offsets of lines that begin outside quotes, whether any line does not, line of an unclosed field or 0)."""
    starts, inside, found, line, opened = [], False, False, 1, 0
    field_begins, just_closed = True, False
    for place, character in enumerate(content):
        if character == '"' and (inside or field_begins or just_closed):
            opened = line if field_begins else opened
            just_closed = inside
            inside, field_begins = not inside, False
            continue
        just_closed = False
        field_begins = not inside and character in (delimiter, "\n")
        if character == "\n":
            line += 1
            found = found or inside
            if not inside:
                starts.append(place + 1)
    return starts, found, opened if inside else 0


# Rows from a CSV writer: fields optionally quoted, inner quotes doubled; also stray inch marks in unquoted fields.
_FIELDS = st.one_of(
    st.text(st.sampled_from('ab",\n'), max_size=5).map(lambda text: '"' + text.replace('"', '""') + '"'),
    st.sampled_from(["", "a", "bc", '5" pipe', 'x"']),
)
_ROWS = st.lists(st.lists(_FIELDS, min_size=1, max_size=4).map(",".join), min_size=1, max_size=15)


@given(rows=_ROWS, last=st.sampled_from(["", "\n"]), block=st.integers(1, 30), every=st.integers(1, 40))
def test_cuts_fall_on_lines_that_begin_outside_quotes(
    fresh: Callable[[], Path], rows: list[str], last: str, block: int, every: int
) -> None:
    content = "\n".join(rows) + last
    path = fresh() / "log.csv"
    path.write_text(content, newline="")
    starts, found, opened = _line_starts(content, ",")
    assert not opened
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quoting, "_BLOCK_BYTES", block)
        cuts = quoted_cuts(path, ",", "log.csv", every)
    if not found:
        assert cuts is None
        return
    assert cuts is not None
    assert set(cuts) <= {*starts, len(content)}
    assert all(later - earlier >= every for earlier, later in zip([0, *cuts], cuts, strict=False))
    if block == every == 1:  # then the cuts include every allowed line start
        assert {*cuts, len(content)} == {*starts, len(content)}


@given(rows=_ROWS, after=_ROWS, block=st.integers(1, 30))
def test_an_unclosed_quote_is_reported_with_its_line(
    fresh: Callable[[], Path], rows: list[str], after: list[str], block: int
) -> None:
    content = "\n".join([*rows, 'a,"open', *(row.replace('"', "") for row in after)])
    path = fresh() / "log.csv"
    path.write_text(content, newline="")
    line = "\n".join(rows).count("\n") + 2
    assert _line_starts(content, ",")[2] == line
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quoting, "_BLOCK_BYTES", block)
        with pytest.raises(UserError, match=rf"^log\.csv, line {line}: a quoted field is not closed"):
            quoted_cuts(path, ",", "log.csv", 1)


@pytest.mark.parametrize("block", [1, 1 << 18])
def test_a_doubled_quote_does_not_open_a_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(quoting, "_BLOCK_BYTES", block)
    path = tmp_path / "log.csv"
    path.write_text('a,b\n1,"x\ny""z\n2,3\n')
    with pytest.raises(UserError, match="line 2: a quoted field is not closed"):
        quoted_cuts(path, ",", "log.csv", 1)


@pytest.mark.parametrize(
    ("line", "expected"), [('a,"b', True), ('a,"b"', False), ('a,5"', False), ('"a;b', True), ('a;"b', False)]
)
def test_a_line_may_end_inside_quotes(line: str, expected: bool) -> None:
    assert ends_in_quotes(line, ",") is expected


def test_quotes_without_newlines_do_not_restrict_splitting(write_lines: Callable[..., Path]) -> None:
    path = write_lines("log.csv", ["who,what,when", '"a ""b""","c, d",1', 'e"",f,2', "g,h,3"])
    assert not has_quoted_newlines(path, ",", "log.csv")


@pytest.mark.parametrize(
    ("rows", "delimiter", "expected"),
    [
        (['5" pipe,x,1', '6" pipe,y,2'], ",", False),  # inches, not an opening quote
        (['a,5",1', 'b,7",2'], ",", False),
        (['5" pipe,"two', 'lines",1'], ",", True),
        (['"a, b"\tx\t1', '"c"\ty\t2'], "\t", False),
        (['x,"y\tz', 'w",z\t1'], "\t", False),  # with this delimiter no field begins with a quote
        (['"a ""b"" c","d', 'e",1'], ",", True),
        (['"","",1', '"""",x,2'], ",", False),
    ],
)
def test_a_quote_counts_only_at_the_beginning_of_a_field(
    write_lines: Callable[..., Path], rows: list[str], delimiter: str, expected: bool
) -> None:
    path = write_lines("log.csv", [delimiter.join(["who", "what", "when"]), *rows])
    assert has_quoted_newlines(path, delimiter, "log.csv") is expected


def test_a_quoted_newline_is_found_in_any_block(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    filler = "a,b,1\n" * (1 << 18)  # longer than one scanned block
    path.write_text("who,what,when\n" + filler + '"a\nb",c,1\n' + filler)
    assert has_quoted_newlines(path, ",", "log.csv")
    path.write_text("who,what,when\n" + filler + '"a b",c,1\n' + filler)
    assert not has_quoted_newlines(path, ",", "log.csv")
