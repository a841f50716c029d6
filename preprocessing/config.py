"""Settings for preparing a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workflows.common.errors import UserError
from workflows.common.files import read_json
from workflows.sampling.config import Sampling, wrong_seed

STATS_NAME = "stats.json"
SPEC_NAME = "feature_spec.yaml"
ORDERS = BY_TIME, BY_FILE, BY_DRAW = "time", "file", "random"  # of a user's interactions


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a log is split into train and test; nothing about paths or devices."""

    min_rating: float | None = None  # drop interactions rated lower
    strict: bool = False  # a row with a missing value is an error
    test_negatives: int = 100  # per test series
    train_negatives: int = 0  # written after each train positive
    order: str = BY_TIME  # one of ORDERS
    sampling: Sampling = field(default_factory=Sampling)
    partitions: int | None = None  # None: by log size and memory limit
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        numbers = {"test-negatives": self.test_negatives, "train-negatives": self.train_negatives}
        for name, number in numbers.items():
            if number < 0:
                raise UserError(f"--{name} should be 0 or more, got {number}")
        if wrong := wrong_seed(self.sampling.seed):
            raise UserError(wrong)
        if self.sampling.time_aware and self.order != BY_TIME:
            raise UserError("--time-aware needs times, and --order is for a log without; leave one of them out")
        if not 0.0 <= self.sampling.exponent <= 10.0:
            raise UserError(f"--popularity-exponent should be 0 .. 10, got {self.sampling.exponent}")


def is_prepared_folder(folder: Path) -> bool:
    """Whether a folder was written from a log."""
    return {"rows_read", "test_negatives"} <= read_json(folder / STATS_NAME).keys()
