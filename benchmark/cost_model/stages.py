"""Runs the product's own code under the counter, stage by stage: memory traffic and operations per sample.

The training step and inference run on torch's fake tensors, which use no memory, with the reference's shapes. Batches,
evaluation and preprocessing depend on values, so they run on a small log with the same interactions per user and number
of items. All take the GPU's path: a CPU's compiled loops only take over larger arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch._subclasses import FakeTensorMode

import model.training.step
import model.training.torch_step
from benchmark.cost_model.arrays import CountedArray, kernels_on_host
from benchmark.cost_model.cost import Cost
from benchmark.cost_model.counter import Counter
from benchmark.cost_model.host_time import SERIES
from benchmark.training import variants as settings
from benchmark.training.plain_training import PlainNeuMF, PlainStep, Samples, prepare_epoch
from model.data.batch import Batch
from model.data.dataset import Rows
from model.data.partitions import TablePartitions
from model.data.test_set import TestSet
from model.data.train_loader import SamplingConfig, TrainLoader
from model.distributed.process_group import ProcessGroup
from model.evaluation.evaluator import Evaluator, EvaluatorConfig
from model.network.neumf import NeuMF, NeuMFConfig
from model.scoring.torch_scorer import CHUNK_SAMPLES_ON_DEVICE, TorchScorer
from model.training.config import TrainConfig
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.synthetic.log import Shape
from workflows.device.frames import frame_device
from workflows.device.loops import COMPILED_ROWS
from workflows.operators.encode import EncodeIds
from workflows.operators.leave_one_out import TEST, LeaveOneOut

_CPU = torch.device("cpu")
_GROUP = 1 + settings.NEGATIVES
_GATHER = ("index_select", "index_add_", "embedding", "embedding_dense_backward")
OPTIMIZER = (
    "_fused_adam_",
    "_foreach_add_",
    "_foreach_sub_",
    "zero_",
    "_amp_foreach_non_finite_check_and_unscale_",
    "_amp_update_scale_",
)
_STAGE_OF = dict.fromkeys(_GATHER, "gather") | dict.fromkeys(OPTIMIZER, "optimizer")
_LOG = ("user", "item", "time")
_SECONDS = 1 << 30  # time span of the log

Stages = dict[str, dict[str, Cost]]


@dataclass(frozen=True)
class Counted:
    """Costs per unit, by stage and operator.

    Attributes:
        unit: "sample" or "interaction".
        host_bytes: between host and device, per unit.
    """

    stages: Stages
    unit: str = "sample"
    host_bytes: float = 0.0


def count_training(
    shape: Shape, batch_size: int, precision: str, plain: bool = False, chunk: int | None = None
) -> Counted:
    """Count a training step on whole groups: gather, forward, backward, optimizer.

    Args:
        batch_size: per device.
        precision: "fp32" (TF32 uses the same operators) or "amp".
        plain: the reference's method (`benchmark.training.plain_training`) instead of the product's torch step.
        chunk: samples that a CPU computes at a time; None for a GPU, which computes all at once.
    """
    n, amp = batch_size // _GROUP * _GROUP, precision == "amp"
    counter = Counter(_STAGE_OF)
    with FakeTensorMode(), _chunks(chunk or n), _dropout_of_gpus() if chunk is None else nullcontext():
        run = (_plain_step if plain else _torch_step)(shape, n, amp)
        run()  # creates the state of Adam and of the gradient scaler
        with counter.torch_operators(), counter.stage("forward"):
            run()
    return Counted(per_unit(counter, n))


def _plain_step(shape: Shape, n: int, amp: bool) -> Callable[[], Any]:
    step = PlainStep(PlainNeuMF(shape.users, shape.items))
    step.network.train()
    ids = torch.zeros(n, dtype=torch.int64)
    samples = Samples(ids, ids, torch.zeros(n))

    def run() -> None:
        with _autocast(amp):
            step(samples)

    return run


def _torch_step(shape: Shape, n: int, amp: bool) -> Callable[[], Any]:
    network = NeuMF(network_config(shape.users, shape.items))
    network.train()
    config = TrainConfig(batch_size=n, precision="fp16" if amp else None)
    step = model.training.step.Step(network, config, ProcessGroup(_CPU), compiled=False)
    ids = torch.zeros(n, dtype=torch.int32)
    batch = Batch(ids, ids, torch.zeros(n), group_size=_GROUP)
    return lambda: step(batch, n)


def _autocast(amp: bool) -> AbstractContextManager:
    """float16 on a CPU stands in for float16 on a GPU: the memory traffic is the same."""
    return torch.autocast("cpu", torch.float16) if amp else nullcontext()


def count_inference(shape: Shape, batch_size: int, precision: str) -> Counted:
    """Count a forward pass without dropout: gather and the layers."""
    counter = Counter(_STAGE_OF)
    with FakeTensorMode(), torch.inference_mode():
        network = NeuMF(network_config(shape.users, shape.items)).eval()
        ids = torch.zeros(batch_size, dtype=torch.int64)
        with _autocast(precision == "amp"), counter.torch_operators(), counter.stage("forward"):
            network(ids, ids)
    return Counted(per_unit(counter, batch_size))


def count_batches(shape: Shape) -> Counted:
    """Count an epoch's batches: the loader's blocks, shuffled and cut, and their negatives."""
    log = small_log(shape)
    columns = FeatureColumns("user", "item", "label", len(np.unique(log["user"])), shape.items)
    rows = _rows(
        columns, ("user", "item", "label"), log["user"].to_numpy(), log["item"].to_numpy(), np.ones(len(log), "float32")
    )
    # As in the reference, batches are small compared with the number of users, so groups are kept.
    config = SamplingConfig(batch_size=1000, per_positive=settings.NEGATIVES, kind="exact", in_memory=False, seed=1)
    batches, counter = TrainLoader(rows, config, ProcessGroup(_CPU)), Counter()
    with (
        counter.watch(TrainLoader, "_groups", "negative sampling"),
        counter.torch_operators(),
        counter.stage("loader"),
    ):
        samples = sum(len(batch) for batch in batches._from_disk(0))  # in this thread, as on a GPU
    return Counted(per_unit(counter, samples), host_bytes=_row_bytes(rows) * len(log) / samples)


def count_plain_batches(shape: Shape) -> Counted:
    """Count an epoch of the reference's method: any items as negatives, all samples permuted, on the device."""
    log, counter = small_log(shape), Counter()
    users, items = (torch.from_numpy(log[name].to_numpy(dtype="int64")) for name in ("user", "item"))
    with counter.torch_operators(), counter.stage("negative sampling"):
        samples = prepare_epoch(users, items, shape.items, settings.NEGATIVES)
    return Counted(per_unit(counter, len(samples)))


