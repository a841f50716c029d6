"""Adam within the sums of rows, against torch's on the same gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from fused_cases import N_ITEMS, N_USERS, network, samples

from model.data.batch import Batch
from model.training.fused.step import FusedStep, TableAdam
from model.training.optimizer import create_state

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5


def _batch(number: int) -> Batch:
    """Other users and items in each step: a moment of those that are absent decays."""
    batch = samples(4, 5)
    return replace(batch, users=(batch.users + number) % N_USERS, items=(batch.items + 3 * number) % N_ITEMS)


@pytest.mark.parametrize(("betas", "steps"), [((0.9, 0.999), 10), ((0.0, 0.999), 3)])
def test_steps_are_those_of_torch(betas: tuple[float, float], steps: int) -> None:
    fused, plain = network(dropout=0.2), network(dropout=0.2)
    optimizers = [torch.optim.Adam(model.parameters(), betas=betas, fused=True) for model in (fused, plain)]
    create_state(optimizers[0])
    rate = torch.zeros(())
    step = FusedStep(fused, 5, "fp32", adam=TableAdam(optimizers[0], rate))
    plain_step = FusedStep(plain, 5, "fp32")
    for parameter in step.tables:
        parameter.grad = None
    for number in range(steps):
        plain.load_state_dict(fused.state_dict())  # so that the gradients are the same
        before = copy.deepcopy(dict(fused.named_parameters()))
        rate.fill_(0.01 * (1 + number % 3))
        for each, optimizer in zip((step, plain_step), optimizers, strict=True):
            torch.manual_seed(number)
            each.gradients(_batch(number), torch.tensor(0.05), fill=torch.nan)
            optimizer.param_groups[0]["lr"] = rate.item()
            optimizer.step()
        for (name, found), expected in zip(fused.named_parameters(), plain.parameters(), strict=True):
            moved, should = (found - before[name]).detach(), (expected - before[name]).detach()
            torch.testing.assert_close(moved, should, rtol=TOLERANCE, atol=1e-7, msg=name)
            state, wanted = optimizers[0].state[found], optimizers[1].state[expected]
            assert state.keys() == wanted.keys()
            assert state["step"] == wanted["step"] == number + 1
            for moment in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(state[moment], wanted[moment], rtol=1e-5, atol=1e-9)
    assert all(parameter.grad is None for parameter in step.tables)
