"""The GPU's reader on the stand-ins for CuPy and cuDF: it equals the CPU's, or leaves the piece to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cudf_stand_in import Column, journey
from gpu_stand_in import cpu
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preprocessing.prepare.row_filter import Selection, select
from preprocessing.prepare.text_ids import text_keys, text_keys_on_gpu
from preprocessing.sources import gpu_fields
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.fields import NULLS
from preprocessing.sources.gpu_fields import ASCII_BLANKS, MISSING, UNSURE, UTF8_BLANKS, VALUE
from preprocessing.sources.gpu_reader import DeviceColumns, read_on_gpu
from preprocessing.sources.log import LogColumns, Piece, ReadOptions
from preprocessing.sources.parquet import ParquetPiece, parquet_log
from preprocessing.sources.text import TextFormat, TextPiece, text_pieces
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice

DEVICE = FrameDevice(on_cpu=False)
COLUMNS = LogColumns(user="u", item="i", time="t", rating="r")
SELECTION = Selection(columns=COLUMNS, min_rating=float("-inf"))


@pytest.fixture(autouse=True, scope="module")
def _stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        journey(patched, {""})
        yield


def assert_equal_or_left(piece: Piece) -> DeviceColumns | None:
    """Returns what the GPU read; None if it left the piece to the CPU."""
    found = read_on_gpu(piece, COLUMNS, DEVICE)
    if found is None or cpu(found.unsure).any():
        return None
    table = piece.read()
    kept, missing, _ = select(table, piece, 0, SELECTION)
    present = ~cpu(found.missing)
    assert (len(present), int((~present).sum())) == (table.num_rows, missing)
    rating = pc.cast(table.column("r"), pa.float64()).combine_chunks().filter(pa.array(present))
    np.testing.assert_array_equal(cpu(found.rating)[present], rating.to_numpy(zero_copy_only=False))
    comparable = pa.array(present).filter(pa.array(present & ~np.isnan(cpu(found.rating))))
    for name in ("user", "item", "time"):
        values = getattr(found, name)
        on_gpu = values._data if isinstance(values, Column) else pa.array(cpu(values))
        on_gpu = on_gpu.filter(pa.array(present & ~np.isnan(cpu(found.rating))))
        assert len(on_gpu) == len(comparable)
        assert on_gpu.to_pylist() == kept.column(name).to_pylist()
    return found


# --- Text -------------------------------------------------------------------------------------------------------

TYPES = {
    "ids": pa.int64(),
    "texts": pa.string(),
    "numbers": pa.float64(),
    "dates": pa.timestamp("us"),
    "UTC": pa.timestamp("us", "UTC"),
}
PLAIN = {
    "ids": st.integers(-(10**18) + 1, 10**18 - 1).map(str),
    "texts": st.text(st.characters(exclude_characters='",\n\r\0', exclude_categories=["Cs"]), min_size=1, max_size=6),
    "numbers": st.decimals(-(10**9) + 1, 10**9 - 1, places=6).map("{:f}".format),
    "dates": st.datetimes().map(lambda date: date.isoformat(timespec="seconds")),
    "UTC": st.datetimes().map(lambda date: f"{date.isoformat(' ', 'milliseconds')}Z"),
}
DIGITS = st.text("0123456789-+.eE: TZ_\t ", max_size=8)
ODD = st.one_of(
    st.sampled_from([*NULLS, *(f" {null}" for null in NULLS), "007", "-0", "0", "1.", ".5", "-", "+1", "1e5", "0x1f"]),
    st.sampled_from(["9" * 18, "9" * 19, "1" * 20, "2024-02-30", "2023-02-29", "2024-02-29", "0000-01-01", "2024-1-1"]),
    st.sampled_from(["2024-01-01T24:00:00", "2024-01-01 12:30", "2024-01-01T00:00:00.1234567", "1_000", "١", "\ufeff"]),
    st.sampled_from(["\u2003", "a\u2003", " \t", "a\x1f", "\x1f", "\x85", "a b", "inf", "-inf", "NaN ", "\x0b1"]),
    DIGITS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)


def text_piece(path: Path, data: bytes, kinds: tuple[str, str, str], delimiter: str = ",") -> TextPiece:
    path.write_bytes(data)
    types = dict(zip("uit", (TYPES[kind] for kind in kinds), strict=True)) | {"r": pa.float64()}
    ids = tuple(name for name in "ui" if types[name] == pa.int64())
    form = TextFormat(Dialect(delimiter), ("x", "u", "i", "t", "r"), tuple(types.items()), ids)
    return TextPiece(path, form, 0, len(data), "the log")


KINDS = st.tuples(
    st.sampled_from(["ids", "texts"]),
    st.sampled_from(["ids", "texts"]),
    st.sampled_from(["ids", "numbers", "dates", "UTC"]),
)


@st.composite
def lines(draw: st.DrawFn, field: Callable[[str], st.SearchStrategy[str]]) -> tuple[tuple[str, str, str], list[str]]:
    kinds = draw(KINDS)
    row = st.tuples(st.just("x"), *map(field, kinds), field("numbers")).map(",".join)
    return kinds, draw(st.lists(row, min_size=1, max_size=5))


@settings(max_examples=150)
@given(lines(lambda kind: st.one_of(PLAIN[kind], st.just(""))), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_ordinary_text_is_read(
    fresh: Callable[[], Path], log: tuple[tuple[str, str, str], list[str]], newline: str, ended: bool
) -> None:
    kinds, rows = log
    text = newline.join(rows) + (newline if ended else "")
    assert assert_equal_or_left(text_piece(fresh() / "log", text.encode(), kinds)) is not None


@settings(max_examples=300)
@given(lines(lambda kind: st.one_of(PLAIN[kind], ODD)), st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\n \n"]))
def test_odd_text_is_read_as_on_the_cpu_or_left_to_it(
    fresh: Callable[[], Path], log: tuple[tuple[str, str, str], list[str]], newline: str
) -> None:
    kinds, rows = log
    assert_equal_or_left(text_piece(fresh() / "log", newline.join(rows).encode(), kinds))


@settings(max_examples=200)
@given(
    KINDS,
    st.lists(st.sampled_from([b"x", b"1", b",", b",1", b"\n", b"\r", b'"', b"\0", b"\xff", b" ", b"x,1,2,3,4\n"])),
)
@example(("ids", "ids", "ids"), [b"x,1,2,3,4,\n", b"x,1,2,3\n"])  # one field too many, and one too few
@example(("ids", "ids", "ids"), [b"x,1,2,3,4\n", b"x,1,2,3,"])
def test_any_bytes_are_read_as_on_the_cpu_or_left_to_it(
    fresh: Callable[[], Path], kinds: tuple[str, str, str], parts: list[bytes]
) -> None:
    assert_equal_or_left(text_piece(fresh() / "log", b"".join(parts) or b"\n", kinds))


@pytest.mark.parametrize("delimiter", ["\t", "::", ";"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    data = delimiter.join(["x", "1", "2", "3", "4.5"]).encode()
    assert assert_equal_or_left(text_piece(tmp_path / "log", data, ("ids", "texts", "ids"), delimiter)) is not None


def test_pieces_in_the_middle_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.sources.text.PIECE_BYTES", 40)
    piece = text_piece(tmp_path / "log", b"".join(b"x,%d,2,3,4\n" % number for number in range(50)), ("ids",) * 3)
    pieces = text_pieces(piece.path, piece.format, "the log")
    assert len(pieces) > 5
    users = [cpu(read_on_gpu(part, COLUMNS, DEVICE).user) for part in pieces]
    assert np.concatenate(users).tolist() == list(range(50))


def test_times_of_other_files_decide_the_type(tmp_path: Path) -> None:
    # Another file's times are floats, or have nanoseconds; or there is a --time-format.
    utc, nanoseconds = pa.timestamp("us", "UTC"), pa.timestamp("ns")
    for kind, target, is_read in (("ids", pa.float64(), True), ("dates", nanoseconds, False), ("texts", utc, False)):
        stated = "5" if kind == "ids" else "2024-01-01"
        piece = text_piece(tmp_path / "log", f"x,1,2,{stated},4\n".encode(), ("ids", "ids", kind))
        form = TextFormat(**(vars(piece.format) | {"time": ("t", target)}))
        piece = TextPiece(piece.path, form, 0, piece.stop, "the log")
        assert (assert_equal_or_left(piece) is not None) == is_read


# --- Fields -----------------------------------------------------------------------------------------------------


def test_the_nulls_are_the_cpus() -> None:
    some = [*NULLS, "Nan", "NUL", "\\n", "nulls", "0"]
    _, states = gpu_fields.integers(Column(pa.array(some)), DEVICE)
    assert cpu(states).tolist() == [MISSING] * len(NULLS) + [UNSURE] * 4 + [VALUE]
    _, states = gpu_fields.texts(Column(pa.array(some)), True, DEVICE)
    assert cpu(states).tolist() == [MISSING] * len(NULLS) + [VALUE] * 5


@pytest.mark.parametrize(
    ("trim", "blanks"), [(pc.ascii_trim_whitespace, ASCII_BLANKS), (pc.utf8_trim_whitespace, UTF8_BLANKS)]
)
def test_the_blanks_are_those_that_arrow_trims(trim: Callable[..., Any], blanks: str) -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    trimmed = trim(pa.array(characters)).to_pylist()
    assert {character for character, rest in zip(characters, trimmed, strict=True) if not rest} == set(blanks)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)), st.booleans())
def test_the_keys_of_texts_are_the_cpus(texts: list[str], wide: bool) -> None:
    column = pa.array(texts, pa.large_string() if wide else pa.string())
    assert cpu(text_keys_on_gpu(Column(column), DEVICE)).tolist() == text_keys(column).tolist()
    if len(texts) > 3:  # a view that begins in the middle
        part = column.slice(2, len(texts) - 3)
        assert cpu(text_keys_on_gpu(Column(part), DEVICE)).tolist() == text_keys(part).tolist()


# --- Parquet ----------------------------------------------------------------------------------------------------

IDS = [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint32(), pa.string(), pa.large_string()]
LEFT_IDS = [pa.uint64(), pa.float64(), pa.decimal128(19, 0), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
TIMES = [pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.date32()]
TIMES += [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("s")]
LEFT_TIMES = [pa.uint64(), pa.decimal128(21, 2)]
NUMBERS = st.integers(0, 100)
FLOATS = st.one_of(st.floats(width=32), st.just(-0.0), st.none())


def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if pa.types.is_floating(kind):
        return pa.array(values, kind, from_pandas=False)
    numbers = [None if value is None or value != value or abs(value) > 100 else int(value) for value in values]
    if kind in (pa.string(), pa.large_string(), pa.binary()) or pa.types.is_dictionary(kind):
        texts = [
            None if number is None else {0: " ", 1: "NULL", 2: ""}.get(number, f" ü{number}") for number in numbers
        ]
        return pa.array(texts, pa.string()).cast(kind)
    numbers = [abs(number) if number and not pa.types.is_signed_integer(kind) else number for number in numbers]
    if pa.types.is_temporal(kind):
        return pa.array(numbers, pa.int32()).cast(pa.date32()).cast(kind)
    return pa.array(numbers, pa.int64()).cast(kind)


def parquet_pieces(folder: Path, table: pa.Table) -> list[Piece]:
    pq.write_table(table, folder / "log.parquet", row_group_size=4)
    source = SourceFile(folder / "log.parquet", "the log", folder / "log.parquet")
    return parquet_log([source], COLUMNS, True).pieces


@settings(max_examples=150)
@given(st.data(), st.lists(st.tuples(FLOATS, FLOATS, FLOATS, FLOATS), min_size=1, max_size=9))
def test_parquet_is_read_as_on_the_cpu(
    fresh: Callable[[], Path], data: st.DataObject, rows: list[tuple[float | None, ...]]
) -> None:
    kinds = [data.draw(st.sampled_from(some)) for some in (IDS, IDS, TIMES, [pa.int64(), pa.float32(), pa.float64()])]
    columns = [column(kind, list(values)) for kind, values in zip(kinds, zip(*rows, strict=True), strict=True)]
    for piece in parquet_pieces(fresh(), pa.table(columns, names=["u", "i", "t", "r"])):
        assert isinstance(piece, ParquetPiece)
        nulls = pq.read_table(piece.path).column("r").null_count if pa.types.is_floating(kinds[3]) else 0
        assert assert_equal_or_left(piece) is not None or nulls


@pytest.mark.parametrize("place", ["u", "t"])
@pytest.mark.parametrize("kind", [*LEFT_IDS, *LEFT_TIMES], ids=str)
def test_rare_types_of_parquet_are_left_to_the_cpu(tmp_path: Path, kind: pa.DataType, place: str) -> None:
    columns = {name: column(pa.int64(), [1.0, 2.0]) for name in ("u", "i", "t", "r")} | {
        place: column(kind, [1.0, 2.0])
    }
    try:
        (piece,) = parquet_pieces(tmp_path, pa.table(columns))
    except UserError:
        return  # not a log
    if place == "t" and kind == pa.float64():
        return
    assert read_on_gpu(piece, COLUMNS, DEVICE) is None


@pytest.mark.parametrize("name", ["u", "t"])
def test_columns_of_parquet_to_convert_are_left_to_the_cpu(tmp_path: Path, name: str) -> None:
    columns = dict.fromkeys(("u", "i", "t", "r"), pa.array([1, 2]))
    pq.write_table(pa.table(columns | ({"t": pa.array(["5", " 7"])} if name == "t" else {})), tmp_path / "log")
    options = ReadOptions(text_ids=frozenset({"user"} if name == "u" else ()))
    source = SourceFile(tmp_path / "log", "the log", tmp_path / "log")
    (piece,) = parquet_log([source], COLUMNS, True, options).pieces
    assert read_on_gpu(piece, COLUMNS, DEVICE) is None


def test_a_rating_that_is_not_exact_as_a_float_is_left_to_the_cpu(tmp_path: Path) -> None:
    numbers = pa.array([1, 2**53 + 1])
    (piece,) = parquet_pieces(tmp_path, pa.table({"u": numbers, "i": numbers, "t": numbers, "r": numbers}))
    found = read_on_gpu(piece, COLUMNS, DEVICE)
    assert found is not None
    assert cpu(found.unsure).tolist() == [False, True]


def test_other_pieces_are_left_to_the_cpu() -> None:
    class Other(Piece):
        size_bytes = rows_estimate = 0

        def read(self) -> pa.Table:
            raise AssertionError

        def place(self, row: int) -> str:
            raise AssertionError

    assert read_on_gpu(Other(), COLUMNS, DEVICE) is None
