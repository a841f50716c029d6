"""Whole fused steps: on several ranks, without a wait for the device, and in place of the torch step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_waits import HostWaits
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed; requirements/dev.txt has it on Linux")

from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.fused import kernels
from model.training.fused import training as fused
from model.training.fused.plan import Tile
from model.training.optimizer import adam

META = torch.device("meta")
MAX_OPERATORS = 75  # of torch and kernels of ours, each a launch or more
GROUP = 5

# Losses and parameters of a few steps without dropout; the batch of the last step is too small for the last rank.
STEPS = """
from model.data.batch import Batch
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.fused.plan import Tile
from model.training.fused.training import FusedTraining
from model.training.optimizer import adam
shape = NeuMFConfig(n_users=37, n_items=23, factors=8, layers=(16, 16), dropout=0.0)
model = NeuMF(shape, torch.Generator().manual_seed(1))
step = FusedTraining(model, adam(model, TrainConfig(eps=1e-4)), world, 5, "fp32", Tile(rows=32))
step.rate.fill_(0.01)
g = torch.Generator().manual_seed(2)
for groups in (24, 24, 3):
    users = torch.randint(37, (groups,), generator=g).repeat_interleave(5).int()
    items, labels = torch.randint(23, (groups * 5,), generator=g).int(), torch.arange(groups * 5) % 5 == 0
    share = world.share(groups)
    batch = Batch(users, items, labels.float(), (), 5).cut(5 * share.start, 5 * share.stop)
    loss = step(batch if len(batch) else None, torch.tensor(1.0 / len(users)))
    print(world.sum(loss).item())
print(*(parameter.detach().double().square().sum().item() for parameter in model.parameters()))
"""


def test_any_number_of_ranks_has_the_same_losses(in_processes: Callable) -> None:
    found = {}
    for size in (1, 2, 4):
        lines = in_processes(size, STEPS)
        assert lines == [lines[0]] * size
        found[size] = [list(map(float, line.split())) for line in lines[0]]
    for size in (2, 4):
        for one, many in zip(found[1], found[size], strict=True):
            assert many == pytest.approx(one, rel=1e-5)


class Operators(TorchDispatchMode):
    """Counts torch's operators that launch kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and not function._overloadpacket.__name__.startswith("empty"):
            self.calls[function._overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class NoKernel:
    """A kernel that is launched, but does nothing."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) for size in grid)
        return self._launch

    def _launch(self, *arguments: Any, **constants: Any) -> None:
        self.launches += 1


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_a_step_neither_waits_nor_has_shapes_that_depend_on_data(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """On torch's meta device, which has no values: whatever needs one raises."""
    launches = NoKernel()
    for name in ("tile_step", "gather_rows", "segment_sum"):
        monkeypatch.setattr(kernels, name, launches)
    model = NeuMF(NeuMFConfig(n_users=500, n_items=300)).to(META)
    optimizer = adam(model, TrainConfig())
    step = fused.FusedTraining(model, optimizer, ProcessGroup(META), GROUP, precision, Tile())
    optimizer.param_groups[0]["fused"] = False  # which the meta device lacks
    ids = torch.empty(1000, dtype=torch.int32, device=META)
    batch = Batch(ids, ids, torch.empty(1000, device=META), (), GROUP)
    weight = torch.empty((), device=META)
    monkeypatch.setattr(optimizer, "step", lambda: None)  # one launch
    with HostWaits() as waits, Operators() as operators:
        loss = step(batch, weight)
    assert loss.device == META
    assert not waits.found
    assert launches.launches == 7  # two gathers, the tiles, four tables
    assert operators.calls.total() + launches.launches + 1 <= MAX_OPERATORS, operators.calls
