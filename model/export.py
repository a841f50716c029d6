"""`python -m model.export`: write a trained run in a form that other programs take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_run, write_reference
from workflows.errors import UserError, run_command
from workflows.help import HelpFormatter
from workflows.progress import console

FORMATS = ("nvidia",)
_NAMES = {"nvidia": "model.pth"}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m model.export",
        description="Write the network of a trained run for other programs.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder written by train.py")
    parser.add_argument(
        "--format", choices=FORMATS, required=True,
        help="nvidia: a model.pth, which NVIDIA's ncf.py takes as --load_checkpoint_path",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: model.pth in --run")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    target: Path = args.output or args.run / _NAMES[args.format]
    model = load_run(args.run, torch.device("cpu")).model
    side = [feature.name for feature in (*model.config.row_side, *model.config.item_side)]
    if side:
        raise UserError(
            f"{args.run} was trained with the side features {', '.join(side)}, which the reference's network does not "
            "have; train without them to export it"
        )
    if target.is_dir():
        raise UserError(f"--output {target} is a folder; name a file in it")
    if target.exists() and not args.overwrite:
        raise UserError(f"{target} exists already; name another --output, or add --overwrite to replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_reference(target, model)
    console.print(f"wrote {target}")


if __name__ == "__main__":
    run_command(main)
