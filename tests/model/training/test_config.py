"""Settings of a run: the reference's defaults, and one error that names every invalid value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from model.training.config import TrainConfig
from workflows.common.errors import UserError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("valid_batch_size", -1),
        ("topk", 0),
        ("topk", 1 << 63),
        ("patience", 10**400),
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
        ("loss", "hinge"),
        ("schedule", "linear"),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("recency", -1.0),
        ("recency", math.inf),
        ("patience", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_invalid_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{name} "):
        TrainConfig(**{name: value})


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        TrainConfig(epochs=0, eps=-1.0, beta2=3.0, grads_accumulated=9, batch_size=8)
    for flag in ("--epochs", "--eps", "--beta2", "--grads_accumulated 9"):
        assert flag in str(error.value)


def test_limits_are_inclusive() -> None:
    TrainConfig(negative_samples=0, beta1=0.0, threshold=0.0, seed=2**63 - 1, batch_size=1, grads_accumulated=1)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_amp_and_full_precision_contradict(precision: str) -> None:
    with pytest.raises(UserError, match=f"--amp .* --precision {precision}"):
        TrainConfig(amp=True, precision=precision)


@pytest.mark.parametrize("name", ["weight_decay", "recency"])
def test_penalty_and_recency_require_a_loss_over_all_items(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name} goes with --loss softmax or bce-all"):
        TrainConfig(**{name: 0.5})  # type: ignore[arg-type]
    for loss in ("softmax", "bce-all"):
        assert TrainConfig(loss=loss, **{name: 0.5}).all_items_loss  # type: ignore[arg-type]
    assert not TrainConfig().all_items_loss


IGNORED: dict[str, Any] = {
    "negatives": "uniform", "negative_samples": 0, "grads_accumulated": 2, "compile": True, "cuda_graphs": True,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), IGNORED.items())
def test_flags_for_sampled_negatives_are_refused_without_sampling(name: str, value: Any) -> None:
    TrainConfig(**{name: value})
    members: dict[str, Any] = {"members": ("softmax",), "validation": "leave-one-out"}
    for others, told in (
        ({"loss": "softmax"}, "--loss softmax"),
        ({"loss": "bce-all"}, "bce-all"),
        (members, "--members"),
    ):
        with pytest.raises(UserError, match=f"--{name.replace('cuda_', 'cuda-')} does nothing with .*{told}"):
            TrainConfig(**{name: value}, **others)


def test_members_refuse_early_stopping_and_another_loss() -> None:
    members: dict[str, Any] = {"members": ("bce-all", "item-item"), "validation": "leave-one-out"}
    TrainConfig(**members)
    for change, told in (
        ({"members": ("item-item",)}, "--members should hold softmax or bce-all"),
        ({"validation": "none"}, "--members are selected on a validation split"),
        ({"loss": "softmax"}, "--members come with their own losses"),
        ({"patience": 3}, "--patience does nothing"),
        ({"threshold": 0.5}, "--threshold does nothing"),
    ):
        with pytest.raises(UserError, match=told):
            TrainConfig(**{**members, **change})
