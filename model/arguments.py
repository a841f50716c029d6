"""The command line of `train.py`: the reference's flags under their names and defaults, and ours beside them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from model.batches import NEGATIVE_KINDS
from model.config import TrainConfig
from model.neumf import NeuMFConfig
from preprocessing.config import SPEC_NAME
from workflows import device
from workflows.help import HelpFormatter


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags as given, with `output` filled in."""
    parser = argparse.ArgumentParser(
        prog="python train.py",
        description="Train NeuMF on a prepared folder (see python -m preprocessing).",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    _add_files(parser.add_argument_group("data and results"))
    _add_model(parser.add_argument_group("network"))
    _add_training(parser.add_argument_group("training"))
    _add_evaluation(parser.add_argument_group("evaluation"))
    _add_run(parser.add_argument_group("how it runs"))
    args = parser.parse_args(argv)
    if args.output is None:
        args.output = Path("runs") / (args.data.resolve().name or "run")
    return args


def _optional_path(text: str) -> Path | None:
    """A path; the reference's scripts pass an empty one for none."""
    return Path(text) if text else None


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", type=Path, default=Path("/data/cache/ml-20m"), metavar="DIR", help="prepared folder")
    group.add_argument("--feature_spec_file", default=SPEC_NAME, metavar="NAME", help="spec within it")
    for side in ("user", "item"):
        group.add_argument(
            f"--{side}_feature", metavar="NAME",
            help=f"the {side}'s id, where the spec has no {side}_ch (default: the one with most values)",
        )  # fmt: skip
    group.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: runs/<name of --data>)")
    group.add_argument("--overwrite", action="store_true", help="replace a run folder that exists")
    group.add_argument(
        "--checkpoint_dir", type=_optional_path, metavar="DIR", help="also write model.pth there, as the reference does"
    )
    group.add_argument(
        "--load_checkpoint_path",
        type=_optional_path,
        metavar="FILE",
        help="start from a model.pth or model.safetensors",
    )
    group.add_argument(
        "--log_path",
        type=_optional_path,
        metavar="FILE",
        help="log in DLLogger's format (default: log.json in --output)",
    )
    group.add_argument(
        "--mode", choices=["train", "test"], default="train", help="test: evaluate the loaded checkpoint once"
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    shape = NeuMFConfig(n_users=1, n_items=1)
    group.add_argument("-f", "--factors", type=int, default=shape.factors, help="width of the GMF embeddings")
    group.add_argument(
        "--layers", type=int, nargs="+", default=list(shape.layers), metavar="WIDTH",
        help="widths of the MLP; the first holds both embeddings",
    )  # fmt: skip
    group.add_argument("--dropout", type=float, default=shape.dropout, help="share of hidden units left out")


def _add_training(group: argparse._ArgumentGroup) -> None:
    train = TrainConfig()
    group.add_argument("-e", "--epochs", type=int, default=train.epochs, help="passes over the interactions")
    group.add_argument(
        "-b", "--batch_size", type=int, default=train.batch_size, help="samples of a step, negatives included"
    )
    group.add_argument(
        "-n", "--negative_samples", type=int, default=train.negative_samples, help="negatives per positive"
    )
    group.add_argument(
        "--negatives", choices=NEGATIVE_KINDS, default=train.negatives,
        help="exact: never a train positive of the user; uniform: any item, as in the reference; static: as on disk",
    )  # fmt: skip
    group.add_argument("-l", "--learning_rate", type=float, default=train.learning_rate, help="learning rate of Adam")
    group.add_argument("-b1", "--beta1", type=float, default=train.beta1, help="first decay of Adam")
    group.add_argument("-b2", "--beta2", type=float, default=train.beta2, help="second decay of Adam")
    group.add_argument("--eps", type=float, default=train.eps, help="epsilon of Adam")
    group.add_argument(
        "--grads_accumulated", type=int, default=train.grads_accumulated, help="pieces a batch is computed in"
    )
    group.add_argument("-s", "--seed", type=int, help="makes the run repeatable (default: a new one, which is logged)")
    group.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU")


def _add_evaluation(group: argparse._ArgumentGroup) -> None:
    train = TrainConfig()
    group.add_argument("-k", "--topk", type=int, default=train.topk, help="k of HR@k and NDCG@k")
    group.add_argument("-t", "--threshold", type=float, default=train.threshold, help="stop at this HR@k")
    group.add_argument(
        "--valid_batch_size", type=int, default=train.valid_batch_size, help="test samples scored at a time"
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=device.CHOICES, default="auto", help="where to train")
    group.add_argument("--gpus", type=int, metavar="N", help="GPUs to train on")
    group.add_argument(
        "--loader", choices=["merlin", "memory"], default="merlin",
        help="merlin: stream the folder; memory: hold it on the device",
    )  # fmt: skip


def train_config(args: argparse.Namespace, seed: int) -> TrainConfig:
    """Raises UserError for impossible values, all at once."""
    names = [name for name in TrainConfig.__dataclass_fields__ if name != "seed"]
    return TrainConfig(seed=seed, **{name: getattr(args, name) for name in names})
