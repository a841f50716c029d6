"""Means over seeds and users, with standard errors.

There are two sources of randomness: the sample of users and the seed. All models rank the same series and so share the
first: differences are paired by user. Both contribute to the standard error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    standard_error: float


def estimate(values: npt.NDArray[np.float64]) -> Estimate:
    """The mean of one metric of one model.

    Args:
        values: per seed and user, [seeds, users].
    """
    return Estimate(float(values.mean()), _error(values.mean(0), values))


def difference(values: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> Estimate:
    """Mean of `values` minus mean of `others`, paired by user; [seeds, users] each."""
    by_user = values.mean(0) - others.mean(0)
    return Estimate(float(by_user.mean()), _error(by_user, values, others))


def spread(values: npt.NDArray[np.float64]) -> float:
    """The standard deviation between seeds; 0 for a single seed."""
    return float(values.mean(1).std(ddof=1)) if len(values) > 1 else 0.0


def _error(by_user: npt.NDArray[np.float64], *by_seed: npt.NDArray[np.float64]) -> float:
    of_users = by_user.var(ddof=1) / len(by_user) if len(by_user) > 1 else 0.0
    return float(np.sqrt(of_users + sum(spread(values) ** 2 / len(values) for values in by_seed)))
