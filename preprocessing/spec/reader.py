"""Read a mapping of a prepared folder with any chunk types: files stacked, chunks side by side.

Only this module reads and writes the reference's `.pt` files, so only this module imports torch.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources import text as delimited
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.fields import NULLS, id_type
from preprocessing.sources.parquet_types import value_type
from preprocessing.sources.quoting import quoting_of
from preprocessing.sources.text import TextFormat, first_row, text_pieces
from preprocessing.spec.feature_spec import Chunk, FeatureSpec, chunk_files
from workflows.common.errors import UserError, bounded

BLOCK_ROWS = 1 << 20
_HEAD_BYTES = 1 << 16


def iter_mapping(
    folder: Path, spec: FeatureSpec, mapping: str, features: Sequence[str], rows: int, text: Collection[str] = ()
) -> Iterator[pa.Table]:
    """Stream some columns of a mapping in row-aligned blocks of `rows` rows (the last one shorter).

    Args:
        text: features that are text, not numbers, in CSV files (see `text_features`).
    Yields:
        Tables with the columns `features`; a single empty one if there are no rows.

    Raises:
        UserError: a feature is in no chunk, a file does not match the spec, or chunks differ in length.
    """
    parts = [(chunk, [name for name in chunk.features if name in features]) for chunk in spec.chunks(mapping)]
    parts = [(chunk, wanted) for chunk, wanted in parts if wanted]
    missing = [name for name in features if not any(name in wanted for _, wanted in parts)]
    if missing:
        raise UserError(f"source_spec.{mapping} of {folder} has no feature {', '.join(missing)}")
    streams = [
        _blocks(_tables(folder, _Part(chunk, wanted, spec, text)), rows, chunk, folder) for chunk, wanted in parts
    ]
    before = 0
    for blocks in zip_longest(*streams):
        lengths = [block.num_rows if block else 0 for block in blocks]
        if len(set(lengths)) > 1:
            read = zip(lengths, streams, strict=True)
            totals = [before + length + sum(block.num_rows for block in stream) for length, stream in read]
            found = ", ".join(f"{chunk.files[0]} …: {n:,} rows" for (chunk, _), n in zip(parts, totals, strict=True))
            raise UserError(
                f"the chunks of {mapping!r} in {folder} are joined row by row but differ in length: {found}"
            )
        before += lengths[0]
        columns = {name: block.column(name) for block in blocks for name in block.column_names}
        yield pa.table({name: columns[name] for name in features})


def read_mapping(folder: Path, spec: FeatureSpec, mapping: str, features: Sequence[str]) -> pa.Table:
    """Read some columns of a mapping into memory; raises as `iter_mapping`."""
    return next(iter_mapping(folder, spec, mapping, features, rows=sys.maxsize))


def text_features(folder: Path, spec: FeatureSpec, names: Collection[str]) -> set[str]:
    """The features among `names` that hold text, judged by the first rows of CSV files and by Parquet types.

    Raises:
        UserError: a feature is text in one file and integers in another, or a file is not readable.
    """
    seen: dict[str, dict[bool, Path]] = {}
    for chunk in (chunk for chunks in spec.source_spec.values() for chunk in chunks):
        wanted = [name for name in chunk.features if name in names]
        for path in chunk_files(folder, chunk) if wanted else []:
            for name, is_text in _holds_text(path, chunk, wanted).items():
                seen.setdefault(name, {}).setdefault(is_text, path)
    mixed = [
        f"{name!r} holds text in {at[True]} and integers in {at[False]}" for name, at in seen.items() if len(at) > 1
    ]
    if mixed:
        raise UserError("a feature should hold either text or integers: " + "; ".join(mixed))
    return {name for name, at in seen.items() if True in at}


def file_rows(
    folder: Path, spec: FeatureSpec, mapping: str, feature: str, text: Collection[str] = ()
) -> dict[Path, int]:
    """Row count of each file that holds a feature, in row order."""
    chunk = next(chunk for chunk in spec.chunks(mapping) if feature in chunk.features)
    part = _Part(chunk, [feature], spec, text)
    return {
        path: sum(table.num_rows for table in _READERS[chunk.type](path, part)) for path in chunk_files(folder, chunk)
    }


def locate(folder: Path, spec: FeatureSpec, mapping: str, feature: str, row: int, text: Collection[str] = ()) -> str:
    """Locate a feature's value in row `row` (from 0) of a mapping for messages: "FILE, row 12" (from 1).

    Reads the files again, so use it for errors only.
    """
    for path, rows in file_rows(folder, spec, mapping, feature, text).items():
        if row < rows:
            return f"{path}, row {row + 1:,}"
        row -= rows
    raise IndexError(f"{mapping} has no such row")


def required(table: pa.Table) -> pa.Table:
    """The table with non-nullable columns, which Parquet writes four times as fast."""
    fields = [field.with_nullable(False) for field in table.schema]
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields))


def save_tensor(path: Path, matrix: np.ndarray) -> None:
    """Write a matrix, which may be memory-mapped, as a tensor that the reference's scripts load."""
    import torch

    try:
        torch.save(torch.from_numpy(matrix), path)
    except RuntimeError as err:  # torch hides why a file could not be written
        raise OSError(str(err)) from None


@dataclass(frozen=True)
class _Part:
    """A chunk and the features to read from it."""

    chunk: Chunk
    wanted: list[str]
    spec: FeatureSpec
    text: Collection[str]

    def type_of(self, name: str) -> pa.DataType:
        """The type of a CSV column: text if listed, integer for ids and integer dtypes, else a float."""
        if name in self.text:
            return pa.string()
        dtype = self.spec.feature_spec[name].dtype or ""
        is_integer = name in self.spec.categorical() or dtype.startswith(("int", "torch.int"))
        return pa.int64() if is_integer else pa.float64()


