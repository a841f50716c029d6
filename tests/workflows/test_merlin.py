"""Each fix in the Merlin door, next to the stock class that needs it: the stock class must still fail."""

from __future__ import annotations

import importlib.util
import itertools
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import workflows.merlin  # first: it patches Dask, without which the stock classes cannot be imported

# isort: split

import dask
import dask.dataframe as dd
import merlin.core.utils
import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from merlin.dag.ops.subgraph import Subgraph
from merlin.dataloader import loader_base
from merlin.dataloader.torch import Loader as StockLoader
from merlin.io import Dataset as StockDataset
from merlin.schema import ColumnSchema, Schema

from model.data.dataset import open_train
from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec, Metadata, read_feature_spec
from workflows.merlin import ColumnSelector, Operator, Workflow, frame_dataset, loader_class

ROOT = Path(workflows.merlin.__file__).parents[1]
ENDED_S = 30.0  # far longer than anything here takes; only a failing test waits this long
STUCK_S = 0.3  # how long to watch a hanging thread


# --- The leak: rows of an emptied partition reappear ------------------------------------------------------------


class KeepSmall(Operator):
    """Removes rows, like NVTabular's own Filter."""

    def transform(self, col_selector: ColumnSelector, df: pd.DataFrame) -> pd.DataFrame:
        return df[df["x"] < 10][col_selector.names].reset_index(drop=True)


class Negate(Operator):
    def transform(self, col_selector: ColumnSelector, df: pd.DataFrame) -> pd.DataFrame:
        return -df[col_selector.names]


PARTS = [pd.DataFrame({"x": [1, 50, 2]}), pd.DataFrame({"x": [60, 70]}), pd.DataFrame({"x": [80, 3]})]


def run_workflow(workflow: nvt.Workflow) -> list[list[int]]:
    dataset = frame_dataset(lambda part: PARTS[part], 3, meta=PARTS[0].iloc[:0], cpu=True)
    workflow.fit(dataset)
    parts = workflow.transform(dataset).to_ddf().to_delayed()
    return [part.compute(scheduler="synchronous")["x"].tolist() for part in parts]


def filtered() -> nvt.WorkflowNode:
    return ["x"] >> KeepSmall() >> Negate()


def test_stock_workflow_leaks_the_rows_of_an_emptied_partition_and_ours_does_not() -> None:
    assert run_workflow(nvt.Workflow(filtered())) == [[-1, -2], [-60, -70], [-3]]
    assert run_workflow(Workflow(filtered())) == [[-1, -2], [], [-3]]


def test_stock_filter_leaks_too() -> None:
    def graph() -> nvt.WorkflowNode:
        return ["x"] >> nvt.ops.Filter(lambda df: df[df["x"] < 10]) >> nvt.ops.LambdaOp(lambda column: -column)

    assert run_workflow(nvt.Workflow(graph()))[1] == [-60, -70]
    assert run_workflow(Workflow(graph()))[1] == []


def test_stock_workflow_leaks_from_a_single_dataframe_and_ours_does_not() -> None:
    for kind, expected in ((nvt.Workflow, [-60, -70]), (Workflow, [])):
        workflow = kind(filtered())
        run_workflow(workflow)
        assert workflow.transform(PARTS[1])["x"].tolist() == expected


def test_stock_subworkflow_leaks_and_ours_does_not() -> None:
    for kind, expected in ((nvt.Workflow, [[-1, -2], [-60, -70], [-3]]), (Workflow, [[-1, -2], [], [-3]])):
        part = kind(Subgraph("kept", filtered())).get_subworkflow("kept")
        assert type(part) is kind
        assert run_workflow(part) == expected
        assert part.transform(PARTS[1])["x"].tolist() == expected[1]


@pytest.mark.parametrize("kind", [nvt.Workflow, Workflow])
def test_an_unfitted_workflow_raises_an_error(kind: type) -> None:
    with pytest.raises(ValueError, match="no output schema"):
        kind(filtered()).transform(PARTS[0])


