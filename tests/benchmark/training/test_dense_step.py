"""The dense first layer is mathematically equivalent to the factorised one."""

from __future__ import annotations

import pytest
import torch

from benchmark.training.dense_step import DenseFirstLayer
from model.data.batch import Batch
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.torch_step import TorchStep


@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("chunk", [None, 20])
def test_loss_and_gradients_match_the_factorised_step(group: int, chunk: int | None) -> None:
    torch.manual_seed(1)
    network = NeuMF(NeuMFConfig(n_users=30, n_items=40, factors=4, layers=(16, 8, 4), dropout=0.5))
    users = torch.randint(0, 30, (60 // group,)).repeat_interleave(group)
    batch = Batch(users, torch.randint(0, 40, (60,)), torch.randint(0, 2, (60,)).float(), group=group)
    found = []
    for kind in (TorchStep, DenseFirstLayer):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        torch.manual_seed(2)  # so that the same units are dropped
        loss = kind(network, chunk).gradients(batch, 1.0 / 60)
        found.append([loss, *(parameter.grad for parameter in network.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)