def count_evaluation(shape: Shape) -> Counted:
    """Count scoring and ranking part of the test series, in float32, with precomputed projections of all items."""
    series = (1 << 16) // SERIES
    columns = FeatureColumns("user", "item", "label", series, shape.items)
    random = np.random.default_rng(1)
    items = np.concatenate([random.choice(shape.items, SERIES, replace=False) for _ in range(series)])
    rows = _rows(columns, ("user", "item"), np.arange(series).repeat(SERIES), items)
    network, counter = NeuMF(network_config(series, shape.items)), Counter()
    evaluator = Evaluator(TestSet(rows, SERIES), EvaluatorConfig(10, 1 << 20), ProcessGroup(_CPU))
    with torch.inference_mode():
        scorer = TorchScorer(network, CHUNK_SAMPLES_ON_DEVICE)  # as on a GPU
        with counter.torch_operators(), counter.stage("evaluation"):
            evaluator.evaluate(lambda: scorer)
    return Counted(per_unit(counter, len(items)), host_bytes=_row_bytes(rows))


def count_preprocessing(shape: Shape) -> Counted:
    """Count id encoding, histories, held-out items and their negatives of one partition, per interaction.

    The code is a GPU's: its kernels run on the host (`benchmark.cost_model.host_kernels`), and each call moves every
    array it is given once. Neither the number of calls nor the bytes per interaction depend on the partition's size,
    as long as the log is longer than what a core sorts at once.

    Raises:
        UserError: there is no C++ compiler.
    """
    log, counter = small_log(shape), Counter()
    numbers = {name: pd.Series(np.arange(size)) for name, size in (("user", shape.users), ("item", shape.items))}
    encoder = EncodeIds(numbers, keep=("time",))
    split = LeaveOneOut(encoder, "user", "item", "time", test_negatives=SERIES - 1)

    def run() -> tuple[_Frame, _Frame]:
        frame = _Frame({name: CountedArray.wrap(log[name].to_numpy(), counter) for name in _LOG})
        return frame, split.transform(None, encoder.transform(SimpleNamespace(names=_LOG), frame))

    with kernels_on_host(counter):
        run()  # builds the tables of ids
        counter.costs.clear()
        with counter.stage("preprocessing"):
            frame, out = run()
    assert np.count_nonzero(np.asarray(out["split"].values) == TEST) == SERIES * log["user"].nunique()
    host_bytes = sum(column.values.nbytes for part in (frame, out) for column in part.values())
    return Counted(per_unit(counter, len(log)), "interaction", host_bytes / len(log))


