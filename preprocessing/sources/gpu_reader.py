"""Read a piece of a log on a GPU: cuDF splits or decodes it, kernels convert the fields.

The CPU's reader (`Piece.tables`) defines what a log means. This one vouches for what it reads, or gives up the whole
piece: errors and rare spellings are the CPU's.
"""

from __future__ import annotations

import functools
import io
import math
import operator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources import gpu_fields
from preprocessing.sources.gpu_fields import MISSING, UNSURE
from preprocessing.sources.log import LogColumns, Piece
from preprocessing.sources.parquet import ParquetPiece
from preprocessing.sources.text import TextPiece, lines_in
from workflows.device.frames import FrameDevice

Array = Any  # of CuPy
_BEYOND = "\n"  # the name of the column after the last one; no file's header can hold it
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EXACT = 2**53  # integers below are exact as float64
_DATE_UNITS = ("ms", "us", "ns")  # of Parquet
_DATES = (pa.timestamp("us"), pa.timestamp("us", "UTC"))  # of text


@dataclass(frozen=True)
class DeviceColumns:
    """The columns of a piece on a GPU, in the pipeline's types, with values of no meaning where one is missing.

    Attributes:
        user, item: int64 [N], or a cuDF column of texts.
        time: int64 [N], in the order of the times; None if they are not read.
        rating: float64 [N]; None if nothing is filtered by it.
        missing: bool [N], rows that lack one of these.
        unsure: bool [N], rows with a field that only the CPU's reader can tell; with any, the piece is for it to read.
    """

    user: Any
    item: Any
    time: Array | None
    rating: Array | None
    missing: Array
    unsure: Array


def read_on_gpu(piece: Piece, columns: LogColumns, device: FrameDevice) -> DeviceColumns | None:
    """The columns of a piece, equal to the CPU's unless a row is unsure; None if only the CPU can read the piece.

    Args:
        device: a GPU.
    """
    if isinstance(piece, TextPiece):
        return _read_text(piece, columns, device)
    return _read_parquet(piece, columns, device) if isinstance(piece, ParquetPiece) else None


def _read_text(piece: TextPiece, columns: LogColumns, device: FrameDevice) -> DeviceColumns | None:
    if piece.format.spelled:
        return None
    types = dict(piece.format.types)
    target = None
    if columns.time is not None:
        time = types[columns.time]
        target = time if piece.format.time is None else piece.format.time[1]
        if pa.types.is_string(time) or (pa.types.is_timestamp(time) and (time != target or time not in _DATES)):
            return None
    split = _fields(piece, columns, device)
    if split is None:
        return None
    frame, ascii_only = split
    parsed = {name: _parsed(frame[name], types[name], ascii_only, device) for name in columns.names}
    missing, unsure = (_any_of([states == what for _, states in parsed.values()]) for what in (MISSING, UNSURE))
    values = {name: found for name, (found, _) in parsed.items()}
    times = None if columns.time is None else values[columns.time]
    if target is not None and pa.types.is_floating(target):
        times = gpu_fields.ordered_bits(device.arrays.asarray(times, dtype=device.arrays.float64), device)
    rating = None if columns.rating is None else values[columns.rating]
    return DeviceColumns(values[columns.user], values[columns.item], times, rating, missing, unsure)


def _fields(piece: TextPiece, columns: LogColumns, device: FrameDevice) -> tuple[Any, bool] | None:
    """(dataframe of the log's columns as text, whether the piece is ASCII); None if a row is too short or too long."""
    content, delimiter = piece.content()
    data = _plain(content)
    if data is None:
        return None
    names = [*piece.format.names, _BEYOND]
    # Not by byte range: cuDF skips the first row of a range that does not begin the file, and reads on the host anyway.
    frame = device.frames.read_csv(
        io.BytesIO(data),
        delimiter=delimiter,
        header=None,
        names=names,
        usecols=list(dict.fromkeys([*columns.names, *names[-2:]])),
        dtype="str",
        na_filter=False,
        quoting=3,  # none
    )
    # Fields that a row lacks are null: no row may lack the last one, and each has to lack the one beyond.
    if not len(frame) or frame[names[-2]].null_count or frame[_BEYOND].null_count < len(frame):
        return None
    if len(frame) != lines_in(data, len(frame)):
        return None
    return frame, data.isascii()


