"""`python -m preprocessing`: turn a raw interaction log into a prepared folder.

Merlin takes a second to import, so it is imported only when needed, and in the background while a log is read.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import shutil
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.arguments import is_spec_folder, parse_args
from preprocessing.config import BY_TIME, SPEC_NAME, PrepareConfig, is_prepared_folder
from preprocessing.prepare.memory import check_workers, gpu_partitions, partitions_of, threads_within
from preprocessing.prepare.resident import partition_log
from preprocessing.prepare.row_filter import Selection
from preprocessing.sources.column_names import NO_TIMES
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from preprocessing.sources.movielens import ml_100k_sample
from preprocessing.sources.remote import is_url, local_path
from workflows.cluster import Cluster, running_cluster, thread_cluster, worker_cluster
from workflows.common.errors import UserError, run_command
from workflows.common.files import check_output, check_outside, staged_folder
from workflows.common.progress import console, stage
from workflows.common.staging import staged_file
from workflows.device.cores import usable_cores
from workflows.device.frames import FrameDevice, frame_device
from workflows.sampling.config import Sampling

if TYPE_CHECKING:
    from preprocessing.prepare.encoding import Encoding
    from workflows.operators.encode import IdTable


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.check is not None:
        _check(args)
    elif args.raw is not None:
        _write_raw(args)
    elif is_spec_folder(args):
        _transcode(args)
    else:
        _prepare(args)


def _check(args: argparse.Namespace) -> None:
    from preprocessing.check.check import print_check

    if not print_check(args.check, args.feature_spec_in or SPEC_NAME):
        raise UserError(f"{args.check} is not valid; fix the errors listed above")


def _prepare(args: argparse.Namespace) -> None:
    config = PrepareConfig(
        min_rating=args.min_rating,
        strict=args.strict,
        test_negatives=args.test_negatives,
        train_negatives=args.train_negatives,
        order=args.order or BY_TIME,
        sampling=Sampling(
            kind=args.negatives, exponent=args.popularity_exponent, time_aware=args.time_aware, seed=args.seed
        ),
        partitions=args.partitions,
        memory_limit_bytes=args.memory_limit,
    )
    columns = _columns(args)
    inputs = [Path(local_path(path)) for path in args.input or [] if not is_url(path)]
    inputs += [args.workflow] if args.workflow is not None else []
    check_outside(args.output, inputs)
    check_output(args.output, args.overwrite, is_prepared_folder, inputs)
    frames = frame_device(args.device)
    with staged_folder(args.output, args.overwrite, is_prepared_folder) as folder, _cluster(args, frames) as cluster:
        scratch = folder.absolute() / ".spill"
        (scratch / "unpacked").mkdir(parents=True)
        known = _known(args)
        log = _open(args, columns, _read_options(args, known), scratch / "unpacked")
        check_output(args.output, args.overwrite, is_prepared_folder, log.files)
        console.print(f"{log.name}: {log.size_bytes:,} bytes")
        partitions = args.partitions or _partitions(args, log, frames, cluster)
        compiled = ["workflows.sampling.compiled"] if frames.compiles(log.rows_estimate // partitions) else []
        drawing = ("matplotlib.figure", "matplotlib.backends.backend_svg", "jinja2")  # report.html
        _import_ahead("preprocessing.prepare.pipeline", *compiled, *drawing)
        selection = Selection(
            columns=log.columns,
            min_rating=config.min_rating,
            strict=config.strict,
            known=_known_ids(known, scratch),
            order=config.order,
            seed=config.sampling.seed,
        )
        stored = partition_log(log, selection, partitions, cluster, scratch, frames)
        from preprocessing.prepare.pipeline import prepare
        from preprocessing.prepare.user_features import ml_100k_users

        user_table = ml_100k_users() if args.features else None
        stats = prepare(stored, config, frames, cluster, folder.absolute(), known, user_table)
        shutil.rmtree(scratch)
    console.print(
        f"{stats['users']:,} users × {stats['items']:,} items, {stats['interactions']:,} interactions: "
        f"{stats['train_rows']:,} train rows and {stats['test_series']:,} test series in {args.output}"
    )
    dropped = {name.removeprefix("dropped_"): n for name, n in stats.items() if name.startswith("dropped_") and n}
    if dropped:
        reasons = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in dropped.items())
        console.print(f"left out of {stats['rows_read']:,} rows: {reasons}")
    if stats["new_users"] or stats["new_items"]:
        console.print(f"added to the encoding: {stats['new_users']:,} users, {stats['new_items']:,} items")


def _import_ahead(*modules: str) -> None:
    """Import modules in the background; a later import statement waits for a module that is still loading."""

    def run() -> None:
        # Modules are never freed, and repeated garbage collection would take a quarter of the import time.
        gc.disable()
        try:
            for module in modules:
                importlib.import_module(module)
        finally:
            gc.freeze()
            gc.enable()

    threading.Thread(target=run, daemon=True).start()


def _known(args: argparse.Namespace) -> Encoding | None:
    """The encoding of --workflow."""
    if args.workflow is None:
        return None
    from preprocessing.prepare.encoding import Encoding

    return Encoding.of_folder(args.workflow, args.extend)


def _known_ids(known: Encoding | None, scratch: Path) -> dict[str, IdTable] | None:
    """The ids of --workflow, if rows with any others are dropped."""
    if known is None or known.extend:
        return None
    from preprocessing.prepare.encoding import known_tables

    return known_tables(known, scratch)


def _transcode(args: argparse.Namespace) -> None:
    frames = frame_device(args.device)  # before Merlin is imported, which otherwise looks for a GPU itself
    from preprocessing.transcode.transcode import is_transcoded_folder, transcode
    from workflows.merlin import merlin_client

    source = Path(args.input[0])
    check_outside(args.output, [source])
    check_output(args.output, args.overwrite, is_transcoded_folder, [source])
    with (
        staged_folder(args.output, args.overwrite, is_transcoded_folder) as folder,
        thread_cluster(threads_within(None, usable_cores(), not frames.on_cpu), frames) as cluster,
        merlin_client(cluster),
    ):
        stats = transcode(
            source,
            args.feature_spec_in or SPEC_NAME,
            folder,
            args.feature_spec_out or SPEC_NAME,
            args.emit or "parquet",
            frames,
            cluster,
        )
    rows = ", ".join(f"{number:,} {mapping} rows" for mapping, number in stats["rows"].items())
    console.print(f"{rows} as {stats['emit']} in {args.output}")


def _write_raw(args: argparse.Namespace) -> None:
    path: Path = args.raw
    if path.exists() and not args.overwrite:
        raise UserError(f"{path} exists already; choose another --raw, or add --overwrite to replace it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.parent} is not a folder; create it first")
    with staged_file(path, args.overwrite) as partial:
        _write_synthetic(args, partial)
    console.print(f"written to {path}")


def _write_synthetic(args: argparse.Namespace, path: Path) -> None:
    from preprocessing.synthetic.log import parse_shape, write_log

    shape = parse_shape(args.synthetic)
    with stage("generate", shape.rows, "rows") as running:
        write_log(shape, path, args.seed, progress=running.advance)
    console.print(f"{shape.users:,} users × {shape.items:,} items, {shape.rows:,} interactions")


def _cluster(args: argparse.Namespace, frames: FrameDevice) -> AbstractContextManager[Cluster]:
    if args.scheduler is not None:
        return running_cluster(args.scheduler, frames)
    if args.workers is not None:
        check_workers(args.memory_limit, args.workers)
        return worker_cluster(args.workers, frames)
    return thread_cluster(threads_within(args.memory_limit, usable_cores(), not frames.on_cpu), frames)


def _partitions(args: argparse.Namespace, log: Log, frames: FrameDevice, cluster: Cluster) -> int:
    if frames.on_cpu:
        return partitions_of(log.rows_estimate, args.memory_limit, cluster.workers)
    return gpu_partitions(log.rows_estimate, 0, frames.free_bytes(), cluster.gpu_tasks)


def _open(args: argparse.Namespace, columns: LogColumns | None, options: ReadOptions, scratch: Path) -> Log:
    with_rating = args.min_rating is not None
    if args.sample:
        log = ml_100k_sample(with_rating)
    elif args.synthetic is None:
        log = open_log(args.input, columns, with_rating, scratch, options)
    else:
        _write_synthetic(args, scratch / "ratings.csv")
        log = open_log(scratch / "ratings.csv", columns, with_rating, scratch)
        log = replace(log, name=f"synthetic log {args.synthetic}")
    return log if options.times else replace(log, columns=log.columns.without_time())


def _read_options(args: argparse.Namespace, known: Encoding | None) -> ReadOptions:
    """How to read the log; ids have the types of --workflow's.

    Raises:
        UserError: --text-ids names integer ids of --workflow.
    """
    text = frozenset(args.text_ids or ())
    known_text = frozenset() if known is None else known.text
    if known is not None and (wrong := text - known_text):
        raise UserError(
            f"--text-ids: the {' and '.join(sorted(wrong))} ids of --workflow {args.workflow} are integers; "
            "leave it out, or prepare without --workflow"
        )
    return ReadOptions(
        names=tuple(args.columns) if args.columns is not None else None,
        delimiter=args.delimiter,
        quoting=args.quoting,
        encoding=args.encoding,
        comment=args.comment,
        time_format=args.time_format,
        text_ids=text | known_text,
        whole_ids=frozenset() if known is None else frozenset(known.originals) - known_text,
        times=args.order is None,
    )


def _columns(args: argparse.Namespace) -> LogColumns | None:
    """The columns named by flags; None if there are none.

    Raises:
        UserError: only some columns are named, one is named twice, or columns are named without --input.
    """
    of_times = [flag for flag in ("time", "time_format") if getattr(args, flag) is not None]
    if args.order is not None and of_times:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in of_times)
        raise UserError(f"--order {args.order} takes the place of times; leave out {flags}, or --order")
    if args.min_rating is not None and args.rating is None and args.user is not None:
        raise UserError("--min-rating needs the rating column; name it with --rating")
    named = [name for name in (args.user, args.item, args.time, args.rating) if name]
    if not named:
        return None
    if args.input is None:
        raise UserError("--user, --item, --time and --rating are for --input; other logs have known columns")
    if not (args.user and args.item):
        raise UserError("name --user and --item, too, or no column of a log with well-known names (docs/pipeline.md)")
    if not (args.time or args.order):
        raise UserError(f"name --time, too; {NO_TIMES}")
    if len(set(named)) < len(named):
        raise UserError("--user, --item, --time and --rating should name different columns")
    columns = LogColumns(user=args.user, item=args.item, time=args.time, rating=args.rating)
    return columns if args.min_rating is not None else columns.without_rating()


if __name__ == "__main__":
    run_command(main)
