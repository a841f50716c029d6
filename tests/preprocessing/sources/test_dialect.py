"""Delimiters, comments and quotes as one-byte text that Arrow reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.sources.dialect import BLANKS, Dialect, delimiter_named
from workflows.common.errors import UserError


@pytest.mark.parametrize(
    ("spelled", "delimiter"),
    [
        (",", ","),
        (r"\t", "\t"),
        ("\t", "\t"),
        (" ", BLANKS),
        ("   ", BLANKS),
        (r"\s+", BLANKS),
        (" | ", " | "),
        ("→", "→"),
    ],
)
def test_delimiters_as_the_flag_names_them(spelled: str, delimiter: str) -> None:
    assert delimiter_named(spelled) == delimiter


@pytest.mark.parametrize("spelled", ["", '"', "\n", '";"', "a\r"])
def test_text_that_cannot_be_a_delimiter(spelled: str) -> None:
    with pytest.raises(UserError, match="--delimiter should be the text between two fields"):
        delimiter_named(spelled)


@pytest.mark.parametrize(
    ("dialect", "text", "plain"),
    [
        (Dialect("::"), b'a::"b::c"::d\n', b'a\x1f"b::c"\x1fd\n'),
        (Dialect("::", quoted=False), b'a::"b::c"', b'a\x1f"b\x1fc"'),
        (Dialect(BLANKS), b'  a \t b\n\t"c  d"\te  \r\n', b'a\x1fb\n"c  d"\x1fe\r\n'),
        (Dialect(BLANKS), b" a  b \n \nc\td", b"a\x1fb\n\nc\x1fd"),
        (Dialect(",", comment="//"), b'// "x\na,//b\n"c\n//d",e\n//', b'\na,//b\n"c\n//d",e\n'),
        (Dialect(",", comment="#"), b"#a\r\nb,c#\n", b"\r\nb,c#\n"),
        (Dialect("#", comment="#"), b'a#"b"\n#c\n', b'a#"b"\n\n'),
    ],
)
def test_plain_text_has_one_byte_between_fields(dialect: Dialect, text: bytes, plain: bytes) -> None:
    assert dialect.plain(text) == plain


def test_the_replacement_of_a_delimiter_may_not_occur_in_the_text() -> None:
    with pytest.raises(UserError, match=r"control character '\\x1f'.*delimiter '::'"):
        Dialect("::").plain(b"a\x1f::b")
    assert Dialect("\x1f").plain(b"a\x1fb") == b"a\x1fb"


_FIELDS = st.lists(st.text(st.sampled_from('ab",\n'), max_size=4), min_size=1, max_size=4)


@given(st.lists(_FIELDS, min_size=1, max_size=5))
def test_rows_and_their_fields(rows: list[list[str]]) -> None:
    spelled = [",".join('"' + field.replace('"', '""') + '"' for field in row) for row in rows]
    data = "\n\n".join(spelled).encode()
    dialect, line = Dialect(","), 1
    for row, text, (found, begin, end) in zip(rows, spelled, dialect.rows(data), strict=True):
        assert (found, data[begin:end].decode(), dialect.fields(data[begin:end])) == (line, text, row)
        line += text.count("\n") + 2
    assert not dialect.is_open(data)
    assert dialect.is_open(data + b',"open')
