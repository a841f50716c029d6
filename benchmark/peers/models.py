"""The models that are fitted, with the settings that may be tried beside their defaults."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.demo import SETTINGS

ADAPTERS = Path(__file__).parent / "adapters"
PROGRAMS = Path(__file__).parent / "programs"  # what a user would write, without anything of this benchmark
Settings = dict[str, Any]
OURS = "ours"  # instead of a peer's name: fitted in this environment, in the same way


@dataclass(frozen=True)
class Model:
    """A model of a peer, or one of ours that is tuned like theirs.

    Attributes:
        peer: its environment, `.venv-peers/PEER`, and its adapter.
        name: of the model, to the adapter.
        what: description for people.
        space: values to try of each setting, named as the peer names it; defaults are added to them.
        settings: that differ from the library's defaults in all its rows, with the reason in `docs/peers.md`.
        defaults: the library's (ours: of `make demo`), if the space has them; they are not tried again.
        speed: settings with the network, batch and negatives of `benchmark.training.variants`; None if there are none.
    """

    peer: str
    name: str
    what: str
    space: Mapping[str, tuple[Any, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] | None = None

    @property
    def adapter(self) -> Path:
        return ADAPTERS / f"{self.peer}.py"

    def candidates(self, trials: int, seed: int) -> list[Settings]:
        """The defaults, then `trials` other settings from the space, in random order."""
        if not self.space:
            return [dict(self.settings)]
        grid = [dict(zip(self.space, values, strict=True)) for values in itertools.product(*self.space.values())]
        order = np.random.default_rng(seed).permutation(len(grid))
        others = [{**self.settings, **grid[index]} for index in order if grid[index] != self.defaults]
        return [dict(self.settings), *others[:trials]]


def _settings(flags: str) -> Settings:
    """Flags of `train.py` with numbers, by name."""
    parts = (part.split() for part in flags.split("--")[1:])
    return {name: json.loads(values[0]) if len(values) == 1 else [*map(json.loads, values)] for name, *values in parts}


_DEMO = _settings(SETTINGS) | {"epochs": 20}  # most epochs, of which the best on validation is chosen
MODELS = {
    "neumf": Model(
        OURS, "neumf", "NeuMF",
        {
            "factors": (16, 32), "dropout": (0.2, 0.35, 0.5), "learning_rate": (0.002, 0.004, 0.008),
            "negative_samples": (8, 16),
        },
        _DEMO,
        {name: _DEMO[name] for name in ("factors", "dropout", "learning_rate", "negative_samples")},
    ),
    "implicit-als": Model(
        "implicit", "als", "ALS",
        {"factors": (32, 64, 128), "regularization": (0.01, 0.1, 1.0), "alpha": (1.0, 5.0, 20.0)},
    ),
    "implicit-bpr": Model(
        "implicit", "bpr", "BPR",
        {"factors": (32, 64, 128), "learning_rate": (0.01, 0.03, 0.1), "regularization": (0.001, 0.01, 0.05)},
    ),
    "lenskit-als": Model(
        "lenskit", "als", "ALS",
        {"embedding_size": (32, 64, 128), "regularization": (0.1, 1.0, 10.0), "weight": (5.0, 20.0, 40.0)},
        defaults={"embedding_size": 64, "regularization": 0.1, "weight": 40.0},
    ),
    "lenskit-bpr": Model(
        "lenskit", "flexmf", "FlexMF, BPR",
        {"embedding_size": (32, 64, 128), "learning_rate": (0.003, 0.01, 0.03), "epochs": (10, 20, 40)},
        {"preset": "bpr"},
        {"embedding_size": 64, "learning_rate": 0.01, "epochs": 10},
    ),
    "lenskit-bce": Model(
        "lenskit", "flexmf", "FlexMF, logistic",
        {"embedding_size": (32, 64, 128), "negative_count": (1, 4), "epochs": (10, 20, 40)},
        {"loss": "logistic"},
        {"embedding_size": 64, "negative_count": 1, "epochs": 10},
    ),
    "cornac-neumf": Model(
        "cornac", "neumf", "NeuMF",
        {
            "num_factors": (16,), "layers": ((64, 32, 16), (32, 16)), "lr": (0.0005, 0.001, 0.003),
            "num_epochs": (10, 20), "batch_size": (256, 1024), "reg": (0.0, 1e-5),
        },
        {"num_factors": 8, "layers": (64, 32, 16, 8)},
        speed={"num_factors": 64, "layers": (256, 256, 128, 64), "num_neg": 4, "num_epochs": 1},
    ),
    "cornac-ease": Model("cornac", "ease", "EASE", {"lamb": (50.0, 100.0, 200.0, 350.0, 700.0), "posB": (True, False)}),
    "cornac-bpr": Model(
        "cornac", "bpr", "BPR",
        {"k": (10, 32, 64), "learning_rate": (0.001, 0.01, 0.05), "lambda_reg": (0.001, 0.01, 0.03)},
        defaults={"k": 10, "learning_rate": 0.001, "lambda_reg": 0.01},
    ),
    "recbole-neumf": Model(
        "recbole", "neumf", "NeuMF",
        {"learning_rate": (0.0005, 0.001, 0.003), "dropout_prob": (0.1, 0.3, 0.5), "negatives": (1, 4)},
        defaults={"learning_rate": 0.001, "dropout_prob": 0.1, "negatives": 1},
        speed={
            "mf_embedding_size": 64, "mlp_embedding_size": 128, "mlp_hidden_size": (256, 128, 64),
            "dropout_prob": 0.5, "negatives": 4, "epochs": 1,
        },
    ),
    "recbole-lightgcn": Model(
        "recbole", "lightgcn", "LightGCN",
        {"learning_rate": (0.001, 0.003, 0.01), "n_layers": (1, 2, 3), "reg_weight": (1e-5, 1e-3)},
        defaults={"learning_rate": 0.001, "n_layers": 2, "reg_weight": 1e-5},
    ),
    "recommenders-ncf": Model(
        "recommenders", "neumf", "NCF (NeuMF)",
        {
            "n_factors": (8, 16), "layer_sizes": ((16, 8, 4), (32, 16, 8)), "learning_rate": (0.001, 0.005),
            "batch_size": (256, 1024), "n_epochs": (10, 20),
        },
        {"batch_size": 256, "n_epochs": 10},
    ),
}  # fmt: skip


def batch_settings(peer: str, samples: int) -> Settings:
    """A batch of so many samples, with four negatives per positive, as the peer names it."""
    return {"cornac": {"batch_size": samples // 5}, "recbole": {"train_batch_size": samples}}[peer]


def program_lines(row: str) -> int:
    """Lines of the program, from a CSV file of (user, item) rows to each user's ten best new items."""
    text = (PROGRAMS / f"{row.replace('-', '_')}.py").read_text(encoding="utf-8")
    return sum(bool(line.strip()) for line in text.splitlines())
