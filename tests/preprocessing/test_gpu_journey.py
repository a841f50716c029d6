"""`python -m preprocessing --device cuda` on the stand-ins for CuPy and cuDF, against `--device cpu`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cudf_stand_in import journey
from gpu_stand_in import count_calls

from preprocessing.__main__ import main
from preprocessing.prepare import gpu_rows, pipeline, resident
from workflows.common.errors import UserError
from workflows.operators import LeaveOneOut

# Where data may leave the GPU, and why. Any other copy fails. Most are counts or ranges.
COPIES = {
    "gpu_rows._kept": "whether the GPU can vouch for a piece, and rows without a value: 16 bytes a piece",
    "resident.read_resident": "where the partitions begin: 8 bytes a partition",
    "kernels.value_ranges": "how many bits sort keys need: 16 bytes a column, of the log and of each partition",
    "kernels.histories": "numbers of pairs and users: 16 bytes a partition",
    "kernels.split_rows": "number of train rows with their negatives: 8 bytes a partition",
    "writer._from_gpu": "counts for stats.json and the report: 8 bytes a user and an item, a partition",
    "item_statistics._item_statistics": "count and first time of each item, if negatives need them: 16 bytes an item",
    "partition._spill_rows": "the rows themselves, where they do not fit in the GPU's memory",
    "resident.distinct": "the distinct ids, for categories/, and whether two texts have one key: 8 bytes",
    "writer.write": "the files of train/ and test/",
}
RESIDENT = set(COPIES) - {"partition._spill_rows"}


def test_there_are_at_most_ten_places_that_copy_to_the_host() -> None:
    assert len(COPIES) <= 10


RNG = np.random.default_rng(5)


def made_log(rows: int = 600) -> pd.DataFrame:
    """Ties, repeated pairs, users with one interaction, and a user with all items."""
    log = pd.DataFrame({name: RNG.integers(0, high, rows) for name, high in (("user", 30), ("item", 40), ("time", 50))})
    log["rating"] = RNG.integers(1, 6, rows) / 2
    alone = pd.DataFrame({"user": [50, 51, 52], "item": [3, 3, 4], "time": [5, 5, 5], "rating": [5.0, 4.0, 3.0]})
    everything = pd.DataFrame({"user": 53, "item": range(40), "time": 7, "rating": 5.0})
    return pd.concat([log, log.iloc[:50], alone, everything], ignore_index=True)


def texts(ids: pd.Series) -> pd.Series:
    """Text ids with blanks around and inside, beyond ASCII, of different lengths."""
    spelled = [f"{chr(0x1F600 - 97 * number)} {number}" + "ü" * (number % 12) for number in range(60)]
    return ids.map(lambda number: f"  {spelled[number]}\u2003" if number % 3 else spelled[number])


def with_gaps(log: pd.DataFrame) -> pd.DataFrame:
    log = log.astype(object)
    for place, name in enumerate(["user", "item", "time"]):
        log.loc[place * 7 :: 41, name] = ["", "NULL", "nan"][place]
    return log


def csv(log: pd.DataFrame, folder: Path, **options: Any) -> list[Path]:
    path = folder / "log.csv"
    log.to_csv(path, index=False, **options)
    return [path]


def parquet(log: pd.DataFrame, folder: Path, **types: str) -> list[Path]:
    path = folder / "log.parquet"
    pq.write_table(pa.Table.from_pandas(log.astype(types), preserve_index=False), path, row_group_size=100)
    return [path]


def several_files(log: pd.DataFrame, folder: Path) -> list[Path]:
    paths = []
    for number in range(3):
        (folder / str(number)).mkdir()
        paths += csv(log.iloc[number::3], folder / str(number))
    return paths


def times(log: pd.DataFrame, form: str) -> pd.DataFrame:
    return log.assign(time=pd.to_datetime(log["time"] * 40_000_123, unit="us", origin="1969-12-31").dt.strftime(form))


ORDERS = {"no times": "file", "drawn order": "random"}
LOGS: dict[str, Callable[[Path], list[Path]]] = {
    "csv": lambda folder: csv(made_log(), folder),
    "gaps": lambda folder: csv(with_gaps(made_log()), folder),
    "tsv": lambda folder: csv(made_log(), folder, sep="\t", lineterminator="\r\n"),
    "several files": lambda folder: several_files(made_log(), folder),
    "texts": lambda folder: csv(
        with_gaps(made_log().assign(user=lambda log: texts(log["user"]), item=lambda log: texts(log["item"]))), folder
    ),
    "far apart": lambda folder: csv(made_log().assign(user=lambda log: (log["user"] - 20) * 10**16), folder),
    "float times": lambda folder: csv(made_log().assign(time=lambda log: (log["time"] - 20) / 8), folder),
    "dates": lambda folder: csv(times(made_log(), "%Y-%m-%d"), folder),
    "dates and times": lambda folder: csv(times(made_log(), "%Y-%m-%dT%H:%M:%S.%fZ"), folder),
    "parquet": lambda folder: parquet(made_log(), folder, user="int32", rating="float32"),
    "parquet gaps": lambda folder: parquet(
        made_log().mask(RNG.random((693, 4)) < 0.1).assign(rating=4.0), folder, user="Int64", item="Int16", time="Int64"
    ),
    "parquet texts": lambda folder: parquet(made_log().assign(item=lambda log: texts(log["item"])), folder),
    "no times": lambda folder: several_files(with_gaps(made_log()), folder),
    "drawn order": lambda folder: parquet(made_log().assign(item=lambda log: texts(log["item"])), folder),
    "parquet dates": lambda folder: parquet(
        made_log().assign(time=lambda log: pd.to_datetime(log["time"], unit="D", utc=True)), folder
    ),
}


def prepared(paths: list[Path], output: Path, device: str, *flags: str) -> Path:
    names = ["--user", "user", "--item", "item", "--rating", "rating"]
    names += [] if "--order" in flags else ["--time", "time"]
    source = ["--input", *map(str, paths), *names] if paths else ["--sample", "ml-100k"]
    main([*source, "--output", str(output), "--device", device, *flags])
    return output


def assert_equal(gpu: Path, cpu: Path, on_gpu: Callable[[int], bool] = bool) -> None:
    """Equal folders: names, values and types of all tables, the spec, and the stats but for where rows were read."""
    names = sorted(path.relative_to(cpu) for path in cpu.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(gpu) for path in gpu.rglob("*") if path.is_file())
    for name in names:
        if name.suffix == ".parquet":
            ours, theirs = pq.read_table(gpu / name), pq.read_table(cpu / name)
            assert ours.schema.remove_metadata().equals(theirs.schema.remove_metadata()) or name.parts[0] in (
                "train", "test",
            )  # fmt: skip
            assert ours.schema.types == theirs.schema.types
            assert ours.to_pydict() == theirs.to_pydict(), name
        elif name.name == "stats.json":
            ours, theirs = (json.loads((folder / name).read_text()) for folder in (gpu, cpu))
            assert theirs.pop("rows_read_on_gpu") == 0
            assert on_gpu(ours.pop("rows_read_on_gpu"))
            assert ours == theirs
        else:
            ours, theirs = (re.sub(r".*rows read on gpu.*", "", (folder / name).read_text()) for folder in (gpu, cpu))
            assert ours == theirs, name
    parts = sorted((gpu / "train").iterdir())
    assert parts
    for part in parts:
        groups = pq.read_metadata(part)
        for group in range(groups.num_row_groups):
            assert groups.row_group(group).column(0).statistics.has_min_max  # by which training splits a file


@pytest.mark.parametrize("kind", LOGS)
def test_the_prepared_folder_equals_the_cpus(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = LOGS[kind](tmp_path)
    flags = ["--partitions", "3", "--test-negatives", "4"]
    if kind in ("gaps", "parquet", "float times"):
        flags += ["--min-rating", "1.5", "--train-negatives", "2"]
    if kind in ORDERS:
        flags += ["--order", ORDERS[kind]]
    cpu = prepared(paths, tmp_path / "cpu", "cpu", *flags)
    copied = journey(monkeypatch, RESIDENT)
    gpu = prepared(paths, tmp_path / "gpu", "cuda", *flags)
    rows = json.loads((cpu / "stats.json").read_text())["rows_read"]
    assert_equal(gpu, cpu, lambda number: number == rows)
    assert copied["writer.write"] > 0


def test_ml_100k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = prepared([], tmp_path / "cpu", "cpu", "--partitions", "2")
    copied = journey(monkeypatch, RESIDENT)
    assert_equal(prepared([], tmp_path / "gpu", "cuda", "--partitions", "2"), cpu, lambda rows: rows == 100_000)
    files = copied.pop("writer.write")
    counts = copied.pop("writer._from_gpu")
    assert files > 10 * 100_000
    assert counts < 2 * 8 * (943 + 1682) + 100
    assert copied.total() < 8 * (943 + 1682) + 1000


# --- Memory -----------------------------------------------------------------------------------------------------

SPILLED = set(COPIES) - {name for name in COPIES if name.startswith("resident.")}
FLAGS = ("--partitions", "3", "--test-negatives", "4")


@pytest.mark.parametrize("kind", ["gaps", "texts", "far apart", "parquet", "no times"])
def test_a_log_larger_than_the_gpus_memory_is_spilled(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = LOGS[kind](tmp_path)
    flags = (*FLAGS, *(["--order", ORDERS[kind]] if kind in ORDERS else []))
    cpu = prepared(paths, tmp_path / "cpu", "cpu", *flags)
    # Ids that are far apart are collected partition by partition.
    copied = journey(monkeypatch, SPILLED | ({"encode.distinct"} if kind == "far apart" else set()), free_bytes=1000)
    assert_equal(prepared(paths, tmp_path / "gpu", "cuda", *flags), cpu)
    assert copied["partition._spill_rows"] > 0


def test_a_log_that_proves_too_large_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = LOGS["texts"](tmp_path)
    cpu = prepared(paths, tmp_path / "cpu", "cpu", *FLAGS)
    journey(monkeypatch, COPIES)
    monkeypatch.setattr(resident, "narrow", out_of_memory)
    assert_equal(prepared(paths, tmp_path / "gpu", "cuda", *FLAGS), cpu)
    assert "does not fit in the GPU's memory; reading it again" in " ".join(capsys.readouterr().out.split())


def out_of_memory(*_: Any) -> None:
    raise MemoryError("std::bad_alloc: out_of_memory")


def holds_rows(monkeypatch: pytest.MonkeyPatch, most: int) -> Counter[str]:
    """Splitting a partition of more rows fails; counts the attempts."""
    attempts: Counter[str] = Counter()
    transform = LeaveOneOut.transform

    def checked(self: LeaveOneOut, selector: Any, df: Any) -> Any:
        attempts["failed" if len(df) > most else "done"] += 1
        return out_of_memory() if len(df) > most else transform(self, selector, df)

    monkeypatch.setattr(LeaveOneOut, "transform", checked)
    return attempts


@pytest.mark.parametrize(("free_bytes", "most_rows"), [(1 << 40, 300), (1 << 17, 100)])
def test_partitions_that_prove_too_large_are_split_again(
    free_bytes: int, most_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = LOGS["gaps"](tmp_path)
    journey(monkeypatch, COPIES, free_bytes)
    attempts = holds_rows(monkeypatch, most_rows)
    gpu = prepared(paths, tmp_path / "gpu", "cuda", "--test-negatives", "4")
    assert attempts["failed"]
    assert "splitting again, into" in " ".join(capsys.readouterr().out.split())
    partitions = json.loads((gpu / "stats.json").read_text())["partitions"]
    monkeypatch.undo()
    cpu = prepared(paths, tmp_path / "cpu", "cpu", "--partitions", str(partitions), "--test-negatives", "4")
    assert_equal(gpu, cpu)


@pytest.mark.parametrize("flags", [("--partitions", "2"), ()])
def test_a_user_too_large_for_the_gpu_is_an_error(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = LOGS["csv"](tmp_path)
    journey(monkeypatch, COPIES)
    monkeypatch.setattr(pipeline, "MAX_PARTITIONS", 8)
    holds_rows(monkeypatch, 10)
    with pytest.raises(UserError, match=r"one of \d partitions does not fit in the GPU's memory; choose more with"):
        prepared(paths, tmp_path / "gpu", "cuda", *flags)
    assert not (tmp_path / "gpu").exists()


def test_a_piece_too_large_for_the_gpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = LOGS["csv"](tmp_path)
    journey(monkeypatch, COPIES)
    monkeypatch.setattr(gpu_rows, "read_on_gpu", out_of_memory)
    with pytest.raises(UserError, match="a piece of the log does not fit in the GPU's memory; run with --device cpu"):
        prepared(paths, tmp_path / "gpu", "cuda")


# --- What only the CPU's reader can tell -------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["x", "3 4", "12.5"])
def test_errors_are_the_cpus(spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = made_log().astype(object)
    log.loc[500, "item"] = spelling
    (path,) = csv(log, tmp_path)
    with pytest.raises(UserError) as on_cpu:
        prepared([path], tmp_path / "out", "cpu")
    journey(monkeypatch, COPIES)
    with pytest.raises(UserError, match="line 502") as on_gpu:
        prepared([path], tmp_path / "out", "cuda")
    assert str(on_gpu.value) == str(on_cpu.value)


def test_strict_mode_names_the_first_incomplete_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = LOGS["gaps"](tmp_path)
    journey(monkeypatch, COPIES)
    with pytest.raises(UserError, match=r"line 2: column 'user' is empty, and --strict"):
        prepared([path], tmp_path / "out", "cuda", "--strict")


def test_one_piece_read_on_the_cpu_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain, quoted, other) = several_files(made_log(), tmp_path)
    quoted.write_text(re.sub(r"^(\d+),", r'"\1",', quoted.read_text(), flags=re.MULTILINE))
    cpu = prepared([plain, quoted, other], tmp_path / "cpu", "cpu", *FLAGS)
    journey(monkeypatch, RESIDENT)
    gpu = prepared([plain, quoted, other], tmp_path / "gpu", "cuda", *FLAGS)
    rows = sum(len(pd.read_csv(path)) for path in (plain, other))
    assert_equal(gpu, cpu, lambda number: number == rows)


# --- Other options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "texts"])
@pytest.mark.parametrize("flags", [(), ("--extend",)])
def test_the_encoding_of_another_folder(
    kind: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = LOGS[kind](tmp_path)
    first = pd.read_csv(path, dtype=str, keep_default_na=False)
    known = prepared(csv(first.iloc[:90], fresh(tmp_path)), tmp_path / "known", "cpu")
    more = [*FLAGS, "--workflow", str(known), *flags]
    cpu = prepared([path], tmp_path / "cpu", "cpu", *more)
    journey(monkeypatch, RESIDENT)
    assert_equal(prepared([path], tmp_path / "gpu", "cuda", *more), cpu)


def fresh(folder: Path) -> Path:
    (folder / "known log").mkdir()
    return folder / "known log"


@pytest.mark.parametrize("flags", [("--negatives", "popularity", "--time-aware"), ("--negatives", "uniform")])
def test_other_kinds_of_negatives(flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = LOGS["parquet"](tmp_path)
    more = [*FLAGS, "--train-negatives", "2", *flags]
    cpu = prepared(paths, tmp_path / "cpu", "cpu", *more)
    journey(monkeypatch, RESIDENT)
    assert_equal(prepared(paths, tmp_path / "gpu", "cuda", *more), cpu)


def test_partitions_without_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = csv(pd.DataFrame({"user": [1, 1, 2], "item": [1, 2, 1], "time": 5, "rating": 1.0}), tmp_path)
    flags = ["--partitions", "40", "--test-negatives", "1"]
    cpu = prepared(paths, tmp_path / "cpu", "cpu", *flags)
    journey(monkeypatch, RESIDENT)
    assert_equal(prepared(paths, tmp_path / "gpu", "cuda", *flags), cpu)


def test_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = csv(made_log(), tmp_path)
    journey(monkeypatch, RESIDENT)
    with pytest.raises(UserError, match="no rows are left to train on"):
        prepared(paths, tmp_path / "gpu", "cuda", "--min-rating", "99")


def test_two_texts_with_one_key_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = LOGS["texts"](tmp_path)
    journey(monkeypatch, COPIES)
    keys = gpu_rows.text_keys_on_gpu
    monkeypatch.setattr(gpu_rows, "text_keys_on_gpu", lambda texts, device: keys(texts, device) & 7)
    with pytest.raises(UserError, match="have the same 64-bit hash"):
        prepared(paths, tmp_path / "gpu", "cuda")


@pytest.mark.parametrize(("flags", "tasks"), [((), 1), (("--negatives", "popularity", "--time-aware"), 2)])
def test_a_partition_takes_few_launches_and_waits(
    flags: tuple[str, ...], tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some negatives need a first task per partition, which counts the items.
    journey(monkeypatch, RESIDENT)
    made = count_calls(monkeypatch)
    (log,) = csv(made_log(), tmp_path)
    calls, waits = [], []
    for partitions in (2, 12):
        made.calls.clear()
        made.waits.clear()
        output = tmp_path / str(partitions)
        prepared([log], output, "cuda", "--partitions", str(partitions), "--train-negatives", "4", *flags)
        calls.append(made.n_calls)
        waits.append(made.n_waits)
    assert (calls[1] - calls[0]) / 10 <= 60 * tasks
    assert (waits[1] - waits[0]) / 10 <= 6 * tasks
