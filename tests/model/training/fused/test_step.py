"""The fused step in Triton's interpreter, against float64 autograd with the same dropout and roundings."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from fused_cases import N_ITEMS, N_USERS, TOLERANCE, WEIGHT, assert_close, network, replayed, run, samples
from interpreted_triton import programs

from model.training.fused.plan import Tile
from model.training.fused.step import FusedStep

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("layers", "factors", "groups", "group", "dropout"),
    [
        ((64, 32, 16), 16, 41, 5, 0.5),  # several tiles, the last one ragged
        ((32, 16), 8, 1, 1, 0.5),  # one sample
        ((32, 16), 8, 1, 5, 0.0),
        ((32, 16, 16), 8, 64, 1, 0.2),  # exactly one tile
        ((32, 16, 16), 8, 65, 1, 0.8),
        ((32, 16), 8, 40, 2, 0.2),
        ((32, 16), 8, 43, 3, 0.5),
        ((32, 16), 8, 9, 7, 0.5),  # one tile of nine groups, whose last sample is unused
        ((32, 16, 16), 8, 10, 13, 0.2),
        ((32, 16), 8, 5, 32, 0.5),  # half a tile: the largest group that stays whole
        ((32, 16, 16), 8, 3, 33, 0.5),  # more than half a tile: sample by sample
        ((32, 16, 16), 8, 2, 64, 0.2),
        ((32, 16), 8, 1, 100, 0.0),
        ((18, 20, 7), 128, 21, 5, 0.5),
        ((2, 1), 1, 15, 5, 0.2),
        ((10, 3, 5, 3), 3, 15, 5, 0.2),
        ((40, 24, 12), 33, 31, 5, 0.5),
        ((64, 130, 24), 64, 14, 5, 0.5),  # a first level of several blocks, the last one padded
        ((32, 160), 8, 14, 5, 0.5),  # the same for the only hidden layer
        ((32, 16, 33, 17), 8, 14, 5, 0.5),
        ((32, 32, 32, 32, 16), 16, 21, 5, 0.0),
        ((64, 64, 40, 32, 20, 16), 16, 13, 5, 0.2),
        ((32, 16), 8, 30, 5, 0.8),
    ],
)
def test_gradients_are_those_of_autograd(
    layers: tuple[int, ...], factors: int, groups: int, group: int, dropout: float
) -> None:
    step = FusedStep(network(layers, factors, dropout), group, "fp32")
    batch = samples(groups, group)
    loss, found = run(step, batch)
    expected = replayed(step, batch)
    assert float(loss) == pytest.approx(float(expected.loss), rel=1e-6)
    assert_close(found, expected.gradients, TOLERANCE["fp32"])


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("layers", "factors", "groups", "group", "dropout"),
    [
        ((64, 32, 16), 16, 30, 5, 0.5),
        ((32, 16), 8, 70, 1, 0.2),
        ((40, 24, 12), 33, 9, 7, 0.0),
        ((32, 160), 8, 14, 5, 0.5),
        ((2, 1), 1, 15, 5, 0.2),
    ],
)
def test_rounded_products(
    precision: str, layers: tuple[int, ...], factors: int, groups: int, group: int, dropout: float
) -> None:
    step = FusedStep(network(layers, factors, dropout), group, precision)
    batch = samples(groups, group)
    loss, found = run(step, batch)
    expected = replayed(step, batch)
    assert float(loss) == pytest.approx(float(expected.loss), rel=1e-5)
    assert_close(found, expected.gradients, TOLERANCE[precision])


def test_the_reference_network_in_float16() -> None:
    step = FusedStep(network((256, 256, 128, 64), 64), 5, "fp16")
    batch = samples(14, 5)
    _, found = run(step, batch)
    assert_close(found, replayed(step, batch).gradients, TOLERANCE["fp16"])


@pytest.mark.parametrize("tile", [Tile(rows=32, block=16), Tile(rows=128, block=128), Tile(rows=16)])
def test_other_tiles(tile: Tile) -> None:
    step = FusedStep(network((32, 32, 16)), 5, "fp32", tile)
    batch = samples(29, 5)
    _, found = run(step, batch)
    assert_close(found, replayed(step, batch).gradients, TOLERANCE["fp32"])


@pytest.mark.parametrize("group", [1, 3, 70])
def test_a_batch_of_other_groups_goes_sample_by_sample(group: int) -> None:
    # The last batch of an epoch, or one whose groups were broken up.
    step = FusedStep(network(), 5, "fp32")
    batch = samples(-(-70 // group), group)
    _, found = run(step, batch)
    assert_close(found, replayed(step, batch).gradients, TOLERANCE["fp32"])
    _, usual = run(step, samples(14, 5))
    assert_close(usual, replayed(step, samples(14, 5)).gradients, TOLERANCE["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_equal_bits_twice_and_in_any_order_of_tiles(precision: str) -> None:
    step = FusedStep(network((32, 32, 16)), 5, precision)
    batch = samples(28, 5)  # three tiles
    loss, found = run(step, batch)
    generator = random.Random(3)
    for order in (range, lambda n: range(n)[::-1], lambda n: generator.sample(range(n), n)):
        with programs(order):
            loss_again, again = run(step, batch)
        assert torch.equal(loss_again, loss)
        assert [name for name in found if not torch.equal(again[name], found[name])] == []


def test_absent_users_and_items_have_no_gradient() -> None:
    step = FusedStep(network(), 5, "fp32")
    batch = samples(20, 5)
    _, found = run(step, batch)
    for kind, ids in (("user", batch.users), ("item", batch.items)):
        for table in ("mf", "mlp"):
            gradient = found[f"{table}_{kind}_embed.weight"]
            present = torch.zeros(len(gradient), dtype=torch.bool)
            present[ids.long()] = True
            assert present.any()
            assert not present.all()
            assert not gradient[~present].any()
            assert gradient[present].any(dim=1).all()


@pytest.mark.parametrize(("user", "item"), [(0, 0), (N_USERS - 1, N_ITEMS - 1)])
def test_one_user_and_one_item_take_the_whole_batch(user: int, item: int) -> None:
    step = FusedStep(network(), 5, "fp32")
    given = samples(40, 5)
    batch = replace(given, users=torch.full_like(given.users, user), items=torch.full_like(given.items, item))
    _, found = run(step, batch)
    assert_close(found, replayed(step, batch).gradients, TOLERANCE["fp32"])


def test_a_popular_item_in_float16() -> None:
    # The sum of its rows' gradients is larger than float16's largest value.
    step = FusedStep(network(dropout=0.0), 5, "fp16")
    given = samples(60, 5)
    popular = torch.where(torch.arange(300) % 10 > 0, N_ITEMS - 1, given.items).int()
    batch = replace(given, items=popular, labels=torch.zeros(300))
    with torch.no_grad():
        step.model.final.weight.abs_().mul_(10)  # gradients of one sign, which add up
    _, found = run(step, batch)
    expected = replayed(step, batch).gradients
    assert expected["mlp.0.bias"].max() / WEIGHT * step.plan(5).scale > 1.5 * torch.finfo(torch.float16).max
    assert_close(found, expected, TOLERANCE["fp16"])


@pytest.mark.parametrize("n_items", [32_767, 32_768])
def test_ids_about_the_limit_of_int16(n_items: int) -> None:
    model = network(n_items=n_items)
    step = FusedStep(model, 5, "fp32")
    ends = torch.tensor([0, 1, n_items - 2, n_items - 1, 255, 256])
    items = ends[torch.randint(6, (40,), generator=torch.Generator().manual_seed(1))]
    batch = replace(samples(8, 5), items=items.int())
    order, bounds = step._sorted(batch.items, n_items)
    assert torch.equal(items[order], items.sort().values)
    assert torch.equal(bounds, torch.searchsorted(items.sort().values, torch.arange(n_items + 1)))
    # Other items' programs would take minutes here.
    with programs(lambda n: ends.tolist() if n == n_items else range(n)):
        _, found = run(step, batch)
    expected = replayed(step, batch).gradients
    del found["mlp.0.weight"], expected["mlp.0.weight"]  # of all items' rows
    for gradients in (found, expected):
        gradients |= {name: value[ends] for name, value in gradients.items() if "item" in name}
    assert_close(found, expected, TOLERANCE["fp32"])
