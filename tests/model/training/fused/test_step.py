"""The fused step in Triton's interpreter, against float64 autograd with the same dropout and roundings."""

from __future__ import annotations

import pytest
import torch
from fused_cases import TOLERANCE, assert_close, network, replayed, run, samples

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
    expected_loss, expected = replayed(step, batch)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert_close(found, expected, TOLERANCE["fp32"])
