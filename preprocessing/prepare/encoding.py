"""Mapping of original ids to encoded ids: built from the log, or reused from an earlier prepared folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.prepare.resident import PartitionedLog
from preprocessing.prepare.row_filter import ITEM, TIME, USER
from preprocessing.prepare.text_ids import text_keys
from preprocessing.sources.fields import MISSING_WORDS
from workflows.cluster import Cluster
from workflows.common.errors import UserError
from workflows.merlin import Workflow
from workflows.operators.encode import EncodeIds, IdTable
from workflows.operators.saved import read_categories


@dataclass(frozen=True)
class Encoding:
    """The original ids of users and items, in encoded order.

    Attributes:
        originals: Arrow integers or text of `user` and `item`.
        added: number of ids per column that were appended to the encoding this one extends.
        extend: whether new ids may be added.
    """

    originals: Mapping[str, pa.Array]
    added: Mapping[str, int]
    extend: bool = False

    @property
    def text(self) -> frozenset[str]:
        """The columns whose ids are text."""
        return frozenset(name for name, ids in self.originals.items() if _is_text(ids))

    @staticmethod
    def of_folder(folder: Path, extend: bool) -> Encoding:
        """The encoding of a prepared folder.

        Raises:
            UserError: the folder has none.
        """
        originals = {name: pa.array(read_categories(folder, name)) for name in (USER, ITEM)}
        originals = {name: ids.cast(pa.large_string()) if _is_text(ids) else ids for name, ids in originals.items()}
        return Encoding(originals, {USER: 0, ITEM: 0}, extend)


def _is_text(ids: pa.Array) -> bool:
    return not pa.types.is_integer(ids.type)


def _keys(ids: pa.Array) -> pd.Series:
    """The integer that represents each id in the spill files."""
    return pd.Series(text_keys(ids) if _is_text(ids) else ids.to_numpy())


def known_tables(known: Encoding, scratch: Path) -> dict[str, IdTable]:
    """The lookup table of each column, stored for all workers."""
    return {name: IdTable(_keys(ids)).store(scratch / f"known-{name}.npy") for name, ids in known.originals.items()}


def find_encoding(
    stored: PartitionedLog, dataset: Any, cluster: Cluster, known: Encoding | None
) -> tuple[Encoding, EncodeIds]:
    """The encoding of the log, and the operator that applies it to its partitions."""
    if known is None:
        encoding = _found(stored, dataset, cluster)
    else:
        encoding = _extended(known, _found(stored, dataset, cluster)) if known.extend else known
    encoder = EncodeIds({name: _keys(ids) for name, ids in encoding.originals.items()}, keep=[TIME])
    encoder.tables = {name: table.store(stored.folder / f"{name}.npy") for name, table in encoder.tables.items()}
    return encoding, encoder


def _found(stored: PartitionedLog, dataset: Any, cluster: Cluster) -> Encoding:
    """All ids of the log, sorted: text by code point, integers by value."""
    originals = {name: stored.distinct(name, cluster) for name in (USER, ITEM)}
    far_apart = [name for name, ids in originals.items() if ids is None]
    if far_apart:
        encoder = EncodeIds()
        Workflow(far_apart >> encoder).fit(dataset)
        originals |= {name: pa.array(ids) for name, ids in encoder.categories.items()}
    return Encoding(originals, {USER: 0, ITEM: 0})


def check_kinds(known: Encoding, stored: PartitionedLog) -> None:
    """Raises UserError if the log has text ids and the known encoding integers, or vice versa."""
    for name in known.originals:
        text = name in stored.text
        if text != (name in known.text):
            kinds = ("text", "integers") if text else ("integers", "text")
            raise UserError(
                f"the log's {name} ids are {kinds[0]}, and those of --workflow are {kinds[1]}; convert them"
            )


def missing_words(encoding: Encoding, known: Encoding | None) -> dict[str, list[str]]:
    """New text ids that may stand for a missing value, by column."""
    found = {}
    for name in (name for name in encoding.originals if name in encoding.text):
        new = encoding.originals[name].slice(0 if known is None else len(known.originals[name]))
        words = new.filter(pc.is_in(new, value_set=pa.array(MISSING_WORDS, new.type)))
        found[name] = words.to_pylist()
    return found


def _extended(known: Encoding, found: Encoding) -> Encoding:
    """The known encoding with the new ids appended."""
    originals, added = {}, {}
    for name, old in known.originals.items():
        new = found.originals[name]
        if new.type != old.type:  # int32 and int64
            old, new = old.cast(pa.int64()), new.cast(pa.int64())
        new = new.filter(pc.invert(pc.is_in(new, value_set=old)))
        originals[name] = pa.concat_arrays([old, new])
        added[name] = len(new)
    return Encoding(originals, added)
