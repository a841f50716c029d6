"""Side features of users from a single table, for a prepared folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import feather

from preprocessing.sources.movielens import sample_file
from preprocessing.spec.feature_spec import Feature
from preprocessing.spec.values import Kind
from preprocessing.transcode.feature_workflow import FeatureWorkflow, Part, part_schema
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice

CATEGORICAL, NUMERIC = "categorical_user_inputs", "numeric_user_inputs"


def ml_100k_users() -> pa.Table:
    """`id`, `user_gender` (text) and `user_age` (number) of MovieLens-100K's users.

    Raises:
        UserError: the sample's package is not installed.
    """
    users = pq.read_table(sample_file("MovieLens100k_users.parquet.brotli"), columns=["user_id", "gender", "age"])
    return users.rename_columns(["id", "user_gender", "user_age"])


class UserFeatures:
    """User features by encoded id: text as categories, numbers scaled to mean 0 and standard deviation 1.

    Attributes:
        columns: int32 or float32 [n_users] per feature.
        channels, features: their entries in the feature spec.
    """

    def __init__(self, table: pa.Table, users: pa.Array, device: FrameDevice, folder: Path, scratch: Path) -> None:
        """
        Args:
            table: `id` and the features; text or numbers.
            users: original ids, in encoded order.
            folder: receives the workflow's state: categories and means.

        Raises:
            UserError: a user is missing from the table, or lacks a value.
        """
        rows = pc.index_in(users, value_set=table.column("id").combine_chunks().cast(users.type))
        table = table.drop_columns("id").take(rows)
        lacking = [name for name in table.column_names if table.column(name).null_count]
        if lacking:
            raise UserError(f"the table of user features lacks {', '.join(lacking)} for some users of the log")
        kinds: dict[str, Kind] = {
            field.name: "number" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else "text"
            for field in table.schema
        }
        part = Part(scratch / "user-features.feather", table.num_rows)
        feather.write_feather(table.cast(part_schema(kinds)), part.path, compression="uncompressed")
        bounds = {name: pc.min_max(table.column(name)) for name, kind in kinds.items() if kind == "number"}
        ranges = {name: (float(found["min"].as_py()), float(found["max"].as_py())) for name, found in bounds.items()}
        workflow = FeatureWorkflow(kinds, ranges, device)
        workflow.fit([part], [part])
        workflow.save(folder)
        (encoded,) = workflow.transform([part])
        arrow = device.to_arrow(encoded.compute(scheduler="synchronous"))
        self.columns: dict[str, np.ndarray] = {name: arrow.column(name).to_numpy() for name in kinds}
        sizes = {name: len(values) for name, values in workflow.encoder.categories.items()}
        self.features = {
            name: Feature(dtype="int32", cardinality=sizes[name]) if name in sizes else Feature(dtype="float32")
            for name in kinds
        }
        by_channel = {CATEGORICAL: "text", NUMERIC: "number"}
        self.channels = {
            channel: [name for name in kinds if kinds[name] == kind] for channel, kind in by_channel.items()
        }
