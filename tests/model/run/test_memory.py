"""Sizes that a feature spec claims are judged before anything is allocated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMFConfig
from model.run.config import RunConfig
from model.run.memory import check_network
from model.training.config import TrainConfig
from preprocessing.spec.feature_columns import FeatureColumns, SideFeature
from workflows.common.errors import UserError

MAX = 2**31 - 1
COLUMNS = FeatureColumns("user", "item", "label", 5, 6)


def test_every_cardinality_counts() -> None:
    shape = NeuMFConfig(n_users=1, n_items=1, factors=2, layers=(4, 2))
    config = RunConfig(data=Path("data"), output=Path("run"), train=TrainConfig(), shape=shape)
    world, huge = ProcessGroup(torch.device("cpu")), (SideFeature("huge", MAX),)
    check_network(config, COLUMNS, world)
    for columns in (
        replace(COLUMNS, n_users=MAX), replace(COLUMNS, n_items=MAX),
        replace(COLUMNS, row_side=huge), replace(COLUMNS, item_side=huge), replace(COLUMNS, either_side=huge),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"a network of .* parameters .* needs .* GiB of memory or more"):
            check_network(config, columns, world)
    gmf = replace(config, shape=replace(shape, arch="gmf"))
    check_network(gmf, replace(COLUMNS, row_side=huge), world)  # the network says that it has no place for it
