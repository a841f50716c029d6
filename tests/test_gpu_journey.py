"""From a CSV log to the last step of an epoch, on the stand-ins for a GPU."""

from __future__ import annotations

from pathlib import Path

import host_kernels
import numpy as np
import pandas as pd
import pytest
import torch
from cudf_stand_in import journey
from host_waits import HostWaits

from model.data import resident_batches
from model.data.dataset import open_train
from model.data.train_loader import SamplingConfig, TrainLoader
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.step import Step
from model.training.trainer import EpochReport, Training
from preprocessing.__main__ import main
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.progress import stage
from workflows.sampling import kernels

COPIES = {
    "gpu_rows._kept": "counts of a piece",
    "resident.read_resident": "where partitions begin",
    "kernels.value_ranges": "widths of sort keys",
    "kernels.histories": "numbers of pairs and users",
    "writer._from_gpu": "counts of a partition",
    "resident.distinct": "the distinct ids",
    "writer.write": "the files",
}
N_ROWS = 4000


def epoch(folder: Path) -> tuple[EpochReport, list[str]]:
    """The first epoch of training from memory, and the operators in it that would wait for a GPU."""
    rows, world = open_train(folder, read_feature_spec(folder), torch.device("cpu")), ProcessGroup(torch.device("cpu"))
    sampling = SamplingConfig(batch_size=2048, per_positive=4, kind="exact", in_memory=True, seed=1)
    loader, config = TrainLoader(rows, sampling, world), TrainConfig(batch_size=2048)
    torch.manual_seed(1)
    shape = NeuMFConfig(n_users=rows.columns.n_users, n_items=rows.columns.n_items, factors=8, layers=(32, 16))
    training = Training(model := NeuMF(shape), Step(model, config, world, compiled=False))
    steps = loader._resident_batches()  # reads the rows, once per run
    for _ in steps.epoch(0):
        break
    with HostWaits() as waits, stage("train", 1, "samples", show_progress=False) as progress:
        return training._epoch(loader, 0, config, progress), waits.found


def test_from_a_log_to_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    log = pd.DataFrame({name: rng.integers(0, high, N_ROWS) for name, high in (("user", 90), ("item", 200))})
    log.assign(time=rng.integers(0, 10**9, N_ROWS)).to_csv(tmp_path / "log.csv", index=False)
    flags = ["--input", str(tmp_path / "log.csv"), "--user", "user", "--item", "item", "--time", "time"]
    with pytest.MonkeyPatch.context() as patched:
        copied = journey(patched, COPIES)
        main([*flags, "--device", "cuda", "--output", str(tmp_path / "gpu")])
    assert set(copied) <= {"", *COPIES}
    main([*flags, "--device", "cpu", "--output", str(tmp_path / "cpu"), "--partitions", "1"])
    expected, _ = epoch(tmp_path / "cpu")
    launched: list[str] = []

    def launch(name: str, *arguments: object) -> None:
        launched.append(name)
        host_kernels.launch(name, *arguments)

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(resident_batches, "gpu_kernels", lambda _: kernels)
    found, waits = epoch(tmp_path / "gpu")
    assert found.train_loss == expected.train_loss  # bit for bit
    assert found.train_samples == expected.train_samples
    assert set(launched) == {"train_batch"}
    assert waits == ["aten._local_scalar_dense.default"]  # the loss, when the epoch has ended
