"""The test rows of a folder, evaluated as series of one positive each, or row by row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.data.dataset import Rows, open_mapping
from preprocessing.spec.consistency import find_series, lacks_features
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import FeatureSpec
from workflows.common.errors import UserError


@dataclass(frozen=True)
class TestSet:
    """Test rows.

    Attributes:
        rows: user, item, the folder's label column if it has one and no length is declared, and its side features.
        length: rows per series, positive first; None if the rows do not form series.
        note: remark on this for the user; may be empty.
    """

    rows: Rows
    length: int | None
    note: str = ""


def open_test_set(
    folder: Path,
    spec: FeatureSpec,
    device: torch.device,
    columns: FeatureColumns | None = None,
    positives_alone: bool = False,
) -> TestSet | None:
    """The test rows; None if there is nothing to rank: no test mapping, or series with only the positive.

    `preprocessing.spec.consistency.find_series` decides which rows form series.

    Args:
        columns: roles of the features; None to take them from the spec alone.
        positives_alone: accept series with only the positive, because ranking is against all items.

    Raises:
        UserError: a file is missing or does not match the spec; the rows or their labels contradict the declared
            length; or there are neither series nor labels.
    """
    declared = spec.metadata.test_samples_per_series
    if not spec.source_spec.get("test") or (declared == 1 and not positives_alone):
        return None
    columns = columns or FeatureColumns.from_spec(spec)
    present = spec.features("test")
    row_features = (columns.user, columns.item, *(feature.name for feature in columns.row_side))
    lacking = lacks_features(row_features, present)
    if lacking:
        raise UserError(f"{folder}: source_spec.test {lacking}")
    # Item features can come from train.
    item_features = [f.name for f in (*columns.item_side, *columns.either_side) if f.name in present]
    label = columns.label if columns.label in present else None
    names = (*row_features, *([label] if label else []), *item_features)
    rows = open_mapping(folder, spec, "test", columns, names, device)
    series = find_series(rows.on_host, declared, columns.user, label)
    if series.error:
        raise UserError(f"{folder}: {series.error}")
    used = names if declared is None else (*row_features, *item_features)
    return TestSet(rows.only(used), series.length, series.note)
