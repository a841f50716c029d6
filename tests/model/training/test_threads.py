"""The number of training threads depends on the work of a step, and is restored afterwards."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.all_items_step import AllItemsStep
from model.training.config import TrainConfig
from model.training.step import Step
from model.training.threads import torch_threads, worthwhile_threads
from model.training.trainer import Training

WORLD = ProcessGroup(torch.device("cpu"))


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with torch_threads(4):
        yield


@pytest.mark.parametrize(("work", "threads"), [(0, 1), (199, 1), (200, 2), (399, 3), (10**9, 4)])
def test_each_thread_has_enough_to_do(work: int, threads: int) -> None:
    assert worthwhile_threads(work, 100) == threads


def test_the_number_of_threads_is_restored() -> None:
    with torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), torch_threads(2):
        raise KeyError
    assert torch.get_num_threads() == 4


def test_small_steps_use_one_thread_and_large_ones_all() -> None:
    small = NeuMF(NeuMFConfig(n_users=900, n_items=1700, factors=16, layers=(64, 32, 16)))
    large = NeuMF(NeuMFConfig(n_users=900, n_items=1700, factors=64, layers=(256, 256, 128, 64)))
    assert Step(small, TrainConfig(batch_size=8192), WORLD).threads == 1
    assert Step(large, TrainConfig(batch_size=4096), WORLD).threads == 1
    assert Step(large, TrainConfig(batch_size=1 << 16), WORLD).threads == 4


@pytest.mark.parametrize(("n_items", "width", "batch_size", "threads"), [(1700, 64, 100_000, 1), (3700, 128, 10**6, 4)])
def test_threads_of_all_items_steps_depend_on_the_number_of_scores(
    n_items: int, width: int, batch_size: int, threads: int
) -> None:
    model = NeuMF(NeuMFConfig(n_users=900, n_items=n_items, factors=width, arch="gmf"))
    config = TrainConfig(batch_size=batch_size, loss="softmax")
    assert AllItemsStep(model, config, WORLD, torch.ones(n_items, dtype=torch.int64)).threads == threads


def test_an_epoch_uses_the_number_of_threads_of_its_step() -> None:
    seen: list[int] = []

    class Recording(Step):
        def __call__(self, batch: Batch | None, samples: int) -> Tensor:
            seen.append(torch.get_num_threads())
            return super().__call__(batch, samples)

    def steps(_: int) -> Generator[tuple[Batch, int], None, None]:
        for _ in range(3):
            seen.append(torch.get_num_threads())  # batches are produced in parallel with the steps
            yield Batch(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 0.0])), 2

    model, config = NeuMF(NeuMFConfig(n_users=2, n_items=2, factors=2, layers=(4, 2))), TrainConfig(epochs=1)
    batches: Any = SimpleNamespace(steps=steps, samples_per_epoch=lambda: 6)
    progress: Any = SimpleNamespace(advance=lambda _: None, note=lambda _: None)
    training = Training(model, Recording(model, replace(config, batch_size=2), WORLD))
    training.fit(batches, None, config, lambda _: seen.append(torch.get_num_threads()), progress)
    assert seen == [1] * 6 + [4]
