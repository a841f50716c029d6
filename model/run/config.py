"""The settings of a run: what it reads, writes and shows, how it trains, and its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.network.neumf import NeuMFConfig
from model.training.config import TrainConfig
from preprocessing.config import SPEC_NAME

if TYPE_CHECKING:
    from preprocessing.spec.feature_columns import FeatureColumns

FLAGS_NAME = "config.yaml"
NOT_SAVED = ("config", "resume", "overwrite", "help")  # flags that a saved configuration cannot repeat


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Names are those of the flags; `python train.py --help` explains each.

    Attributes:
        resume: continue the run in `output`.
        shape: the network's shape; its numbers of users and items and its side features come from the data.
        flags: all flags by name, for `log.json` and `config.yaml`.
    """

    data: Path
    output: Path
    train: TrainConfig
    shape: NeuMFConfig
    feature_spec_file: str = SPEC_NAME
    user_feature: str | None = None
    item_feature: str | None = None
    mode: str = "train"
    overwrite: bool = False
    resume: bool = False
    load_checkpoint_path: Path | None = None
    new_rows: str = "random"
    checkpoint_dir: Path | None = None
    log_path: Path | None = None
    pretrained: tuple[Path, ...] = ()
    alpha: float = 0.5
    without: frozenset[str] = frozenset()
    device: str = "auto"
    gpus: int | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)

    def network(self, columns: FeatureColumns) -> NeuMFConfig:
        """The network's shape for a data set; raises UserError if it has no place for the side features."""
        return replace(
            self.shape,
            n_users=columns.n_users,
            n_items=columns.n_items,
            row_side=columns.row_side,
            item_side=columns.item_side,
        )

    def problems(self) -> list[str]:
        """Flags that do not go together."""
        train, shape, wrong = self.train, self.shape, []
        if self.gpus is not None and self.gpus < 1:
            wrong.append(f"--gpus should be 1 or more, got {self.gpus}")
        least = 2 * max(1, len(train.members))
        if (train.all_items_loss or train.members) and (shape.arch != "gmf" or shape.factors < least):
            wrong.append(
                f"{'--members' if train.members else '--loss ' + train.loss} needs --arch gmf with --factors {least} "
                f"or more, the last of which is the item bias; got --arch {shape.arch} --factors {shape.factors}"
            )
        if self.pretrained and shape.arch != "neumf":
            wrong.append(f"--pretrained needs a network with both branches (--arch neumf), got --arch {shape.arch}")
        if self.mode == "train" and self.load_checkpoint_path is not None and (train.members or self.pretrained):
            which = (
                "--members trains from scratch" if train.members else "--pretrained already sets the initial weights"
            )
            wrong.append(f"{which}; omit --load_checkpoint_path")
        if self.new_rows != "random" and self.load_checkpoint_path is None:
            wrong.append(f"--new_rows {self.new_rows} goes with --load_checkpoint_path RUN; leave it out, or add one")
        if self.mode == "test" and self.resume:
            wrong.append("--resume continues training; omit --mode test")
        if self.mode == "test" and self.load_checkpoint_path is None:
            wrong.append("--mode test evaluates a trained model; name it with --load_checkpoint_path")
        return wrong


def plain(value: Any, path: Callable[[Path], Path] = lambda path: path) -> Any:
    """A flag's value for YAML or JSON, with paths as text.

    Args:
        path: applied to each path first.
    """
    if isinstance(value, list):
        return [plain(each, path) for each in value]
    return str(path(value)) if isinstance(value, Path) else value
