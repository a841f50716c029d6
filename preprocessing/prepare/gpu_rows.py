"""Read and filter a piece of a log on a GPU: the counterpart of `row_filter.select` and of the keys of text ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from array_api_compat import array_namespace

from preprocessing.config import BY_DRAW
from preprocessing.prepare.row_filter import ITEM, TIME, USER, ReadCounts, Selection, drawn_times, select
from preprocessing.prepare.text_ids import KEY, TEXT, text_keys_on_gpu
from preprocessing.sources.gpu_reader import DeviceColumns, read_on_gpu
from preprocessing.sources.log import Piece
from workflows.device.frames import FrameDevice, host_integers
from workflows.sampling.interactions import count

Array = Any  # of CuPy


@dataclass(frozen=True)
class KeptRows:
    """The rows kept of a piece, on a GPU.

    Attributes:
        columns: int64 [N] `user`, `item` and `time`; the keys of text ids.
        texts: dataframe of the distinct `key`, `text` of each text column.
        counts: rows read and dropped.
    """

    columns: dict[str, Array]
    texts: dict[str, Any]
    counts: ReadCounts


def read_rows(piece: Piece, selection: Selection, device: FrameDevice) -> Iterator[KeptRows]:
    """Read a piece and filter its rows, in one or several tables.

    What the GPU's reader cannot vouch for is read by the CPU's, which names the place of an error.

    Raises:
        UserError: the piece is malformed, or strict mode found an incomplete row.
    """
    found = read_on_gpu(piece, selection.columns, device)
    rows = None if found is None else _kept(found, selection, device)
    if rows is not None:
        yield rows
        return
    rows_before = 0
    for table in piece.tables():
        yield _moved(table, piece, rows_before, selection, device)
        rows_before += table.num_rows


def _kept(found: DeviceColumns, selection: Selection, device: FrameDevice) -> KeptRows | None:
    """The rows to keep (host sync: twice); None if the CPU has to decide about one, or strict mode to refuse one."""
    xp = array_namespace(found.missing)
    rows = found.missing.shape[0]
    unsure, missing = host_integers(*(xp.sum(xp.astype(mask, xp.int64)) for mask in (found.unsure, found.missing)))
    if unsure or (missing and selection.strict):
        return None
    time = count(rows, found.missing) if found.time is None else found.time
    columns = {USER: found.user, ITEM: found.item, TIME: time}
    below = 0
    chosen = None
    if missing or found.rating is not None:
        keep = ~found.missing
        if found.rating is not None:
            keep = keep & (found.rating >= selection.min_rating)
        chosen = xp.nonzero(keep)[0]
        below = rows - missing - chosen.shape[0]
    return _keyed(columns, chosen, ReadCounts(rows, missing, below, 0, rows), selection, device)


def _moved(table: pa.Table, piece: Piece, rows_before: int, selection: Selection, device: FrameDevice) -> KeptRows:
    """The rows to keep of a table that the CPU has read."""
    kept, missing, below = select(table, piece, rows_before, selection)
    frame = device.from_arrow(kept)
    columns = {
        name: frame[name].values if pa.types.is_integer(kept.schema.field(name).type) else frame[name]
        for name in (USER, ITEM, TIME)
    }
    return _keyed(columns, None, ReadCounts(table.num_rows, missing, below, 0, 0), selection, device)


def _keyed(
    columns: dict[str, Any], chosen: Array | None, counts: ReadCounts, selection: Selection, device: FrameDevice
) -> KeptRows:
    """Args: chosen: positions of the rows to keep; None: all."""
    arrays, texts = {}, {}
    for name, values in columns.items():
        if hasattr(values, "str"):  # a column of texts
            frame = device.frames.DataFrame({KEY: text_keys_on_gpu(values, device), TEXT: values})
            frame = frame if chosen is None else frame.take(chosen)
            arrays[name], texts[name] = frame[KEY].values, frame.drop_duplicates(ignore_index=True)
        else:
            arrays[name] = values if chosen is None else array_namespace(values).take(values, chosen)
    if selection.known is not None:
        xp = array_namespace(arrays[TIME])
        frame = device.from_columns(arrays)
        numbers = [selection.known[name].numbers(frame[name]) for name in (USER, ITEM)]
        known = xp.nonzero((numbers[0] >= 0) & (numbers[1] >= 0))[0]  # host sync: once per piece
        counts = counts.with_unknown(arrays[TIME].shape[0] - known.shape[0])
        arrays = {name: xp.take(values, known) for name, values in arrays.items()}
    if selection.order == BY_DRAW:
        arrays[TIME] = drawn_times(arrays[USER], arrays[ITEM], selection.seed)
    return KeptRows(arrays, texts, counts)
