from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocessing.config import PrepareConfig, is_prepared_folder
from workflows.common.errors import UserError
from workflows.sampling.config import Sampling


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"test_negatives": -1}, "--test-negatives"),
        ({"train_negatives": -1}, "--train-negatives"),
        ({"sampling": Sampling(seed=-1)}, "--seed"),
        ({"sampling": Sampling(seed=2**63)}, "--seed"),
        ({"sampling": Sampling(exponent=-0.1)}, "--popularity-exponent"),
        ({"sampling": Sampling(exponent=10.5)}, "--popularity-exponent"),
        ({"sampling": Sampling(exponent=float("nan"))}, "--popularity-exponent"),
    ],
)
def test_out_of_range_numbers_are_refused_with_their_flag(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=f"{flag} should be"):
        PrepareConfig(**wrong)


def test_range_limits_are_allowed() -> None:
    for exponent in (0.0, 10.0):
        for seed in (0, 2**63 - 1):
            PrepareConfig(test_negatives=0, train_negatives=0, sampling=Sampling(seed=seed, exponent=exponent))


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [({"rows_read": 1, "test_negatives": 2, "more": 3}, True), ({"rows_read": 1}, False), ({}, False), (None, False)],
)
def test_a_prepared_folder_is_recognised_by_its_stats(tmp_path: Path, content: dict | None, is_ours: bool) -> None:
    if content is not None:
        (tmp_path / "stats.json").write_text(json.dumps(content))
    assert is_prepared_folder(tmp_path) == is_ours
