"""Members of an ensemble of GMF models: each a user-item dot product, trained on a split of train and cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from model.data.dataset import Rows
from model.data.popularity import item_popularity
from model.data.residency import PAIR_BYTES, stays_in_memory
from model.data.user_loader import UserLoader, UserLoaderConfig
from model.distributed.process_group import ProcessGroup
from model.ensemble import ease
from model.network.checkpoint import load_factors, save_factors
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.all_items_step import AllItemsStep, start_from_popularity
from model.training.config import TrainConfig
from model.training.trainer import Training
from workflows.common.progress import Stage, stage
from workflows.device.torch_device import torch_generator


@dataclass(frozen=True)
class Factors:
    """Factors of a user-item dot product; a last user column of 1 makes the last item column a bias.

    Attributes:
        users, items: float32 [n_users, width] and [n_items, width].
    """

    users: Tensor
    items: Tensor


@dataclass(frozen=True)
class MemberConfig:
    """Training settings of one member."""

    kind: str
    seed: int
    width: int
    penalty: float
    recency: float

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}-{self.width}-{self.penalty:.6g}-{self.recency:g}"


class MemberTrainer:
    """Trains members on one split of train and caches them in a folder, so that a run can be resumed."""

    def __init__(
        self,
        train: Rows,
        config: TrainConfig,
        world: ProcessGroup,
        validation_items: Tensor | None,
        folder: Callable[[], Path],
        show_progress: bool,
    ) -> None:
        """
        Args:
            validation_items: int32 [n_users], the item of each user excluded from training, -1 for none; None: train on
            all.
            folder: where the cache is now.
        """
        self.columns, self._train, self._world = train.columns, train, world
        self._config = replace(config, members=(), loss="softmax")  # every loss uses the same batches
        self._validation_items, self._shown = validation_items, show_progress
        self._folder, self._split = folder, "all" if validation_items is None else "validation"
        self._settings = f"{crc32(repr(self._config).encode()):08x}"  # do not reuse members of other settings
        self.samples, self.seconds = 0, 0.0  # positives trained on, and the time that took

    def factors(self, choice: MemberConfig) -> Factors:
        path = self._folder() / f"{self._split}-{choice.name}-{self._settings}.safetensors"
        world, columns = self._world, self.columns
        # The folder may exist only on the first rank's disk.
        known = load_factors(path, columns.n_users, columns.n_items, choice.width) if world.is_first else None
        if not world.broadcast_int(known is not None):
            batches = self.batches(choice.recency, choice.seed)
            total = batches.samples_per_epoch() * (self._config.epochs if choice.kind != "item-item" else 1)
            with stage(f"{self._split} {choice.name}", total, "samples", show_progress=self._shown) as progress:
                train = self._item_item if choice.kind == "item-item" else self._trained
                known = train(choice, batches, progress)
            if world.is_first:
                save_factors(path, *known)
        elif known is None:
            known = torch.empty(columns.n_users, choice.width), torch.empty(columns.n_items, choice.width)
        factors = Factors(*(tensor.to(world.device) for tensor in known))
        world.broadcast(factors.users)
        world.broadcast(factors.items)
        return factors

    def scores(self, choice: MemberConfig, users: Tensor) -> Tensor:
        """Scores of the given users for all items, float32 [V, n_items]."""
        own = self.factors(choice)
        return own.users[users] @ own.items.T

    @cached_property
    def item_counts(self) -> Tensor:
        """Number of train positives per item, int64 [n_items]."""
        return item_popularity(self._train, self._world, self._validation_items)

    def batches(self, recency: float, seed: int = 0) -> UserLoader:
        config = self._config
        in_memory = stays_in_memory(config.loader, PAIR_BYTES * self._train.n_rows, self._world)
        users = UserLoaderConfig(batch_size=config.batch_size, recency=recency, in_memory=in_memory, seed=seed)
        return UserLoader(self._train, users, self._world, self._validation_items)

    def _trained(self, choice: MemberConfig, batches: UserLoader, progress: Stage) -> tuple[Tensor, Tensor]:
        config = replace(
            self._config, loss=choice.kind, weight_decay=choice.penalty, recency=choice.recency, patience=None,
            threshold=TrainConfig.threshold, seed=choice.seed,
        )  # fmt: skip
        shape = NeuMFConfig(
            n_users=self.columns.n_users, n_items=self.columns.n_items, factors=choice.width, arch="gmf"
        )
        model = NeuMF(shape, torch_generator(choice.seed, torch.device("cpu"))).to(self._world.device)
        start_from_popularity(model, self.item_counts, choice.kind)
        training = Training(model, AllItemsStep(model, config, self._world, self.item_counts))
        history = training.fit(batches, None, config, lambda _: None, progress)
        self.samples += sum(epoch.train_samples for epoch in history.epochs)
        self.seconds += history.seconds
        return model.mf_user_embed.weight.detach(), model.mf_item_embed.weight.detach()

    def _item_item(self, choice: MemberConfig, batches: UserLoader, progress: Stage) -> tuple[Tensor, Tensor]:
        products = self._products
        weights = ease.item_weights(products, choice.penalty * float(products.diagonal().mean()))
        if choice.recency:
            products = ease.item_products(batches.blocks(), self.columns.n_items, self._world.device)
        found = ease.factors(weights, products, batches.blocks, self.columns.n_users, choice.width)
        progress.advance(batches.samples_per_epoch())
        return found

    @cached_property
    def _products(self) -> Tensor:
        """Item-item products of the unweighted user histories."""
        return ease.item_products(self.batches(0.0).blocks(), self.columns.n_items, self._world.device)