def test_emptied_partitions_stay_empty_across_two_branches() -> None:
    def graph() -> nvt.WorkflowNode:
        kept = ["x"] >> KeepSmall()
        return kept + (kept >> Negate() >> nvt.ops.Rename(postfix="_minus"))

    assert run_workflow(nvt.Workflow(graph()))[1] != []
    assert run_workflow(Workflow(graph())) == [[1, 2], [], [3]]


def test_branches_are_merged_as_in_the_stock_executor() -> None:
    def graph() -> nvt.WorkflowNode:
        both = ["a", "b"] >> Negate()
        return both + (["b"] >> nvt.ops.LambdaOp(lambda column: column * 10)) + ["c"]

    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4], "c": [5, 6]}, index=[9, 4])
    results = []
    for kind in (nvt.Workflow, Workflow):
        workflow = kind(graph())
        workflow.fit(frame_dataset(lambda _: frame, 1, meta=frame.iloc[:0], cpu=True))
        results.append(workflow.transform(frame)[["a", "b", "c"]].reset_index(drop=True))
    pd.testing.assert_frame_equal(*results)
    assert results[1].to_numpy().tolist() == [[-1, 30, 5], [-2, 40, 6]]


# --- The Loader: hangs, ranks without a partition, order of partitions ------------------------------------------


def numbered_parts(sizes: list[int], gate: threading.Event | None = None):
    """Partition p holds the numbers 100 p, 100 p + 1, … The last partition is readable once the gate is open."""
    parts = [pd.DataFrame({"x": 100 * part + np.arange(size)}) for part, size in enumerate(sizes)]

    def load(part: int) -> pd.DataFrame:
        if gate is not None and part == len(sizes) - 1:
            gate.wait(ENDED_S)
        return parts[part]

    dataset = frame_dataset(load, len(sizes), meta=parts[0].iloc[:0], cpu=True)
    dataset.schema = Schema([ColumnSchema("x", dtype=np.int64)])
    return dataset


class Reader:
    """Reads a loader to the end on a separate thread, so that a hanging loader does not hang the test."""

    def __init__(self, loader: StockLoader, gate: threading.Event | None, full_chunks: int) -> None:
        """Args: full_chunks: number of queue reads that return a chunk; the next read opens the gate."""
        self.loader, self.batches, self.ended = loader, [], False
        iter(loader)
        (self.producer,) = loader._workers
        get, reads = loader._buff.q_out.get, []

        def counted_get(*args, **kwargs):
            reads.append(None)
            if gate is not None and len(reads) == full_chunks + 1:
                gate.set()
            return get(*args, **kwargs)

        loader._buff.q_out.get = counted_get
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while True:
            try:
                batch, _ = next(self.loader)
            except StopIteration:
                self.ended = True
                return
            except _Released:
                return
            self.batches.append(batch["x"].tolist())

    def finish(self) -> list[list[int]]:
        self.thread.join(ENDED_S)
        assert self.ended, "the loader hangs"
        return self.batches

    def assert_stuck(self) -> None:
        """Assert that the producer has ended and the queue is empty, but the reader still waits."""
        self.producer.join(ENDED_S)
        assert not self.producer.is_alive()
        self.thread.join(STUCK_S)
        assert self.thread.is_alive()
        assert self.loader._buff.empty

    def release(self) -> None:
        if self.thread.is_alive():
            self.loader._buff.q_out.put(_Released())
            self.thread.join(ENDED_S)
        assert not self.thread.is_alive()


class _Released(Exception):  # noqa: N818 - not an error: releases a hanging reader
    pass


@contextmanager
def reading(kind: type, sizes: list[int], full_chunks: int = 0, gated: bool = False, **options) -> Iterator[Reader]:
    gate = threading.Event() if gated else None
    reader = Reader(kind(numbered_parts(sizes, gate), **options), gate, full_chunks)
    try:
        yield reader
    finally:
        reader.release()
        reader.loader.stop()


