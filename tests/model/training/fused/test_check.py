"""The start-up check of the fused step: it passes here, notices planted faults, and falls back to the torch step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fused_cases import samples
from torch import Tensor

from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from model.training.fused import check, choice, kernels
from model.training.fused.check import DifferenceError, check_fused_step
from model.training.fused.plan import Tile
from model.training.optimizer import adam
from model.training.step import Step
from model.training.torch_step import TorchStep
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError

CPU = torch.device("cpu")
CONFIG = NeuMFConfig(n_users=9, n_items=7, factors=8, layers=(32, 16), dropout=0.5)
GROUP = 5
LARGE = 400  # samples: 7 tiles, where the first batches have 3
Fault = Callable[[dict[str, Any], int], None]

pytestmark = pytest.mark.usefixtures("one_thread", "few_ids")


@pytest.fixture
def few_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller tables, which the interpreter goes through row by row."""
    monkeypatch.setattr(check, "_N_USERS", 7)
    monkeypatch.setattr(check, "_N_ITEMS", 6)


class Planted:
    """A kernel with a fault, of which `before` changes arguments, and `after` results.

    Both get the launch's arguments by name, and how often it was launched.
    """

    def __init__(self, name: str, before: Fault = lambda _, __: None, after: Fault = lambda _, __: None) -> None:
        self.kernel, self.before, self.after, self.launches = getattr(kernels, name), before, after, 0

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*values: Any, **constants: Any) -> None:
            given = dict(zip(self.kernel.arg_names, values, strict=False))
            self.launches += 1
            self.before(given, self.launches)
            names = self.kernel.arg_names[: len(values)]
            self.kernel[grid](*(given[name] for name in names), **constants)
            self.after(given | constants, self.launches)

        return launch


def passes(precision: str = "bf16", group: int = GROUP, batch: int = LARGE, config: NeuMFConfig = CONFIG) -> float:
    return check_fused_step(config, group, precision, Tile(), batch, CPU)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_the_step_passes(precision: str) -> None:
    state = torch.get_rng_state()
    assert passes(precision, config=NeuMFConfig(n_users=9, n_items=9, factors=8, layers=(32, 16, 16))) < 0.9
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("group", "batch", "dropout"), [(5, 3, 0.0), (40, 200, 0.5)])
def test_other_groups_pass(group: int, batch: int, dropout: float) -> None:
    config = NeuMFConfig(n_users=9, n_items=9, factors=3, layers=(10, 7), dropout=dropout)
    assert passes(group=group, batch=batch, config=config) < 0.9


def _rate(given: dict[str, Any], _: int) -> None:
    given["dropout"] = given["dropout"].clone()
    given["dropout"][1] = round(0.52 * 2**32)


def _seed(given: dict[str, Any], _: int) -> None:
    given["dropout"] = given["dropout"] + torch.tensor([1, 0])


def _scale(given: dict[str, Any], _: int) -> None:
    given["scale_up"] *= 1.01


def _item(given: dict[str, Any], _: int) -> None:
    given["items"] = given["items"].clone()
    given["items"][-1] = (given["items"][-1] + 1) % 6


def _label(given: dict[str, Any], _: int) -> None:
    given["labels"] = given["labels"].clone()
    given["labels"][7] = 1.0 - given["labels"][7]


def _shifted(given: dict[str, Any], _: int) -> None:
    given["items"] = given["items"].roll(1)


def _no_last_tile(given: dict[str, Any], _: int) -> None:
    given["d_logits"][-(LARGE % 60) :] = torch.nan  # what the buffers held before


def _row_not_written(given: dict[str, Any], _: int) -> None:
    given["d_user_gmf"][3] = torch.nan


def _other_order(given: dict[str, Any], launches: int) -> None:
    given["parts"][0, 0] += launches * 1e-5  # less than the check allows


def _raises(given: dict[str, Any], _: int) -> None:
    raise RuntimeError("no kernel image is available")


def _large_only(fault: Fault) -> Fault:
    return lambda given, launches: fault(given, launches) if len(given["d_logits"]) == LARGE else None


def _last_sample(name: str) -> Fault:
    def fault(given: dict[str, Any], _: int) -> None:
        values: Tensor = given[name]
        values.view(-1)[-1] += values.abs().max() + 1

    return fault


