"""A training run, from flags to run folder, in one of its processes."""

from __future__ import annotations

import argparse
import secrets
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from model.data.dataset import Rows, open_train
from model.data.popularity import item_popularity
from model.data.side_features import resolve_side_features
from model.data.test_set import TestSet, open_test_set
from model.data.train_loader import SamplingConfig, TrainLoader, check_labels
from model.data.user_items import UserItems
from model.data.user_loader import UserLoader, UserLoaderConfig
from model.data.validation import leave_one_out
from model.distributed.process_group import ProcessGroup
from model.evaluation.evaluator import EvalMetrics, Evaluator
from model.network.checkpoint import WEIGHTS_NAME, load_weights
from model.network.neumf import NeuMF, NeuMFConfig
from model.network.pretrained import start_from
from model.run.arguments import train_config
from model.run.ensemble_session import train_members
from model.run.folder import RunWriter, check_run
from model.training.all_items_step import AllItemsStep, has_item_bias, start_from_popularity
from model.training.config import TrainConfig
from model.training.resume_state import load_last
from model.training.step import Step
from model.training.trainer import Training
from preprocessing.spec.columns import FeatureColumns
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError
from workflows.common.progress import console, stage
from workflows.device import rng_state, torch_generator
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates
from workflows.sampling.config import Sampling, build_candidates

_DROPOUT_STREAM = 5
_VALIDATION_NEGATIVES = 100  # if there are no test series to match


def run(args: argparse.Namespace, world: ProcessGroup) -> None:
    """Train, or test a checkpoint, as the flags say; only rank 0 writes and prints.

    Raises:
        UserError: the flags, the data or a checkpoint are invalid.
    """
    console.quiet = not world.is_first
    config = train_config(args, world.broadcast_int(secrets.randbits(32) if args.seed is None else args.seed))
    _check_flags(args, config, world)
    if world.is_first:
        check_run(args)
    spec = read_feature_spec(args.data, args.feature_spec_file)
    columns = FeatureColumns.from_spec(spec, args.user_feature, args.item_feature)
    test = open_test_set(args.data, spec, world.device, columns, positives_alone=config.eval == "full")
    _check_topk(args, config, test)
    if test is not None and test.note:
        console.print(test.note)
    train = open_train(args.data, spec, world.device, columns)
    columns, item_tables = resolve_side_features(train, test.rows if test is not None else None, world.device)
    train = replace(train.only(columns.streamed), columns=columns)
    shape = _shape(args, columns)
    seen = UserItems.from_rows(train, world.device) if config.eval == "full" else None
    in_memory = config.loader == "memory"

    def measured(validation_items: TestSet) -> Evaluator:
        return Evaluator.from_test_set(
            validation_items, columns, config.topk, config.valid_batch_size, world, seen, in_memory
        )

    evaluation = measured(test) if test is not None else None
    popularity = evaluation.popularity(train) if evaluation is not None else None
    if args.mode == "test":
        if evaluation is None or popularity is None:
            raise UserError(f"--mode test: {args.data} has no test series to rank")
        _test(args, config, columns, _network(args, shape, item_tables, config.seed, world), evaluation, popularity)
        return

    validation, negatives = None, _VALIDATION_NEGATIVES
    if config.validation != "none":
        length = test.length if test is not None else None
        negatives = length - 1 if length is not None and length > 1 else negatives
        validation = leave_one_out(train, spec.metadata.time_ordered, negatives, config.seed, world.device)
    validation_items = validation.validation_items if validation is not None else None
    if config.recency and not spec.metadata.time_ordered:
        raise UserError(
            f"--recency {config.recency:g}: the train rows of {args.data} are not ordered by time "
            "(metadata.time_ordered in the feature spec); omit the flag"
        )
    if config.members:
        assert validation_items is not None
        train_members(
            args, config, train, validation_items, negatives, spec.metadata.time_ordered, evaluation, popularity, world
        )
        return
    model = _network(args, shape, item_tables, config.seed, world)
    if config.all_items_loss:
        step, batches = _over_all_items(args, config, model, train, validation_items, world)
    else:
        kind = "static" if spec.metadata.train_negatives else config.negatives
        step, batches = _over_samples(config, kind, model, train, validation_items, world)
    chosen_by = measured(validation.series) if validation is not None else evaluation
    _train(args, config, columns, Training(model, step), batches, chosen_by, evaluation, popularity)


def _over_samples(
    config: TrainConfig, kind: str, model: NeuMF, train: Rows, validation_items: Tensor | None, world: ProcessGroup
) -> tuple[Step | AllItemsStep, TrainLoader | UserLoader]:
    """Step and batches for positives and sampled negatives.

    Args:
        kind: kind of negatives, see `SamplingConfig`.
    """
    sampling = SamplingConfig(
        batch_size=config.batch_size,
        per_positive=config.negative_samples,
        kind=kind,
        in_memory=config.loader == "memory",
        seed=config.seed,
    )
    check_labels(train, sampling, world.device)
    batches = TrainLoader(train, sampling, world, _candidates(train, sampling, world), validation_items)
    return Step(model, config, world), batches


def _over_all_items(
    args: argparse.Namespace,
    config: TrainConfig,
    model: NeuMF,
    train: Rows,
    validation_items: Tensor | None,
    world: ProcessGroup,
) -> tuple[Step | AllItemsStep, TrainLoader | UserLoader]:
    """Step and batches for users and all items.

    Raises:
        UserError: there are no positives, or the checkpoint to start from has no item bias.
    """
    counts = item_popularity(train, world, validation_items)
    if not counts.any():
        raise UserError(f"all train rows of {args.data} have label 0, so there is nothing to learn")
    if args.load_checkpoint_path is None:
        start_from_popularity(model, counts, config.loss)
    elif not has_item_bias(model):
        raise UserError(
            f"{args.load_checkpoint_path}: its last factor is not an item bias; --loss {config.loss} needs a "
            "checkpoint trained with --loss softmax or bce-all"
        )
    users = UserLoaderConfig(
        batch_size=config.batch_size, recency=config.recency, in_memory=config.loader == "memory", seed=config.seed
    )
    return AllItemsStep(model, config, world, counts), UserLoader(train, users, world, validation_items)