def _parsed(column: Any, kind: pa.DataType, ascii_only: bool, device: FrameDevice) -> tuple[Any, Array]:
    """(values, what became of each field) of a text column that is read as this type."""
    if kind == pa.string():
        return gpu_fields.texts(column, ascii_only, device)
    if pa.types.is_timestamp(kind):
        return gpu_fields.dates(column, kind.tz is not None, device)
    return (gpu_fields.integers if kind == pa.int64() else gpu_fields.decimals)(column, device)


def _any_of(masks: list[Array]) -> Array:
    return functools.reduce(operator.or_, masks)


def _plain(data: bytes) -> bytes | None:
    """The text with line ends that cuDF reads as Arrow does; None if it holds quotes, or bytes that are no text."""
    if b'"' in data or b"\0" in data or data.startswith(_BYTE_ORDER_MARK):
        return None
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
        if b"\r" in data:
            return None
    if not data.isascii():
        try:
            pa.array([data], pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            return None
    return data if data.endswith(b"\n") else data + b"\n"


def _read_parquet(piece: ParquetPiece, columns: LogColumns, device: FrameDevice) -> DeviceColumns | None:
    with pq.ParquetFile(piece.path) as file:
        schema = file.schema_arrow
    common_time, ids = piece.format.time, dict(piece.format.ids)
    if not all(
        _is_readable(schema.field(name).type, role, ids.get(name, common_time))
        for role, name in columns.by_role.items()
    ):
        return None
    frame = device.frames.read_parquet(
        str(piece.path), columns=columns.names, row_groups=[[piece.row_group]], use_pandas_metadata=False
    )
    missing = device.arrays.zeros(len(frame), dtype=device.arrays.bool_)
    found: dict[str, Any] = {}
    for name in columns.names:
        column, kind = frame[name], schema.field(name).type
        if _is_text(kind):
            found[name], states = gpu_fields.texts(column.fillna(""), False, device)
            missing = missing | (states == MISSING)
            continue
        if column.null_count:
            if name == columns.rating and pa.types.is_floating(kind):
                return None  # cuDF also takes NaN for missing here
            missing = missing | column.isna().values
        if pa.types.is_temporal(kind):
            column = column.astype(f"datetime64[{'ms' if pa.types.is_date(kind) else kind.unit}]")
        floats = name == columns.rating or (name == columns.time and pa.types.is_floating(common_time))
        column = column.astype("float64" if floats else "int64")
        found[name] = (column.fillna(0) if column.null_count else column).values
    time = None if columns.time is None else found[columns.time]
    if time is not None and pa.types.is_floating(common_time):
        finite = (time > -math.inf) & (time < math.inf)
        missing, time = missing | ~finite, gpu_fields.ordered_bits(time, device)
    rating = None if columns.rating is None else found[columns.rating]
    unsure = device.arrays.zeros(len(frame), dtype=device.arrays.bool_)
    if rating is not None and pa.types.is_integer(schema.field(columns.rating).type):
        unsure = (rating >= _EXACT) | (rating <= -_EXACT)
    return DeviceColumns(found[columns.user], found[columns.item], time, rating, missing, unsure)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_readable(kind: pa.DataType, role: str, target: pa.DataType) -> bool:
    """Whether a Parquet column of this type is read alike by Arrow and cuDF.

    Args:
        role: "user", "item", "time" or "rating".
        target: the type of the ids, or the common type of all times of the log.
    """
    whole = pa.types.is_integer(kind) and kind != pa.uint64()
    number = whole or kind in (pa.float32(), pa.float64())
    if role in ("user", "item"):
        return _is_text(kind) if _is_text(target) else whole
    if role == "rating":
        return number
    if pa.types.is_temporal(kind):
        return kind == target and (
            pa.types.is_date32(kind) or (pa.types.is_timestamp(kind) and kind.unit in _DATE_UNITS)
        )
    if pa.types.is_floating(target):
        return number
    return whole and pa.types.is_integer(target) and target != pa.uint64()
