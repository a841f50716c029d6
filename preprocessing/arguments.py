"""The command line of `python -m preprocessing`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preprocessing.config import BY_DRAW, BY_FILE, SPEC_NAME
from preprocessing.prepare.memory import MAX_PARTITIONS, parse_bytes
from workflows.common.cli import HelpFormatter
from workflows.common.errors import UserError
from workflows.device import DEVICES
from workflows.sampling.config import EXACT, KINDS, wrong_seed

_DESCRIPTION = """Turn a raw interaction log into Parquet, feature_spec.yaml and test series.

Each user's last interaction is held out for testing and ranked against items the user has not seen.
The same log and seed give the same files, byte for byte.
If --input is a folder with a feature_spec.yaml, it is transcoded instead: any chunk type in, Parquet out."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags.

    Raises:
        UserError: flags that exclude each other, or a flag whose prerequisite is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing",
        description=_DESCRIPTION,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    _add_source(parser)
    _add_columns(parser.add_argument_group("columns and rows of the log"))
    _add_output(parser.add_argument_group("output"))
    _add_negatives(parser.add_argument_group("negatives"))
    _add_transcoding(parser.add_argument_group("folders with a feature spec"))
    _add_run(parser.add_argument_group("execution"))
    args = parser.parse_args(argv)
    _check(args)
    _check_scope(args, parser)
    return args


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--sample", choices=["ml-100k"], help="a real data set installed by the set-up")
    source.add_argument(
        "--input", nargs="+", metavar="PATH",
        help="MovieLens file, folder or zip; CSV, TSV, JSON lines or Parquet logs, packed (gz, bz2, xz, zst, lz4, zip, "
        "tar) or not: files, folders, globs or URLs; or a folder with a feature spec",
    )  # fmt: skip
    source.add_argument(
        "--synthetic", metavar="SHAPE", help="synthetic log: ml-20m, small or USERSxITEMSxROWS, such as 1000x500x50000"
    )
    source.add_argument(
        "--check", type=Path, metavar="DIR", help="validate the spec and data of a prepared folder; writes nothing"
    )
    group.add_argument("--raw", type=Path, metavar="FILE", help="write the --synthetic log as CSV and exit")
    group.add_argument("--features", action="store_true", help="with --sample: user gender and age as side features")
    group.add_argument(
        "--workflow",
        type=Path,
        metavar="DIR",
        help="reuse the encoding of this prepared folder; rows with unknown ids are dropped",
    )
    group.add_argument("--extend", action="store_true", help="with --workflow: append unknown ids to the encoding")


def _add_columns(group: argparse._ArgumentGroup) -> None:
    for name in ("user", "item", "time", "rating"):
        group.add_argument(f"--{name}", metavar="COLUMN", help=f"name of the {name} column")
    group.add_argument(
        "--columns", type=lambda text: text.split(","), metavar="A,B,…", help="column names of text without a header"
    )
    group.add_argument(
        "--order", choices=[BY_FILE, BY_DRAW],
        help="instead of --time: a user's last interaction is the last in the files, or one drawn by --seed",
    )  # fmt: skip
    group.add_argument(
        "--text-ids", nargs="*", choices=["user", "item"], metavar="ID", action=_TextIds,
        help="read user or item ids as text, even if the first look like integers (default: both)",
    )  # fmt: skip
    group.add_argument(
        "--time-format", metavar="FORMAT",
        help="of dates that are not ISO 8601, in the directives of Python's strptime: '%%d.%%m.%%Y %%H:%%M'; for "
        "digits, too (%%Y%%m%%d), but not for numbers that count from 1970",
    )  # fmt: skip
    group.add_argument("--delimiter", metavar="TEXT", help="between fields of text; a blank: runs of blanks")
    group.add_argument("--quoting", choices=["none", "minimal"], help="whether fields of text are quoted")
    group.add_argument(
        "--encoding", metavar="NAME", help="of text, such as latin-1 (default: UTF-8, or its byte order mark)"
    )
    group.add_argument("--comment", metavar="TEXT", help="skip lines that begin with this")
    group.add_argument("--min-rating", type=float, metavar="R", help="drop interactions rated lower")
    group.add_argument("--strict", action="store_true", help="a missing value is an error (default: drop the row)")


