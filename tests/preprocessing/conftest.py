"""Shared fixtures for the preprocessing tests: fresh folders, in-process commands, and their output read back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from preprocessing.__main__ import main
from preprocessing.sources.log import Log
from preprocessing.spec.feature_spec import read_feature_spec


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new empty folder on each call, so that examples of a hypothesis test do not interfere."""
    root = tmp_path_factory.mktemp("fresh")
    numbers = itertools.count()

    def folder() -> Path:
        path = root / str(next(numbers))
        path.mkdir()
        return path

    return folder


@pytest.fixture(scope="session")
def prepare_log(fresh: Callable[[], Path]) -> Callable[..., Path]:
    """Run `python -m preprocessing --input PATH --output …` in this process; returns the prepared folder."""

    def run(path: Path, *flags: str) -> Path:
        output = fresh() / "prepared"
        main(["--input", str(path), "--output", str(output), "--device", "cpu", *flags])
        return output

    return run


@pytest.fixture(scope="session")
def mapping_files() -> Callable[[Path, str], list[pd.DataFrame]]:
    """Read the files of a prepared folder's mapping, one dataframe each, in spec order."""

    def read(folder: Path, mapping: str) -> list[pd.DataFrame]:
        chunks = read_feature_spec(folder).source_spec.get(mapping, [])
        return [pd.read_parquet(folder / name) for chunk in chunks for name in chunk.files]

    return read


@pytest.fixture(scope="session")
def folder_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Read every file below a folder: relative path → content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read


@pytest.fixture(scope="session")
def log_rows() -> Callable[[Log], pd.DataFrame]:
    """Read the rows of a log in piece order, with None for missing values."""

    def read(log: Log) -> pd.DataFrame:
        tables = [piece.read().select(log.columns.names) for piece in log.pieces]
        values = pa.concat_tables(tables).to_pydict()
        return pd.DataFrame(values, columns=log.columns.names, dtype=object)

    return read


@pytest.fixture(scope="session")
def write_lines(fresh: Callable[[], Path]) -> Callable[..., Path]:
    """Write lines of text to a new file called `name`."""

    def write(name: str, lines: Sequence[str], newline: str = "\n", encoding: str = "utf-8") -> Path:
        path = fresh() / name
        path.write_bytes("".join(line + newline for line in lines).encode(encoding))
        return path

    return write
