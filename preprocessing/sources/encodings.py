"""Text in other encodings than UTF-8, converted to it in bounded memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from preprocessing.sources.packings import Stream
from workflows.common.errors import UserError

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8"),
)
_UTF8 = ("utf-8", "utf-8-sig")


def check_encoding(name: str | None) -> None:
    """Raises UserError if Python knows no text encoding of this name."""
    if name is None:
        return
    try:
        b"a".decode(name, "ignore")  # refuses codecs of other things than text, such as base64
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        raise UserError(
            f"--encoding {name!r} is not a text encoding that Python knows; expected a name such as utf-8, latin-1, "
            "cp1252, utf-16 or shift_jis"
        ) from None


def encoding_to_convert(head: bytes, named: str | None) -> str | None:
    """The encoding of a text to convert; None if it is read as UTF-8.

    Args:
        head: first bytes of the text. A byte order mark is certain, whatever was named.
        named: a valid encoding.
    """
    marked = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
    encoding = marked or named
    return None if encoding is None or codecs.lookup(encoding).name in _UTF8 else encoding


def utf8_blocks(stream: Stream, encoding: str, block_bytes: int) -> Iterator[bytes]:
    """The text as UTF-8.

    Raises:
        UserError: bytes are not text in this encoding; names the line.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = 1
    block = None
    while block != b"":
        block = stream.read(block_bytes) or b""
        state = decoder.getstate()
        try:
            text = decoder.decode(block, final=not block)
            yield text.encode()
        except UnicodeError as err:
            decoder.setstate(state)
            lines += _line_ends_before_error(decoder, block)
            raise UserError(
                f"{stream.display_name}, line {lines}: not text in {encoding} ({_reason(err)}); name its encoding "
                "with --encoding, or fix that line"
            ) from None
        lines += text.count("\n")


def _line_ends_before_error(decoder: codecs.IncrementalDecoder, block: bytes) -> int:
    lines = 0
    try:
        for byte in block:
            lines += decoder.decode(bytes([byte])).count("\n")
    except UnicodeError:
        pass
    return lines


def _reason(err: UnicodeError) -> str:
    if isinstance(err, UnicodeDecodeError):
        return f"{err.reason}: {err.object[err.start : err.end].hex(' ')}"
    return str(err)
