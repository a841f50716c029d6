"""A fitted workflow on disk, as JSON and Parquet: Merlin's `Workflow.save` writes a pickle, and we never load one.

In a prepared folder, `categories/<column>.parquet` holds the encoding (`id`, `original`),
`workflow/workflow.json` the operators and their parameters, and `workflow/items.parquet` the item statistics, if
negative sampling needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workflows.common.documents import load_json
from workflows.common.errors import UserError, bounded
from workflows.common.files import write_json
from workflows.merlin import Workflow
from workflows.operators.encode import EncodeIds
from workflows.operators.item_statistics import ItemStatistics
from workflows.operators.leave_one_out import LeaveOneOut
from workflows.sampling.config import KINDS, Sampling

_FORMAT = 2
_PARAMETERS = ("user", "item", "time", "test_negatives", "train_negatives")


def leave_one_out_workflow(encoder: EncodeIds, split: LeaveOneOut) -> Workflow:
    """log → encoded ids (→ item statistics, if negative sampling needs them) → train and test rows.

    Args:
        encoder: must keep the time column.
    """
    log = [split.user, split.item, split.time] >> encoder
    if split.statistics is not None:
        log = log >> split.statistics
    return Workflow(log >> split)


def save_workflow(folder: Path, originals: Mapping[str, Any], split: LeaveOneOut) -> None:
    """Write the state of a fitted leave-one-out workflow into a prepared folder.

    Args:
        originals: original ids of each encoded column, in encoded order (Arrow or pandas).
    """
    (folder / "workflow").mkdir()
    for name, ids in originals.items():
        write_categories(folder, name, ids)
    content = {
        "format": _FORMAT,
        "encoded": list(originals),
        "leave_one_out": {name: getattr(split, name) for name in _PARAMETERS},
        "sampling": asdict(split.sampling),
    }
    if split.statistics is not None:
        items = pa.table({"count": split.statistics.counts, "since": split.statistics.since})
        pq.write_table(items, folder / "workflow" / "items.parquet")
    write_json(folder / "workflow" / "workflow.json", content)


def load_workflow(folder: Path) -> tuple[Workflow, EncodeIds, LeaveOneOut]:
    """Rebuild the fitted workflow of a prepared folder.

    Raises:
        UserError: the folder has no saved workflow, or one in another format.
    """
    path = folder / "workflow" / "workflow.json"
    try:
        content = load_json(path, "a saved workflow of this program", "prepare the folder again")
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, expected {_FORMAT}")
        parameters = {name: content["leave_one_out"][name] for name in _PARAMETERS}
        _check_parameters(parameters, content["sampling"])
        originals = {name: read_categories(folder, name) for name in content["encoded"]}
        encoder = EncodeIds(originals, keep=[parameters["time"]])
        sampling = Sampling(**content["sampling"])
        statistics = None
        if sampling.needs_statistics:
            statistics = ItemStatistics(encoder, parameters["item"], parameters["time"])
            statistics.fit_finalize(_read_statistics(folder, len(encoder.categories[parameters["item"]])))
            statistics.fitted = True
        split = LeaveOneOut(encoder, **parameters, sampling=sampling, statistics=statistics)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as err:
        raise UserError(
            f"{path} is not a saved workflow of this program ({bounded(repr(err), 200)}); prepare the folder again"
        ) from None
    return leave_one_out_workflow(encoder, split), encoder, split


def _check_parameters(parameters: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError for values that the program does not write."""
    numbers = [parameters["test_negatives"], parameters["train_negatives"], sampling["seed"]]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("numbers of negatives and the seed should be whole numbers, 0 or more")
    if not all(isinstance(parameters[name], str) for name in ("user", "item", "time")):
        raise ValueError("columns should be names")
    if sampling["kind"] not in KINDS or type(sampling["time_aware"]) is not bool:
        raise ValueError("another kind of sampling")
    if not isinstance(sampling["exponent"], int | float):
        raise ValueError("the exponent should be a number")


def _read_statistics(folder: Path, n_items: int) -> tuple[np.ndarray, ...]:
    """(interaction count, earliest time) of each item; raises ValueError if the table is malformed."""
    items = pq.read_table(folder / "workflow" / "items.parquet", columns=["count", "since"])
    if items.schema.types != [pa.int64()] * 2 or items.num_rows != n_items:
        raise ValueError(
            f"items.parquet: expected {n_items} rows of int64, got {items.num_rows} of {items.schema.types}"
        )
    counts, since = (column.to_numpy() for column in items.columns if not column.null_count)
    if (counts < 0).any():
        raise ValueError("items.parquet: a negative count")
    return counts, since


def write_categories(folder: Path, column: str, originals: Any) -> None:
    """Write the mapping from encoded to original ids of a column; `originals` are in encoded order."""
    (folder / "categories").mkdir(exist_ok=True)
    table = pa.table({"id": np.arange(len(originals), dtype=np.int32), "original": pa.array(originals)})
    pq.write_table(table, folder / "categories" / f"{column}.parquet")


def read_categories(folder: Path, column: str) -> pd.Series:
    """The original ids of a column, in encoded order.

    Raises:
        UserError: the prepared folder has no such table, or its ids are not 0 .. n-1.
    """
    path = folder / "categories" / f"{Path(column).name}.parquet"
    if not path.is_file():
        raise UserError(f"{folder} is no folder prepared from a log: it has no {path.relative_to(folder)}")
    try:
        table = pq.read_table(path, columns=["id", "original"])
        originals = table.column("original")
        if pa.types.is_dictionary(originals.type):
            originals = originals.cast(originals.type.value_type)
        originals.validate(full=True)  # of text: UTF-8
    except (OSError, pa.ArrowException, ValueError) as err:
        reason = bounded(str(err), 200)
        raise UserError(f"{path}: not a readable table of ids ({reason}); prepare the folder again") from None
    if not np.array_equal(table.column("id").to_numpy(), np.arange(table.num_rows)):
        raise UserError(f"{path}: column 'id' should count 0 .. {table.num_rows - 1}; prepare the folder again")
    kind, nulls = originals.type, originals.null_count
    if nulls or not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"{path}: column 'original' should hold integers or text, none missing; got {bounded(str(kind))} with "
            f"{nulls:,} missing; prepare the folder again"
        )
    return originals.to_pandas()
