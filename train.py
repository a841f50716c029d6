"""`python train.py`: train NeuMF on a prepared folder, with the flags of NVIDIA's NCF reference."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch

from model.arguments import parse_args, train_config
from model.batches import EpochBatches, SamplingConfig, check_labels
from model.checkpoint import load_weights
from model.columns import Columns
from model.data import open_train
from model.evaluation import Evaluation
from model.neumf import NeuMF, NeuMFConfig
from model.run import RunWriter, check_run
from model.series import open_test
from model.side import settle
from model.trainer import fit
from preprocessing.feature_spec import read_feature_spec
from workflows.device import torch_device, torch_generator
from workflows.errors import UserError, run_command
from workflows.progress import console


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    config = train_config(args, seed)
    device = torch_device(args.device, args.gpus)
    if args.gpus is not None and args.gpus != 1:
        raise UserError(
            f"--gpus {args.gpus}: this version trains on one device; use --gpus 1, or --device cpu without --gpus"
        )

    check_run(args)
    spec = read_feature_spec(args.data, args.feature_spec_file)
    columns = Columns.of(spec, args.user_feature, args.item_feature)
    test = open_test(args.data, spec, device, columns)
    if test is not None and test.length is not None and config.topk > test.length:
        raise UserError(
            f"--topk {config.topk} is above the length of the test series in {args.data} ({test.length}), so every "
            "model would hit; lower it, or prepare the data with more --test-negatives"
        )
    if test is not None and test.note:
        console.print(test.note)
    train = open_train(args.data, spec, device, columns)
    columns, item_tables = settle(train, test.rows if test is not None else None, device)
    train = train.only(columns.streamed)
    shape = NeuMFConfig(
        n_users=columns.n_users,
        n_items=columns.n_items,
        factors=args.factors,
        layers=tuple(args.layers),
        dropout=args.dropout,
        row_side=columns.row_side,
        item_side=columns.item_side,
    )

    torch.manual_seed(seed)  # dropout draws from the global generator
    model = NeuMF(shape, torch_generator(seed, torch.device("cpu")))
    if args.load_checkpoint_path is not None:
        load_weights(args.load_checkpoint_path, model)
    model.set_item_tables(item_tables)  # the items' features are the data's, whatever a checkpoint says
    model = model.to(device)

    evaluation = (
        Evaluation.of(test, columns, config.topk, config.valid_batch_size, device) if test is not None else None
    )
    popularity = evaluation.popularity(train) if evaluation is not None else None
    sampling = SamplingConfig(
        batch_size=config.batch_size,
        per_positive=config.negative_samples,
        kind="static" if spec.metadata.train_negatives else config.negatives,
        in_memory=config.loader == "memory",
        seed=seed,
    )
    if args.mode == "train":
        check_labels(train, sampling, device)
    with RunWriter(args, config, columns, device) as run:
        if args.mode == "test":
            if evaluation is None or popularity is None:
                raise UserError(f"--mode test: {args.data} has no test series to rank")
            run.finish_test(evaluation(model), popularity)
            return
        batches = EpochBatches(train, sampling, device)
        report = fit(model, batches, evaluation, config, device, lambda epoch, best: run.epoch(model, epoch, best))
        run.finish_training(report, popularity)


if __name__ == "__main__":
    run_command(main)
