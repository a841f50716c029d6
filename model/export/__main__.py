"""`python -m model.export`: export a trained run for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from model.data.run_data import RunData
from model.export.formats import FILES, is_embeddings, write_embeddings
from model.network.checkpoint import load_run
from workflows.common.cli import HelpFormatter
from workflows.common.errors import UserError, run_command
from workflows.common.files import check_output, staged_folder
from workflows.common.progress import console, remarks
from workflows.common.staging import check_file

_EMBEDDINGS = "embeddings"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m model.export",
        description="Export the network of a trained run for other programs.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder written by train.py")
    parser.add_argument(
        "--format", choices=[*FILES, _EMBEDDINGS], required=True,
        help="nvidia: a model.pth for --load_checkpoint_path of NVIDIA's ncf.py; onnx: a graph for ONNX Runtime and "
        "others; torch-export: a program that torch.export.load runs without this project; safetensors: parameters "
        "and shape in one file; embeddings: a folder of Parquet tables with a vector per user and item",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="PATH", help="default: the format's usual name, in --run")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="for embeddings: prepared folder with the original ids (default: the run's own)",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.data is not None and args.format != _EMBEDDINGS:
        raise UserError(f"--data is for --format {_EMBEDDINGS}; {args.format} needs no original ids")
    if args.format == _EMBEDDINGS:
        target = args.output or args.run / _EMBEDDINGS
        check_output(target, args.overwrite, is_embeddings)
        run = load_run(args.run, torch.device("cpu"))
        data = RunData.load(run, args.data)
        if data.note:
            remarks.print(data.note)
        with staged_folder(target, args.overwrite, is_embeddings) as folder:
            write_embeddings(folder, run, data)
    else:
        name, write = FILES[args.format]
        target = args.output or args.run / name
        check_file(target, args.overwrite)
        run = load_run(args.run, torch.device("cpu"))
        write(target, run)
    console.print(f"wrote {target}")


if __name__ == "__main__":
    run_command(main)