def _tables(folder: Path, part: _Part) -> Iterator[pa.Table]:
    for path in chunk_files(folder, part.chunk):
        yield from _READERS[part.chunk.type](path, part)


def _blocks(tables: Iterator[pa.Table], rows: int, chunk: Chunk, folder: Path) -> Iterator[pa.Table]:
    """Re-chunk the rows into blocks of `rows`, the last one shorter; a single empty block if there are none."""
    held: list[pa.Table] = []
    size, first = 0, True
    for table in tables:
        held.append(table)
        size += table.num_rows
        while size >= rows:
            joined = _concat(held, chunk, folder)
            yield joined.slice(0, rows)
            held, size, first = [joined.slice(rows)], size - rows, False
    if size or first:
        yield _concat(held, chunk, folder)


def _concat(tables: list[pa.Table], chunk: Chunk, folder: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as err:
        raise UserError(f"{', '.join(chunk.files)} in {folder} hold different types ({err})") from None


def _read_parquet(path: Path, part: _Part) -> Iterator[pa.Table]:
    try:
        file = pq.ParquetFile(path)
        yield file.schema_arrow.empty_table().select(part.wanted)  # carries the types if there are no rows
        for batch in file.iter_batches(columns=part.wanted) if file.num_row_groups else ():
            yield pa.Table.from_batches([batch]).select(part.wanted)
    except (pa.ArrowException, KeyError, OSError) as err:
        raise UserError(f"{path}: not a readable Parquet file with columns {', '.join(part.wanted)} ({err})") from None


def _read_csv(path: Path, part: _Part) -> Iterator[pa.Table]:
    types = tuple((name, part.type_of(name)) for name in part.wanted)
    ids = tuple(name for name, kind in types if kind == pa.int64())
    names, dialect, start = tuple(part.chunk.features), Dialect(","), first_row(path, header=False)
    yield pa.schema(types).empty_table()
    if path.stat().st_size:
        quoting = quoting_of(
            path, str(path), dialect, len(names), start=start, given="minimal", every=delimited.PIECE_BYTES
        )
        form = TextFormat(replace(dialect, quoted=quoting.in_use), names, types=types, ids=ids)
        for piece in text_pieces(path, form, str(path), start, quoting):
            yield piece.read()


def _read_torch_tensor(path: Path, part: _Part) -> Iterator[pa.Table]:
    import torch

    from workflows.device.torch_file import load_torch_file

    features = part.chunk.features
    try:
        tensor = load_torch_file(path)
    except ValueError as err:
        raise UserError(f"{path}: not a tensor saved by torch ({err}); save one with torch.save") from None
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{path}: expected one tensor of shape [rows, features], got {type(tensor).__name__}")
    if not _is_dense_matrix(tensor):
        raise UserError(
            f"{path}: expected one dense tensor of shape [rows, features] with real numbers, got {tensor.dtype} "
            f"{bounded(str(list(tensor.shape)) if not tensor.is_nested else 'nested')}"
        )
    matrix = tensor.detach().resolve_neg()  # NumPy reads no view of -1 times a tensor
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.dtype is torch.bfloat16:  # NumPy has no bfloat16
        matrix = matrix.float()
    if matrix.shape[1] != len(features):
        raise UserError(
            f"{path}: expected {len(features)} columns ({bounded(', '.join(features), 200)}), got {matrix.shape[1]}"
        )
    yield pa.table({name: np.ascontiguousarray(matrix[:, features.index(name)].numpy()) for name in part.wanted})


def _is_dense_matrix(tensor: Any) -> bool:
    """Whether a tensor holds a value for each row, and NumPy knows its type."""
    import torch

    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    integers = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
    is_real = tensor.dtype in integers or (tensor.dtype.is_floating_point and tensor.itemsize > 1)
    return is_real and tensor.ndim in (1, 2) and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


_READERS: dict[str, Callable[[Path, _Part], Iterator[pa.Table]]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "torch_tensor": _read_torch_tensor,
}


def _holds_text(path: Path, chunk: Chunk, wanted: Sequence[str]) -> dict[str, bool]:
    """Whether each feature is text in this file; features that the file cannot decide are left out."""
    if chunk.type == "parquet":
        try:
            file = pq.ParquetFile(path)
            kinds = {name: value_type(file.schema_arrow.field(name).type) for name in wanted}
        except (pa.ArrowException, KeyError, OSError) as err:
            raise UserError(f"{path}: not a readable Parquet file with columns {', '.join(wanted)} ({err})") from None
        if not file.metadata.num_rows:  # the writer may not have known the type
            return {}
        return {name: pa.types.is_string(kind) or pa.types.is_large_string(kind) for name, kind in kinds.items()}
    if chunk.type == "csv":
        columns = {name: _first_values(path, chunk.features.index(name)) for name in wanted}
        return {name: id_type(values) == pa.string() for name, values in columns.items() if values}
    return dict.fromkeys(wanted, False)


def _first_values(path: Path, index: int) -> list[str]:
    """Non-missing values of one column in the first complete rows of a CSV file."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if len(head) == _HEAD_BYTES:
        head = head[: head.rfind(b"\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(head.decode("utf-8-sig", "replace"), newline="")))
    except csv.Error as err:
        raise UserError(f"{path}: not readable as delimited text ({err}); check its quoting") from None
    values = [row[index].strip() for row in rows if len(row) > index]
    return [value for value in values if value not in NULLS]
