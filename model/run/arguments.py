"""The command line of `train.py`: the reference's flags with their names and defaults, plus our own."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml

from model.network.neumf import ARCHITECTURES, NeuMFConfig
from model.network.warm_start import NEW_ROWS
from model.run.config import FLAGS_NAME, NOT_SAVED, RunConfig, plain
from model.run.resume import check_resume
from model.training.config import CHOICES, MEMBERS, TrainConfig
from preprocessing.config import SPEC_NAME
from workflows.common.cli import HelpFormatter
from workflows.common.documents import MAX_PATH, load_yaml
from workflows.common.errors import UserError, bounded
from workflows.common.files import replace_file
from workflows.device import DEVICES

_LISTED = 20  # problems in a message
_HEADER = b"# python train.py --config FILE repeats this run; give it another --output.\n"
OUTPUTS = ("progress", "log", "tensorboard", "curves")
T = TypeVar("T", RunConfig, TrainConfig, NeuMFConfig)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags on top of those of `--config` or of the run to `--resume`; fills in `output`.

    Raises:
        UserError: a configuration is unreadable or contains an unknown flag, or a run cannot be resumed with these.
    """
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
    if args.resume is not None:
        if args.config is not None or args.output not in (None, args.resume) or args.overwrite:
            raise UserError("--resume RUN continues with that run's own flags, in its own folder: leave out --config, "
                            "--output and --overwrite")  # fmt: skip
        if not args.resume.is_dir():
            raise UserError(f"--resume {args.resume}: no such run; start one with --output {args.resume}")
    source = args.config if args.resume is None else args.resume / FLAGS_NAME
    if source is not None:
        parser.set_defaults(**_read_flags(source, parser))
        args = parser.parse_args(argv)
    if args.resume is not None:
        args.output = args.resume
        check_resume(args.resume, vars(parser.parse_args([])), vars(args))
    elif args.output is None:
        args.output = Path("runs") / (args.data.resolve().name or "run")
    return args


def _read_flags(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read flags by name from a YAML file.

    Raises:
        UserError: the file is unreadable or invalid; lists every problem.
    """
    given = load_yaml(path, "a configuration", "give flags and their values (batch_size: 65536)", paths=True)
    if not isinstance(given, dict):
        raise UserError(f"{path}: expected flags and their values (batch_size: 65536), got {type(given).__name__}")
    actions = {action.dest: action for action in parser._actions if action.dest not in NOT_SAVED}
    flags, wrong = {}, []
    for name, value in given.items():
        if name not in actions:
            wrong.append(f"{bounded(str(name))}: not a flag of train.py")
            continue
        try:
            flags[name] = _flag(actions[name], value)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as err:
            wrong.append(f"{name}: {bounded(str(err), 200)}")
    if wrong:
        more = f"; and {len(wrong) - _LISTED:,} more" if len(wrong) > _LISTED else ""
        raise UserError(f"{path}: {'; '.join(wrong[:_LISTED])}{more}")
    return flags


def is_flags(path: Path) -> bool:
    """Whether a file was written by `write_flags`."""
    if path.exists() and not path.is_file():  # a pipe would block
        return False
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER
    return False


def _flag(action: argparse.Action, value: Any) -> Any:
    """Convert a value as the command line would; raises ValueError, TypeError or ArgumentTypeError if it is invalid."""
    if value is None:
        if action.default is not None:
            raise ValueError("expected a value, got nothing")
        return None
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {bounded(repr(value))}")
        return value
    if action.nargs in ("+", "*"):
        if not isinstance(value, list):
            raise ValueError(f"expected a list, got {bounded(repr(value))}")
        return [_scalar(action, item) for item in value]
    return _scalar(action, value)


def _scalar(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, bool | list | dict):
        raise ValueError(f"expected one value, got {bounded(repr(value))}")
    if len(str(value)) > MAX_PATH:
        raise ValueError(f"expected at most {MAX_PATH:,} characters, got {bounded(repr(value))}")
    kind = action.type if callable(action.type) else str
    found = kind(str(value))
    if action.choices is not None and found not in action.choices:
        raise ValueError(f"expected one of {', '.join(map(str, action.choices))}, got {bounded(repr(value))}")
    return found


def write_flags(path: Path, given: Mapping[str, Any], seed: int) -> None:
    """Write a run's full configuration, which `--config` repeats from any folder."""
    flags = {}
    for name, value in given.items():
        if name not in NOT_SAVED:
            flags[name] = plain(value, Path.absolute)
    flags["seed"] = seed
    replace_file(path, _HEADER + yaml.safe_dump(flags, sort_keys=False).encode())


def _share(text: str) -> float:
    share = float(text)
    if not 0.0 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"should be 0 to 1, got {text}")
    return share


