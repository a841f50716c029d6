"""The run folder: log, best model, metrics and curves, written as training goes on."""

from __future__ import annotations

import argparse
import resource
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from model.checkpoint import CONFIG_NAME, save_model, save_reference
from model.config import TrainConfig
from model.curves import draw_curves
from model.data import Columns
from model.evaluation import Scores
from model.neumf import NeuMF
from model.runlog import RunLog
from model.trainer import EpochReport, TrainReport
from workflows.folders import check_output, write_json
from workflows.progress import console, human

METRICS_NAME = "metrics.json"
_LOG_NAME = "log.json"


class RunWriter:
    """Writes one run. The folder is usable from the first best epoch on; `metrics.json` says that it is finished."""

    def __init__(self, args: argparse.Namespace, config: TrainConfig, columns: Columns, device: torch.device) -> None:
        """Raises UserError where the folder exists and may not be replaced; nothing is written before."""
        self._folder: Path = args.output
        self._checkpoint_dir: Path | None = args.checkpoint_dir
        self._config = config
        check_output(self._folder, args.overwrite, (CONFIG_NAME, METRICS_NAME, _LOG_NAME))
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True)
        self._log = RunLog(args.log_path or self._folder / _LOG_NAME)
        self._about = {
            "data": str(args.data.resolve()),
            "feature_spec_file": args.feature_spec_file,
            "features": {"user": columns.user, "item": columns.item},
            "train": asdict(config),
        }
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        self._log.parameters({**given, "seed": config.seed, "device": str(device)})

    def __enter__(self) -> RunWriter:
        self._log.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._log.__exit__(*exception)

    def epoch(self, model: NeuMF, report: EpochReport, is_best: bool) -> None:
        """Log an epoch and keep the model where it is the best so far."""
        k = self._config.topk
        self._log.epoch(
            report.epoch,
            {
                "train_throughput": report.train_throughput,
                f"hr@{k}": report.scores.hit_rate,
                f"ndcg@{k}": report.scores.ndcg,
                "train_epoch_time": report.train_s,
                "validation_epoch_time": report.scores.seconds,
                "eval_throughput": report.scores.samples_per_s,
                "train_loss": report.train_loss,
                "validation_loss": report.scores.loss,
            },
        )
        if not console.is_terminal:
            console.print(
                f"epoch {report.epoch}: loss {report.train_loss:.4f}, HR@{k} {report.scores.hit_rate:.4f}, "
                f"NDCG@{k} {report.scores.ndcg:.4f}, {human(report.train_throughput)} samples/s"
            )
        if is_best:
            save_model(self._folder, model, {**self._about, "epoch": report.epoch})
            if self._checkpoint_dir is not None:
                save_reference(self._checkpoint_dir, model)

    def finish_training(self, report: TrainReport, popularity: Scores) -> None:
        """Write the summary, `metrics.json` and `curves.png`."""
        k, best = self._config.topk, report.best
        train = [epoch.train_throughput for epoch in report.epochs]
        evaluation = [epoch.scores.samples_per_s for epoch in report.epochs]
        draw_curves(self._folder / "curves.png", report.epochs, best.epoch, k, (popularity.hit_rate, popularity.ndcg))
        self._log.summary(
            {
                "best_train_throughput": max(train),
                "best_eval_throughput": max(evaluation),
                "mean_train_throughput": mean(train),
                "mean_eval_throughput": mean(evaluation),
                "best_accuracy": best.scores.hit_rate,
                "best_epoch": best.epoch,
                "time_to_target": report.time_to_target_s,
                "time_to_best_model": report.time_to_best_s,
            }
        )
        self._finish(
            best.scores,
            popularity,
            {
                "train_loss": best.train_loss,
                "best_epoch": best.epoch,
                "epochs": len(report.epochs),
                "train_throughput": mean(train),
                "eval_throughput": mean(evaluation),
                "time_to_best_model": report.time_to_best_s,
                "selected_on": "test",  # as in the reference: the best epoch is chosen on the test series
            },
        )

    def finish_test(self, scores: Scores, popularity: Scores) -> None:
        """Write the metrics of a checkpoint that was only evaluated."""
        k = self._config.topk
        metrics = {f"hr@{k}": scores.hit_rate, f"ndcg@{k}": scores.ndcg, "eval_throughput": scores.samples_per_s}
        self._log.summary({**metrics, "validation_loss": scores.loss})
        self._finish(scores, popularity, {"eval_throughput": scores.samples_per_s})

    def _finish(self, scores: Scores, popularity: Scores, more: dict[str, Any]) -> None:
        k = self._config.topk
        metrics = {
            f"hr@{k}": scores.hit_rate,
            f"ndcg@{k}": scores.ndcg,
            f"popularity_hr@{k}": popularity.hit_rate,
            f"popularity_ndcg@{k}": popularity.ndcg,
            "validation_loss": scores.loss,
            **more,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "seed": self._config.seed,
        }
        write_json(self._folder / METRICS_NAME, metrics)
        console.print(
            f"HR@{k} {scores.hit_rate:.4f} (popularity {popularity.hit_rate:.4f}), "
            f"NDCG@{k} {scores.ndcg:.4f} (popularity {popularity.ndcg:.4f}); results in {self._folder}"
        )
