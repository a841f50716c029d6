"""Batches from device memory: the kernel against the array code, and no wait in an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import host_kernels
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.data import resident_batches
from model.data.resident_batches import ResidentBatches
from model.data.sampling import SamplingConfig
from model.data.train_table import TrainTable, load_train_table
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.step import Step
from model.training.trainer import Training
from workflows.common.progress import stage
from workflows.sampling import kernels
from workflows.sampling.candidates import Candidates
from workflows.sampling.config import Sampling, build_candidates

CPU, META = torch.device("cpu"), torch.device("meta")


class FewRows:
    """Rows in memory, as `load_train_table` expects them."""

    def __init__(self, columns: list[torch.Tensor], n_users: int, n_items: int, block_rows: int) -> None:
        self._all, self._block_rows, self.n_rows = columns, block_rows, len(columns[0])
        self.columns = SimpleNamespace(n_users=n_users, n_items=n_items)

    def whole_users(self, rows: int, device: torch.device) -> Iterator[list[torch.Tensor]]:
        users = self._all[0].tolist()
        start = 0
        while start < len(users):
            stop = min(len(users), start + self._block_rows)
            while stop < len(users) and users[stop] == users[stop - 1]:
                stop += 1
            yield [column[start:stop] for column in self._all]
            start = stop


@contextmanager
def with_kernels() -> Iterator[None]:
    """The kernels, compiled for the CPU, wherever a GPU would use them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "launch", host_kernels.launch)
        patch.setattr(resident_batches, "gpu_kernels", lambda _: kernels)
        yield