def _optional_path(text: str) -> Path | None:
    """A path; None for the empty string, which the reference's scripts pass for no path."""
    return Path(text) if text else None


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", type=Path, default=Path("/data/cache/ml-20m"), metavar="DIR", help="prepared folder")
    group.add_argument("--feature_spec_file", default=SPEC_NAME, metavar="NAME", help="feature spec in --data")
    for side in ("user", "item"):
        group.add_argument(
            f"--{side}_feature", metavar="NAME",
            help=f"feature with the {side} ids if the spec has no {side}_ch (default: the one with the most values)",
        )  # fmt: skip
    group.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: runs/<name of --data>)")
    group.add_argument("--overwrite", action="store_true", help="replace an existing run folder")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML with any of these flags (batch_size: 65536); others override"
    )
    group.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue an interrupted run with its own flags, to the same result"
    )
    group.add_argument(
        "--without", nargs="+", choices=OUTPUTS, default=[], metavar="OUTPUT",
        help=f"outputs to leave out: {', '.join(OUTPUTS)}",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint_dir", type=_optional_path, metavar="DIR", help="also write model.pth there, as the reference does"
    )
    group.add_argument(
        "--load_checkpoint_path",
        type=_optional_path,
        metavar="PATH",
        help="start from a run, whose users and items are carried over by original id (its folder, or the weights in "
        "it), or from a model.pth or model.safetensors alone, by position",
    )
    group.add_argument(
        "--new_rows", choices=NEW_ROWS, default="random",
        help="users and items that the run to start from does not know: random, as without it, or the mean of its rows",
    )  # fmt: skip
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
    group.add_argument(
        "--arch", choices=ARCHITECTURES, default=shape.arch,
        help="gmf: elementwise product of embeddings, without --layers; mlp: --layers only, no --factors; neumf: both",
    )  # fmt: skip
    group.add_argument(
        "--pretrained", type=Path, nargs="+", default=[], metavar="RUN",
        help="start from runs of --arch gmf and --arch mlp with the same --factors and --layers",
    )  # fmt: skip
    group.add_argument(
        "--alpha", type=_share, default=0.5, help="weight of the pre-trained GMF relative to the MLP, 0 to 1"
    )
    group.add_argument("-f", "--factors", type=int, default=shape.factors, help="width of the GMF embeddings")
    group.add_argument(
        "--layers", type=int, nargs="+", default=list(shape.layers), metavar="WIDTH",
        help="widths of the MLP layers; the first holds both embeddings",
    )  # fmt: skip
    group.add_argument("--dropout", type=float, default=shape.dropout, help="dropout rate of hidden units")


