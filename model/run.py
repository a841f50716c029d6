"""The run folder: log, best model, metrics and curves, written as training goes on."""

from __future__ import annotations

import argparse
import resource
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from model.checkpoint import CONFIG_NAME, save_model, save_reference
from model.columns import Columns
from model.config import TrainConfig
from model.curves import draw_curves
from model.evaluation import Scores
from model.neumf import NeuMF
from model.runlog import RunLog
from model.trainer import EpochReport, TrainReport
from workflows.errors import UserError
from workflows.folders import Aside, check_output, read_json, write_json
from workflows.progress import console, human

METRICS_NAME = "metrics.json"
_LOG_NAME = "log.json"


def is_run(folder: Path) -> bool:
    """Whether a folder was written by `RunWriter`, be it finished or not."""
    with suppress(OSError), (folder / _LOG_NAME).open("rb") as log:
        if log.read(5) == b"DLLL ":
            return True
    return {"format", "model", "train"} <= read_json(folder / CONFIG_NAME).keys() or (
        {"peak_rss_mib", "seed"} <= read_json(folder / METRICS_NAME).keys()
    )


def check_run(args: argparse.Namespace) -> None:
    """Raises UserError where the run could not be written, before anything else is done."""
    inputs = [args.data] + ([args.load_checkpoint_path] if args.load_checkpoint_path is not None else [])
    check_output(args.output, args.overwrite, is_run, inputs)
    if args.log_path is not None and args.log_path.is_dir():
        raise UserError(f"--log_path {args.log_path} is a folder; name a file in it")
    if args.checkpoint_dir is not None and args.checkpoint_dir.exists() and not args.checkpoint_dir.is_dir():
        raise UserError(f"--checkpoint_dir {args.checkpoint_dir} is a file; name a folder")
    if args.mode == "test" and args.load_checkpoint_path is None:
        raise UserError("--mode test evaluates a trained model: name it with --load_checkpoint_path")


class RunWriter:
    """Writes one run. The folder is usable from the first best epoch on; `metrics.json` says that it is finished.

    A run that fails before it has a model leaves nothing, and an old run that it was to replace comes back.
    """

    def __init__(self, args: argparse.Namespace, config: TrainConfig, columns: Columns, device: torch.device) -> None:
        """Raises UserError where the folder exists and may not be replaced; nothing is written before."""
        check_run(args)
        self._folder: Path = args.output.absolute()
        self._shown: Path = args.output
        self._checkpoint_dir: Path | None = args.checkpoint_dir
        self._config = config
        self._aside = Aside(self._folder)
        self._has_result = False
        try:
            self._folder.mkdir(parents=True)
            self._log = RunLog(args.log_path or self._folder / _LOG_NAME)
        except OSError:
            self._withdraw()
            raise
        self._about = {
            "data": str(args.data.resolve()),
            "feature_spec_file": args.feature_spec_file,
            "features": {"user": columns.user, "item": columns.item},  # the side ones are the network's
            "train": asdict(config),
        }
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        self._log.parameters({**given, "seed": config.seed, "device": str(device)})

    def __enter__(self) -> RunWriter:
        self._log.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._log.__exit__(*exception)
        if not self._has_result:
            self._withdraw()

    def _withdraw(self) -> None:
        """Leave nothing of the new run, and put back what it was to replace."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._aside.restore()

    def _keep(self) -> None:
        """The new run stands on its own: whatever it replaces may go."""
        self._has_result = True
        self._aside.discard()

    def epoch(self, model: NeuMF, report: EpochReport, is_best: bool) -> None:
        """Log an epoch and keep the model where it is the best so far."""
        k = self._config.topk
        record = {
            "train_throughput": report.train_throughput,
            "train_epoch_time": report.train_s,
            "train_loss": report.train_loss,
        }
        if report.scores is not None:
            record |= {
                **report.scores.named(k),
                "validation_epoch_time": report.scores.seconds,
                "eval_throughput": report.scores.samples_per_s,
                "validation_loss": report.scores.loss,
            }
        self._log.epoch(report.epoch, record)
        if not console.is_terminal:
            known = [f"epoch {report.epoch}: loss {report.train_loss:.4f}"]
            known += report.scores.texts(k) if report.scores is not None else []
            console.print(", ".join([*known, f"{human(report.train_throughput)} samples/s"]))
        if is_best:
            save_model(self._folder, model, {**self._about, "epoch": report.epoch})
            if self._checkpoint_dir is not None:
                save_reference(self._checkpoint_dir, model)
            self._keep()

    def finish_training(self, report: TrainReport, popularity: Scores | None) -> None:
        """Write the summary, `metrics.json` and `curves.png`."""
        best = report.best
        train = [epoch.train_throughput for epoch in report.epochs]
        evaluation = [epoch.scores.samples_per_s for epoch in report.epochs if epoch.scores is not None]
        draw_curves(self._folder / "curves.png", report.epochs, best.epoch, self._config.topk, popularity)
        self._log.summary(
            {
                "best_train_throughput": max(train),
                "best_eval_throughput": max(evaluation, default=None),
                "mean_train_throughput": mean(train),
                "mean_eval_throughput": mean(evaluation) if evaluation else None,
                "best_accuracy": best.quality,
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
                "eval_throughput": mean(evaluation) if evaluation else None,
                "time_to_best_model": report.time_to_best_s,
                # As in the reference, the best epoch is chosen on the test rows.
                "selected_on": "last" if best.quality is None else "test",
            },
        )

    def finish_test(self, scores: Scores, popularity: Scores) -> None:
        """Write the metrics of a checkpoint that was only evaluated."""
        metrics = {**scores.named(self._config.topk), "eval_throughput": scores.samples_per_s}
        self._log.summary({**metrics, "validation_loss": scores.loss})
        self._finish(scores, popularity, {"eval_throughput": scores.samples_per_s})

    def _finish(self, scores: Scores | None, popularity: Scores | None, more: dict[str, Any]) -> None:
        k = self._config.topk
        metrics = {
            f"hr@{k}": scores.hit_rate if scores else None,
            f"ndcg@{k}": scores.ndcg if scores else None,
            f"popularity_hr@{k}": popularity.hit_rate if popularity else None,
            f"popularity_ndcg@{k}": popularity.ndcg if popularity else None,
            "auc": scores.auc if scores else None,
            "popularity_auc": popularity.auc if popularity else None,
            "validation_loss": scores.loss if scores else None,
            **more,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "seed": self._config.seed,
        }
        write_json(self._folder / METRICS_NAME, metrics)
        self._keep()
        console.print(_outcome(scores, popularity, k))
        console.print(f"results in {self._shown}")


def _outcome(scores: Scores | None, popularity: Scores | None, k: int) -> str:
    """What a run came to, in one line."""
    if scores is None or popularity is None:
        return "no test series with negatives, so nothing was evaluated: the last epoch was saved"
    baseline = popularity.named(k)
    known = [f"{name.upper()} {value:.4f} (popularity {baseline[name]:.4f})" for name, value in scores.named(k).items()]
    if scores.quality is None:
        known.append("all test rows have the same label, so there is no AUC")
    return ", ".join([*known, f"validation loss {scores.loss:.4f}"] if scores.hit_rate is None else known)