def _first_row_lost(given: dict[str, Any], _: int) -> None:
    given["bounds"] = given["bounds"].clone()
    given["bounds"][2] += 1


def _beta(given: dict[str, Any], _: int) -> None:
    given["beta2"] *= 0.9


@pytest.mark.parametrize(
    ("kernel", "faults", "noticed"),
    [
        ("tile_step", {"before": _rate}, "differs"),
        ("tile_step", {"before": _seed}, "differs"),
        ("tile_step", {"before": _scale}, "differs"),
        ("tile_step", {"before": _item}, "differs"),
        ("tile_step", {"before": _label}, "differs"),
        ("tile_step", {"before": _shifted}, "differs"),
        ("tile_step", {"after": _no_last_tile}, "differs by nan"),
        ("tile_step", {"after": _row_not_written}, "mf_user_embed.weight differs by nan"),
        ("tile_step", {"after": _other_order}, "other bits"),
        ("tile_step", {"before": _raises}, "no kernel image"),
        ("gather_rows", {"before": _raises}, "no kernel image"),
        ("gather_rows", {"after": _last_sample("out")}, "differs"),
        ("segment_sum", {"before": _raises}, "no kernel image"),
        ("segment_sum", {"before": _first_row_lost}, "differs"),
        ("segment_sum", {"before": _beta}, "by Adam differs"),
        ("tile_step", {"after": _large_only(_no_last_tile)}, "tile 6 of 7 differs by nan"),
        ("tile_step", {"after": _large_only(_last_sample("d_logits"))}, "the logits' gradient in tile 6 of 7"),
        ("tile_step", {"after": _large_only(_last_sample("acts"))}, "hidden layer 1 in tile 6 of 7"),
        ("tile_step", {"after": _large_only(_last_sample("grads"))}, "hidden layer 2 in tile 6 of 7"),
        ("tile_step", {"after": _large_only(_last_sample("d_user_gmf"))}, "GMF's gradient of users in tile 6 of 7"),
        ("tile_step", {"after": _large_only(_last_sample("d_user_first"))}, "the MLP's gradient of users in tile 6"),
    ],
)
def test_a_fault_is_noticed(
    monkeypatch: pytest.MonkeyPatch, kernel: str, faults: dict[str, Fault], noticed: str
) -> None:
    monkeypatch.setattr(kernels, kernel, Planted(kernel, **faults))
    if "tile 6" in noticed:  # the other parts would pass, and take time
        monkeypatch.setattr(check._Check, "gradients", lambda *_: None)
        monkeypatch.setattr(check._Check, "adam", lambda *_: None)
    config = NeuMFConfig(n_users=9, n_items=9, factors=16, layers=(16, 16, 16))
    with pytest.raises((DifferenceError, RuntimeError), match=noticed):
        passes(config=config)


def step_on_a_gpu(monkeypatch: pytest.MonkeyPatch, **config: Any) -> Step:
    """A step on a CPU that is taken for a GPU."""
    torch.manual_seed(1)
    monkeypatch.setattr(choice, "gpu_capability", lambda _: (8, 0))
    given = TrainConfig(batch_size=LARGE, negative_samples=GROUP - 1, precision="bf16", **config)
    return Step(NeuMF(CONFIG), given, ProcessGroup(CPU), compiled=False)


