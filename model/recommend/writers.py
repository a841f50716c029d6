"""Recommendations as Parquet, CSV or JSON files, streamed and written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from model.recommend.recommendations import Ranking, Recommendations
from workflows.common.staging import staged_file

Titles = Mapping[str, str] | None

_ROW_WRITERS: dict[str, Any] = {".parquet": pq.ParquetWriter, ".csv": pyarrow.csv.CSVWriter}
SUFFIXES = (*_ROW_WRITERS, ".json")


def write_recommendations(path: Path, parts: Iterable[Recommendations], titles: Titles, overwrite: bool) -> None:
    """Write recommendations in the format given by the suffix of `path`.

    Parquet and CSV have one row per recommendation: user, rank, item, score, basis, and title if titles are given.
    JSON is a list with one object per user: user, basis, and items, each with item, score and title.

    Args:
        path: ends in one of `SUFFIXES`.
        parts: at least one.
        titles: titles by original item id, as text.

    Raises:
        UserError: the file exists and is not to be replaced.
    """
    with staged_file(path, overwrite) as partial:
        if path.suffix == ".json":
            _write_json(partial, parts, titles)
        else:
            _write_rows(partial, parts, titles, _ROW_WRITERS[path.suffix])


def _write_rows(path: Path, parts: Iterable[Recommendations], titles: Titles, writer_class: Any) -> None:
    tables = (_with_titles(part.to_table(), titles) for part in parts)
    first = next(tables)
    with writer_class(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _with_titles(table: pa.Table, titles: Titles) -> pa.Table:
    if titles is None:
        return table
    found = [titles.get(str(item)) for item in table.column("item").to_pylist()]
    return table.append_column("title", pa.array(found, pa.string()))


def _write_json(path: Path, parts: Iterable[Recommendations], titles: Titles) -> None:
    with path.open("w", encoding="utf-8") as file:
        separator = "["
        for ranking in (ranking for part in parts for ranking in part):
            file.write(f"{separator}\n{json.dumps(_object(ranking, titles), ensure_ascii=False, allow_nan=False)}")
            separator = ","
        file.write("\n]\n")


def _object(ranking: Ranking, titles: Titles) -> dict[str, Any]:
    items = [
        {"item": item, "score": score, **({} if titles is None else {"title": titles.get(str(item))})}
        for item, score in zip(ranking.items, ranking.scores, strict=True)
    ]
    return {"user": ranking.user, "basis": ranking.basis, "items": items}
