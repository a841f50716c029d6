"""The learning rate over a training run."""

from __future__ import annotations

import math

from model.training.config import TrainConfig


def learning_rate(config: TrainConfig, share: float) -> float:
    """The rate after a share of the training: constant, or falling to 0 as a cosine (Loshchilov and Hutter 2017)."""
    if config.schedule == "constant":
        return config.learning_rate
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share))) * config.learning_rate