def small_log(shape: Shape) -> pd.DataFrame:
    """Complete histories of some users, in random order: distinct items, with times; int32 columns user, item, time.

    Each user has the shape's average number of interactions; as many users as array code takes without compiled loops.
    """
    each = max(2, shape.rows // shape.users)
    users = max(1, min(shape.users, (COMPILED_ROWS - 1) // each))
    random = np.random.default_rng(1)
    chosen = np.sort(random.choice(shape.users, users, replace=False))
    items = np.concatenate([random.choice(shape.items, each, replace=False) for _ in range(users)])
    log = pd.DataFrame(
        {"user": chosen.repeat(each), "item": items, "time": random.integers(0, _SECONDS, users * each)}, dtype="int32"
    )
    return log.iloc[random.permutation(len(log))].reset_index(drop=True)


def parameters(shape: Shape) -> int:
    """Number of parameters of the network; devices all-reduce the gradients of all."""
    with FakeTensorMode():
        return sum(parameter.numel() for parameter in NeuMF(network_config(shape.users, shape.items)).parameters())


class _Column:
    def __init__(self, values: Any) -> None:
        self.values = values


class _Frame(dict):
    """The part of a dataframe's interface that the operators use; arrays keep their type."""

    def __init__(self, columns: dict[str, Any]) -> None:
        super().__init__({name: c if isinstance(c, _Column) else _Column(c) for name, c in columns.items()})


def _rows(columns: FeatureColumns, names: tuple[str, ...], *values: np.ndarray) -> Rows:
    """Rows in memory, sorted by the first column, whose ids are renumbered from 0."""
    order = np.argsort(values[0], kind="stable")
    arrays = [np.unique(values[0][order], return_inverse=True)[1], *(array[order] for array in values[1:])]
    table = pa.table(dict(zip(names, arrays, strict=True)))
    return Rows(columns, names, TablePartitions.from_table(columns, columns.cast(table, "rows")), frame_device("cpu"))


def _row_bytes(rows: Rows) -> float:
    """Bytes per row sent to the device."""
    return sum(values.element_size() for values in next(iter(rows.stream(1, _CPU))))


def network_config(users: int, items: int) -> NeuMFConfig:
    return NeuMFConfig(
        n_users=users,
        n_items=items,
        factors=settings.FACTORS,
        layers=settings.LAYERS,
        dropout=settings.DROPOUT,
    )


@contextmanager
def _chunks(samples: int) -> Iterator[None]:
    """Set the chunk size, in samples, of steps created for a CPU within this context."""
    before, model.training.step.CHUNK_SAMPLES = model.training.step.CHUNK_SAMPLES, samples
    try:
        yield
    finally:
        model.training.step.CHUNK_SAMPLES = before


@contextmanager
def _dropout_of_gpus() -> Iterator[None]:
    """Within, the torch step and torch's own dropout on tensors of a CPU call the kernel that they call on a GPU."""

    def fused(hidden: torch.Tensor, rate: float, train: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(hidden, rate, train)[0]

    with (
        mock.patch.object(model.training.torch_step, "fused_dropout", return_value=True),
        mock.patch.object(torch.nn.functional, "dropout", fused),
    ):
        yield


def per_unit(counter: Counter, units: int) -> Stages:
    """Costs by stage and operator, divided by the number of units counted."""
    return {
        stage: {name: cost.times(1.0 / units) for name, cost in operators.items()}
        for stage, operators in counter.costs.items()
    }
