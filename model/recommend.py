"""`python -m model.recommend`: the items a trained run ranks first for a user, in original ids."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from model.checkpoint import Run, load_run
from model.columns import Columns
from model.known import Known, known_of
from preprocessing.feature_spec import read_feature_spec
from preprocessing.titles import read_titles
from workflows import device
from workflows.errors import UserError, run_command
from workflows.help import HelpFormatter
from workflows.progress import console
from workflows.state import read_categories


@dataclass(frozen=True)
class Recommendation:
    """One ranked item, by its original id; `score` is the probability the model gives it."""

    item: object
    score: float


class Recommender:
    """A trained run together with the ids and interactions of the folder it was trained on."""

    def __init__(self, run: Run, data: Path, torch_device: torch.device) -> None:
        """Raises UserError where `data` is not the folder of the run (any more)."""
        self._model, self._device = run.model, torch_device
        if not data.is_dir():
            raise UserError(
                f"{data}, which {run.folder} was trained on, is not there; name it with --data where it moved"
            )
        self._spec = read_feature_spec(data, run.config["feature_spec_file"])
        ids = run.config.get("features") or {}
        self._data, self._columns = data, Columns.of(self._spec, ids.get("user"), ids.get("item"))
        shape = run.model.config
        if (self._columns.n_users, self._columns.n_items) != (shape.n_users, shape.n_items):
            raise UserError(
                f"{data} has {self._columns.n_users:,} users and {self._columns.n_items:,} items, and {run.folder} was "
                f"trained on {shape.n_users:,} and {shape.n_items:,}; name the folder it was trained on with --data"
            )
        self._row_side = tuple(feature.name for feature in shape.row_side)
        for feature in (*shape.row_side, *shape.item_side):
            if feature not in self._columns.side:
                raise UserError(
                    f"{run.folder} was trained with the side feature {feature.name!r} (cardinality "
                    f"{feature.cardinality}), which {data} does not have; name the folder it was trained on with --data"
                )
        self._users = _original_ids(data, self._columns.user, shape.n_users)
        self._items = _original_ids(data, self._columns.item, shape.n_items)

    def recommend(self, users: Sequence[str], k: int) -> list[list[Recommendation]]:
        """For each user the k best items among those the user has not interacted with, best first.

        Raises:
            UserError: a user is not in the data.
        """
        numbers = [self._encoded_user(user) for user in users]
        known = known_of(self._data, self._spec, self._columns, self._row_side, numbers)
        return [self._best(number, known[number], k) for number in numbers]

    def _best(self, user: int, known: Known, k: int) -> list[Recommendation]:
        scores = self._scores(user, known.row_side)
        scores[torch.from_numpy(known.seen)] = -torch.inf
        top = scores.topk(min(k, scores.numel() - len(known.seen)))
        chosen = zip(top.indices.tolist(), torch.sigmoid(top.values).tolist(), strict=True)
        return [Recommendation(self._items[item], score) for item, score in chosen]

    @torch.no_grad()
    def _scores(self, user: int, row_side: Sequence[int | float]) -> torch.Tensor:
        items = torch.arange(self._columns.n_items, device=self._device)
        side = [torch.tensor(value, device=self._device).expand(len(items)) for value in row_side]
        return self._model(torch.full_like(items, user), items, *side).float().cpu()

    def _encoded_user(self, user: str) -> int:
        found = np.flatnonzero(self._users.astype(str) == user)
        if not len(found):
            few = ", ".join(map(str, self._users[:3]))
            raise UserError(
                f"user {user!r} is not among the {len(self._users):,} users this run was trained on (such as {few}); "
                "check the id, or add the user's interactions to the log, then prepare and train again"
            )
        return int(found[0])


def _original_ids(folder: Path, column: str, n: int) -> pd.Series:
    """Original ids by encoded id; of a folder without categories the ids are their own originals."""
    if not (folder / "categories").is_dir():
        return pd.Series(np.arange(n))
    ids = read_categories(folder, column)
    if len(ids) != n:
        raise UserError(f"{folder}/categories lists {len(ids):,} ids of {column!r}, and its feature spec {n:,}")
    return ids


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m model.recommend",
        description="Rank the items a user has not interacted with.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder written by train.py")
    parser.add_argument("--user", nargs="+", required=True, metavar="ID", help="original user ids")
    parser.add_argument("-k", type=int, default=10, metavar="K", help="items per user")
    parser.add_argument("--titles", type=Path, metavar="FILE", help="CSV or Parquet with item ids and titles")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared folder (default: where the run was trained)")
    parser.add_argument("--device", choices=device.CHOICES, default="auto", help="where to score")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.k < 1:
        raise UserError(f"-k should be 1 or more, got {args.k}")
    titles = read_titles(args.titles) if args.titles else {}
    target = device.torch_device(args.device, None)
    run = load_run(args.run, target)
    recommender = Recommender(run, args.data or Path(run.config["data"]), target)
    for user, ranked in zip(args.user, recommender.recommend(args.user, args.k), strict=True):
        rows = [
            (str(rank), str(found.item), f"{found.score:.4f}", titles.get(str(found.item), ""))
            for rank, found in enumerate(ranked, 1)
        ]
        header = ("rank", "item", "score", "title" if titles else "")
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(3)]
        console.print(f"user {user}")
        for row in [header, *rows]:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
            console.print("  ".join([*cells, row[3]]).rstrip())


if __name__ == "__main__":
    run_command(main)
