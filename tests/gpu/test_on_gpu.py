"""GPU behaviour: steps without host syncs, CUDA graphs, random state, ranks, and runs that move between devices."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.evaluation.metrics import positive_ranks
from model.network.neumf import NeuMF, NeuMFConfig
from model.scoring.scorer import Scorer
from model.training.config import TrainConfig
from model.training.step import Step
from workflows.device.torch_device import frames_beside, no_waits, rng_state, set_rng_state, synchronize

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
N_USERS, N_ITEMS, GROUP = 400, 300, 5
STEPS = [
    ("fp32", "torch"),
    ("bf16", "torch"),
    ("fp16", "torch"),
    ("tf32", "fused"),
    ("bf16", "fused"),
    ("fp16", "fused"),
]


def network(device: torch.device, dropout: float = 0.5) -> NeuMF:
    shape = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=16, layers=(64, 32, 16), dropout=dropout)
    return NeuMF(shape, torch.Generator().manual_seed(1)).to(device)


def batches(device: torch.device, sizes: list[int]) -> list[Batch]:
    g = torch.Generator().manual_seed(2)
    found = []
    for size in sizes:
        users = torch.randint(N_USERS, (size // GROUP,), generator=g).repeat_interleave(GROUP).int()
        items, labels = torch.randint(N_ITEMS, (size,), generator=g).int(), torch.randint(2, (size,), generator=g)
        found.append(Batch(users.to(device), items.to(device), labels.float().to(device), (), GROUP))
    return found


def step_of(net: NeuMF, device: torch.device, **config: Any) -> Step:
    if device.type == "cpu" and config.get("step") == "fused":
        pytest.skip("the fused step needs a GPU")
    return Step(net, TrainConfig(batch_size=1000, eps=1e-3, **config), ProcessGroup(device), compiled=False)


@pytest.mark.parametrize(("precision", "kind"), STEPS)
def test_a_step_never_waits_for_the_device(device: torch.device, precision: str, kind: str) -> None:
    given = batches(device, [1000] * 4)
    step = step_of(network(device), device, precision=precision, step=kind)
    step(given[0], 1000)  # the optimiser initialises its state in the first step
    synchronize(device)
    with no_waits(device):
        losses = [step(batch, 1000) for batch in given[1:]]
    assert all(0 < float(loss) < 1000 for loss in losses)


@pytest.mark.parametrize(("precision", "kind"), STEPS)
def test_steps_match_the_cpu(device: torch.device, precision: str, kind: str) -> None:
    tolerance = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 2e-2, "fp16": 5e-3}[precision]
    cpu = torch.device("cpu")
    sizes = [1000] * 10 + [135]
    expected_step = step_of(network(cpu, 0.0), cpu)
    expected = [float(expected_step(batch, len(batch))) for batch in batches(cpu, sizes)]
    step = step_of(network(device, 0.0), device, precision=precision, step=kind)
    found = [float(step(batch, len(batch))) for batch in batches(device, sizes)]
    assert found == pytest.approx(expected, rel=tolerance)


def test_random_numbers_resume_from_a_saved_state(device: torch.device) -> None:
    state = rng_state(device)
    assert state.device.type == "cpu"
    first = torch.rand(100, device=device)
    set_rng_state(device, state)
    assert torch.equal(torch.rand(100, device=device), first)


def test_scores_and_ranks_match_the_cpu(device: torch.device) -> None:
    g = torch.Generator().manual_seed(3)
    users = torch.arange(N_USERS).repeat_interleave(50)
    items = torch.randint(N_ITEMS, (len(users),), generator=g)
    net = network(torch.device("cpu")).eval()
    expected = Scorer(net)(users, items)
    found = Scorer(net.to(device))(users.to(device), items.to(device))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    # Ranks of identical scores, including ties and repeated items.
    scores = (expected * 100).round().view(-1, 50)
    ranks = positive_ranks(scores.to(device), items.view(-1, 50).to(device))
    assert torch.equal(ranks.cpu(), positive_ranks(scores, items.view(-1, 50)))


def test_a_run_can_be_trained_and_tested_on_different_devices(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cpu":
        pytest.skip("needs two devices; on one, other tests cover it")
    if find_spec("nvtabular") is None:
        pytest.skip("NVTabular is not installed")

    def command(*argv: str) -> None:
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    data, run = str(tmp_path / "data"), tmp_path / "run"
    flags = ["--synthetic", "300x200x6000", "--device", "cpu", "--output", data]
    command("-m", "preprocessing", *flags)
    flags = ["--data", data, "--factors", "8", "--layers", "16", "8", "--batch_size", "2000", "--amp", "--seed", "1"]
    command("train.py", *flags, "--output", str(run), "--device", device.type, "--epochs", "1")
    command("train.py", "--resume", str(run), "--epochs", "2")
    test = ["--mode", "test", "--load_checkpoint_path", str(run / "model.safetensors"), "--device", "cpu"]
    command("train.py", *flags, *test, "--output", str(tmp_path / "test"))
    trained, tested = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "test"))
    assert tested["hr@10"] == pytest.approx(trained["hr@10"], abs=0.01)


# Graphs come last: a failure during capture can leave the process unusable.
SIZES = [1000] * 8 + [135] + [1000] * 4 + [135]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("pieces", [1, 3])  # in several, the torch step computes all precisions
def test_cuda_graphs_do_not_change_the_results(device: torch.device, precision: str, pieces: int) -> None:
    results = []
    for cuda_graphs in (False, True):
        torch.manual_seed(7)
        net = network(device)
        step = step_of(net, device, precision=precision, cuda_graphs=cuda_graphs, grads_accumulated=pieces)
        losses = [float(step(batch, len(batch) + at)) for at, batch in enumerate(batches(device, SIZES))]
        results.append((losses, [parameter.detach() for parameter in net.parameters()], rng_state(device)))
    plain, graphed = results
    assert graphed[0] == pytest.approx(plain[0], rel=1e-4)
    for one, other in zip(graphed[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)
    assert torch.equal(graphed[2], plain[2])  # the same number of random numbers was drawn


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(("precision", "kind"), [("fp32", "torch"), ("bf16", "fused")])
def test_each_graph_replay_drops_different_units(device: torch.device, precision: str, kind: str) -> None:
    (batch,) = batches(device, [1000])
    net = network(device)
    step = step_of(net, device, precision=precision, step=kind, cuda_graphs=True, learning_rate=1e-30)
    assert len({float(step(batch, 1000)) for _ in range(8)}) == 8


def test_dataframes_share_a_pool_that_counts_as_free_what_it_holds_unused(device: torch.device) -> None:
    frames = frames_beside(device)
    if frames.on_cpu:
        pytest.skip("needs cuDF and a GPU")
    size = 1 << 28
    before = frames.free_bytes()
    held = frames.arrays.zeros(size, dtype="uint8")
    synchronize(device)
    assert before - frames.free_bytes() >= size
    del held
    synchronize(device)
    assert frames.free_bytes() >= before - size // 2  # the pool has kept the memory
