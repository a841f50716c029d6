"""A fitted workflow on disk, as JSON and Parquet: Merlin's own `Workflow.save` writes a pickle, and we load none.

In a prepared folder, `categories/<column>.parquet` holds the encoding (`id`, `original`) and
`workflow/workflow.json` the operators and their parameters.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workflows.errors import UserError
from workflows.folders import write_json
from workflows.merlin import Workflow
from workflows.operators import EncodeIds, LeaveOneOut

_FORMAT = 1
_PARAMETERS = ("user", "item", "time", "test_negatives", "train_negatives", "seed")


def leave_one_out_workflow(encoder: EncodeIds, split: LeaveOneOut) -> Workflow:
    """log → encoded ids → train and test rows."""
    encoded = [split.user, split.item] >> encoder
    return Workflow((encoded + [split.time]) >> split)  # noqa: RUF005 - a graph, not a list


def save_workflow(folder: Path, encoder: EncodeIds, split: LeaveOneOut) -> None:
    """Write the state of a fitted leave-one-out workflow into a prepared folder."""
    (folder / "categories").mkdir()
    (folder / "workflow").mkdir()
    for name, ids in encoder.categories.items():
        table = pa.table({"id": np.arange(len(ids), dtype=np.int32), "original": pa.array(ids)})
        pq.write_table(table, folder / "categories" / f"{name}.parquet")
    operators = [
        {"operator": "EncodeIds", "columns": list(encoder.categories)},
        {"operator": "LeaveOneOut", **{name: getattr(split, name) for name in _PARAMETERS}},
    ]
    write_json(folder / "workflow" / "workflow.json", {"format": _FORMAT, "operators": operators})


def load_workflow(folder: Path) -> tuple[Workflow, EncodeIds, LeaveOneOut]:
    """Rebuild the workflow of a prepared folder, fitted.

    Raises:
        UserError: the folder has no such state, or of another format.
    """
    path = folder / "workflow" / "workflow.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        encode, split = content["operators"]
        if content["format"] != _FORMAT or (encode["operator"], split["operator"]) != ("EncodeIds", "LeaveOneOut"):
            raise ValueError(f"format {content['format']}, expected {_FORMAT}")
        encoder = EncodeIds({name: read_categories(folder, name) for name in encode["columns"]})
        operator = LeaveOneOut(encoder, **{name: split[name] for name in _PARAMETERS})
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise UserError(f"{path} is no saved workflow of this program ({err!r}); prepare the folder again") from None
    return leave_one_out_workflow(encoder, operator), encoder, operator


def read_categories(folder: Path, column: str) -> pd.Series:
    """The original ids of a column in the order of their encoded ids.

    Raises:
        UserError: the prepared folder holds no such table, or its ids are not 0 .. n-1.
    """
    path = folder / "categories" / f"{Path(column).name}.parquet"
    try:
        table = pq.read_table(path, columns=["id", "original"])
    except (OSError, pa.ArrowException) as err:
        raise UserError(f"{path}: not a readable table of ids ({err}); prepare the folder again") from None
    if not np.array_equal(table.column("id").to_numpy(), np.arange(table.num_rows)):
        raise UserError(f"{path}: column 'id' should count 0 .. {table.num_rows - 1}; prepare the folder again")
    return table.column("original").to_pandas()
