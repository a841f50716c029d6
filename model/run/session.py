"""A training run, from its settings to the run folder, in one of its processes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor

from model.data.dataset import Rows, open_train
from model.data.popularity import count_positives, item_popularity
from model.data.record import check_encoding, data_record
from model.data.residency import PAIR_BYTES, TEST_BYTES, TRAIN_BYTES, stays_in_memory
from model.data.side_features import resolve_side_features
from model.data.test_set import TestSet, open_test_set
from model.data.train_loader import SamplingConfig, TrainLoader, check_labels
from model.data.user_items import UserItems
from model.data.user_loader import UserLoader, UserLoaderConfig
from model.data.validation_split import leave_one_out
from model.distributed.process_group import ProcessGroup
from model.evaluation.evaluator import Evaluator, EvaluatorConfig, PopularityScorer
from model.evaluation.metrics import EvalMetrics, all_hit
from model.network.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_weights
from model.network.neumf import NeuMF
from model.run.config import RunConfig
from model.run.ensemble_session import train_ensemble
from model.run.memory import check_batches, check_network
from model.run.network import initial_network
from model.run.run_writer import RunWriter, check_run
from model.scoring.scorer import Scorer
from model.training.all_items_step import AllItemsStep
from model.training.config import TrainConfig
from model.training.protocols import EpochLoader, TrainStep
from model.training.resume_state import load_last
from model.training.step import Step
from model.training.trainer import DivergedError, Training
from preprocessing.fingerprint import read_fingerprint
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError
from workflows.common.files import read_json
from workflows.common.progress import console, stage
from workflows.device.torch_device import rng_state
from workflows.sampling.candidates import Candidates
from workflows.sampling.config import Sampling, build_candidates

_VALIDATION_NEGATIVES = 100  # if there are no test series to match


def run(config: RunConfig, world: ProcessGroup) -> None:
    """Train, or test a checkpoint; only rank 0 writes and prints.

    Raises:
        UserError: the data or a checkpoint are invalid, or do not fit the settings.
    """
    console.quiet = not world.is_first
    config = replace(config, train=replace(config.train, seed=world.broadcast_int(config.train.seed)))
    train_config = config.train
    if train_config.batch_size < world.size:
        raise UserError(
            f"--batch_size should be at least {world.size}, the number of processes, got {train_config.batch_size}"
        )
    if world.is_first:
        check_run(config)
    fingerprint = read_fingerprint(config.data)
    spec = read_feature_spec(config.data, config.feature_spec_file)
    if config.mode == "test":
        _check_tested_data(config)
    columns = FeatureColumns.from_spec(spec, config.user_feature, config.item_feature)
    check_network(config, columns, world)
    test = open_test_set(config.data, spec, world.device, columns, positives_alone=train_config.eval == "full")
    _check_topk(config, test)
    if test is not None and test.note:
        console.print(test.note)
    train = open_train(config.data, spec, world.device, columns)
    columns, item_tables = resolve_side_features(train, test.rows if test is not None else None, world.device)
    train = replace(train.only(columns.streamed), columns=columns)
    shape = config.network(columns)
    check_batches(train_config, shape, train, world)
    exclude = UserItems.from_rows(train, world.device) if train_config.eval == "full" else None
    evaluator, popularity = None, None
    positives = count_positives(train, world)
    if test is not None:
        test = replace(test, rows=replace(test.rows, columns=columns))
        evaluator = Evaluator(test, _ranking(train_config, test, world), world, exclude)
        popularity = evaluator.evaluate(lambda: PopularityScorer(positives.of_items))
    if config.mode == "test":
        if evaluator is None or popularity is None:
            raise UserError(f"--mode test: {config.data} has no test series to rank")
        _test(config, initial_network(config, shape, columns, item_tables, world), evaluator, popularity)
        return

    data = {
        "features": {"user": columns.user, "item": columns.item},  # the network has the side features
        **data_record(fingerprint, positives.has_any.cpu().numpy()),
    }
    validation, negatives = None, _VALIDATION_NEGATIVES
    if train_config.validation != "none":
        length = test.length if test is not None else None
        negatives = length - 1 if length is not None and length > 1 else negatives
        validation = leave_one_out(train, spec.metadata.time_ordered, negatives, train_config.seed, world.device)
    validation_items = validation.validation_items if validation is not None else None
    if train_config.recency and not spec.metadata.time_ordered:
        raise UserError(
            f"--recency {train_config.recency:g}: the train rows of {config.data} are not ordered by time "
            "(metadata.time_ordered in the feature spec); omit the flag"
        )
    if train_config.members:
        assert validation_items is not None
        train_ensemble(
            config, train, validation_items, negatives, spec.metadata.time_ordered, evaluator, popularity, data, world
        )
        return
    step: TrainStep
    loader: EpochLoader
    if train_config.all_items_loss:
        counts = item_popularity(train, world, validation_items)
        if not counts.any():
            raise UserError(f"all train rows of {config.data} have label 0, so there is nothing to learn")
        model = initial_network(config, shape, columns, item_tables, world, counts)
        step, loader = _over_all_items(train_config, model, train, validation_items, counts, world)
    else:
        model = initial_network(config, shape, columns, item_tables, world)
        kind = "static" if spec.metadata.train_negatives else train_config.negatives
        step, loader = _over_samples(train_config, kind, model, train, validation_items, world)
    selector = evaluator
    if validation is not None:
        selector = Evaluator(validation.series, _ranking(train_config, validation.series, world), world, exclude)
        selector.check_topk()
    _train(config, data, Training(model, step), loader, selector, evaluator, popularity)


def _ranking(config: TrainConfig, test: TestSet, world: ProcessGroup) -> EvaluatorConfig:
    in_memory = stays_in_memory(config.loader, TEST_BYTES * test.rows.n_rows, world)
    return EvaluatorConfig(config.topk, config.valid_batch_size, in_memory)


def _over_samples(
    config: TrainConfig, kind: str, model: NeuMF, train: Rows, validation_items: Tensor | None, world: ProcessGroup
) -> tuple[Step, TrainLoader]:
    """Step and batches for positives and sampled negatives.

    Args:
        kind: kind of negatives, see `SamplingConfig`.
    """
    sampling = SamplingConfig(
        batch_size=config.batch_size,
        per_positive=config.negative_samples,
        kind=kind,
        in_memory=stays_in_memory(config.loader, TRAIN_BYTES * train.n_rows, world),
        seed=config.seed,
    )
    check_labels(train, sampling, world.device)
    loader = TrainLoader(train, sampling, world, _candidates(train, sampling, world), validation_items)
    return Step(model, config, world, in_memory=sampling.in_memory), loader


def _over_all_items(
    config: TrainConfig,
    model: NeuMF,
    train: Rows,
    validation_items: Tensor | None,
    counts: Tensor,
    world: ProcessGroup,
) -> tuple[AllItemsStep, UserLoader]:
    """Step and batches for users and all items; `counts` are the items' train positives, int64 [n_items]."""
    users = UserLoaderConfig(
        batch_size=config.batch_size,
        recency=config.recency,
        in_memory=stays_in_memory(config.loader, PAIR_BYTES * train.n_rows, world),
        seed=config.seed,
    )
    return AllItemsStep(model, config, world, counts), UserLoader(train, users, world, validation_items)


