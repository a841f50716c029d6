"""Counts the fused step: its own Python code under the counter, its Triton kernels by formula. Needs neither Triton nor
a GPU.

The rule for kernels is the counter's: each array that a kernel needs is read once and written once, and rows at random
places are moved once per use, at least 32 bytes each. What a program wrote or read moments before is still in its cache
(a tile's activations; GMF's rows, loaded a second time; a program's sums over its tiles). Operations include those of
padding and of unused samples of a tile.
"""

from __future__ import annotations

import ast
import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec, module_from_spec
from itertools import pairwise
from math import log2, prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from benchmark.cost_model.cost import SECTOR_BYTES, Cost
from benchmark.cost_model.counter import Counter
from benchmark.cost_model.stages import OPTIMIZER, Counted, network_config, per_unit
from benchmark.training import variants as settings
from model.data.batch import Batch
from model.network.neumf import NeuMF
from model.training import fused as fused_package
from model.training.config import TrainConfig
from model.training.fused.plan import Tile
from model.training.optimizer import adam, create_state, shared_gradients
from preprocessing.synthetic.log import Shape

_KERNELS, _STEP = "model.training.fused.kernels", "model.training.fused.step"
_TABLE = Path(__file__).with_name("fused_kernels.json")  # written by tests/compile_fused_kernels.py
_GROUP = 1 + settings.NEGATIVES
_A100 = (8, 0)  # its tiles, and the instructions of its machine code, are counted for every GPU
_MULTIPROCESSORS = 108  # of an A100

Arguments = dict[str, Any]


def count_fused(shape: Shape, batch_size: int, precision: str, devices: int = 1) -> Counted:
    """Count a step of the fused kernels, and the batch that a GPU makes of rows in its memory.

    On one device Adam updates the large tables within their sums of rows. Of several, each updates an equal share of
    all parameters, whose gradients it gets by a reduce-scatter.

    Args:
        batch_size: per device.
        precision: "tf32" or "amp".
    """
    n = batch_size // _GROUP * _GROUP
    counter = Counter(dict.fromkeys(OPTIMIZER, "optimizer"))
    with FakeTensorMode(), _recorded(counter) as fused:
        network = NeuMF(network_config(shape.users, shape.items))
        shared_gradients(network)
        optimizer = adam(network, TrainConfig(batch_size=n))
        create_state(optimizer)
        within = fused.TableAdam(optimizer, torch.zeros(())) if devices == 1 else None
        precision = "fp16" if precision == "amp" else precision
        step = fused.FusedStep(network, _GROUP, precision, Tile.for_gpu(_A100, precision), within)
        ids = torch.zeros(n, dtype=torch.int32)
        update = _rest(optimizer, step.tables) if devices == 1 else _share(network, devices)
        batch, weight = Batch(ids, ids, torch.zeros(n), group_size=_GROUP), torch.ones(())
        with counter.torch_operators(), ExitStack() as later, counter.stage("tiles"):
            gmf_done = lambda: later.enter_context(counter.stage("products"))  # noqa: E731
            step.gradients(batch, weight, gmf_done)
            update()
    with counter.stage("batch"):
        counter.add("train_batch", _batch_cost(n, shape.rows / shape.users))
    return Counted(per_unit(counter, n))


