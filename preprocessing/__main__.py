"""`python -m preprocessing`: a raw interaction log becomes a prepared folder."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from preprocessing.prepare import PrepareConfig, is_prepared_folder, prepare
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Columns, Log
from preprocessing.sources.movielens import ml_100k_sample
from workflows import device
from workflows.cluster import thread_cluster
from workflows.errors import UserError, run_command
from workflows.folders import check_output, staged_folder
from workflows.help import HelpFormatter
from workflows.progress import console

_DESCRIPTION = """Turn a raw interaction log into Parquet, feature_spec.yaml and test series.

Each user's last interaction is held out for testing and ranked against negatives the user never saw.
The same log and seed give the same files, byte for byte."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing",
        description=_DESCRIPTION,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_argument_group("the log").add_mutually_exclusive_group(required=True)
    source.add_argument("--sample", choices=["ml-100k"], help="a real data set that comes with the set-up")
    source.add_argument(
        "--input", type=Path, metavar="PATH", help="MovieLens file, folder or zip; or a CSV, TSV or Parquet log"
    )
    columns = parser.add_argument_group("columns of a CSV or Parquet log")
    for name in ("user", "item", "time", "rating"):
        columns.add_argument(f"--{name}", metavar="COLUMN", help=f"column that holds the {name}")
    columns.add_argument("--min-rating", type=float, metavar="R", help="leave out interactions rated lower")
    output = parser.add_argument_group("the prepared folder")
    output.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    output.add_argument("--overwrite", action="store_true", help="replace a folder written by this command")
    output.add_argument(
        "--test-negatives", "--valid_negative", type=int, default=100, metavar="N",
        help="negatives of each test series",
    )  # fmt: skip
    output.add_argument(
        "--train-negatives", type=int, default=0, metavar="K",
        help="negatives written after each train positive; 0: drawn while training",
    )  # fmt: skip
    output.add_argument("-s", "--seed", type=int, default=1, help="seed of the negatives")
    run = parser.add_argument_group("how it runs")
    run.add_argument("--device", choices=device.CHOICES, default="auto", help="where dataframes live")
    run.add_argument("--partitions", type=int, metavar="P", help="parts the users are spread over (default: by size)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    config = PrepareConfig(
        min_rating=args.min_rating,
        test_negatives=args.test_negatives,
        train_negatives=args.train_negatives,
        seed=args.seed,
        partitions=args.partitions,
    )
    columns = _columns(args)
    check_output(args.output, args.overwrite, is_prepared_folder, [args.input] if args.input else [])
    frames = device.frame_device(args.device)
    with staged_folder(args.output, args.overwrite, is_prepared_folder) as folder, thread_cluster() as cluster:
        scratch = folder / ".unpacked"
        scratch.mkdir()
        log = _open(args, columns, scratch)
        console.print(f"{log.name}: {log.size_bytes:,} bytes")
        stats = prepare(log, config, frames, cluster, folder)
        shutil.rmtree(scratch)
    console.print(
        f"{stats['users']:,} users × {stats['items']:,} items, {stats['interactions']:,} interactions: "
        f"{stats['train_rows']:,} train rows and {stats['test_series']:,} test series in {args.output}"
    )
    dropped = {name.removeprefix("dropped_"): n for name, n in stats.items() if name.startswith("dropped_") and n}
    if dropped:
        reasons = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in dropped.items())
        console.print(f"left out of {stats['rows_read']:,} rows: {reasons}")


def _open(args: argparse.Namespace, columns: Columns | None, scratch: Path) -> Log:
    with_rating = args.min_rating is not None
    return ml_100k_sample(with_rating) if args.sample else open_log(args.input, columns, with_rating, scratch)


def _columns(args: argparse.Namespace) -> Columns | None:
    """The columns that were named, None where none was.

    Raises:
        UserError: only some are named, one is named twice, or a sample's are.
    """
    if args.min_rating is not None and args.rating is None and args.user is not None:
        raise UserError("--min-rating needs the column of the ratings; name it with --rating")
    named = [args.user, args.item, args.time] + ([args.rating] if args.rating else [])
    if not any(named):
        return None
    if args.sample:
        raise UserError("--user, --item, --time and --rating are for --input; the sample's columns are known")
    if not all(named):
        raise UserError("name all of --user, --item and --time, or none of them where the log is MovieLens")
    if len(set(named)) < len(named):
        raise UserError("--user, --item, --time and --rating should name different columns")
    columns = Columns(user=args.user, item=args.item, time=args.time, rating=args.rating)
    return columns if args.min_rating is not None else columns.without_rating()


if __name__ == "__main__":
    run_command(main)
