"""Small prepared folders with known contents, in the layouts that tests need."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from model.data.dataset import Rows, open_train
from model.data.test_set import open_test_set
from model.network.checkpoint import save_model
from model.network.neumf import NeuMF, NeuMFConfig
from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec, Metadata, read_feature_spec

CPU = torch.device("cpu")
Row = tuple[int, int, float]


def _table(rows: Sequence[Row]) -> pa.Table:
    users, items, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "user": pa.array(users, pa.int32()),
            "item": pa.array(items, pa.int32()),
            "label": pa.array(labels, pa.float32()),
        }
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine, the threads of a tiny network spend more time waiting than computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """`write_folder(train_parts, n_users, n_items, test_parts, length)`: a folder in our own layout."""

    def write(
        train: Sequence[Sequence[Row]],
        n_users: int,
        n_items: int,
        test: Sequence[Sequence[Row]] = (((0, 0, 1.0),),),
        length: int = 1,
        time_ordered: bool = True,
        name: str = "prepared",
    ) -> Path:
        folder = tmp_path / name
        chunks = {}
        for mapping, parts in (("train", train), ("test", test)):
            (folder / mapping).mkdir(parents=True)
            files = [f"{mapping}/part-{index:05d}.parquet" for index in range(len(parts))]
            for file, rows in zip(files, parts, strict=True):
                pq.write_table(_table(rows), folder / file)
            chunks[mapping] = [Chunk(type="parquet", features=["user", "item", "label"], files=files)]
        FeatureSpec(
            channel_spec={"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
            feature_spec={
                "user": Feature(dtype="int32", cardinality=n_users),
                "item": Feature(dtype="int32", cardinality=n_items),
                "label": Feature(dtype="float32"),
            },
            metadata=Metadata(test_samples_per_series=length, time_ordered=time_ordered),
            source_spec=chunks,
        ).write(folder)
        return folder

    return write


@pytest.fixture
def train_rows(write_folder: Callable[..., Path]) -> Callable[..., Rows]:
    """The train rows of a folder that `write_folder` creates from the same arguments."""

    def rows(*args: object, **more: object) -> Rows:
        folder = write_folder(*args, **more)
        return open_train(folder, read_feature_spec(folder), CPU)

    return rows


@pytest.fixture
def test_rows(write_folder: Callable[..., Path]) -> Callable[..., Rows]:
    """The test rows of a folder with the given parts of series."""

    def rows(parts: Sequence[Sequence[Row]], n_users: int, n_items: int, length: int) -> Rows:
        folder = write_folder([[(0, 0, 1.0)]], n_users, n_items, parts, length)
        opened = open_test_set(folder, read_feature_spec(folder), CPU)
        assert opened is not None
        return opened.rows

    return rows


@pytest.fixture
def in_processes(tmp_path: Path, fork_server: type[subprocess.Popen]) -> Callable[..., list[list[str]]]:
    """`in_processes(size, body)`: run code with a `world` in each of `size` processes; returns the lines printed."""

    def run(size: int, body: str) -> list[list[str]]:
        code = (
            "import torch\n"
            "from model.distributed.launch import end_at_once\n"
            "from model.distributed.process_group import RankInfo, init_process_group\n"
            "def main():\n"
            "  rank = RankInfo.from_environment() or RankInfo()\n"
            "  with init_process_group(rank, torch.device('cpu')) as world:\n"
        )
        script = tmp_path / "rank.py"
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        script.write_text(f"{code}{lines}end_at_once(main)\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        ranks = []
        for rank in range(size):
            place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(script)]
            ranks.append(fork_server(command, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * size
        return [output.splitlines() for output in outputs]

    return run


@pytest.fixture
def write_frames(tmp_path: Path) -> Callable[..., Path]:
    """`write_frames({"train": frame, "test": frame}, channels, cardinalities)`: a Parquet folder with any features."""

    def write(
        frames: Mapping[str, pd.DataFrame],
        channels: Mapping[str, list[str]],
        cardinalities: Mapping[str, int | str],
        name: str = "frames",
        **metadata: object,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        sources = {}
        for mapping, frame in frames.items():
            frame.to_parquet(folder / f"{mapping}.parquet", index=False)
            sources[mapping] = [{"type": "parquet", "features": list(frame), "files": [f"{mapping}.parquet"]}]
        features = {name: {} for names in channels.values() for name in names}
        features |= {name: {"cardinality": size} for name, size in cardinalities.items()}
        spec = {"channel_spec": dict(channels), "feature_spec": features, "metadata": metadata, "source_spec": sources}
        (folder / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
        return folder

    return write


@pytest.fixture
def titled_run(write_folder: Callable[..., Path]) -> Path:
    """A run on four users (1007, 3, 55, 20) and twelve items (item-0 to item-11), all titled but the last."""
    train = [[(user, item, 1.0) for item in range(user, 12, 2 + user)] for user in range(4)]
    data = write_folder(train, 4, 12, [[(user, 10 + user % 2, 1.0)] for user in range(4)])
    (data / "categories").mkdir()
    items = [f"item-{number}" for number in range(12)]
    for name, ids in (("user", [1007, 3, 55, 20]), ("item", items)):
        table = pa.table({"id": pa.array(range(len(ids)), pa.int32()), "original": ids})
        pq.write_table(table, data / "categories" / f"{name}.parquet")
    titles = [f"<b>Title</b> & {item}" for item in items[:-1]]
    pq.write_table(pa.table({"item": items[:-1], "title": titles}), data / "titles.parquet")
    shape = NeuMFConfig(n_users=4, n_items=12, factors=4, layers=(8, 4))
    run = data.parent / "run"
    run.mkdir()
    model = NeuMF(shape, torch.Generator().manual_seed(3))
    save_model(run, model, {"data": str(data), "feature_spec_file": "feature_spec.yaml"})
    return run
