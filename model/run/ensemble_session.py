"""An ensemble run: choose and weight the members, train them on all of train, evaluate the sum, write the run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from model.ensemble.members import MemberTrainer
from model.ensemble.search import Ensemble, ValidationRanking
from model.evaluation.evaluator import Evaluator
from model.evaluation.metrics import EvalMetrics
from model.run.config import RunConfig
from model.run.resume import STAGES_DATA, STAGES_NAME
from model.run.run_writer import METRICS_NAME, RunWriter
from model.scoring.scorer import Scorer
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.common.progress import console


def train_ensemble(
    config: RunConfig,
    train: Rows,
    validation_items: Tensor,
    negatives: int,
    time_ordered: bool,
    evaluator: Evaluator | None,
    popularity: EvalMetrics | None,
    data: Mapping[str, Any],
    world: ProcessGroup,
) -> None:
    """Choose, weight, train and sum the members (`model.ensemble.search`), and write the run.

    Args:
        validation_items: int32 [n_users], each user's item that members are chosen on, -1 for none.
        negatives: per validation item.
        data: what `config.json` says of the data besides its path.
    """
    settings = config.train
    if config.resume and world.broadcast_int((config.output / METRICS_NAME).exists()):
        shutil.rmtree(config.output / STAGES_NAME, ignore_errors=True)  # left by a run killed while finishing
        console.print(f"{config.output} is finished")
        return
    with RunWriter(config, data, world.device) if world.is_first else nullcontext() as writer:
        if writer is not None and not (writer.folder / STAGES_DATA).exists():
            write_json(writer.folder / STAGES_DATA, dict(data))

        def stages() -> Path:
            return (config.output if writer is None else writer.folder) / STAGES_NAME

        def on_member(name: str, quality: tuple[float, float]) -> None:
            if writer is not None:
                writer.member(name, quality)

        show_progress = "progress" not in config.without
        members = MemberTrainer(train, settings, world, validation_items, stages, show_progress)
        ranking = ValidationRanking.from_rows(members, validation_items, negatives, settings.topk, settings.seed)
        ensemble = Ensemble.search(members, ranking, settings, config.shape.factors, time_ordered, on_member)
        left_out = ranking.n_left_out
        del ranking
        everything = MemberTrainer(train, settings, world, None, stages, show_progress)
        model = ensemble.merge_factors(everything)
        if not model.is_finite():
            raise UserError("the sum of the members has weights that are NaN; lower --learning_rate")
        test = evaluator.evaluate(lambda: Scorer(model)) if evaluator is not None else None
        if writer is not None:
            throughput = (members.samples + everything.samples) / max(members.seconds + everything.seconds, 1e-9)
            writer.finish_members(model, ensemble.to_json(), throughput, ensemble.quality, left_out, test, popularity)
