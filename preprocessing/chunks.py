"""Read a mapping of a prepared folder, whatever its chunk types: files stacked, chunks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.feature_spec import Chunk, FeatureSpec, chunk_files
from preprocessing.sources.text import TextFormat, text_pieces
from workflows.errors import UserError


def read_mapping(folder: Path, spec: FeatureSpec, mapping: str, features: Sequence[str]) -> pa.Table:
    """Some columns of a mapping, in memory.

    Raises:
        UserError: a feature is in no chunk, a file is not what the spec says, or chunks differ in length.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    lengths: list[tuple[str, int]] = []
    for chunk in spec.chunks(mapping):
        wanted = [name for name in chunk.features if name in features]
        if not wanted:
            continue
        files = chunk_files(folder, chunk)
        tables = [_READERS[chunk.type](file, chunk, wanted, spec) for file in files]
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as err:
            raise UserError(f"{', '.join(chunk.files)} in {folder} hold different types ({err})") from None
        lengths.append((chunk.files[0], table.num_rows))
        columns.update({name: table.column(name) for name in wanted})
    missing = [name for name in features if name not in columns]
    if missing:
        raise UserError(f"source_spec.{mapping} of {folder} has no feature {', '.join(missing)}")
    if len({rows for _, rows in lengths}) > 1:
        found = ", ".join(f"{file} …: {rows:,} rows" for file, rows in lengths)
        raise UserError(f"the chunks of {mapping!r} in {folder} stand side by side and differ in length: {found}")
    return pa.table({name: columns[name] for name in features})


def _read_parquet(path: Path, chunk: Chunk, wanted: list[str], spec: FeatureSpec) -> pa.Table:
    try:
        return pq.read_table(path, columns=wanted, partitioning=None).select(wanted)
    except (pa.ArrowException, KeyError) as err:
        raise UserError(f"{path}: no readable Parquet file with columns {', '.join(wanted)} ({err})") from None


def _read_csv(path: Path, chunk: Chunk, wanted: list[str], spec: FeatureSpec) -> pa.Table:
    types = tuple((name, _arrow_type(spec, name)) for name in wanted)
    layout = TextFormat(",", tuple(chunk.features), header=False, types=types)
    if not path.stat().st_size:
        return pa.schema(types).empty_table()
    return pa.concat_tables([piece.read() for piece in text_pieces(path, layout, str(path))])


def _arrow_type(spec: FeatureSpec, name: str) -> pa.DataType:
    """Features with ids are integers; what a dtype leaves open is a number."""
    feature = spec.feature_spec[name]
    is_id = feature.cardinality is not None or (feature.dtype or "").startswith(("int", "torch.int"))
    return pa.int64() if is_id else pa.float64()


def _read_torch_tensor(path: Path, chunk: Chunk, wanted: list[str], spec: FeatureSpec) -> pa.Table:
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises many kinds for a file that is not one of its own
        first_line = str(err).splitlines()[0] if str(err) else repr(err)
        raise UserError(f"{path}: not a tensor saved by torch ({first_line})") from None
    if not isinstance(tensor, torch.Tensor) or tensor.ndim not in (1, 2) or tensor.layout != torch.strided:
        raise UserError(f"{path}: expected one dense tensor of shape [rows, features], got {type(tensor).__name__}")
    matrix = tensor.detach()[:, None] if tensor.ndim == 1 else tensor.detach()
    if matrix.dtype is torch.bfloat16:  # which NumPy does not know
        matrix = matrix.float()
    if matrix.shape[1] != len(chunk.features):
        raise UserError(
            f"{path}: expected {len(chunk.features)} columns ({', '.join(chunk.features)}), got {matrix.shape[1]}"
        )
    return pa.table({name: np.ascontiguousarray(matrix[:, chunk.features.index(name)].numpy()) for name in wanted})


_READERS = {"parquet": _read_parquet, "csv": _read_csv, "torch_tensor": _read_torch_tensor}
