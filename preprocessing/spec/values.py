"""Read the values of a mapping according to the kind of each feature, and report unusable ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.sources.parquet_types import value_type
from preprocessing.spec.consistency import LABELS, NUMBERS, id_range, is_numeric
from preprocessing.spec.feature_spec import MAX_IDS, FeatureSpec
from preprocessing.spec.reader import iter_mapping, text_features

Kind = Literal["id", "text", "number", "label"]


@dataclass(frozen=True)
class Wrong:
    """Unusable values of one feature in one block of rows.

    Attributes:
        feature: name of the feature.
        expected: description of a valid value.
        rows: number of affected rows.
        first: the first such row, counted from 0 in the mapping.
        value: the value in that row.
    """

    feature: str
    expected: str
    rows: int
    first: int
    value: str


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a mapping.

    Attributes:
        start: index of the first row in the mapping.
        rows: number of rows.
        columns: int64 ids, float64 numbers, float32 labels, Arrow strings; all of equal length. Invalid values are
            replaced by 0 (or null).
        wrong: the unusable values.
    """

    start: int
    rows: int
    columns: dict[str, np.ndarray | pa.ChunkedArray]
    wrong: list[Wrong]


def kinds_of(folder: Path, spec: FeatureSpec) -> dict[str, Kind]:
    """Kind of each feature in any channel, in channel order.

    Raises:
        UserError: a feature is text in one file and integers in another, or a file is not readable.
    """
    categorical = spec.categorical()
    text = text_features(folder, spec, categorical)
    used = dict.fromkeys(name for features in spec.channel_spec.values() for name in features)
    kinds: dict[str, Kind] = dict.fromkeys(used, "number")
    kinds |= {name: "text" if name in text else "id" for name in used if name in categorical}
    return kinds | dict.fromkeys(spec.channel_spec.get("label_ch", []), "label")


def iter_values(
    folder: Path,
    spec: FeatureSpec,
    mapping: str,
    kinds: Mapping[str, Kind],
    rows: int,
    cardinalities: Mapping[str, int] | None = None,
) -> Iterator[Block]:
    """Stream the features in `kinds` of a mapping in blocks of `rows` rows.

    Args:
        cardinalities: exclusive upper bounds of ids; 2^31 - 1 for features not listed.

    Raises:
        UserError: as `iter_mapping`.
    """
    start = 0
    for table in iter_mapping(folder, spec, mapping, list(kinds), rows, text_of(kinds)):
        columns, wrong = {}, []
        for name, kind in kinds.items():
            bound = (cardinalities or {}).get(name, MAX_IDS)
            columns[name], masks = _read(table.column(name), kind, bound)
            for expected, mask in masks.items():
                if mask.any():
                    first = int(mask.argmax())
                    value = table.column(name)[first].as_py()
                    wrong.append(Wrong(name, expected, int(mask.sum()), start + first, _shown(value)))
        yield Block(start, table.num_rows, columns, wrong)
        start += table.num_rows


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)[:60]


def text_of(kinds: Mapping[str, Kind]) -> set[str]:
    """The text features."""
    return {name for name, kind in kinds.items() if kind == "text"}


_Masks = dict[str, np.ndarray]  # expected value → mask of violations, bool [N]


def _read(column: pa.ChunkedArray, kind: Kind, cardinality: int) -> tuple[np.ndarray | pa.ChunkedArray, _Masks]:
    column = column.cast(value_type(column.type))
    if kind == "text":
        return column.cast(pa.large_string()), {"a value": column.is_null().to_numpy()}
    if not is_numeric(column.type):
        expected = "a whole number" if kind == "id" else "a number"
        return np.zeros(len(column)), {f"{expected}, not {column.type}": np.ones(len(column), dtype=bool)}
    if kind == "id" and pa.types.is_integer(column.type):
        return _whole_numbers(column, cardinality)
    numbers = column.cast(pa.float32() if kind == "label" else pa.float64(), safe=False).to_numpy()
    empty = np.isnan(numbers)  # nulls are NaN here
    masks = {"a value": empty}
    valid = id_range(cardinality) if kind == "id" else LABELS if kind == "label" else NUMBERS
    outside = ~(empty | valid.contains(numbers))
    if kind == "id":
        whole = numbers == np.floor(numbers)
        masks["a whole number"] = ~(whole | empty)
        outside &= whole
    masks[valid.expected] = outside
    wrong = np.logical_or.reduce(list(masks.values()))
    numbers = np.where(wrong, 0.0, numbers)
    return numbers.astype(np.int64) if kind == "id" else numbers, masks


def _whole_numbers(column: pa.ChunkedArray, cardinality: int) -> tuple[np.ndarray, _Masks]:
    empty = column.is_null().to_numpy()
    ids = pc.fill_null(column, 0).to_numpy()
    valid = id_range(cardinality)
    outside = ~valid.contains(ids)
    return np.where(outside, 0, ids).astype(np.int64), {"a value": empty, valid.expected: outside}
