"""The fused step's costs: recorded kernels against formulas by hand, and the figures that the documentation gives."""

from __future__ import annotations

import sys

import pytest

from benchmark.cost_model.bounds import MACHINES, Streams, all_reduce_bytes, bound
from benchmark.cost_model.cost import Cost
from benchmark.cost_model.fused import count_fused
from benchmark.cost_model.realistic import realistic
from benchmark.cost_model.stages import Counted, count_training, parameters
from benchmark.training import variants as settings
from preprocessing.synthetic.log import Shape, parse_shape

_SHAPE = Shape(3_000, 2_000, 60_000)
_GROUP = 1 + settings.NEGATIVES
_WIDTH, _F = settings.LAYERS[0] // 2, settings.FACTORS
_W1, _W2, _W3 = settings.LAYERS[1:]  # powers of two: the kernels pad none
_N = 6000
# An A100's tiles have 32 rows, of which 30 make 6 whole groups; 648 programs take them.
_TILE_ROWS, _USED, _PROGRAMS = 32, 30, 648


def _total(counted: Counted) -> Cost:
    return Cost.sum(cost for operators in counted.stages.values() for cost in operators.values())


@pytest.mark.parametrize(("precision", "size"), [("amp", 2), ("tf32", 4)])
def test_a_tile_matches_bytes_and_operations_by_hand(precision: str, size: int) -> None:
    found = count_fused(_SHAPE, _N, precision).stages["tiles"]["tile_step"]
    tiles = _N / _USED
    assert tiles <= _PROGRAMS
    units = _W1 + _W2 + _W3
    of_groups = size * (_W1 + _F) / _GROUP  # the user's products and embedding, and as many gradients
    weights = size * (_W1 * _W2 + _W2 * _W3) + 4 * (2 * units + _W3 + _F + 1) + 2 * 8
    assert found.read_bytes == pytest.approx(2 * 4 + size * (_W1 + _F) + of_groups + weights / _N)
    # A program has one tile here, and stores its sums, and the gradients of the last layer's weights.
    sums = 4 * (-(-(2 + units + _W3 + _F) // 16) * 16 + _W2 * _W3) * tiles / _N
    # Activations of the first level, gradients of the first two.
    assert found.written_bytes == pytest.approx(size * (2 * _W1 + _W2) + 4 + of_groups + sums)
    # Two layers forward and backward, and the last one's weights; sums over groups are products with 16 rows.
    flops = 2 * _TILE_ROWS * tiles / _N * (2 * (_W1 * _W2 + _W2 * _W3) + _W2 * _W3 + 16 * (units + _W3 + _F))
    expected = (0, flops) if precision == "amp" else (flops, 0)
    assert (found.fp32_flops, found.half_flops) == pytest.approx(expected)
    assert found.calls == 1


def test_sums_by_id_read_each_row_once_and_update_tables_on_one_device() -> None:
    one, several = (count_fused(_SHAPE, _N, "amp", devices).stages for devices in (1, 8))
    users, items = _SHAPE.users, _SHAPE.items
    gmf = (
        # Of each item's samples: position, gradient of the logit (a sector), the user's row; of each user's groups.
        *(8 + 32 + 2 * _F, (8 + 2 * _F) / _GROUP),
        *((8 * (users + items + 2) + 4 * _F + 2 * 4) / _N,),  # where ids begin; weights of the head; the unit, twice
    )
    tables = 4 * _F * (users + items) / _N
    ignored = 8 / _N  # two scalars
    assert several["tiles"]["segment_sum"].bytes == pytest.approx(sum(gmf) + tables, abs=ignored)
    assert one["tiles"]["segment_sum"].bytes == pytest.approx(sum(gmf) + 6 * tables, abs=ignored)
    mlp = (8 + 2 * _W1, (8 + 2 * _WIDTH) / _GROUP, 8 * (users + items + 2) / _N)
    sums = 4 * (users * _WIDTH + items * _W1) / _N
    assert several["products"]["segment_sum"].bytes == pytest.approx(sum(mlp) + sums)
    assert one["products"]["segment_sum"].bytes == pytest.approx(sum(mlp) + sums + 5 * 4 * users * _WIDTH / _N)


def test_adam_passes_over_what_the_sums_do_not_update_or_over_a_share() -> None:
    one, several = (count_fused(_SHAPE, _N, "amp", devices).stages["optimizer"] for devices in (1, 8))
    everything = parameters(_SHAPE)
    summed = _F * (_SHAPE.users + _SHAPE.items) + _WIDTH * _SHAPE.users
    assert one["_fused_adam_"].bytes == pytest.approx(7 * 4 * (everything - summed) / _N, rel=1e-3)
    assert several["_fused_adam_"].bytes == pytest.approx(7 * 4 * everything / 8 / _N, rel=1e-3)


def test_products_are_those_of_the_torch_step_and_of_padding() -> None:
    amp, torch_step = count_fused(_SHAPE, _N, "amp"), _total(count_training(_SHAPE, _N, "amp"))
    found = _total(amp)
    # In float32: the items' sums by the first layer's weights, and by the items' embeddings.
    assert found.fp32_flops == pytest.approx(2 * 2 * _SHAPE.items * _W1 * _WIDTH / _N)
    tile = amp.stages["tiles"]["tile_step"].half_flops
    needed = 2 * (2 * _W1 * _W2 + 3 * _W2 * _W3)
    # The torch step computes GMF and the head by products, too; the kernel does not.
    others = 3 * 2 * (_F + _W3)
    assert found.half_flops + found.fp32_flops - tile + needed == pytest.approx(torch_step.half_flops - others)


def test_the_batch_reads_a_row_and_a_history_per_group() -> None:
    (found,) = count_fused(_SHAPE, _N, "amp").stages["batch"].values()
    history = 4 * _SHAPE.rows / _SHAPE.users  # 20 items: less than a search of it for each negative
    assert found == Cost(1, pytest.approx((6 * 32 + history) / _GROUP), pytest.approx(3 * 4))


def test_counting_leaves_no_module_behind() -> None:
    before = {name: module for name, module in sys.modules.items() if "fused" in name}
    count_fused(_SHAPE, _N, "amp")
    after = {name: module for name, module in sys.modules.items() if "fused" in name}
    assert after.keys() - before.keys() <= {"model.training.fused", "model.training.fused.plan"}
    assert all(after[name] is module for name, module in before.items())


def test_the_figures_of_the_documentation() -> None:
    shape = parse_shape("ml-20m")
    one, eight = count_fused(shape, 1 << 20, "amp"), count_fused(shape, 1 << 17, "amp", 8)
    assert _total(one).bytes < 6_000
    assert _total(eight).bytes < 10_000
    a100, none = MACHINES["A100 80GB"], Streams()
    assert bound(one.stages, none, a100, "tf32")["serial_samples_per_s"] > 300e6
    assert realistic(one.stages, none, a100, "tf32", 1 << 20) > 110e6
    gmf = 4.0 * _F * (shape.users + shape.items)
    streams = Streams(
        exchanged_bytes=all_reduce_bytes(4.0 * parameters(shape), 8) / (1 << 17),
        early_bytes=all_reduce_bytes(gmf, 8) / 2 / (1 << 17),
    )
    assert realistic(eight.stages, streams, a100, "tf32", 1 << 17, 8) > 400e6