@st.composite
def row_sets(draw: st.DrawFn) -> tuple[FewRows, torch.Tensor | None]:
    """Rows of a few users in any user order: repeated pairs, labels, side features, users with all items."""
    n_users, n_items = draw(st.integers(1, 8)), draw(st.integers(2, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    rng, rows = np.random.default_rng(seed), []
    with_zeros, repeats, with_side, complete = (draw(st.booleans()) for _ in range(4))
    for user in rng.permutation(n_users):
        size = n_items if complete and rng.random() < 0.3 else rng.integers(0, n_items)
        items = rng.permutation(n_items)[:size]
        if repeats and size:
            items = np.concatenate([items, rng.choice(items, rng.integers(0, 3))])
        labels = np.where(
            with_zeros & (rng.random(len(items)) < 0.3), 0.0, rng.choice([1.0, 0.5], len(items)) if with_zeros else 1.0
        )
        rows += [(int(user), int(item), float(label)) for item, label in zip(items, labels, strict=True)]
    rows = rows or [(0, 0, 1.0)]
    users, items, labels = zip(*rows, strict=True)
    columns = [torch.tensor(users).int(), torch.tensor(items).int(), torch.tensor(labels)]
    if with_side:
        columns += [torch.arange(len(rows)).int(), torch.rand(len(rows))]
    held_out = None
    if draw(st.booleans()):
        held_out = torch.full((n_users,), -1, dtype=torch.int32)
        user = rows[0][0]
        held_out[user] = rows[0][1]
    return FewRows(columns, n_users, n_items, draw(st.integers(1, 20))), held_out


def candidates_of(kind: str, rows: FewRows) -> Candidates:
    if kind != "popularity":
        return Candidates(rows.columns.n_items)
    counts = np.bincount(rows._all[1].numpy(), minlength=rows.columns.n_items)
    return build_candidates(rows.columns.n_items, Sampling(kind="popularity"), counts, None, torch.zeros(0))


def epoch_of(batches: ResidentBatches, number: int) -> tuple[list[list[Any]], list[int]]:
    found, totals = [], []
    for batch, total in batches.epoch(number):
        assert batch.group_size == batches.group_size
        assert [column.dtype for column in batch.columns[:3]] == [torch.int32, torch.int32, torch.float32]
        found.append([column.tolist() for column in batch.columns])
        totals.append(total)
    return found, totals


@settings(max_examples=80)
@given(
    row_sets(),
    st.sampled_from(["exact", "popularity", "uniform", "static"]),
    st.integers(0, 4),
    st.integers(1, 60),
    st.booleans(),
    st.integers(0, 2**63 - 1),
    st.integers(1, 3),
)
def test_the_kernel_makes_the_batches_of_the_array_code(
    given_rows: tuple[FewRows, torch.Tensor | None],
    kind: str,
    per_positive: int,
    batch_size: int,
    grouped: bool,
    seed: int,
    n_ranks: int,
) -> None:
    rows, held_out = given_rows
    config = SamplingConfig(batch_size=batch_size, per_positive=per_positive, kind=kind, in_memory=True, seed=seed)
    table = load_train_table(rows, CPU, config.draws, kind == "uniform", held_out)  # type: ignore[arg-type]
    grouped = grouped and config.group_size <= batch_size
    candidates = candidates_of(kind, rows)
    for rank in range(n_ranks):
        batches = ResidentBatches(table, config, candidates, ProcessGroup(CPU, rank, n_ranks), grouped)
        for number in (0, 3):
            expected = epoch_of(batches, number)
            with with_kernels():
                assert epoch_of(batches, number) == expected
            assert sum(expected[1]) == batches.n_samples


@settings(max_examples=30)
@given(row_sets(), st.integers(0, 2**63 - 1))
def test_a_table_holds_every_row_once(given_rows: tuple[FewRows, torch.Tensor | None], seed: int) -> None:
    rows, held_out = given_rows
    expected = Counter(
        row
        for row in zip(*(column.tolist() for column in rows._all), strict=True)
        if held_out is None or not (row[2] > 0 and held_out[row[0]] == row[1])
    )
    for draws in (False, True):
        table = load_train_table(rows, CPU, draws, False, held_out)  # type: ignore[arg-type]
        labels = table.labels if table.labels is not None else torch.ones(rows.n_rows)
        columns = [column.tolist() for column in (table.users, table.items, labels, *table.side)]
        stored = list(zip(*columns, strict=True))
        kept = stored[: table.n_drawn] + stored[rows.n_rows - table.n_alone :]
        assert Counter(kept) == expected
        for user in range(rows.columns.n_users):
            own = stored[table.starts[user] : table.ends[user]]
            assert all(row[0] == user for row in own)
            assert len(own) == sum(row[0] == user for row in stored[: table.n_drawn])
            if draws:
                assert [row[1] for row in own] == sorted(row[1] for row in own)
                items, starts, ends = table.own
                assert items[starts[user] : ends[user]].tolist() == sorted({row[1] for row in own})


class NoCopies(TorchDispatchMode):
    """Counts bytes copied to the "GPU", torch's meta device. Its tensors have no values: whatever waits for one, or has
    a shape that depends on one, raises; a copy to the host raises here."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_to_device = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given, made = (
            [value for value in tree_leaves(tree) if isinstance(value, torch.Tensor)] for tree in (args, result)
        )
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source, target = given[-1].device.type, made[0].device.type
            assert (source, target) != ("meta", "cpu"), "copied to the host"
            self.bytes_to_device += given[-1].nbytes if (source, target) == ("cpu", "meta") else 0
        return result


class MetaWorld(ProcessGroup):
    """One process on the meta device, where the loss at the end of an epoch is the only value that is read."""

    read = 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim():
            return tensor
        self.read += 1
        return torch.ones(())


@pytest.mark.parametrize("kind", ["exact", "popularity", "uniform"])
def test_an_epoch_neither_waits_nor_copies(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    n_users, n_items, n_rows, world = 500, 300, 20_000, MetaWorld(META)
    ids = [torch.empty(n_rows, dtype=torch.int32, device=META) for _ in range(2)]
    edges = [torch.empty(n_users, dtype=torch.int64, device=META) for _ in range(2)]
    table = TrainTable(*ids, None, (), n_rows, 0, *edges)
    vars(table)["own"] = (table.items, *edges)  # found out once per run
    cdf = torch.empty(n_items + 1, dtype=torch.int64, device=META) if kind == "popularity" else None
    launched: list[int] = []
    monkeypatch.setattr(kernels, "launch", lambda _, elements, *arguments: launched.append(elements))
    monkeypatch.setattr(resident_batches, "gpu_kernels", lambda _: kernels)
    sampling = SamplingConfig(batch_size=4096, per_positive=4, kind=kind, in_memory=True, seed=1)
    batches = ResidentBatches(table, sampling, Candidates(n_items, cdf), world, True)
    loader: Any = SimpleNamespace(steps=batches.epoch, samples_per_epoch=lambda: n_rows * 5)
    config = TrainConfig(batch_size=4096)
    model = NeuMF(NeuMFConfig(n_users=n_users, n_items=n_items, factors=8, layers=(32, 16))).to(META)
    step = Step(model, config, world, compiled=False)
    step.optimizer.param_groups[0]["fused"] = False  # which the meta device lacks
    training = Training(model, step)
    for number in (0, 1):
        with stage("train", 1, "samples", show_progress=False) as progress, NoCopies() as mode:
            report = training._epoch(loader, number, config, progress)
        assert report.train_samples == n_rows * 5
    steps = -(-n_rows // (4096 // 5))
    assert launched == [*[4095] * (steps - 1), n_rows * 5 - 4095 * (steps - 1)] * 2
    assert mode.bytes_to_device == 0
    assert world.read == 2  # once per epoch


def test_waits_and_copies_are_noticed() -> None:
    with NoCopies() as mode:
        ids = torch.arange(5).to(META)
        assert mode.bytes_to_device == 40
        for wait in (lambda: ids.nonzero(), lambda: ids[ids > 2], lambda: int(ids.sum()), lambda: ids.tolist()):
            with pytest.raises((RuntimeError, NotImplementedError)):
                wait()
        with pytest.raises((AssertionError, NotImplementedError)):
            ids.cpu()