def _check_flags(args: argparse.Namespace, config: TrainConfig, world: ProcessGroup) -> None:
    """Raise UserError for invalid combinations of flags."""
    if config.batch_size < world.size:
        raise UserError(
            f"--batch_size should be at least {world.size}, the number of processes, got {config.batch_size}"
        )
    least = 2 * max(1, len(config.members))
    if (config.all_items_loss or config.members) and (args.arch != "gmf" or args.factors < least):
        raise UserError(
            f"{'--members' if config.members else '--loss ' + config.loss} needs --arch gmf with --factors {least} or "
            f"more, the last of which is the item bias; got --arch {args.arch} --factors {args.factors}"
        )
    if args.pretrained and args.arch != "neumf":
        raise UserError(f"--pretrained needs a network with both branches (--arch neumf), got --arch {args.arch}")
    if args.mode == "train" and args.load_checkpoint_path is not None and (config.members or args.pretrained):
        which = "--members trains from scratch" if config.members else "--pretrained already sets the initial weights"
        raise UserError(f"{which}; omit --load_checkpoint_path")


def _check_topk(args: argparse.Namespace, config: TrainConfig, test: TestSet | None) -> None:
    if config.eval == "sampled" and test is not None and test.length is not None and config.topk > test.length:
        raise UserError(
            f"--topk {config.topk} exceeds the length of the test series in {args.data} ({test.length}), so every "
            "model would hit; lower it, or prepare the data with more --test-negatives"
        )


def _shape(args: argparse.Namespace, columns: FeatureColumns) -> NeuMFConfig:
    """The network's shape from the flags and the data; raises UserError if it is invalid."""
    return NeuMFConfig(
        n_users=columns.n_users,
        n_items=columns.n_items,
        factors=args.factors,
        layers=tuple(args.layers),
        dropout=args.dropout,
        row_side=columns.row_side,
        item_side=columns.item_side,
        arch=args.arch,
    )


def _network(
    args: argparse.Namespace, shape: NeuMFConfig, tables: tuple[Tensor, ...], seed: int, world: ProcessGroup
) -> NeuMF:
    """The network before training, identical on every rank."""
    # Dropout draws from torch's global generator, seeded differently on each rank.
    torch.manual_seed(counter_rng.stream_seed(seed, _DROPOUT_STREAM, world.rank) if world.rank else seed)
    model = NeuMF(shape, torch_generator(seed, torch.device("cpu")))
    if args.load_checkpoint_path is not None:
        load_weights(args.load_checkpoint_path, model)
    if args.pretrained and args.mode == "train":
        start_from(model, args.pretrained, args.alpha)
    model.set_item_tables(tables)  # item features come from the data, not from a checkpoint
    return model.to(world.device)


def _candidates(train: Rows, sampling: SamplingConfig, world: ProcessGroup) -> Candidates | None:
    """The distribution of sampled negatives; None if uniform over all items."""
    if sampling.kind != "popularity" or not sampling.draws:
        return None
    counts = item_popularity(train, world)
    return build_candidates(train.columns.n_items, Sampling(kind="popularity"), counts.cpu().numpy(), None, counts)


def _test(
    args: argparse.Namespace,
    config: TrainConfig,
    columns: FeatureColumns,
    model: NeuMF,
    evaluation: Evaluator,
    popularity: EvalMetrics,
) -> None:
    world = evaluation.world
    with RunWriter(args, config, columns, world.device) if world.is_first else nullcontext() as writer:
        scores = evaluation(model)
        if writer is not None:
            writer.finish_test(scores, popularity)


def _train(
    args: argparse.Namespace,
    config: TrainConfig,
    columns: FeatureColumns,
    training: Training,
    batches: TrainLoader | UserLoader,
    chosen_by: Evaluator | None,
    evaluation: Evaluator | None,
    popularity: EvalMetrics | None,
) -> None:
    """Train, and write the run.

    Args:
        chosen_by: evaluation that selects the best epoch.
        evaluation: evaluation on the test rows.
    """
    world, model = batches.world, training.model
    saved = load_last(args.resume, training, world) if args.resume is not None else None
    log_bytes = saved["log_bytes"] if saved is not None else 0
    with RunWriter(args, config, columns, world.device, log_bytes) if world.is_first else nullcontext() as writer:

        def on_epoch(training: Training) -> None:
            rng_states = world.gather(rng_state(world.device))
            if writer is not None:
                writer.epoch(training, rng_states)

        per_epoch = batches.samples_per_epoch()
        done, show_progress = per_epoch * len(training.history.epochs), "progress" not in args.without
        with stage("train", config.epochs * per_epoch, "samples", done, show_progress) as progress:
            history = training.fit(batches, chosen_by, config, on_epoch, progress)
        test = history.best_epoch.scores
        if chosen_by is not evaluation:  # evaluate the saved model on test once
            if writer is not None:
                load_weights(writer.folder / WEIGHTS_NAME, model)
            for tensor in model.state_dict().values():
                world.broadcast(tensor)
            test = evaluation(model) if evaluation is not None else None
        if writer is not None:
            writer.finish_training(history, test, popularity)
