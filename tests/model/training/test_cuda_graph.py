"""CUDA graphs without a GPU: a stand-in records operators and replays them on the same memory, as a graph does.

It freezes everything that a graph would: numbers, shapes and tensor addresses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import model.training.step
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.cuda_graph import _WARM_UPS
from model.training.step import Step
from workflows.common.errors import UserError

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 40, 30


class Recorded(TorchDispatchMode):
    """Records executed operators with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        found = func(*args, **given)
        self.calls.append((func, args, given, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, given, found in self.calls:
            again = func(*args, **given)
            if isinstance(found, Tensor):
                found.copy_(again)


class StandIn:
    """Replaces `graph_capture`: counts captures and replays. Capturing has no side effects, as on a GPU."""

    def __init__(self) -> None:
        self.recordings = self.runs = 0
        self.leaves: list[Tensor] = []  # tensors that the work modifies

    def __call__(self, device: torch.device) -> Callable[..., Any]:
        return self.capture

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recordings += 1
        state, kept = torch.get_rng_state(), [leaf.clone() for leaf in self.leaves]
        with Recorded() as recorded:
            loss = work()
        torch.set_rng_state(state)
        for leaf, value in zip(self.leaves, kept, strict=True):
            leaf.copy_(value)

        def replay() -> None:
            self.runs += 1
            recorded.replay()

        return replay, loss.fill_(torch.nan)  # nothing has run yet


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setattr(model.training.step, "graph_capture", found)
    return found


def network() -> NeuMF:
    shape = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=6, layers=(16, 12, 8), dropout=0.4)
    return NeuMF(shape, torch.Generator().manual_seed(1))


def batches(sizes: list[int], group: int = 5) -> list[Batch]:
    g = torch.Generator().manual_seed(2)
    found = []
    for size in sizes:
        users = torch.randint(N_USERS, (size // group,), generator=g).repeat_interleave(group).int()
        items = torch.randint(N_ITEMS, (size,), generator=g).int()
        found.append(Batch(users, items, torch.randint(2, (size,), generator=g).float(), (), group))
    return found


def steps(net: NeuMF, settings: dict[str, Any], given: list[Batch], stand_in: StandIn) -> tuple[list[float], Step]:
    torch.manual_seed(7)
    step = Step(net, TrainConfig(batch_size=60, eps=1e-3, **settings), ProcessGroup(CPU), compiled=False)
    stand_in.leaves = [step._gradients]
    # A batch may have fewer samples than all ranks together; that total must not be frozen either.
    return [float(step(batch, len(batch) + number)) for number, batch in enumerate(given)], step


SIZES = [60] * (_WARM_UPS + 3) + [25] + [60] * 3 + [25]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("pieces", [1, 4])
def test_training_is_the_same_with_graphs(stand_in: StandIn, precision: str, pieces: int) -> None:
    plain, graphed = network(), network()
    settings = {"precision": precision, "grads_accumulated": pieces}
    expected, plain_step = steps(plain, settings, batches(SIZES), stand_in)
    found, step = steps(graphed, {**settings, "cuda_graphs": True}, batches(SIZES), stand_in)
    assert found == expected
    assert (stand_in.recordings, stand_in.runs) == (1, SIZES.count(60) - _WARM_UPS)
    for one, other in zip(graphed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert step.state_dict() == plain_step.state_dict()
    assert len(set(found)) == len(found)  # every step has its own loss


def test_a_loss_is_still_valid_after_the_next_step(stand_in: StandIn) -> None:
    given = batches([60] * (_WARM_UPS + 2))
    expected, _ = steps(network(), {}, given, stand_in)
    step = Step(network(), TrainConfig(batch_size=60, eps=1e-3, cuda_graphs=True), ProcessGroup(CPU), compiled=False)
    stand_in.leaves = [step._gradients]
    torch.manual_seed(7)
    losses = [step(batch, len(batch) + number) for number, batch in enumerate(given)]
    assert [float(loss) for loss in losses] == expected


def test_batches_are_not_modified(stand_in: StandIn) -> None:
    given = batches([60] * (_WARM_UPS + 3))
    kept = copy.deepcopy(given)
    steps(network(), {"cuda_graphs": True}, given, stand_in)
    for batch, before in zip(given, kept, strict=True):
        assert all(map(torch.equal, batch.columns, before.columns))


def test_a_batch_may_be_overwritten_after_its_step(stand_in: StandIn) -> None:
    given = batches([60] * (_WARM_UPS + 3))
    kept = copy.deepcopy(given)

    def losses(settings: dict[str, Any], spoilt: bool) -> list[float]:
        torch.manual_seed(7)
        step = Step(network(), TrainConfig(batch_size=60, **settings), ProcessGroup(CPU), compiled=False)
        stand_in.leaves = [step._gradients]
        found = []
        for batch in given if spoilt else kept:
            found.append(float(step(batch, 60)))
            for column in batch.columns if spoilt else ():
                column.zero_()
        return found

    assert losses({"cuda_graphs": True}, spoilt=True) == losses({}, spoilt=False)


@pytest.mark.parametrize("first", [60, 25])
def test_the_first_shape_becomes_the_shape_of_the_graph(stand_in: StandIn, first: int) -> None:
    single = [Batch(*batch.columns[:3]) for batch in batches([first] * 4)]  # same length, ungrouped
    given = batches([first] + [40] * 6 + [first] * (_WARM_UPS + 1))
    steps(network(), {"cuda_graphs": True}, [*given, *single], stand_in)
    assert (stand_in.recordings, stand_in.runs) == (1, 2)


def test_a_rank_without_samples_captures_nothing(stand_in: StandIn) -> None:
    step = Step(network(), TrainConfig(batch_size=60, cuda_graphs=True), ProcessGroup(CPU), compiled=False)
    for _ in range(_WARM_UPS + 2):
        step(None, 60)
    assert stand_in.recordings == 0


def test_a_whole_step_is_in_a_graph_on_all_ranks_or_on_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided by the samples of all ranks: those of one may be as many as ever in the epoch's last step."""

    class WholeStep:
        rate = torch.zeros(())

        def __call__(self, batch: Batch | None, weight: Tensor) -> Tensor:
            launched.append("kernels")
            return weight

    launched: list[str] = []
    monkeypatch.setattr(model.training.step, "fused_training", lambda *_: WholeStep())
    step = Step(network(), TrainConfig(batch_size=120), ProcessGroup(CPU), compiled=False)
    monkeypatch.setattr(step, "_on_batch", lambda batch, weight: launched.append("graph"))
    (batch,) = batches([60])
    for local, total in ((batch, 120), (batch, 115), (None, 40), (batch, 120)):
        step(local, total)
    assert launched == ["graph", "kernels", "kernels", "graph"]


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(UserError, match="--cuda-graphs needs an NVIDIA GPU"):
        Step(network(), TrainConfig(cuda_graphs=True), ProcessGroup(CPU))


def test_graphs_and_compiled_networks_are_mutually_exclusive() -> None:
    with pytest.raises(UserError, match="--cuda-graphs and --compile"):
        TrainConfig(cuda_graphs=True, compile=True)