def losses(step: Step) -> list[float]:
    batch = samples(LARGE // GROUP, GROUP, CONFIG.n_users, CONFIG.n_items)
    return [float(step(batch, LARGE)) for _ in range(2)]


def test_a_step_that_passes_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_on_a_gpu(monkeypatch)
    monkeypatch.setattr(TorchStep, "gradients", None)
    assert step._fused is not None
    first, second = losses(step)
    assert 0 < second < first


def test_a_program_of_the_check_takes_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, too, which could run one program for each of its few tiles."""
    found = []

    def noted(given: dict[str, Any], _: int) -> None:
        found.append((given["parts"].shape[0], given["n_samples"]))

    monkeypatch.setattr("model.training.fused.step.multiprocessors", lambda _: 100)
    monkeypatch.setattr(kernels, "tile_step", Planted("tile_step", before=noted))
    tile = Tile(rows=16)
    check_fused_step(CONFIG, GROUP, "fp32", tile, LARGE, CPU)
    first, last = found[0], found[-1]
    assert first[0] * tile.rows < first[1]
    assert last[0] * tile.rows >= last[1]  # a full batch has the programs that training has


def test_the_check_multiplies_as_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of float32 are TF32 in every step, in whatever precision."""
    found = []

    @contextmanager
    def noted(precision: str, _: torch.device) -> Iterator[None]:
        found.append(precision)
        yield
        found.append("end")

    monkeypatch.setattr(choice, "matrix_precision", noted)
    monkeypatch.setattr(check, "check_fused_step", lambda *_: found.append("check"))
    step_on_a_gpu(monkeypatch)
    assert found == ["tf32", "check", "end"]


@pytest.mark.parametrize("fault", [_raises, _rate])
def test_a_step_that_fails_is_replaced_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Fault
) -> None:
    monkeypatch.setattr(kernels, "tile_step", Planted("tile_step", before=fault))
    step = step_on_a_gpu(monkeypatch)
    shown = "".join(capsys.readouterr())
    assert shown.startswith("the fused step failed its check, so the torch step trains: ")
    assert ("no kernel image is available" if fault is _raises else "differs by") in shown.replace("\n", " ")
    assert step._fused is None
    assert [loss > 0 for loss in losses(step)] == [True, True]


def test_a_missing_compiler_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "model.training.fused.check", None)
    assert step_on_a_gpu(monkeypatch)._fused is None
    assert "ModuleNotFoundError" in "".join(capsys.readouterr())


def test_a_fused_step_that_was_asked_for_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "tile_step", Planted("tile_step", before=_raises))
    with pytest.raises(UserError, match=r"--step fused: .*no kernel image"):
        step_on_a_gpu(monkeypatch, step="fused")


def test_the_torch_step_that_was_asked_for_needs_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "tile_step", None)
    assert step_on_a_gpu(monkeypatch, step="torch")._fused is None


@pytest.mark.parametrize(
    ("network", "settings", "capability", "reason"),
    [
        ({}, {}, None, "needs an NVIDIA GPU"),
        ({}, {}, (7, 5), "this one has 7.5"),
        ({"layers": (8,)}, {}, (9, 0), "hidden layer"),
        ({"arch": "gmf"}, {}, (9, 0), "--arch neumf"),
        ({"arch": "mlp"}, {}, (9, 0), "--arch neumf"),
        ({"layers": (8, 600, 300)}, {}, (9, 0), "at most 256"),
        ({"row_side": (SideFeature("age"),)}, {}, (9, 0), "no side features"),
        ({}, {"precision": "fp32"}, (9, 0), "tf32, fp16 or bf16"),
        ({}, {"grads_accumulated": 2}, (9, 0), "--grads_accumulated"),
    ],
)
def test_what_the_fused_step_does_not_take(
    monkeypatch: pytest.MonkeyPatch, network: dict[str, Any], settings: dict[str, Any], capability: Any, reason: str
) -> None:
    monkeypatch.setattr(choice, "gpu_capability", lambda _: capability)
    monkeypatch.setattr(check, "check_fused_step", None)  # not even checked
    config = {"layers": (8, 600, 256), "factors": 4} | network
    model = NeuMF(NeuMFConfig(n_users=9, n_items=9, **config))

    def step(kind: str) -> Step:
        given = TrainConfig(**{"precision": "bf16", "step": kind} | settings)
        return Step(model, given, ProcessGroup(CPU), compiled=False)

    assert step("auto")._fused is None
    with pytest.raises(UserError, match=f"--step fused: .*{reason}"):
        step("fused")


@pytest.mark.parametrize("own", [(7, 5), (9, 0)])
def test_ranks_with_different_gpus_decide_together(monkeypatch: pytest.MonkeyPatch, own: tuple[int, int]) -> None:
    votes = []

    def counted(vote: Tensor) -> Tensor:
        votes.append(float(vote))
        return vote + (own == (7, 5))  # the other rank has the other GPU

    monkeypatch.setattr(choice, "gpu_capability", lambda _: own)
    monkeypatch.setattr(check, "check_fused_step", lambda *_: None)
    world = ProcessGroup(CPU, size=2)
    monkeypatch.setattr(world, "sum", counted)
    model, config = NeuMF(CONFIG), TrainConfig(batch_size=LARGE, precision="bf16")
    assert choice.fused_training(model, adam(model, config), config, world, "bf16") is None
    assert votes == [float(own == (9, 0))]
