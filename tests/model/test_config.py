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
        ("precision", "fp8"),
        ("eval", "some"),
        ("validation", "some"),
        ("loader", "some"),
        ("patience", 0),
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


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_amp_and_full_precision_contradict(precision: str) -> None:
    with pytest.raises(UserError, match=f"--amp .* --precision {precision}"):
        TrainConfig(amp=True, precision=precision)


def test_amp_is_the_devices_own_precision_unless_one_is_named() -> None:
    assert TrainConfig().effective_precision == "fp32"
    assert TrainConfig(amp=True).effective_precision == "amp"
    assert TrainConfig(amp=True, precision="bf16").effective_precision == "bf16"
    assert TrainConfig(precision="tf32").effective_precision == "tf32"
