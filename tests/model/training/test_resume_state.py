"""The saved state of a run, between steps of different kinds. Whole runs are resumed in `tests/model/run/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.optimizer import adam
from model.training.protocols import TrainStep
from model.training.resume_state import load_last, save_last
from model.training.sharded_adam import ShardedAdam
from model.training.step import Step
from model.training.trainer import Training
from workflows.device.torch_device import rng_state

CPU = torch.device("cpu")
BATCH = Batch(torch.arange(6) % 4, torch.arange(6) % 5, (torch.arange(6) % 2).float())
KINDS = ["compiled", "torch", "scaled", "flat"]


class FlatStep:
    """A step without a loss scale whose optimiser has its tensors before the first step."""

    precision, threads = "fp32", 1

    def __init__(self, model: NeuMF, config: TrainConfig, world: ProcessGroup) -> None:
        self.model, self.world, self.optimizer = model, world, adam(model, config)
        self._sharded = ShardedAdam(model, self.optimizer, world)

    def __call__(self, batch: Batch, samples: int) -> Tensor:
        self._sharded.gradients.zero_()
        logits = self.model(batch.users, batch.items)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum")
        (loss / samples).backward()
        self._sharded.ready("gmf")
        self._sharded.ready("rest")
        self._sharded.step(torch.tensor(0.01))
        return loss.detach()

    def gather_state(self) -> None:
        self._sharded.gather_moments()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def training(kind: str) -> Training:
    shape = NeuMFConfig(n_users=4, n_items=5, factors=2, layers=(6, 3), dropout=0.0)
    model, world = NeuMF(shape, torch.Generator().manual_seed(1)), ProcessGroup(CPU)
    config = TrainConfig(batch_size=6, precision="fp16" if kind == "scaled" else "fp32", learning_rate=0.01)
    step: TrainStep
    if kind == "flat":
        step = FlatStep(model, config, world)
    else:
        step = Step(model, config, world, compiled=kind == "compiled")
    return Training(model, step)


def tensors(of: Training) -> dict[str, Tensor]:
    """Weights and the optimiser's state by name."""
    found = {}
    for name, parameter in of.model.named_parameters():
        found[name] = parameter.detach().clone()
        found |= {f"{key}.{name}": value.clone() for key, value in of.step.optimizer.state[parameter].items()}
    return found


@pytest.mark.parametrize("loading", KINDS)
@pytest.mark.parametrize("saving", KINDS)
def test_a_run_may_continue_with_another_kind_of_step(tmp_path: Path, saving: str, loading: str) -> None:
    first, second = training(saving), training(loading)
    for _ in range(3):
        first.step(BATCH, 6)
    save_last(tmp_path, first, [rng_state(CPU)], {"note": 7})
    about = load_last(tmp_path, second, ProcessGroup(CPU))
    assert about is not None
    assert about["note"] == 7
    expected = tensors(first)
    assert expected.keys() == tensors(second).keys()
    assert all(torch.equal(value, expected[name]) for name, value in tensors(second).items())
    default = training(loading).step.state_dict()
    assert second.step.state_dict() == (first.step.state_dict() if saving == loading == "scaled" else default)

    losses = [float(each.step(BATCH, 6)) for each in (first, second) for _ in range(4)]
    assert losses[4:] == pytest.approx(losses[:4], rel=2e-3)
    assert losses[0] > losses[3]
    counts = {float(value) for name, value in tensors(second).items() if name.startswith("step.")}
    assert counts == {7.0}


def test_existing_state_is_overwritten_in_place(tmp_path: Path) -> None:
    saved, flat = training("torch"), training("flat")
    saved.step(BATCH, 6)
    save_last(tmp_path, saved, [rng_state(CPU)], {})
    state = [value for known in flat.step.optimizer.state.values() for value in known.values()]
    addresses = [value.data_ptr() for value in (*state, *flat.model.parameters())]
    load_last(tmp_path, flat, ProcessGroup(CPU))
    state = [value for known in flat.step.optimizer.state.values() for value in known.values()]
    assert [value.data_ptr() for value in (*state, *flat.model.parameters())] == addresses
