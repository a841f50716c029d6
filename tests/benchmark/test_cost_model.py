"""The cost model: counters on operators of known cost, formulas checked by hand, and one real run of the command."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from benchmark.cost_model import command, stages
from benchmark.cost_model.arrays import CountedArray
from benchmark.cost_model.bounds import MACHINES, REFERENCE, Machine, Streams, all_reduce_bytes, bound
from benchmark.cost_model.check import predict
from benchmark.cost_model.cost import Cost, sort_bytes
from benchmark.cost_model.counter import Counter
from benchmark.cost_model.host_time import OPERATOR_S, PARTITIONS, epoch, partition
from benchmark.cost_model.realistic import GAP_S, GATHERED, ISSUED, LINKED, PRODUCTS, STREAMED, TOGETHER, realistic
from benchmark.cost_model.scaling import scaling
from benchmark.cost_model.stages import (
    Counted,
    count_batches,
    count_evaluation,
    count_inference,
    count_plain_batches,
    count_preprocessing,
    count_training,
    parameters,
    small_log,
)
from benchmark.training import limits
from benchmark.training import variants as settings
from preprocessing.synthetic.log import Shape, parse_shape
from workflows.common.errors import UserError
from workflows.device.loops import COMPILED_ROWS

_ROOT = Path(__file__).parents[2]
_SHAPE = Shape(3_000, 2_000, 60_000)
_GROUP = 1 + settings.NEGATIVES
_WIDTH = settings.LAYERS[0] // 2


def _cost(operator, *, stage: str = "s") -> Cost:
    """Total of everything that `operator` calls."""
    counter = Counter()
    with counter.torch_operators(), counter.stage(stage):
        operator()
    return Cost.sum(counter.costs[stage].values())


def _total(counted: Counted, stage: str) -> Cost:
    return Cost.sum(counted.stages[stage].values())


# --- Operators --------------------------------------------------------------------------------------------------


def test_a_product_reads_both_matrices_and_writes_one() -> None:
    left, right = torch.ones(5, 7), torch.ones(7, 3)
    assert _cost(lambda: left @ right) == Cost(1, 4 * (35 + 21), 4 * 15, fp32_flops=2 * 5 * 7 * 3)
    left, right = left.half(), right.half()
    assert _cost(lambda: left @ right) == Cost(1, 2 * (35 + 21), 2 * 15, half_flops=2 * 5 * 7 * 3)
    bias = torch.ones(3)
    weight = torch.ones(3, 7)
    linear = _cost(lambda: nn.functional.linear(torch.ones(5, 7), weight, bias))
    assert linear.fp32_flops == 2 * 5 * 7 * 3
    batched = torch.ones(4, 5, 7)
    assert _cost(lambda: batched @ torch.empty(4, 7, 2)).fp32_flops == 2 * 4 * 5 * 7 * 2


def test_a_gather_touches_only_its_rows() -> None:
    table, rows = torch.ones(1000, 16), torch.tensor([3, 4, 999])
    expected = Cost(1, 3 * 8 + 3 * 64, 3 * 64)
    assert _cost(lambda: table.index_select(0, rows)) == expected
    assert _cost(lambda: nn.functional.embedding(rows, table)) == expected
    assert _cost(lambda: table[rows]) == expected
    # A row shorter than a sector still moves 32 bytes.
    column = torch.ones(1000)
    assert _cost(lambda: column.index_select(0, rows)) == Cost(1, 3 * 8 + 3 * 32, 3 * 4)


def test_adding_rows_reads_and_writes_them() -> None:
    total, rows, gradients = torch.zeros(1000, 16), torch.tensor([3, 4, 999]), torch.ones(3, 16)
    assert _cost(lambda: total.index_add_(0, rows, gradients)) == Cost(1, 3 * 8 + 2 * 3 * 64, 3 * 64)


def test_the_gradient_of_an_embedding_is_as_large_as_its_table() -> None:
    table, rows = torch.ones(1000, 16, requires_grad=True), torch.tensor([3, 4, 999])
    counter = Counter()
    with counter.torch_operators():
        nn.functional.embedding(rows, table).sum().backward()
    found = counter.costs["backward"]["embedding_dense_backward"]
    # The gradient of a sum is a single expanded value; zeros are written, then some of their rows read and written.
    assert found == Cost(1, 3 * 8 + 4 + 3 * 64, 1000 * 64 + 3 * 64)


def test_a_mask_reads_everything() -> None:
    values, mask = torch.ones(100), torch.arange(100) < 10
    assert _cost(lambda: values[mask]) == Cost(1, 400 + 100, 40)


def test_views_are_free_and_overwritten_tensors_are_not_read() -> None:
    values = torch.ones(6, 4)
    assert _cost(lambda: (values.view(4, 6), values.t(), values[1:3], values.detach(), values.add_(1)[:])).bytes == 192
    assert _cost(values.zero_) == Cost(1, 0, 96)
    other = torch.ones(6, 4)
    assert _cost(lambda: values.copy_(other)) == Cost(1, 96, 96)
    assert _cost(lambda: values.add_(other)) == Cost(1, 192, 96)
    assert _cost(lambda: torch.add(values, other, out=values)) == Cost(1, 192, 96)
    assert _cost(lambda: values.bernoulli_(0.5)) == Cost(1, 0, 96, draws=24)
    # A row broadcast to all rows is read once.
    assert _cost(lambda: values + torch.as_strided(other, (6, 4), (0, 1))).read_bytes == 96 + 16


def test_sorting_a_long_array_takes_one_pass_per_key_byte() -> None:
    short, long = torch.ones(50, 100), torch.ones(5000)
    assert _cost(lambda: short.sort(dim=1)) == Cost(1, 5000 * 12, 5000 * 12)
    assert _cost(lambda: long.sort()).bytes == sort_bytes(5000, 5000, 4) == 2 * 5000 * 12 * 4
    assert _cost(lambda: torch.randperm(5000)).bytes == 2 * 5000 * 16 * 8


def test_operators_called_by_autograd_are_backward() -> None:
    weight = torch.ones(7, 3, requires_grad=True)
    inputs = torch.ones(5, 7)
    counter = Counter()
    with counter.torch_operators(), counter.stage("forward"):
        (inputs @ weight).sum().backward()
    flops = {stage: operators["mm"].fp32_flops for stage, operators in counter.costs.items()}
    assert flops == {"forward": 2 * 5 * 7 * 3, "backward": 2 * 5 * 7 * 3}


def test_without_autograd_composite_operators_are_decomposed() -> None:
    with torch.inference_mode():
        layer, inputs = nn.Linear(7, 3), torch.ones(5, 7)
        dropout = nn.Dropout().eval()
        counter = Counter()
        with counter.torch_operators(), counter.stage("s"):
            dropout(layer(inputs))
    assert counter.costs["s"] == {"addmm": Cost(1, 4 * (35 + 21 + 3), 60, fp32_flops=2 * 5 * 7 * 3)}


def test_stages_are_set_by_method_and_by_operator() -> None:
    class Work:
        def double(self, values):
            return values * 2

    counter, values, work = Counter({"add": "sums"}), torch.ones(10), Work()
    original = Work.double
    with counter.watch(Work, "double", "doubles"), counter.torch_operators(), counter.stage("rest"):
        work.double(values) + 1
        values / 2
    assert {stage: list(operators) for stage, operators in counter.costs.items()} == {
        "doubles": ["mul"],
        "sums": ["add"],
        "rest": ["div"],
    }
    assert Work.double is original


def test_fake_tensors_give_the_same_counts() -> None:
    def work() -> Cost:
        table, rows = torch.ones(300, 16), torch.zeros(70, dtype=torch.int64)
        return _cost(lambda: torch.relu(table[rows] @ table.t()).sum())

    real = work()
    with FakeTensorMode():
        assert work() == real


def test_counted_arrays_record_numpy_operations() -> None:
    counter = Counter()
    values = CountedArray.wrap(np.arange(1000, dtype=np.int32), counter)
    with counter.stage("s"):
        doubled = values * 2  # 4000 in, 4000 out
        found = np.take(doubled, np.array([1, 5, 7]))  # 24 + 3 sectors in, 12 out
        assert isinstance(found, CountedArray)
        assert found.tolist() == [2, 10, 14]
        doubled[values > 500]  # the comparison: 4000 in, 1000 out; 5000 in, 4 · 499 out
        values[10:20].reshape(2, 5)  # views
        np.argsort(values.astype(np.int64), kind="stable")
    costs = counter.costs["s"]
    assert costs["multiply"] == Cost(1, 4000, 4000)
    assert costs["take"] == Cost(1, 24 + 3 * 32, 12)
    assert costs["greater"] == Cost(1, 4000, 1000)
    assert costs["compress"] == Cost(1, 5000, 4 * 499)
    assert costs["astype"] == Cost(1, 4000, 8000)
    assert costs["argsort"].bytes == sort_bytes(1000, 1000, 8)
    assert sum(cost.bytes for name, cost in costs.items() if "reshape" in name) == 0


# --- Stages -----------------------------------------------------------------------------------------------------


def test_a_dense_step_matches_counts_by_hand() -> None:
    n = 4000
    counted = count_training(_SHAPE, n, "fp32", plain=True)
    layers = sum(a * b for a, b in zip(settings.LAYERS, settings.LAYERS[1:], strict=False))
    forward = 2 * (layers + settings.FACTORS + settings.LAYERS[-1])
    assert _total(counted, "forward").fp32_flops == forward
    assert _total(counted, "backward").fp32_flops == 2 * forward
    assert _total(counted, "gather").fp32_flops == 0
    # Four embeddings per sample and their ids; rows are read and written, then gradients of whole tables created.
    floats = 2 * (_WIDTH + settings.FACTORS)
    assert counted.stages["gather"]["embedding"].bytes == 4 * 8 + 2 * 4 * floats
    tables = (_SHAPE.users + _SHAPE.items) * (_WIDTH + settings.FACTORS)
    assert counted.stages["gather"]["embedding_dense_backward"].bytes == 4 * 8 + 4 * (3 * floats + tables / n)
    # Adam: parameter, gradient and two moments read; all but the gradient written; plus a few step counters.
    n_parameters = tables + layers + sum(settings.LAYERS[1:]) + settings.FACTORS + settings.LAYERS[-1] + 1
    assert parameters(_SHAPE) == n_parameters
    assert _total(counted, "optimizer").bytes == pytest.approx(4 * 7 * n_parameters / n, rel=1e-3)
    # The formulas of `benchmark.training.limits` agree.
    formula = limits.counts(
        _SHAPE.users, _SHAPE.items, settings.FACTORS, settings.LAYERS, settings.NEGATIVES, n, (0.25,) * 3, 0.5
    )["dense"]
    assert 3 * forward == formula["flops"]
    assert 4 * 7 * n_parameters / n == formula["adam_bytes"]


@pytest.mark.parametrize("batch_size", [4000, 20_000])
def test_the_products_step_matches_the_factorised_formula(batch_size: int) -> None:
    counted = count_training(_SHAPE, batch_size, "fp32")
    first = settings.LAYERS[1]
    later = sum(a * b for a, b in zip(settings.LAYERS[1:], settings.LAYERS[2:], strict=False))
    per_sample = later + settings.FACTORS + settings.LAYERS[-1]
    once = _WIDTH * first * (1 / _GROUP + _SHAPE.items / batch_size)
    forward, backward = _total(counted, "forward").fp32_flops, _total(counted, "backward").fp32_flops
    assert forward == pytest.approx(2 * (per_sample + once))
    assert backward == pytest.approx(2 * forward)
    # Rows of each group's user and each sample's item, read and written; gradients read, and rows read and written.
    user, item = _WIDTH + settings.FACTORS, first + settings.FACTORS
    ids = 2 * 2 * 4 * (1 / _GROUP + 1)
    assert _total(counted, "gather").bytes == pytest.approx(ids + 5 * 4 * (user / _GROUP + item))


def test_mixed_precision_uses_half_products_and_moves_fewer_bytes() -> None:
    full, mixed = (count_training(_SHAPE, 4000, precision) for precision in ("fp32", "amp"))
    for stage in ("forward", "backward"):
        ours, theirs = _total(mixed, stage), _total(full, stage)
        assert (ours.fp32_flops, ours.half_flops) == (0, pytest.approx(theirs.fp32_flops))
        assert 0.4 < ours.bytes / theirs.bytes < 0.9
    # Unscaling takes one more pass over the gradients.
    unscale = mixed.stages["optimizer"]["_amp_foreach_non_finite_check_and_unscale_"]
    assert unscale.bytes == pytest.approx(2 * 4 * parameters(_SHAPE) / 4000, rel=1e-3)


@pytest.mark.parametrize(("precision", "unit_bytes"), [("fp32", 4), ("amp", 2)])
@pytest.mark.parametrize("plain", [False, True])
def test_dropout_is_counted_as_a_gpu_runs_it(plain: bool, precision: str, unit_bytes: int) -> None:
    gpu = count_training(_SHAPE, 4000, precision, plain).stages
    units = sum(settings.LAYERS[1:])  # of a sample
    # One kernel reads the units, and writes them and a mask of bools; its gradient reads a gradient and the mask.
    layers = len(settings.LAYERS) - 1
    assert gpu["forward"]["native_dropout"] == Cost(layers, unit_bytes * units, (unit_bytes + 1) * units)
    assert gpu["backward"]["native_dropout_backward"] == Cost(layers, (unit_bytes + 1) * units, unit_bytes * units)
    drawn = {"random_", "bernoulli_"}
    assert not drawn & gpu["forward"].keys()
    cpu = count_training(_SHAPE, 4000, precision, plain, chunk=4000).stages
    assert drawn & cpu["forward"].keys()
    assert "native_dropout" not in cpu["forward"]


def test_chunking_changes_only_the_number_of_operator_calls() -> None:
    whole, chunked = (count_training(_SHAPE, 4000, "fp32", chunk=chunk) for chunk in (4000, 1000))
    assert _total(chunked, "backward").fp32_flops == pytest.approx(_total(whole, "backward").fp32_flops)
    assert _total(chunked, "forward").calls > 3 * _total(whole, "forward").calls


def test_inference_and_evaluation_have_the_flops_of_a_forward_pass() -> None:
    forward = 2 * (sum(a * b for a, b in zip(settings.LAYERS, settings.LAYERS[1:], strict=False)) + 128)
    inference = count_inference(_SHAPE, 4096, "fp32")
    assert _total(inference, "forward").fp32_flops == forward
    assert _total(inference, "gather").bytes == 4 * 8 + 2 * 4 * 2 * (_WIDTH + settings.FACTORS)
    assert _total(count_inference(_SHAPE, 4096, "amp"), "forward").half_flops == forward
    evaluation = count_evaluation(_SHAPE)
    # Items are already projected, and each user is projected once for the 101 items of the series.
    later = sum(a * b for a, b in zip(settings.LAYERS[1:], settings.LAYERS[2:], strict=False))
    per_sample = later + settings.LAYERS[-1] + _WIDTH * settings.LAYERS[1] / 101
    assert _total(evaluation, "evaluation").fp32_flops == pytest.approx(2 * per_sample)
    assert evaluation.host_bytes == 8


def test_batches_stream_rows_once_and_are_counted_per_sample() -> None:
    counted = count_batches(_SHAPE)
    assert counted.host_bytes == 12 / _GROUP  # user, item and label of a positive
    assert counted.stages.keys() == {"loader", "negative sampling"}
    assert all(_total(counted, stage).bytes > 0 for stage in counted.stages)
    assert "sort" in counted.stages["negative sampling"]  # array code, not the compiled loop of a CPU
    plain = count_plain_batches(_SHAPE).stages["negative sampling"]
    # One permutation of all samples: two int64 ids and a label, each by a gather.
    assert plain["index"].bytes == 3 * 8 + 2 * (32 + 8) + 32 + 4


def test_preprocessing_is_counted_per_interaction() -> None:
    log = small_log(_SHAPE)
    assert len(log) < COMPILED_ROWS
    assert not log.duplicated(["user", "item"]).any()
    users = log["user"].nunique()
    counted = count_preprocessing(_SHAPE)
    assert counted.unit == "interaction"
    rows_out = len(log) + 100 * users  # per user, all but one to train, 101 to test
    assert counted.host_bytes == pytest.approx((12 * len(log) + 13 * rows_out) / len(log))
    operators = counted.stages["preprocessing"]
    assert counted.stages.keys() == {"preprocessing"}
    # A GPU's path: one kernel draws the negatives of all series.
    assert {"argsort", "kernel series_negatives", "kernel test_rows"} <= operators.keys()
    assert operators["kernel series_negatives"].calls == 1
    # Two sorts of 64-bit keys: user, item and time; then user and time.
    assert operators["argsort"].bytes == pytest.approx(2 * sort_bytes(len(log), len(log), 8) / len(log))
    # Ids in and out of the table: every row once.
    assert operators["kernel look_up_direct"].read_bytes == pytest.approx(
        2 * (4 + 4) + 4 * (_SHAPE.users + _SHAPE.items + 2) / len(log)
    )


def test_neither_calls_nor_bytes_per_interaction_depend_on_the_partitions_size(monkeypatch: pytest.MonkeyPatch) -> None:
    large = count_preprocessing(_SHAPE)
    monkeypatch.setattr(stages, "COMPILED_ROWS", len(small_log(_SHAPE)) // 2)
    small = count_preprocessing(_SHAPE)
    totals = [_total(each, "preprocessing") for each in (large, small)]
    assert totals[0].calls == totals[1].calls < 60
    # Except for the table of ids, which is read once.
    tables = [
        4 * (_SHAPE.users + _SHAPE.items + 2) / rows for rows in (len(small_log(_SHAPE)) * 2, len(small_log(_SHAPE)))
    ]
    assert totals[0].bytes - tables[0] == pytest.approx(totals[1].bytes - tables[1], rel=1e-2)


# --- Bounds -----------------------------------------------------------------------------------------------------

_MACHINE = Machine(
    memory_gb_per_s=100,
    fp32_tflops=1,
    tf32_tflops=2,
    half_tflops=4,
    host_gb_per_s=10,
    link_gb_per_s=20,
    draws_per_s=1e9,
    source="made up",
)
_STAGES = {
    "forward": {"mm": Cost(1, 60, 40, fp32_flops=3000), "relu": Cost(1, 100, 100)},  # 3 ns (TF32: 1.5) and 2 ns
    "gather": {"index_select": Cost(1, 200, 200)},  # 4 ns
}


@pytest.mark.parametrize(
    ("precision", "serial_ns", "overlapped_ns", "busiest"),
    [("fp32", 9.0, 7.0, "memory"), ("tf32", 7.5, 7.0, "memory")],
)
def test_serial_and_overlapped_bounds_match_times_by_hand(
    precision: str, serial_ns: float, overlapped_ns: float, busiest: str
) -> None:
    found = bound(_STAGES, Streams(), _MACHINE, precision)
    assert 1e9 / found["serial_samples_per_s"] == pytest.approx(serial_ns)
    assert 1e9 / found["overlapped_samples_per_s"] == pytest.approx(overlapped_ns)
    assert found["busiest"] == busiest
    assert found["stages_ns"]["gather"] == pytest.approx(4.0)


def test_the_issue_of_instructions_bounds_an_operator() -> None:
    # Of an A100: 108 multiprocessors issue 4 instructions a cycle of 1.41 GHz.
    a100, instructions = MACHINES["A100"], 4 * 108 * 1.41e9
    assert a100.seconds(Cost(1, 8, 8, warp_instructions=instructions), "amp") == pytest.approx(1.0)
    found = bound({"tiles": {"tile_step": Cost(1, warp_instructions=instructions)}}, Streams(), a100, "amp")
    assert found["busiest"] == "instructions"
    assert realistic({"tiles": {"tile_step": Cost(0, warp_instructions=instructions)}}, Streams(), a100, "amp", 1) == (
        pytest.approx(ISSUED)
    )


def test_realistic_figures_match_times_by_hand() -> None:
    kernels_ns, batch = 3 / PRODUCTS + 2 / STREAMED + 4 / GATHERED, 100_000
    gaps_ns = 3e9 * GAP_S / batch
    found = realistic(_STAGES, Streams(), _MACHINE, "fp32", batch)
    assert 1e9 / found == pytest.approx(kernels_ns + gaps_ns)
    # The loader runs once for many steps: neither gaps nor launches.
    loader = {"loader": {"sort": Cost(99, 40, 40)}}
    assert 1e9 / realistic({**_STAGES, **loader}, Streams(), _MACHINE, "fp32", batch) == pytest.approx(
        kernels_ns + gaps_ns + 0.8 / STREAMED
    )
    # In small batches launches set the pace, unless a graph has them all.
    small = realistic(_STAGES, Streams(), _MACHINE, "fp32", 1000)
    assert 1e9 / small == pytest.approx(3 * 1e9 * OPERATOR_S / 1000)
    graphed = realistic(_STAGES, Streams(), _MACHINE, "fp32", 1000, graphs=True)
    assert 1e9 / graphed == pytest.approx(kernels_ns + 3e9 * GAP_S / 1000)


def test_an_exchange_hides_behind_later_operators_only() -> None:
    stages = {**_STAGES, "products": {"mm": Cost(0, 80, 0)}}  # 0.8 ns / STREAMED
    alone = 1e9 / realistic(stages, Streams(), _MACHINE, "fp32", 1 << 40)

    def exposed_ns(early_bytes: float) -> float:
        streams = Streams(exchanged_bytes=400, early_bytes=early_bytes)
        return 8e9 * TOGETHER / realistic(stages, streams, _MACHINE, "fp32", 1 << 40, devices=8) - alone

    assert exposed_ns(0) == pytest.approx(20 / LINKED)
    assert exposed_ns(10) == pytest.approx(19.5 / LINKED)
    assert exposed_ns(400) == pytest.approx(20 / LINKED - 0.8 / STREAMED)
    bounded = bound(stages, Streams(exchanged_bytes=400, early_bytes=400), _MACHINE, "fp32", devices=8)
    assert bounded["stages_ns"]["exchange"] == pytest.approx(20 - 0.8)


@pytest.mark.parametrize(("devices", "precision"), [(1, "tf32"), (1, "amp"), (8, "tf32"), (8, "amp")])
def test_the_realistic_figure_of_the_references_method_is_near_the_published_one(devices: int, precision: str) -> None:
    shape, own = parse_shape("ml-20m"), (1 << 20) // devices
    counted = count_training(shape, own, "amp" if precision == "amp" else "fp32", plain=True)
    streams = Streams(exchanged_bytes=all_reduce_bytes(4.0 * parameters(shape), devices) / own)
    found = realistic(counted.stages, streams, MACHINES["A100"], precision, own, devices)
    published = REFERENCE["plain training", "A100", 1 << 20, devices, precision]
    assert found == pytest.approx(published, rel=0.15)


def test_a_partition_pays_for_its_launches_once() -> None:
    found = partition(_STAGES, 20.0, _MACHINE, 1000)
    assert found["kernels_s"] == pytest.approx(1000 * (100 + 200 + 400) / 100e9)
    assert found["launches_s"] == pytest.approx(3 * OPERATOR_S)
    assert found["copies_s"] == pytest.approx(1000 * 20 / 10e9)
    assert found["interactions_per_s"] == pytest.approx(1000 / (7e-6 + 3e-5 + 2e-6))
    # Larger partitions approach the bound of kernels and copies: 9 ns.
    assert partition(_STAGES, 20.0, _MACHINE, 10**9)["interactions_per_s"] == pytest.approx(1e9 / 9, rel=1e-3)


def test_an_epoch_is_paced_by_the_slowest_of_kernels_launches_and_copies() -> None:
    step = {**_STAGES, "optimizer": {"adam": Cost(1)}, "loader": {"sort": Cost(99)}}  # not once per step
    evaluation = {"evaluation": {"mm": Cost(1, 600, 400)}}  # 10 ns
    users, rows = 50, 10_000
    kernels = epoch(step, evaluation, 1e-6, _MACHINE, (users, rows), 5_000, 2)
    assert kernels["steps"] == 10
    assert kernels["kernels_s"] == pytest.approx(50_000 / 2 * 1e-6)
    assert kernels["launches_s"] == pytest.approx(4 * 10 * OPERATOR_S)
    assert kernels["graph_launches_s"] == pytest.approx(2 * 10 * OPERATOR_S)
    assert kernels["evaluation_s"] == pytest.approx(50 * 101 / 2 * 10e-9)
    assert kernels["resident_samples_per_s"] == pytest.approx(50_000 / 25e-3)
    assert kernels["resident_with_evaluation_s"] == pytest.approx(25e-3 + 50 * 101 / 2 * 10e-9)
    # Streamed rows cross the link during the steps, but the first block before them: all 5,000 rows of the device.
    assert kernels["streamed_samples_per_s"] == pytest.approx(50_000 / (25e-3 + 5_000 * 12 / 10e9))
    launches = epoch(step, evaluation, 1e-12, _MACHINE, (users, rows), 5_000, 2)
    assert launches["resident_samples_per_s"] == pytest.approx(50_000 / (40 * OPERATOR_S))


def test_link_traffic_counts_and_throughput_scales_with_devices() -> None:
    found = bound(_STAGES, Streams(host_bytes=10, exchanged_bytes=400), _MACHINE, "fp32", devices=8)
    assert (found["stages_ns"]["host link"], found["stages_ns"]["exchange"]) == (pytest.approx(1), pytest.approx(20))
    assert found["busiest"] == "exchange"
    assert found["overlapped_samples_per_s"] == pytest.approx(8 / 20e-9)
    assert found["serial_samples_per_s"] == pytest.approx(8 / 30e-9)


def test_half_precision_and_random_numbers_have_their_own_rates() -> None:
    assert _MACHINE.seconds(Cost(1, half_flops=4000), "amp") == pytest.approx(1e-9)
    assert _MACHINE.seconds(Cost(1, 8, 8, draws=5), "amp") == pytest.approx(5e-9)
    assert MACHINES["A100"].arithmetic_s(Cost(1, draws=5), "amp") == 0


def test_a_ring_all_reduce_sends_all_but_one_share_twice() -> None:
    assert all_reduce_bytes(800.0, 1) == 0
    assert all_reduce_bytes(800.0, 8) == 2 * 700


def test_a_prediction_uses_the_rate_of_each_stage() -> None:
    rates = {
        "fp32_gflop_per_s": 1000.0,
        "bf16_gflop_per_s": 1000.0,
        "copy_gb_per_s": 100.0,
        "gather_gb_per_s": 50.0,
        "new_gb_per_s": 10.0,
        "draws_per_s": 1e9,
    }
    assert predict(Counted(_STAGES), rates, "copy_gb_per_s") == pytest.approx(1 / (3e-9 + 2e-9 + 8e-9))
    assert predict(Counted(_STAGES), rates, "new_gb_per_s") == pytest.approx(1 / (10e-9 + 20e-9 + 8e-9))


def test_table_exchange_matches_bytes_by_hand() -> None:
    row, layers = 4 * (_WIDTH + settings.FACTORS), 4 * (65_792 + 32_896 + 8_256 + 129)
    # A step on 4 devices with 1,000 samples each: rows of 200 users and of all 500 items.
    found = scaling(1_000_000, 500, 4000, 4)
    everything = 1_000_500 * row + layers
    assert found["state_gb"] == pytest.approx(4 * everything / 1e9)
    assert found["dense_bytes"] == pytest.approx(2 * everything * 3 / 4 / 1000)
    # User rows come from three other devices; for items, a dense all-reduce is less than three times all rows.
    items, users = 2 * 500 * row * 3 / 4, 3 * 200 * (row + 4)
    assert found["rows_bytes"] == pytest.approx((2 * layers * 3 / 4 + items + users) / 1000)
    # Three quarters of the rows come from other devices, and as many gradients; each row is requested by an id.
    assert found["sharded_bytes"] == pytest.approx((2 * layers + 700 * (2 * row + 4)) * 3 / 4 / 1000)
    assert found["adam_bytes"] == pytest.approx(7 * everything / 1000)
    assert found["adam_sharded_bytes"] == pytest.approx(7 * (layers + 1_000_500 * row / 4) / 1000)


def test_the_scaled_network_is_the_counted_one() -> None:
    found = scaling(_SHAPE.users, _SHAPE.items, 8000, 8)
    assert found["state_gb"] == 16 * parameters(_SHAPE) / 1e9


# --- The command ------------------------------------------------------------------------------------------------


def test_as_a_process(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "benchmark", "cost-model", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(run, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Not measured" in done.stdout
    target = tmp_path / "cost-model.json"
    result = json.loads(target.read_text())
    assert "not a measurement" in result["label"]
    stages = {stage for counted in result["counts"] for stage in counted["stages"]}
    assert stages == {
        "preprocessing", "loader", "negative sampling", "gather", "forward", "backward", "optimizer", "evaluation",
        "batch", "tiles", "products",
    }  # fmt: skip
    assert all(machine["source"] for machine in result["machines"].values())
    for found in result["bounds"]:
        assert 0 < found["serial_samples_per_s"] <= found["overlapped_samples_per_s"] * (1 + 1e-9)
        if found["batch_size"] is not None:
            likely = found["realistic_samples_per_s"]
            assert 0 < likely <= found["realistic_with_graphs_samples_per_s"] < found["serial_samples_per_s"]
    assert len(result["partitions"]) == len(PARTITIONS) * len(MACHINES)
    assert len(result["epochs"]) == 3 * 2 * len(MACHINES)  # precisions, devices
    for name in ("torch step", "plain step"):
        checked = result["this_machine"][name]
        ratio = checked["predicted_samples_per_s"] / checked["measured_samples_per_s"]
        assert checked["predicted_over_measured"] == pytest.approx(ratio)
        assert ratio > 0
    # The plot needs only the JSON.
    picture = target.with_suffix(".png")
    drawn = picture.read_bytes()
    picture.unlink()
    command.main(_args("--draw", str(target)))
    assert picture.read_bytes() == drawn


def _args(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "said"), [(["--batch_sizes", "65536", "100"], "8,000 or more"), (["--shape", "20m"], "ml-20m")]
)
def test_invalid_settings_are_reported_before_anything_is_written(tmp_path: Path, argv: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        command.main(_args(*argv, "--output", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["no json", "[]", '{"bounds": []}'])
def test_only_a_result_can_be_redrawn(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        command.main(_args("--draw", str(tmp_path / "x.json")))
