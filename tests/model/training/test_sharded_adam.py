"""Sharded Adam against torch's on summed gradients, alone and on several ranks over Gloo."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.distributed.process_group import ProcessGroup
from model.network.checkpoint import WEIGHTS_NAME, load_run, load_weights, save_model, write_reference
from model.network.neumf import ARCHITECTURES, NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.optimizer import adam
from model.training.sharded_adam import ShardedAdam

CPU = torch.device("cpu")
RATE = torch.tensor(0.01)


class Recording(ProcessGroup):
    """Records collectives by the length of their tensors; nothing is exchanged."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(CPU, rank, size)
        self.calls: list[tuple[str, int]] = []

    def start_reduce_scatter(self, tensor: Tensor) -> Callable[[], None]:
        return self._start("sum", tensor)

    def start_all_gather(self, tensor: Tensor) -> Callable[[], None]:
        return self._start("gather", tensor)

    def _start(self, kind: str, tensor: Tensor) -> Callable[[], None]:
        self.calls.append((kind, len(tensor)))
        return lambda: self.calls.append((f"{kind} done", len(tensor)))


def network(arch: str = "neumf", n_users: int = 37, n_items: int = 23) -> NeuMF:
    shape = NeuMFConfig(n_users=n_users, n_items=n_items, factors=3, layers=(14, 5), arch=arch)
    return NeuMF(shape, torch.Generator().manual_seed(1))


def sharded(model: NeuMF, world: ProcessGroup) -> ShardedAdam:
    return ShardedAdam(model, adam(model, TrainConfig()), world)


def train(model: NeuMF, optimizer: ShardedAdam, steps: int = 1) -> None:
    g = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.normal_(generator=g)
        optimizer.ready("gmf")
        optimizer.ready("rest")
        optimizer.step(RATE)


# For each rank: parameters of uneven sizes, and gradients whose sums do not depend on their order.
RANK = """
import copy
from pathlib import Path
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.optimizer import adam
from model.training.resume_state import load_last, save_last
from model.training.sharded_adam import ShardedAdam
from model.training.trainer import Training
from workflows.device.torch_device import rng_state

class SumStep:
    def __init__(self):
        shape = NeuMFConfig(n_users=37, n_items=23, factors=3, layers=(14, 5))
        self.model = NeuMF(shape, torch.Generator().manual_seed(1))
        self.optimizer = adam(self.model, TrainConfig())
        self.sharded = ShardedAdam(self.model, self.optimizer, world)
        self.gather_state = self.sharded.gather_moments
    def state_dict(self):
        return {}
    def __call__(self, number):
        for index, parameter in enumerate(self.model.parameters()):
            parameter.grad.copy_(gradient(parameter, number, index, world.rank))
        self.sharded.ready("gmf")
        self.sharded.ready("rest")
        self.sharded.step(torch.tensor(rate(number)))

def rate(number):
    return 2.0 ** -(5 + number)  # the same in float32

def gradient(parameter, number, index, rank):
    g = torch.Generator().manual_seed(1000 * number + 100 * rank + index)
    return torch.randint(-40, 41, parameter.shape, generator=g) / 8

def state(step):
    found = {}
    for name, parameter in step.model.named_parameters():
        found |= {f"{key}.{name}": value for key, value in step.optimizer.state[parameter].items()}
        found[name] = parameter.detach()
    return found
"""


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_ranks_trains_as_one_with_torchs_adam(in_processes: Callable, size: int) -> None:
    body = """
step = SumStep()
expected = SumStep()
expected.model = copy.deepcopy(step.model)
expected.optimizer = adam(expected.model, TrainConfig())
for number in range(5):
    step(number)
    for index, parameter in enumerate(expected.model.parameters()):
        parameter.grad = sum(gradient(parameter, number, index, rank) for rank in range(world.size))
    expected.optimizer.param_groups[0]["lr"] = rate(number)
    expected.optimizer.step()
step.sharded.gather_moments()
torch.testing.assert_close(state(step), state(expected), rtol=2e-6, atol=1e-9)
print("equal")
"""
    assert in_processes(size, RANK + body) == [["equal"]] * size


@pytest.mark.parametrize("size", [1, 3])
def test_a_saved_run_continues_as_if_uninterrupted(in_processes: Callable, tmp_path: Path, size: int) -> None:
    body = f"""
step, again = SumStep(), SumStep()
for number in range(3):
    step(number)
step.gather_state()
rng_states = world.gather(rng_state(world.device))
if world.is_first:
    save_last(Path({str(tmp_path)!r}), Training(step.model, step), rng_states, {{}})
world.broadcast_int(0)
load_last(Path({str(tmp_path)!r}), Training(again.model, again), world)
for number in range(3, 5):
    step(number)
    again(number)
step.gather_state()
again.gather_state()
torch.testing.assert_close(state(again), state(step), rtol=0.0, atol=0.0)
print(state(again)["step.final.bias"].item())
"""
    assert in_processes(size, RANK + body) == [["5.0"]] * size


def test_gmf_goes_first_and_nothing_waits_early() -> None:
    world = Recording(1, 2)
    model = network()
    train(model, sharded(model, world))
    gmf, rest = (length for _, length in world.calls[:2])
    assert gmf < rest
    assert world.calls == [
        ("sum", gmf),
        ("sum", rest),
        ("sum done", gmf),
        ("gather", gmf),
        ("sum done", rest),
        ("gather", rest),
        ("gather done", gmf),
        ("gather done", rest),
    ]


def test_a_rank_updates_its_share_only() -> None:
    model = network()
    before = copy.deepcopy(model)
    changed = []
    for rank in range(3):
        model = copy.deepcopy(before)
        train(model, sharded(model, Recording(rank, 3)))
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        changed.append(torch.cat([(one != other).flatten() for one, other in pairs]).int())
    assert (sum(changed) == 1).all()  # each element on one rank
    assert all(share.any() for share in changed)


@given(
    arch=st.sampled_from(ARCHITECTURES), users=st.integers(1, 300), items=st.integers(1, 300), size=st.integers(1, 9)
)
def test_parameters_keep_their_values_and_are_aligned(arch: str, users: int, items: int, size: int) -> None:
    model = network(arch, users, items)
    before = copy.deepcopy(model)
    world = Recording(0, size)
    optimizer = sharded(model, world)
    memory = model.final.weight.untyped_storage().data_ptr()
    for parameter, kept in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, kept)
        assert parameter.numel() == 0 or (parameter.data_ptr() - memory) % 256 == 0
    train(model, optimizer)
    assert all(length % (64 * size) == 0 for _, length in world.calls)


def test_padding_stays_zero() -> None:
    model = network()
    optimizer = sharded(model, ProcessGroup(CPU))
    train(model, optimizer, steps=3)
    memory = torch.empty(0).set_(model.final.weight.detach().untyped_storage())
    used = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert memory.count_nonzero() == used < len(memory)


def test_networks_in_flat_memory_are_saved_and_loaded(tmp_path: Path) -> None:
    model = network()
    optimizer = sharded(model, ProcessGroup(CPU))
    train(model, optimizer)
    kept = copy.deepcopy(model.state_dict())
    save_model(tmp_path, model, {"data": "", "feature_spec_file": ""})
    write_reference(tmp_path / "model.pth", model)
    for name, value in load_run(tmp_path, CPU).model.state_dict().items():
        assert torch.equal(value, kept[name])
    for name in (WEIGHTS_NAME, "model.pth"):
        train(model, optimizer)
        load_weights(tmp_path / name, model)
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    addresses = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert addresses == {optimizer.gradients.untyped_storage().data_ptr()}
