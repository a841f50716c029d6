from __future__ import annotations

import io

import pytest

from preprocessing.sources.encodings import check_encoding, encoding_to_convert, utf8_blocks
from preprocessing.sources.packings import Stream
from workflows.common.errors import UserError


@pytest.mark.parametrize("name", ["latin-1", "CP1252", "utf_8", "utf-8-sig", "Shift-JIS", "utf-16-le", "ascii", "big5"])
def test_every_text_encoding_of_python_is_accepted(name: str) -> None:
    check_encoding(name)


@pytest.mark.parametrize("name", ["", "foo", "rot13", "base64", "hex", "zlib", "undefined", "a\0b", "é", "../x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a text encoding that Python knows; expected a name such as utf-8"):
        check_encoding(name)


@pytest.mark.parametrize("named", [None, "latin-1", "utf-8"])
def test_a_byte_order_mark_is_certain_whatever_was_named(named: str | None) -> None:
    assert encoding_to_convert("x".encode("utf-16"), named) == "utf-16"
    assert encoding_to_convert(b"\xfe\xff\0x", named) == "utf-16"
    assert encoding_to_convert("x".encode("utf-32"), named) == "utf-32"
    assert encoding_to_convert("x".encode("utf-8-sig"), named) is None
    assert encoding_to_convert(b"x", named) == (None if named == "utf-8" else named)


@pytest.mark.parametrize(
    ("encoding", "content", "line"),
    [
        ("ascii", b"a\nb\r\nc\xe9\nd", 3),
        ("cp1252", b"a\nb\x81", 2),
        ("utf-16", "a\nb\nc".encode("utf-16") + b"\0", 3),
        ("utf-16-be", "a\nb\n".encode("utf-16-be") + b"\xdc\0" + "\n\n".encode("utf-16-be"), 3),
        ("shift_jis", "カ\n語\n".encode("shift_jis") + b"\x81\n\n", 3),
        ("iso2022_jp", "カ\n語\n".encode("iso2022_jp") + b"\xff\n\n", 3),
    ],
)
@pytest.mark.parametrize("block", [1, 3, 100])
def test_bytes_that_are_not_text_are_located(encoding: str, content: bytes, line: int, block: int) -> None:
    with pytest.raises(UserError, match=rf"^log\.csv, line {line}: not text in {encoding} \(.*name its encoding with"):
        list(utf8_blocks(Stream(io.BytesIO(content), "log.csv"), encoding, block))