class _TextIds(argparse.Action):
    """`--text-ids` alone means both kinds of ids."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, values or ["user", "item"])


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output", type=Path, metavar="DIR", help="folder to write")
    group.add_argument("--overwrite", action="store_true", help="replace a folder written by this command")


def _add_negatives(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--test-negatives", "--valid_negative", type=int, default=100, metavar="N",
        help="negatives per test series",
    )  # fmt: skip
    group.add_argument(
        "--train-negatives", type=int, default=0, metavar="K",
        help="negatives written after each train positive; 0: drawn while training",
    )  # fmt: skip
    group.add_argument(
        "--negatives", choices=KINDS, default=EXACT.kind,
        help="exact: unseen items, uniformly; popularity: unseen items by interaction count; uniform: any items",
    )  # fmt: skip
    group.add_argument(
        "--popularity-exponent", type=float, default=EXACT.exponent, metavar="A",
        help="exponent of the interaction count, for --negatives popularity",
    )  # fmt: skip
    group.add_argument(
        "--time-aware", action="store_true", help="draw only items that occurred by the time of the positive"
    )
    group.add_argument(
        "-s", "--seed", type=int, default=EXACT.seed, help="of negatives and of --order random: 0 .. 2^63-1"
    )


def _add_transcoding(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--feature_spec_in", metavar="NAME", help=f"spec to read (default: {SPEC_NAME})")
    group.add_argument("--feature_spec_out", metavar="NAME", help=f"spec to write (default: {SPEC_NAME})")
    group.add_argument(
        "--emit", choices=["parquet", "torch_tensor"],
        help="chunk type to write (default: parquet); NVIDIA's ncf.py reads torch_tensor",
    )  # fmt: skip


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=DEVICES, default="auto", help="where dataframes live")
    group.add_argument("--partitions", type=int, metavar="P", help="partitions to spread users over (default: by size)")
    group.add_argument(
        "--memory-limit", type=_checked(parse_bytes), metavar="SIZE", help="total for all processes, such as 1GiB"
    )
    where = group.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="worker processes (default: threads of this process)")
    where.add_argument("--scheduler", metavar="HOST:PORT", help="a running Dask cluster that can access --output")


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap `parse` so that argparse shows its error message."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return checked


def _check(args: argparse.Namespace) -> None:
    wrong = []
    if args.check is None and args.raw is None and args.output is None:
        wrong.append("--output DIR is missing: the folder to write")
    if args.raw is not None and args.synthetic is None:
        wrong.append("--raw is for --synthetic")
    if args.raw is not None and args.output is not None:
        wrong.append("--raw writes the log only; leave out --output")
    if args.features and args.sample is None:
        wrong.append(
            "--features is for --sample; describe your own side features in a feature spec (docs/side-features.md)"
        )
    if args.extend and args.workflow is None:
        wrong.append("--extend needs --workflow")
    if args.partitions is not None and not 0 < args.partitions <= MAX_PARTITIONS:
        wrong.append(f"--partitions should be 1 .. {MAX_PARTITIONS}, got {args.partitions}")
    if args.memory_limit is not None and args.scheduler is not None:
        wrong.append(
            "--memory-limit is for processes that this command starts; set the limits of the --scheduler cluster there"
        )
    if seed := wrong_seed(args.seed):
        wrong.append(seed)
    if args.workers is not None and args.workers < 1:
        wrong.append(f"--workers should be 1 or more, got {args.workers}")
    if wrong:
        raise UserError("; ".join(wrong))


_FORMAT = {"columns", "text_ids", "time_format", "delimiter", "quoting", "encoding", "comment"}
_LOG = _FORMAT | {
    *("user", "item", "time", "rating", "min_rating", "strict", "workflow", "extend", "features", "order"),
}
_PREPARE = {
    *("test_negatives", "train_negatives", "negatives", "popularity_exponent", "time_aware"),
    *("partitions", "memory_limit", "workers", "scheduler"),
}
_TRANSCODE = {"feature_spec_out", "emit"}


def is_spec_folder(args: argparse.Namespace) -> bool:
    """Whether to transcode: the input is a folder with a feature spec, or a spec was named."""
    if args.input is None or len(args.input) != 1:
        return False
    return args.feature_spec_in is not None or (Path(args.input[0]) / SPEC_NAME).is_file()


def _check_scope(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises UserError for flags that the requested action ignores."""
    if args.check is not None:
        what, useless = "--check", _LOG | _PREPARE | _TRANSCODE | {"output", "overwrite", "seed", "device"}
    elif args.raw is not None:
        what, useless = "--raw", _LOG | _PREPARE | _TRANSCODE | {"feature_spec_in", "device"}
    elif is_spec_folder(args):
        what, useless = "transcoding a folder with a feature spec", _LOG | _PREPARE | {"seed"}
    elif args.input is None:
        what, useless = _flag("sample" if args.sample else "synthetic"), _FORMAT | _TRANSCODE | {"feature_spec_in"}
    else:
        what, useless = "preparing a log", _TRANSCODE | {"feature_spec_in"}
    given = [name for name in sorted(useless) if getattr(args, name) != parser.get_default(name)]
    if given:
        flags = ", ".join(_flag(name) for name in given)
        hint = ""
        if what == "preparing a log":
            hint = "; prepare it first, then transcode the prepared folder (--input PREPARED --output DIR)"
        raise UserError(f"{flags}: not for {what}; leave it out{hint}")


def _flag(name: str) -> str:
    reference = ("feature_spec_in", "feature_spec_out")  # spelled as in NVIDIA's scripts
    return f"--{name if name in reference else name.replace('_', '-')}"