def _check_topk(config: RunConfig, test: TestSet | None) -> None:
    """Refuse a k that the length of the series rules out, before any row is ranked."""
    topk = config.train.topk
    if config.train.eval == "sampled" and test is not None and test.length is not None and topk >= test.length:
        raise UserError(all_hit(topk, test.length))


def _candidates(train: Rows, sampling: SamplingConfig, world: ProcessGroup) -> Candidates | None:
    """The distribution of sampled negatives; None if uniform over all items."""
    if sampling.kind != "popularity" or not sampling.draws:
        return None
    counts = item_popularity(train, world)
    return build_candidates(train.columns.n_items, Sampling(kind="popularity"), counts.cpu().numpy(), None, counts)


def _check_tested_data(config: RunConfig) -> None:
    """Check that the data have the encoding of the run that the checkpoint lies in, if it lies in one.

    Raises:
        UserError: they do not.
    """
    assert config.load_checkpoint_path is not None
    path = config.load_checkpoint_path
    run = path if path.is_dir() else path.parent
    note = check_encoding(read_json(run / CONFIG_NAME), run, config.data)
    if note:
        console.print(note)


def _test(config: RunConfig, model: NeuMF, evaluator: Evaluator, popularity: EvalMetrics) -> None:
    world = evaluator.world
    with RunWriter(config, {}, world.device) if world.is_first else nullcontext() as writer:
        scores = evaluator.evaluate(lambda: Scorer(model))
        if not scores.is_finite:
            raise UserError(f"{config.load_checkpoint_path}: its scores are NaN or infinite; load another checkpoint")
        if writer is not None:
            writer.finish_test(scores, popularity)


def _train(
    config: RunConfig,
    data: Mapping[str, Any],
    training: Training,
    loader: EpochLoader,
    selector: Evaluator | None,
    evaluator: Evaluator | None,
    popularity: EvalMetrics | None,
) -> None:
    """Train, and write the run.

    Args:
        data: what `config.json` says of the data besides its path.
        selector: selects the best epoch.
        evaluator: on the test rows.
    """
    world, model = loader.world, training.model
    saved = load_last(config.output, training, world) if config.resume else None
    log_bytes = saved["log_bytes"] if saved is not None else 0
    training.history = training.history.aimed_at(config.train.threshold)
    done = len(training.history.epochs)
    if config.train.epochs < done:
        raise UserError(
            f"--epochs {config.train.epochs}: {config.output} has {done} epochs already; give {done} or more"
        )
    with RunWriter(config, data, world.device, log_bytes) if world.is_first else nullcontext() as writer:

        def evaluate(model: NeuMF) -> EvalMetrics:
            assert selector is not None
            return selector.evaluate(lambda: Scorer(model))

        def on_epoch(training: Training) -> None:
            training.step.gather_state()
            rng_states = world.gather(rng_state(world.device))
            if writer is not None:
                writer.epoch(training, rng_states)

        per_epoch = loader.samples_per_epoch()
        done, show_progress = per_epoch * len(training.history.epochs), "progress" not in config.without
        name, total = f"train in {training.step.precision}", config.train.epochs * per_epoch
        diverged: DivergedError | None = None
        with stage(name, total, "samples", done, show_progress) as progress:
            try:
                training.fit(loader, evaluate if selector is not None else None, config.train, on_epoch, progress)
            except DivergedError as err:
                if not training.history.epochs:
                    raise
                diverged = err  # after the result of the epochs before it
        history = training.history
        test = history.best_epoch.scores
        if selector is not evaluator:  # evaluate the saved model on test once
            if writer is not None:
                load_weights(writer.folder / WEIGHTS_NAME, model)
            for tensor in model.state_dict().values():
                world.broadcast(tensor)
            test = evaluator.evaluate(lambda: Scorer(model)) if evaluator is not None else None
        if writer is not None:
            writer.finish_training(history, test, popularity)
    if diverged is not None:
        raise diverged