# The gate makes the race deterministic: the last partition is read only while the reader already waits for it.
HANGS = {
    "batch larger than the data": ({"sizes": [3, 2], "batch_size": 8, "drop_last": True}, []),
    "small tail": (
        {"sizes": [4, 3], "batch_size": 4, "drop_last": True, "gated": True, "full_chunks": 1},
        [[0, 1, 2, 3]],
    ),
    "trailing empty parts": (
        {"sizes": [4, 0, 0], "batch_size": 2, "gated": True, "full_chunks": 1},
        [[0, 1], [2, 3]],
    ),
    "only empty parts": ({"sizes": [0, 0], "batch_size": 2}, []),
    # Four partitions over three ranks: two each, so none for the last.
    "rank without a partition": ({"sizes": [2, 2, 2, 2], "batch_size": 2, "global_size": 3, "global_rank": 2}, []),
}


@pytest.mark.parametrize("name", HANGS)
def test_stock_loader_hangs_and_ours_ends(name: str) -> None:
    options, expected = HANGS[name]
    with reading(StockLoader, **options) as reader:
        reader.assert_stuck()
        assert reader.batches == expected
    with reading(loader_class(), **options) as reader:
        if name == "rank without a partition":  # ours deals out partitions round-robin, so every rank has one
            expected = [[200, 201]]
        assert reader.finish() == expected


def test_loader_ends_with_more_ranks_than_partitions() -> None:
    options = {"batch_size": 2, "global_size": 3}
    with pytest.warns(UserWarning, match="more processes"), pytest.raises(IndexError):
        list(StockLoader(numbered_parts([2, 2]), global_rank=2, **options))
    by_rank = []
    for rank in range(3):
        with reading(loader_class(), [2, 2], global_rank=rank, **options) as reader:
            by_rank.append(reader.finish())
    assert by_rank == [[[0, 1]], [[100, 101]], []]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7])
def test_ranks_together_read_every_row_once(ranks: int) -> None:
    sizes = [3, 0, 5, 1, 4]
    seen = []
    for rank in range(ranks):
        with loader_class()(numbered_parts(sizes), batch_size=2, global_size=ranks, global_rank=rank) as loader:
            seen += [number for batch, _ in loader for number in batch["x"].tolist()]
    assert sorted(seen) == [100 * part + row for part, size in enumerate(sizes) for row in range(size)]


