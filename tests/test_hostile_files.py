"""Files of others, mutated: the public readers end in a value or in one UserError, whatever the bytes.

A few mutations of each file; `make soak` makes 10,000.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.data.dataset import open_train
from model.data.vocabulary import Vocabulary
from model.distributed.process_group import ProcessGroup
from model.network.checkpoint import load_run, load_weights, save_model, save_reference
from model.network.neumf import NeuMF, NeuMFConfig
from model.run.arguments import parse_args, run_config, write_flags
from model.training.config import TrainConfig
from model.training.resume_state import LAST_NAME, load_last, save_last
from model.training.step import Step
from model.training.trainer import Training
from preprocessing.fingerprint import read_fingerprint
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import LogColumns
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec, read_feature_spec
from preprocessing.spec.titles import read_titles
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.device.torch_device import rng_state
from workflows.operators.encode import EncodeIds
from workflows.operators.leave_one_out import LeaveOneOut
from workflows.operators.saved import load_workflow, save_workflow

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 6, 7
FEW, MANY = 40, 10_000  # mutations in `make test`, in `make soak`
SHAPE = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=2, layers=(4, 2), dropout=0.0)


def training(seed: int = 1) -> Training:
    model = NeuMF(SHAPE, torch.Generator().manual_seed(seed))
    return Training(model, Step(model, TrainConfig(batch_size=6, precision="fp32"), ProcessGroup(CPU), compiled=False))


def write_everything(folder: Path) -> None:
    """Write every kind of file, all valid and small."""
    users, items = np.repeat(np.arange(N_USERS, dtype=np.int32), 3), np.arange(3 * N_USERS, dtype=np.int32) % N_ITEMS
    rows = pa.table({"user": users, "item": items, "label": np.ones(len(users), np.float32)})
    pq.write_table(rows, folder / "train.parquet")
    log = pa.table(
        {"user": [f"u{user}" for user in users], "item": items, "time": [1_000_000_000 + int(n) for n in items]}
    )
    pq.write_table(log, folder / "log.parquet")
    log.to_pandas().to_csv(folder / "log.csv", index=False)
    log.to_pandas().to_json(folder / "log.jsonl", orient="records", lines=True)
    features = list(rows.column_names)
    FeatureSpec(
        channel_spec={"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        feature_spec={"user": Feature(cardinality=N_USERS), "item": Feature(cardinality=N_ITEMS), "label": Feature()},
        source_spec={"train": [Chunk(type="parquet", features=features, files=["train.parquet"])]},
    ).write(folder)
    originals = {"user": pa.array([f"u{n}" for n in range(N_USERS)]), "item": pa.array(range(N_ITEMS))}
    encoder = EncodeIds({name: ids.to_pandas() for name, ids in originals.items()}, keep=["time"])
    save_workflow(folder, originals, LeaveOneOut(encoder, "user", "item", "time"))
    pq.write_table(pa.table({"id": originals["item"], "title": ["é"] * N_ITEMS}), folder / "titles.parquet")
    write_json(folder / "stats.json", {"rows_read": 18, "fingerprint": {"encoding": "a", "split": "b"}})
    about = {
        "data": str(folder),
        "feature_spec_file": "feature_spec.yaml",
        "train": {},
        "trained_users": "eJw7AQAA/QD9",
    }
    trained = training()
    trained.step.optimizer.zero_grad()
    sum(parameter.sum() for parameter in trained.model.parameters()).backward()  # type: ignore[union-attr]
    trained.step.optimizer.step()
    save_model(folder, trained.model, about)
    save_reference(folder, trained.model)
    save_last(folder, trained, [rng_state(CPU)], {"log_bytes": 3})
    write_flags(folder / "config.yaml", vars(parse_args(["--data", str(folder), "-b", "64"])), 5)


def read_spec(folder: Path) -> None:
    FeatureColumns.from_spec(read_feature_spec(folder))


def read_train(folder: Path) -> None:
    spec = read_feature_spec(folder)
    train = open_train(folder, spec, CPU, FeatureColumns.from_spec(spec))
    with closing(train.stream(100, CPU)) as blocks:
        for _ in blocks:
            pass


def read_log(path: Path) -> None:
    scratch = path.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for piece in open_log(path, LogColumns(user="user", item="item", time="time"), False, scratch).pieces:
        for _ in piece.tables():
            pass


READERS: dict[str, Callable[[Path], object]] = {
    "feature_spec.yaml": read_spec,
    "config.yaml": lambda folder: run_config(parse_args(["--config", str(folder / "config.yaml")])),
    "config.json": lambda folder: load_run(folder, CPU),
    "stats.json": read_fingerprint,
    "workflow/workflow.json": load_workflow,
    "categories/user.parquet": lambda folder: Vocabulary.load(folder, "user", "user", N_USERS),
    "categories/item.parquet": load_workflow,
    "titles.parquet": lambda folder: read_titles(folder / "titles.parquet"),
    "train.parquet": read_train,
    "log.parquet": lambda folder: read_log(folder / "log.parquet"),
    "log.csv": lambda folder: read_log(folder / "log.csv"),
    "log.jsonl": lambda folder: read_log(folder / "log.jsonl"),
    "model.safetensors": lambda folder: load_run(folder, CPU),
    "model.pth": lambda folder: load_weights(folder / "model.pth", NeuMF(SHAPE)),
    LAST_NAME: lambda folder: load_last(folder, training(2), ProcessGroup(CPU)),
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:  # a bit flips
            if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:  # truncated
            del data[place:]
        elif kind == 2:  # bytes come in
            data[place:place] = rng.choice(
                (rng.randbytes(rng.randrange(1, 9)), b"9" * 30, b"\0", b"-", b"[", b": ", b"\xff")
            )
        elif kind == 3:  # bytes go
            del data[place : place + rng.randrange(1, 40)]
        else:  # a piece is repeated elsewhere
            start = rng.randrange(len(data) + 1)
            data[place:place] = data[start : start + rng.randrange(1, 60)]
    return bytes(data)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    write_everything(folder)
    for read in READERS.values():
        read(folder)
    return folder


@pytest.mark.parametrize("name", ["train.parquet", "log.parquet"])
def test_a_name_that_is_not_utf8_is_one_message(valid: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "all"
    shutil.copytree(valid, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"user", b"\xe9ser"))
    with pytest.raises(UserError, match=name):
        READERS[name](folder)


def test_a_row_of_too_many_fields_that_is_not_utf8_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"user,item,time\n1,2,1000000000\n1,3,1000,\xff000\n")
    with pytest.raises(UserError, match=r"log\.csv"):
        read_log(tmp_path / "log.csv")


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_ends_in_a_value_or_one_message(
    valid: Path,
    tmp_path: Path,
    name: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    folder, rng = tmp_path / "all", random.Random(name)
    shutil.copytree(valid, folder)
    content, refused = (folder / name).read_bytes(), 0
    number = MANY if request.config.getoption("--soak") else FEW
    for _ in range(number):
        (folder / name).write_bytes(mutated(content, rng))
        try:
            READERS[name](folder)
        except UserError as err:
            refused += 1
            assert 0 < len(str(err)) < 5_000  # noqa: PT017
    assert refused or name == "stats.json"
    record_property(f"mutations of {name}", number)
    record_property("mutated files refused with a message", refused)