def _rest(optimizer: torch.optim.Adam, tables: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Adam on what the sums of rows do not update."""
    for table in tables:
        table.grad = None
    return optimizer.step


def _share(network: NeuMF, devices: int) -> Callable[[], Any]:
    """Adam on a device's share of all parameters."""
    size = sum(parameter.numel() for parameter in network.parameters())
    share = torch.nn.Parameter(torch.zeros(-(-size // devices)))
    share.grad = torch.zeros_like(share)
    optimizer = torch.optim.Adam([share], fused=True)
    optimizer.step()
    return optimizer.step


@contextmanager
def _recorded(counter: Counter) -> Iterator[ModuleType]:
    """A copy of the fused step's module whose kernels are counted instead of run, with a GPU's matrix products."""
    spec = find_spec(_STEP)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    kernels = {name: _Recorder(name, names, counter) for name, names in _signatures().items() if name in _COSTS}
    noted = SimpleNamespace(**kernels)
    # `from … import kernels` takes the package's attribute, where the kernels have been imported before.
    attribute = mock.patch.object(fused_package, "kernels", noted, create=True)
    with mock.patch.dict(sys.modules, {_KERNELS: noted, _STEP: module}), attribute:
        spec.loader.exec_module(module)
    with (
        mock.patch.object(module, "matrix_product", lambda a, b, dtype: torch.mm(a, b, out_dtype=dtype)),
        mock.patch.object(module, "multiprocessors", return_value=_MULTIPROCESSORS),
    ):
        yield module


def _signatures() -> dict[str, list[str]]:
    """Names of the arguments of each function in the kernels' module."""
    spec = find_spec(_KERNELS)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    return {each.name: [a.arg for a in each.args.args] for each in tree.body if isinstance(each, ast.FunctionDef)}


class _Recorder:
    """Stands in for a kernel: `kernel[grid](…)` counts a launch."""

    def __init__(self, name: str, names: list[str], counter: Counter) -> None:
        self._name, self._names, self._counter = name, names, counter

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **more: Any) -> None:
            self._counter.add(
                self._name, _COSTS[self._name](grid[0], dict(zip(self._names, args, strict=False)) | more)
            )

        return launch


def _tile_cost(programs: int, given: Arguments) -> Cost:
    n, widths, factors, slots = (given[name] for name in ("n_samples", "WIDTHS", "FACTORS", "SLOTS"))
    kind, in_tile = given["acts"].element_size(), given["SUMS_AT"]
    once = ("items", "labels", "user_first", "user_gmf", "weights", "small", "unit_keys", "dropout")
    of_item = _row_bytes(given["item_first"], widths[0]) + _row_bytes(given["item_gmf"], factors)
    # Of activations, those below a product of a library; of gradients, those of its level. The first level has both.
    kept = widths[0] + sum(a + b for a, b, here in zip(widths, widths[1:], in_tile[1:], strict=False) if not here)
    written = n * kind * kept + sum(
        map(_size, (given[name] for name in ("d_logits", "d_user_first", "d_user_gmf", "parts")))
    )
    products = [a * b for a, b in pairwise(widths)]
    tiles = -(-n // (given["ROWS"] // given["GROUP"] * given["GROUP"]))
    sums = slots * (sum(widths) + widths[-1] + factors)
    summed = sum(size for size, here in zip(products, in_tile[1:], strict=False) if here)
    flops = 2.0 * tiles * given["ROWS"] * (2 * sum(products) + summed + sums)
    half = kind == 2
    return Cost(
        *(1, sum(_size(given[name]) for name in once) + n * of_item, written),
        fp32_flops=0.0 if half else flops,
        half_flops=flops if half else 0.0,
        warp_instructions=n * _tile_instructions("fp16" if half else "tf32"),
    )


@functools.cache
def _tile_instructions(precision: str) -> float:
    """Warp instructions per sample of `tile_step`, for the reference's network."""
    wanted = {"kernel": "tile_step", "what": f"groups of {_GROUP}", "precision": precision, "architecture": "sm_80"}
    (row,) = (row for row in json.loads(_TABLE.read_text(encoding="utf-8")) if wanted.items() <= row.items())
    return row["warp_instructions"]


def _gather_cost(_: int, given: Arguments) -> Cost:
    n, ids = given["n_rows"], given["ids"]
    read = min(_size(ids), n * SECTOR_BYTES) + n * _row_bytes(given["table"], given["WIDTH"])
    return Cost(1, read, _size(given["out"]))


def _sum_cost(_: int, given: Arguments) -> Cost:
    rows = len(given["order"])
    read = _size(given["order"]) + _size(given["bounds"]) + rows * _row_bytes(given["rows"], given["WIDTH"])
    if given["WEIGHTED"]:
        read += rows * SECTOR_BYTES + _size(given["columns"])  # a factor each
    state = [given[name] for name in ("out", "exp_avg", "exp_avg_sq")] if given["ADAM"] else []
    written = _size(given["out"]) if not state else sum(map(_size, state))
    return Cost(1, read + sum(map(_size, state)), written)


_COSTS: dict[str, Callable[[int, Arguments], Cost]] = {
    "tile_step": _tile_cost,
    "gather_rows": _gather_cost,
    "segment_sum": _sum_cost,
}


def _batch_cost(n: int, history: float) -> Cost:
    """The kernel `train_batch`: a random row per group, and negatives that are not in the user's history.

    Args:
        history: mean interactions of a user.
    """
    groups = n / _GROUP
    row = 3 * SECTOR_BYTES  # user, item, label
    user = 3 * SECTOR_BYTES  # where the user's rows begin, and where the history begins and ends
    searched = settings.NEGATIVES * SECTOR_BYTES * log2(2 + 4 * history / SECTOR_BYTES)
    return Cost(1, groups * (row + user + min(4 * history, searched)), 12.0 * n)


def _row_bytes(table: Tensor, width: int) -> float:
    return float(max(SECTOR_BYTES, width * table.element_size()))


def _size(tensor: Tensor) -> float:
    return float(prod(tensor.shape) * tensor.element_size())
