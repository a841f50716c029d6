"""Members of an ensemble of GMF models: each a user-item dot product, trained on a split of train and cached."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
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
from model.training.threads import torch_threads
from model.training.trainer import Training
from workflows.common.progress import Stage, stage
from workflows.device.torch_device import torch_generator

_TOGETHER = 2  # members trained at the same time on a CPU: the search mostly tries pairs


class Factors(NamedTuple):
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


def members_together(world: ProcessGroup) -> int:
    """Number of members that a process trains at the same time."""
    alone_on_cpu = world.size == 1 and world.device.type == "cpu"
    return min(_TOGETHER, torch.get_num_threads()) if alone_on_cpu else 1


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

    def factors(self, choices: Sequence[MemberConfig]) -> list[Factors]:
        """Factors of the members; those that are not in the cache are trained."""
        columns, world = self.columns, self._world
        # The folder may exist only on the first rank's disk.
        known = {choice: self._load(choice) if world.is_first else None for choice in choices}
        missing = [choice for choice, found in known.items() if not world.broadcast_int(found is not None)]
        known |= self._train_new(missing)
        shared = []
        for choice in choices:
            users, items = known[choice] or (torch.empty(n, choice.width) for n in (columns.n_users, columns.n_items))
            shared.append(Factors(users.to(world.device), items.to(world.device)))
            world.broadcast(shared[-1].users)
            world.broadcast(shared[-1].items)
        return shared

    def scores(self, choices: Sequence[MemberConfig], users: Tensor) -> Iterator[Tensor]:
        """Each member's scores of the given users for all items, float32 [V, n_items]."""
        return (own.users[users] @ own.items.T for own in self.factors(choices))

    @cached_property
    def item_counts(self) -> Tensor:
        """Number of train positives per item, int64 [n_items]."""
        return item_popularity(self._train, self._world, self._validation_items)

    def batches(self, recency: float, seed: int = 0) -> UserLoader:
        config = self._config
        in_memory = stays_in_memory(config.loader, PAIR_BYTES * self._train.n_rows, self._world)
        users = UserLoaderConfig(batch_size=config.batch_size, recency=recency, in_memory=in_memory, seed=seed)
        return UserLoader(self._train, users, self._world, self._validation_items)

    def _train_new(self, choices: Sequence[MemberConfig]) -> dict[MemberConfig, Factors]:
        """Train members and write them to the cache: first item-item ones, which use all threads."""
        found = {}
        for choice in choices:
            if choice.kind == "item-item":
                with self._stage([choice]) as progress:
                    found[choice] = self._save(choice, self._item_item(choice, progress))
        descending = [choice for choice in choices if choice not in found]
        if descending:
            started = time.perf_counter()
            with self._stage(descending) as progress, closing(self._trained_together(descending, progress)) as trained:
                for choice, factors, samples in trained:
                    found[choice] = self._save(choice, factors)
                    self.samples += samples
            self.seconds += time.perf_counter() - started
        return found

    def _trained_together(
        self, choices: Sequence[MemberConfig], progress: Stage
    ) -> Generator[tuple[MemberConfig, Factors, int], None, None]:
        """Each member once it is trained, with the number of positives that it was trained on.

        Steps are too small to gain much from many threads, so several members share them. Each has the same share
        however many are left to train: sums depend on the number of threads.
        """
        n_together, item_counts = members_together(self._world), self.item_counts
        if n_together == 1:
            yield from (self._trained(choice, item_counts, progress) for choice in choices)
            return
        share = torch.get_num_threads() // n_together

        def train(choice: MemberConfig) -> tuple[MemberConfig, Factors, int]:
            with torch_threads(share):  # a setting of each thread
                return self._trained(choice, item_counts, progress)

        # The outer context restores the number that new threads get, which `train` changes.
        with torch_threads(torch.get_num_threads()), ThreadPoolExecutor(n_together) as pool:
            try:
                for run in as_completed([pool.submit(train, choice) for choice in choices]):
                    yield run.result()
            finally:  # if one has failed, the others end
                progress.stop()
                pool.shutdown(cancel_futures=True)

    def _stage(self, choices: Sequence[MemberConfig]) -> AbstractContextManager[Stage]:
        name = choices[0].name if len(choices) == 1 else f"{len(choices)} members"
        epochs = sum(1 if choice.kind == "item-item" else self._config.epochs for choice in choices)
        total = epochs * self.batches(0.0).samples_per_epoch()
        return stage(f"{self._split} {name}", total, "samples", show_progress=self._shown)

    def _trained(self, choice: MemberConfig, item_counts: Tensor, progress: Stage) -> tuple[MemberConfig, Factors, int]:
        config = replace(
            self._config, loss=choice.kind, weight_decay=choice.penalty, recency=choice.recency, patience=None,
            threshold=TrainConfig.threshold, seed=choice.seed,
        )  # fmt: skip
        shape = NeuMFConfig(
            n_users=self.columns.n_users, n_items=self.columns.n_items, factors=choice.width, arch="gmf"
        )
        model = NeuMF(shape, torch_generator(choice.seed, torch.device("cpu"))).to(self._world.device)
        start_from_popularity(model, item_counts, choice.kind)
        training = Training(model, AllItemsStep(model, config, self._world, item_counts))
        history = training.fit(self.batches(choice.recency, choice.seed), None, config, lambda _: None, progress)
        factors = Factors(model.mf_user_embed.weight.detach(), model.mf_item_embed.weight.detach())
        return choice, factors, sum(epoch.train_samples for epoch in history.epochs)

    def _item_item(self, choice: MemberConfig, progress: Stage) -> Factors:
        products, batches = self._products, self.batches(choice.recency)
        weights = ease.item_weights(products, choice.penalty * float(products.diagonal().mean()))
        if choice.recency:
            products = ease.item_products(batches.blocks(), self.columns.n_items, self._world.device)
        found = ease.factors(weights, products, batches.blocks, self.columns.n_users, choice.width)
        progress.advance(batches.samples_per_epoch())
        return Factors(*found)

    def _save(self, choice: MemberConfig, factors: Factors) -> Factors:
        if self._world.is_first:
            save_factors(self._path(choice), *factors)
        return factors

    def _load(self, choice: MemberConfig) -> Factors | None:
        cached = load_factors(self._path(choice), self.columns.n_users, self.columns.n_items, choice.width)
        return cached and Factors(*cached)

    def _path(self, choice: MemberConfig) -> Path:
        return self._folder() / f"{self._split}-{choice.name}-{self._settings}.safetensors"

    @cached_property
    def _products(self) -> Tensor:
        """Item-item products of the unweighted user histories."""
        return ease.item_products(self.batches(0.0).blocks(), self.columns.n_items, self._world.device)