def _add_training(group: argparse._ArgumentGroup) -> None:
    train = TrainConfig()
    group.add_argument("-e", "--epochs", type=int, default=train.epochs, help="passes over the interactions")
    group.add_argument(
        "-b", "--batch_size", type=int, default=train.batch_size, help="samples per step, including negatives"
    )
    group.add_argument(
        "-n", "--negative_samples", type=int, default=train.negative_samples, help="negatives per positive"
    )
    group.add_argument(
        "--negatives", choices=CHOICES["negatives"], default=train.negatives,
        help="exact: never a train positive of the user; popularity: the same, weighted by popularity^0.75; uniform: "
        "any item, as in the reference; static: as stored on disk",
    )  # fmt: skip
    group.add_argument("-l", "--learning_rate", type=float, default=train.learning_rate, help="Adam's learning rate")
    group.add_argument(
        "--schedule", choices=CHOICES["schedule"], default=train.schedule,
        help="cosine: the learning rate falls to 0 over all --epochs",
    )  # fmt: skip
    group.add_argument(
        "--loss", choices=CHOICES["loss"], default=train.loss,
        help="bce: binary cross-entropy on positives and sampled negatives; softmax: of a user's positives over all "
        "items; bce-all: bce over all items. The last two require --arch gmf, whose last factor becomes the item bias; "
        "--batch_size then counts users times items",
    )  # fmt: skip
    group.add_argument(
        "--weight_decay", type=float, default=train.weight_decay,
        help="L2 penalty on embeddings, scaled by sqrt(interaction count); with --loss softmax or bce-all",
    )  # fmt: skip
    group.add_argument(
        "--recency", type=float, default=train.recency, metavar="POWER",
        help="weight a user's n-th latest interaction by n^-POWER; with --loss softmax or bce-all",
    )  # fmt: skip
    group.add_argument(
        "--members", nargs="+", choices=MEMBERS, default=[], metavar="MEMBER",
        help="train several GMF models (softmax, bce-all, item-item), weight them on the validation split, retrain "
        "them on all of train, and sum them into one GMF with --factors",
    )  # fmt: skip
    group.add_argument("-b1", "--beta1", type=float, default=train.beta1, help="Adam's beta1")
    group.add_argument("-b2", "--beta2", type=float, default=train.beta2, help="Adam's beta2")
    group.add_argument("--eps", type=float, default=train.eps, help="Adam's epsilon")
    group.add_argument("--grads_accumulated", type=int, default=train.grads_accumulated, help="micro-batches per batch")
    group.add_argument("-s", "--seed", type=int, help="random seed, 0 .. 2^63-1 (default: a new one, which is logged)")
    group.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU")
    group.add_argument(
        "--precision", choices=CHOICES["precision"], help="of matrix products (default: fp32, or as set by --amp)"
    )
    group.add_argument("--compile", action="store_true", help="compile the network (torch.compile)")
    group.add_argument("--cuda-graphs", action="store_true", help="launch a step as one CUDA graph (GPU only)")
    group.add_argument(
        "--step", choices=CHOICES["step"], default=train.step,
        help="how a GPU computes a step: fused: in a few Triton kernels; torch: by torch's operators; auto: fused "
        "where it applies and passes a check at the start",
    )  # fmt: skip
    group.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without improvement")


def _add_evaluation(group: argparse._ArgumentGroup) -> None:
    train = TrainConfig()
    group.add_argument("-k", "--topk", type=int, default=train.topk, help="k of HR@k and NDCG@k")
    group.add_argument("-t", "--threshold", type=float, default=train.threshold, help="stop once HR@k reaches this")
    group.add_argument(
        "--eval", choices=CHOICES["eval"], default=train.eval,
        help="sampled: rank each test series; full: rank each positive against all items the user has not seen",
    )  # fmt: skip
    group.add_argument(
        "--validation", choices=CHOICES["validation"], default=train.validation,
        help="leave-one-out: select the epoch on each user's last train interaction (a random one if train is not "
        "time-ordered) and evaluate it on test once; none: select on test, as the reference does",
    )  # fmt: skip
    group.add_argument(
        "--valid_batch_size", type=int, default=train.valid_batch_size, help="test samples scored at a time"
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=DEVICES, default="auto", help="where to train")
    group.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs to train on, one process each; with --device cpu: processes"
    )
    group.add_argument(
        "--loader", choices=CHOICES["loader"], default=TrainConfig().loader,
        help="merlin: stream the folder (a GPU with room holds it); memory: hold it on the device",
    )  # fmt: skip


def run_config(args: argparse.Namespace) -> RunConfig:
    """Build the settings of a run; a missing seed is drawn.

    Raises:
        UserError: lists all invalid values and combinations.
    """
    wrong: list[str] = []

    def built(config: type[T], **more: Any) -> T | None:
        names = [name for name in config.__dataclass_fields__ if name in args and name not in more]
        given = {name: getattr(args, name) for name in names}
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        try:
            return config(**{**given, **lists, **more})
        except UserError as err:
            wrong.append(str(err))
            return None

    train = built(TrainConfig, seed=secrets.randbits(32) if args.seed is None else args.seed)
    shape = built(NeuMFConfig, n_users=1, n_items=1)
    if train is not None and shape is not None:
        config = built(
            RunConfig, train=train, shape=shape, resume=args.resume is not None, without=frozenset(args.without),
            flags=vars(args),
        )  # fmt: skip
        assert config is not None
        wrong = config.problems()
        if not wrong:
            return config
    raise UserError("; ".join(wrong))
