"""Settings of a run: the reference's defaults, and one error that names every impossible value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from model.config import TrainConfig
from workflows.errors import UserError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("valid_batch_size", -1),
        ("topk", 0),
        ("grads_accumulated", 0),
        ("negative_samples", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("eps", 0.0),
        ("beta1", 1.0),
        ("beta1", math.nan),
        ("beta2", -0.1),
        ("threshold", -0.5),
        ("threshold", math.nan),
        ("negatives", "some"),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{name} "):
        TrainConfig(**{name: value})


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        TrainConfig(epochs=0, eps=-1.0, beta2=3.0, grads_accumulated=9, batch_size=8)
    for flag in ("--epochs", "--eps", "--beta2", "--grads_accumulated 9"):
        assert flag in str(error.value)


def test_limits_themselves_are_allowed() -> None:
    TrainConfig(negative_samples=0, beta1=0.0, threshold=0.0, seed=2**63 - 1, batch_size=1, grads_accumulated=1)