def order_of_parts(batches) -> list[int]:
    parts = [number // 100 for batch, _ in batches for number in batch["x"].tolist()]
    return [part for place, part in enumerate(parts) if place == 0 or part != parts[place - 1]]


def test_stock_partition_order_never_changes_and_ours_follows_indices() -> None:
    sizes = [4] * 8
    with StockLoader(numbered_parts(sizes), batch_size=4, shuffle=True) as stock:
        for _ in range(3):  # not to the end, where it hangs unless its thread has already ended
            assert order_of_parts(itertools.islice(stock, 8)) == list(range(8))
    rng = np.random.default_rng(0)
    for _ in range(3):  # a new loader for each epoch
        order = rng.permutation(8)
        with loader_class()(numbered_parts(sizes), batch_size=4) as loader:
            loader.indices = order
            assert order_of_parts(loader) == order.tolist()


def test_stock_shuffle_uses_numpys_global_generator_and_ours_takes_an_order() -> None:
    def global_state() -> list[int]:
        return [*np.random.get_state()[1].tolist(), np.random.get_state()[2]]

    state, before = np.random.get_state(), global_state()
    with loader_class()(numbered_parts([2] * 4), batch_size=2) as loader:
        loader.indices = np.array([2, 0, 3, 1])
        list(loader)
    assert global_state() == before
    with StockLoader(numbered_parts([2] * 4), batch_size=2, shuffle=True, seed_fn=lambda: 7) as stock:
        iter(stock)
    assert global_state() != before
    np.random.set_state(state)


def test_a_given_order_is_not_modified() -> None:
    order = np.arange(32)
    with loader_class()(numbered_parts([2] * 32), batch_size=2, shuffle=True) as loader:
        loader.indices = order
        list(loader)
    assert order.tolist() == list(range(32))


def test_ranks_take_turns_in_index_order() -> None:
    order = np.array([3, 0, 4, 1, 2])
    taken = []
    for rank in range(2):
        with loader_class()(numbered_parts([2] * 5), batch_size=2, global_size=2, global_rank=rank) as loader:
            loader.indices = order
            taken.append(order_of_parts(loader))
    assert taken == [[3, 4, 2], [0, 1]]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("parts_per_chunk", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_loader_returns_every_row_in_order(drop_last: bool, parts_per_chunk: int, batch_size: int) -> None:
    sizes = [0, 4, 1, 0, 7, 3, 0]
    rows = [100 * part + row for part, size in enumerate(sizes) for row in range(size)]
    expected = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    if drop_last:
        expected = [batch for batch in expected if len(batch) == batch_size]
    options = {"batch_size": batch_size, "drop_last": drop_last, "parts_per_chunk": parts_per_chunk}
    with reading(loader_class(), sizes, **options) as reader:
        assert [row for batch in reader.finish() for row in batch] == [row for batch in expected for row in batch]
        assert reader.batches == expected


def test_loader_can_be_read_repeatedly() -> None:
    with loader_class()(numbered_parts([3, 0]), batch_size=2) as loader:
        for _ in range(3):
            assert [batch["x"].tolist() for batch, _ in loader] == [[0, 1], [2]]


def test_the_loader_raises_read_errors() -> None:
    frame = pd.DataFrame({"x": [1, 2]})

    def load(part: int) -> pd.DataFrame:
        if part == 1:
            raise ValueError("part 1 is broken")
        return frame

    dataset = frame_dataset(load, 2, meta=frame.iloc[:0], cpu=True)
    dataset.schema = Schema([ColumnSchema("x", dtype=np.int64)])
    with loader_class()(dataset, batch_size=2) as loader, pytest.raises(ValueError, match="part 1 is broken"):
        list(loader)


def test_loader_leaves_no_thread_behind() -> None:
    def leave_early() -> int:
        with loader_class()(numbered_parts([100] * 4), batch_size=2) as loader:
            next(iter(loader))
        return threading.active_count()

    assert leave_early() == leave_early()  # the first call starts Dask's own pool


def test_batches_are_tensors_with_the_dtype_of_the_column() -> None:
    frame = pd.DataFrame({"user": np.array([1, 2], np.int32), "label": np.array([0, 1], np.float32)})
    dataset = frame_dataset(lambda _: frame, 1, meta=frame.iloc[:0], cpu=True)
    with loader_class()(dataset, batch_size=2) as loader:
        ((batch, _),) = list(loader)
    torch.testing.assert_close(batch["user"], torch.tensor([1, 2], dtype=torch.int32))
    torch.testing.assert_close(batch["label"], torch.tensor([0.0, 1.0]))


# --- Parquet ----------------------------------------------------------------------------------------------------


def prepared_folder(folder: Path, parts: list[list[int]], time_ordered: bool) -> None:
    """Write train files with row groups of the given sizes; each row's user and item are its row number."""
    rows, files = itertools.count(), []
    schema = pa.schema({"user": pa.int32(), "item": pa.int32(), "label": pa.float32()})
    for part, sizes in enumerate(parts):
        files.append(f"part-{part}.parquet")
        with pq.ParquetWriter(folder / files[-1], schema) as writer:
            for size in sizes:
                numbers = list(itertools.islice(rows, size))
                writer.write_table(pa.table([numbers, numbers, [1.0] * size], schema=schema))
        assert pq.ParquetFile(folder / files[-1]).num_row_groups == len(sizes)
    n_rows = next(rows)
    FeatureSpec(
        channel_spec={"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        feature_spec={name: Feature(dtype="int32", cardinality=n_rows) for name in ("user", "item")}
        | {"label": Feature(dtype="float32")},
        metadata=Metadata(time_ordered=time_ordered),
        source_spec={"train": [Chunk(type="parquet", features=schema.names, files=files)]},
    ).write(folder)


EMPTY_FIRST = {
    "file": [[0], [3], [0], [2]],
    "file without row groups": [[], [3], [], [2]],
    "row group": [[0, 3, 0, 2]],
    "row group of each file": [[0, 3], [0], [0, 2]],
}


@pytest.mark.parametrize("parts", EMPTY_FIRST.values(), ids=EMPTY_FIRST.keys())
@pytest.mark.parametrize("time_ordered", [True, False], ids=["ours", "foreign"])
def test_stock_dataset_fails_on_an_empty_first_file_or_row_group_and_ours_does_not(
    tmp_path: Path, parts: list[list[int]], time_ordered: bool
) -> None:
    prepared_folder(tmp_path, parts, time_ordered)
    files = sorted(map(str, tmp_path.glob("*.parquet")))
    with pytest.raises((IndexError, pa.ArrowInvalid), match=r"out-of-bounds|row_group_indices"):
        StockDataset(files, engine="parquet", cpu=True).to_ddf().compute()
    cpu = torch.device("cpu")
    rows = open_train(tmp_path, read_feature_spec(tmp_path), cpu)
    assert rows.n_rows == 5
    streamed = [[column.tolist() for column in block] for block in rows.stream(2, cpu)]
    assert streamed == [[[0, 1], [0, 1], [1.0, 1.0]], [[2, 3], [2, 3], [1.0, 1.0]], [[4], [4], [1.0]]]


@pytest.mark.parametrize("dtype", ["object", "str", "string[python]"])
def test_dask_converts_text_to_arrow_strings_and_ours_keeps_the_dtype(dtype: str) -> None:
    # Operators would see a different dtype from the dataframe.
    frame = pd.DataFrame({"name": pd.Series(["a", "b"], dtype=dtype)})
    stock = dd.from_map(lambda _: frame, range(1), meta=frame.iloc[:0])
    assert stock.dtypes["name"] == pd.StringDtype("pyarrow")
    rows = frame_dataset(lambda _: frame, 1, meta=frame.iloc[:0], cpu=True).to_ddf()
    assert rows.dtypes["name"] == frame["name"].dtype
    assert rows.compute(scheduler="synchronous")["name"].dtype == frame["name"].dtype


# --- Names of Dask tasks ----------------------------------------------------------------------------------------


class Guarded:
    """An unpicklable partition loader, like an open file or a source with a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pickled = 0

    def __reduce__(self) -> Any:
        self.pickled += 1
        raise TypeError("cannot be pickled")

    def __call__(self, _: int) -> pd.DataFrame:
        return PARTS[0]


class Unhashable(pd.DataFrame):
    """A stand-in for a cuDF dataframe, which Dask would copy from the GPU to name a task."""

    def __dask_tokenize__(self) -> str:
        raise AssertionError("was hashed")


dask.base.normalize_token.register(Unhashable, Unhashable.__dask_tokenize__)


def test_dask_pickles_the_data_source_and_ours_does_not() -> None:
    for source in (stock := Guarded(), ours := Guarded()):
        if source is stock:
            with pytest.raises(dask.tokenize.TokenizationError, match="hashed"):
                dd.from_map(source, range(2), meta=PARTS[0].iloc[:0])
        else:
            rows = frame_dataset(source, 2, meta=PARTS[0].iloc[:0], cpu=True).to_ddf()
            assert len(rows.compute(scheduler="synchronous")) == 6
    assert stock.pickled > 0
    assert ours.pickled == 0


def test_dask_hashes_the_empty_dataframe_and_ours_does_not() -> None:
    meta = Unhashable(PARTS[0].iloc[:0])
    with pytest.raises(AssertionError, match="was hashed"):
        dd.from_map(lambda part: PARTS[part], range(3), meta=meta)
    rows = frame_dataset(lambda part: PARTS[part], 3, meta=meta, cpu=True).to_ddf()
    assert rows.compute(scheduler="synchronous")["x"].tolist() == [1, 50, 2, 60, 70, 80, 3]


def test_a_task_name_is_unique_to_a_dataset_and_survives_pickling() -> None:
    def expression() -> Any:
        return frame_dataset(PARTS.__getitem__, 3, meta=PARTS[0].iloc[:0], cpu=True).to_ddf().expr

    one, other = expression(), expression()
    assert one._name != other._name
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        sent = pickle.loads(pickle.dumps(one.operand("func")))
        assert dask.base.tokenize(sent) == dask.base.tokenize(one.operand("func"))
    assert pickle.loads(pickle.dumps(one))._name == one._name
    assert one.optimize()._name == one._name


def test_stock_merlin_replaces_a_collections_graph_and_ours_leaves_it_to_dask() -> None:
    spec = importlib.util.spec_from_file_location("stock_utils", merlin.core.utils.__file__)
    assert spec is not None
    assert spec.loader is not None
    stock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stock)
    rows = frame_dataset(PARTS.__getitem__, 3, meta=PARTS[0].iloc[:0], cpu=True).to_ddf()
    with pytest.raises(AttributeError, match=r"property 'dask' .* has no setter"):
        stock.ensure_optimize_dataframe_graph(ddf=rows)
    assert merlin.core.utils.ensure_optimize_dataframe_graph(ddf=rows) is rows
    graph = rows.__dask_graph__()
    assert merlin.core.utils.ensure_optimize_dataframe_graph(dsk=graph, keys=[]) is graph


# --- Import -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_python() -> Callable[[str], subprocess.CompletedProcess]:
    def run(code: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run


def test_stock_merlin_cannot_be_imported(run_python: Callable) -> None:
    done = run_python("import nvtabular")
    assert "cannot import name 'hash_object_dispatch'" in done.stderr


def test_a_removed_name_raises_when_called() -> None:
    with pytest.raises(NotImplementedError, match=r"dask\.dataframe\.core\.new_dd_object no longer exists"):
        dd.core.new_dd_object({}, "name", PARTS[0], [None, None])


def test_import_is_silent_and_loads_no_torch(run_python: Callable) -> None:
    done = run_python(
        "import sys, workflows.merlin as m, workflows.operators.saved, workflows.cluster\n"
        "assert 'torch' not in sys.modules\n"
        "try: m.loader_class()\n"
        "except RuntimeError as err: assert 'import torch before' in str(err)\n"
        "else: raise SystemExit('a loader without torch')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stock_loader_busy_waits_on_a_full_queue_and_ours_does_not() -> None:
    waits = {}
    for kind in (StockLoader, loader_class()):
        with kind(numbered_parts([2] * 4), batch_size=2) as loader:
            next(iter(loader))
            waits[kind] = loader._buff.put_wait
    stock, ours = waits.values()
    assert stock <= 1e-3
    assert ours >= 0.01


def test_merlins_loader_takes_the_index_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine with GPUs: without the argument, the Loader of every rank would work on GPU 0.
    dataset = frame_dataset(lambda _: pd.DataFrame({"x": [1]}), 1, meta=pd.DataFrame({"x": [1]}).iloc[:0], cpu=True)
    dataset.cpu = False
    monkeypatch.setattr(loader_base, "HAS_GPU", True)
    monkeypatch.setattr(loader_base, "cupy", np)
    assert [loader_class()(dataset, batch_size=1, device=index).device for index in (None, 0, 3)] == [0, 0, 3]
    dataset.cpu = True
    assert loader_class()(dataset, batch_size=1, device=3).device == "cpu"
