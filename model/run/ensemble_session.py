"""An ensemble run: choose and weight the members, train them on all of train, evaluate the sum, write the run."""

from __future__ import annotations

import argparse
import shutil
from contextlib import nullcontext

from torch import Tensor

from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from model.ensemble.members import MemberTrainer
from model.ensemble.search import Ensemble, ValidationRanking
from model.evaluation.evaluator import EvalMetrics, Evaluator
from model.run.folder import METRICS_NAME, STAGES_NAME, RunWriter
from model.training.config import TrainConfig
from workflows.common.progress import console


def train_members(
    args: argparse.Namespace,
    config: TrainConfig,
    train: Rows,
    validation_items: Tensor,
    negatives: int,
    time_ordered: bool,
    evaluation: Evaluator | None,
    popularity: EvalMetrics | None,
    world: ProcessGroup,
) -> None:
    """Choose, weight, train and sum the members (`model.ensemble.search`), and write the run."""
    if args.resume is not None and world.broadcast_int((args.resume / METRICS_NAME).exists()):
        shutil.rmtree(args.resume / STAGES_NAME, ignore_errors=True)  # left by a run killed while finishing
        console.print(f"{args.resume} is finished")
        return
    with RunWriter(args, config, train.columns, world.device) if world.is_first else nullcontext() as writer:

        def on_member(name: str, quality: tuple[float, float]) -> None:
            if writer is not None:
                writer.member(name, quality)

        folder, show_progress = args.output / STAGES_NAME, "progress" not in args.without
        members = MemberTrainer(train, config, world, validation_items, folder, show_progress)
        users = ValidationRanking.from_rows(members, validation_items, negatives, config.topk, config.seed)
        recipe = Ensemble.search(members, users, config, args.factors, time_ordered, on_member)
        del users
        everything = MemberTrainer(train, config, world, None, folder, show_progress)
        model = recipe.merge_factors(everything)
        test = evaluation(model) if evaluation is not None else None
        if writer is not None:
            throughput = (members.samples + everything.samples) / max(members.seconds + everything.seconds, 1e-9)
            writer.finish_members(model, recipe.to_json(), throughput, recipe.quality, test, popularity)
