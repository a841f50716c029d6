"""The process group, with real local processes over Gloo."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from model.distributed.process_group import ProcessGroup, RankInfo, _interface_to, init_process_group
from workflows.common.errors import UserError

CPU = torch.device("cpu")


def test_collectives_agree_on_all_ranks(in_processes: Callable) -> None:
    body = """
print(world.sum(torch.tensor([1.0, world.rank])).tolist())
print(world.start_sum(10 + world.rank)(), world.broadcast_int(world.rank + 7))
print([tensor.tolist() for tensor in world.gather(torch.tensor([world.rank, 5]))])
mine = torch.full((2,), float(world.rank + 1))
world.broadcast(mine)
print(mine.tolist(), world.share(10), world.is_first)
"""
    first, second, third = in_processes(3, body)
    assert first == ["[3.0, 3.0]", "33 7", "[[0, 5], [1, 5], [2, 5]]", "[1.0, 1.0] slice(0, 3, None) True"]
    assert second[:3] == third[:3] == first[:3]
    assert second[3] == "[1.0, 1.0] slice(3, 6, None) False"
    assert third[3] == "[1.0, 1.0] slice(6, 10, None) False"


def test_each_rank_sums_and_shares_its_part(in_processes: Callable) -> None:
    body = """
first, second = torch.arange(6.0) + 10 * world.rank, torch.full((3,), 1.0 + world.rank)
waits = [world.start_reduce_scatter(first), world.start_reduce_scatter(second)]
for wait in waits:
    wait()
print(first.tolist(), second.tolist())
wait = world.start_all_gather(first)
wait()
print(first.tolist())
"""
    ranks = in_processes(3, body)
    assert [rank[0] for rank in ranks] == [
        "[30.0, 33.0, 2.0, 3.0, 4.0, 5.0] [6.0, 1.0, 1.0]",
        "[10.0, 11.0, 36.0, 39.0, 14.0, 15.0] [2.0, 6.0, 2.0]",
        "[20.0, 21.0, 22.0, 23.0, 42.0, 45.0] [3.0, 3.0, 6.0]",
    ]
    assert [rank[1] for rank in ranks] == ["[30.0, 33.0, 36.0, 39.0, 42.0, 45.0]"] * 3


def test_ranks_with_different_numbers_of_batches_stay_in_step(in_processes: Callable) -> None:
    # Rank r has 2 * r batches of r + 1 samples; rank 0 has none.
    body = """
batches = iter([[0] * (world.rank + 1)] * (2 * world.rank))
for batch, samples in world.aligned(batches):
    print(None if batch is None else len(batch), samples, world.sum(torch.ones(1)).item())
"""
    first, second, third = in_processes(3, body)
    assert first == ["None 5 3.0"] * 2 + ["None 3 3.0"] * 2
    assert second == ["2 5 3.0"] * 2 + ["None 3 3.0"] * 2
    assert third == ["3 5 3.0"] * 2 + ["3 3 3.0"] * 2


def test_a_single_process_needs_no_communication() -> None:
    world = ProcessGroup(CPU)
    with init_process_group(RankInfo(), CPU) as alone:
        assert (alone.rank, alone.size, alone.is_first) == (0, 1, True)
    assert world.sum(torch.ones(2)).tolist() == [1.0, 1.0]
    mine = torch.ones(2)
    for start in (world.start_reduce_scatter, world.start_all_gather):
        start(mine)()
        assert mine.tolist() == [1.0, 1.0]
    assert (world.start_sum(3)(), world.broadcast_int(4)) == (3, 4)
    assert [tensor.tolist() for tensor in world.gather(torch.ones(1))] == [[1.0]]

    assert list(world.aligned(iter([[1, 2], [3]]))) == [([1, 2], 2), ([3], 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 6, 7, 100])
def test_shares_cover_every_element_once(size: int, total: int) -> None:
    shares = [ProcessGroup(CPU, rank, size).share(total) for rank in range(size)]
    assert [place for share in shares for place in range(total)[share]] == list(range(total))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


PLACES: dict[str, tuple[Mapping[str, str], RankInfo | None]] = {
    "nobody": ({}, None),
    "torchrun": ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, RankInfo(3, 8, 1, 4)),
    "by hand": ({"RANK": "0", "WORLD_SIZE": "2"}, RankInfo(0, 2, 0)),
    "srun": (
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"},
        RankInfo(9, 16, 1, may_see_one_gpu=True),
    ),
    "srun with fewer tasks than the job": (
        {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "2"},
        RankInfo(1, 2, 0, may_see_one_gpu=True),
    ),
    "batch script without srun": ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, None),
    "torchrun under SLURM": (
        {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "RANK": "5", "WORLD_SIZE": "8"},
        RankInfo(5, 8, 0),
    ),
}


@pytest.mark.parametrize(("environment", "place"), PLACES.values(), ids=PLACES.keys())
def test_the_place_is_read_from_the_launchers_variables(environment: Mapping[str, str], place: RankInfo | None) -> None:
    assert RankInfo.from_environment(environment) == place


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-3"},
    ],
)
def test_an_invalid_place_is_rejected(environment: Mapping[str, str]) -> None:
    with pytest.raises(UserError, match=r"rank|launcher"):
        RankInfo.from_environment(environment)


def test_the_interface_to_a_host_is_found() -> None:
    assert _interface_to("127.0.0.1") == "lo"
    assert _interface_to("no.such.host.invalid") is None
