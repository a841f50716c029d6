"""`python -m model.recommend`: the top items of a trained run for users, in original ids."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from model.recommend.recommendations import Ranking, Recommendations, Scale
from model.recommend.recommender import Recommender
from model.recommend.writers import SUFFIXES, Titles, write_recommendations
from preprocessing.spec.titles import read_titles
from workflows.common.cli import HelpFormatter
from workflows.common.errors import UserError, run_command
from workflows.common.progress import Stage, console, remarks, stage
from workflows.common.staging import check_file
from workflows.device import DEVICES

_MAX_LIST_BYTES = 1 << 30


class _Parser(argparse.ArgumentParser):
    """Explains how to give an id that begins with a dash, which argparse takes for a flag."""

    _given: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = sys.argv[1:] if args is None else args
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        given = list(self._given)
        after = given[given.index("--user") + 1 :] if "--user" in given else []
        for one in after:
            if one.startswith("-") and one.partition("=")[0] not in self._option_string_actions:
                message += f"; if {one} is a user id, write --user={one}"
                break
        super().error(message)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m model.recommend",
        description="Rank items for users with a trained run.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder written by train.py")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument(
        "--user", nargs="+", action="extend", metavar="ID",
        help="original user ids; one that begins with a dash as --user=-ID, and again for others",
    )  # fmt: skip
    whom.add_argument("--users-file", type=Path, metavar="FILE", help="text file with one original user id per line")
    whom.add_argument("--all", action="store_true", help="all users the run was trained on")
    parser.add_argument("-k", type=int, default=10, metavar="K", help="items per user")
    parser.add_argument(
        "--candidates", type=Path, metavar="FILE", help="rank only these items: text file with one id per line"
    )
    parser.add_argument(
        "--exclude-seen", action=argparse.BooleanOptionalAction, default=True,
        help="leave out items the user has interacted with",
    )  # fmt: skip
    parser.add_argument(
        "--unknown-users", choices=["error", "popular"], default="error",
        help="users the run was not trained on: fail, or rank by popularity and say so",
    )  # fmt: skip
    parser.add_argument(
        "--unknown-items", choices=["error", "skip"], default="error",
        help="candidates the run was not trained on: fail, or leave them out and say how many",
    )  # fmt: skip
    parser.add_argument("--titles", type=Path, metavar="FILE", help="CSV or Parquet with item ids and titles")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"write a table, {', '.join(SUFFIXES)} (default: print it)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared folder (default: the one the run used)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to score")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.k < 1:
        raise UserError(f"-k should be 1 or more, got {args.k}")
    if args.output is not None:
        if args.output.suffix not in SUFFIXES:
            raise UserError(
                f"--output {args.output}: the name should end in {', '.join(SUFFIXES)}, which sets the format"
            )
        check_file(args.output, args.overwrite)
    titles = read_titles(args.titles) if args.titles else None
    candidates = _read_ids(args.candidates) if args.candidates else None
    users = _read_ids(args.users_file) if args.users_file else args.user
    recommender = Recommender.load(args.run, args.data, args.device)
    if recommender.note:
        remarks.print(recommender.note)
    trained = recommender.trained
    n_left_out = len(recommender.users) - len(trained) if args.all else 0
    how = {
        "exclude_seen": args.exclude_seen,
        "candidates": candidates,
        "unknown_users": args.unknown_users,
        "unknown_items": args.unknown_items,
    }

    def found() -> Iterator[Recommendations]:
        if args.all:
            yield from recommender.recommend_all(args.k, **how)
        else:
            yield recommender.recommend(users, args.k, **how)

    n_unknown = int((recommender.items.find(candidates) < 0).sum()) if candidates else 0
    if candidates and n_unknown and args.unknown_items == "skip":
        console.print(f"left out {n_unknown:,} of {len(candidates):,} candidates, which the run was not trained on")

    if args.output is not None:
        n_users = len(trained) if args.all else len(users)
        _write(args.output, found(), n_users, n_left_out, titles, args.overwrite)
        return
    for part in found():
        for ranking in part:
            _show(ranking, recommender.scale, titles)
    if n_left_out:
        console.print(f"left out {n_left_out:,} users that the run was not trained on")


def _write(
    path: Path, found: Iterator[Recommendations], n_users: int, n_left_out: int, titles: Titles, overwrite: bool
) -> None:
    """Write the rankings of `n_users` users; report how many are based on popularity, and how many are left out."""
    n_popular = 0

    def watched(progress: Stage) -> Iterator[Recommendations]:
        nonlocal n_popular
        for part in found:
            yield part
            n_popular += int(part.is_popularity.sum())
            progress.advance(len(part))

    with stage("recommend", n_users, "users") as progress:
        write_recommendations(path, watched(progress), titles, overwrite)
    by_popularity = f" ({n_popular:,} unknown, given popular items)" if n_popular else ""
    left_out = f", without {n_left_out:,} that the run was not trained on" if n_left_out else ""
    console.print(f"wrote {path} for {n_users:,} users{by_popularity}{left_out}")


def _read_ids(path: Path) -> list[str]:
    """Read ids from a text file, one per line that is not blank.

    Raises:
        UserError: the file is not readable as text, is too large or has no ids.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not readable (not a file)")
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise UserError(f"{path}: a list of ids should have at most {_MAX_LIST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise UserError(f"{path}: not readable as UTF-8 text ({err.reason}); give one id per line") from None
    except OSError as err:
        raise UserError(f"{path}: not readable ({err.strerror})") from None
    ids = [line for line in text.split("\n") if line.strip()]
    if not ids:
        raise UserError(f"{path} is empty; give one id per line")
    return ids


def _show(ranking: Ranking, scale: Scale, titles: Titles) -> None:
    """Print one user's recommendations."""
    note = ": unknown, showing popular items" if ranking.basis == "popularity" else ""
    console.print(f"user {ranking.user}{note}")
    rows = [
        (str(rank), str(item), f"{score:.6g}", (titles or {}).get(str(item), ""))
        for rank, (item, score) in enumerate(zip(ranking.items, ranking.scores, strict=True), 1)
    ]
    is_logit = scale == "logit" and ranking.basis == "model"
    header = ("rank", "item", "score (logit)" if is_logit else "score", "title" if titles else "")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(3)]
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        console.print("  ".join([*cells, row[3]]).rstrip())


if __name__ == "__main__":
    run_command(main)
