"""The run folder: log, best model, metrics and curves, written during training."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from model.evaluation.metrics import UNKNOWN, EvalMetrics, compared_names
from model.network.checkpoint import CONFIG_NAME, save_model, save_reference
from model.network.neumf import NeuMF
from model.run.arguments import is_flags, write_flags
from model.run.card import write_card
from model.run.config import FLAGS_NAME, RunConfig, plain
from model.run.dllogger import DLLogger
from model.run.resume import STAGES_NAME
from model.training.resume_state import save_last
from model.training.trainer import History, Training
from workflows.common.errors import UserError
from workflows.common.files import check_output, read_json, write_json
from workflows.common.progress import console, human
from workflows.common.staging import StagedFolder
from workflows.device.torch_device import resolve_precision

if TYPE_CHECKING:
    from model.run.board import Board

METRICS_NAME = "metrics.json"
_LOG_NAME, _BOARD_NAME = "log.json", "tensorboard"


def is_run(folder: Path) -> bool:
    """Whether a folder was written by `RunWriter`, finished or not."""
    if (folder / _LOG_NAME).exists() and not (folder / _LOG_NAME).is_file():  # a pipe would block
        return False
    with suppress(OSError), (folder / _LOG_NAME).open("rb") as log:
        if log.read(5) == b"DLLL ":
            return True
    return (
        {"format", "model", "train"} <= read_json(folder / CONFIG_NAME).keys()
        or {"peak_rss_mib", "seed"} <= read_json(folder / METRICS_NAME).keys()
        or is_flags(folder / FLAGS_NAME)
    )


def check_run(config: RunConfig) -> None:
    """Raise UserError if the run could not be written, before any work is done."""
    inputs = [config.data] + ([config.load_checkpoint_path] if config.load_checkpoint_path is not None else [])
    if not config.resume:
        check_output(config.output, config.overwrite, is_run, inputs)
    elif not is_run(config.output):
        raise UserError(f"--resume {config.output}: not a run of train.py; start one with --output")
    if config.log_path is not None and config.log_path.is_dir():
        raise UserError(f"--log_path {config.log_path} is a folder; name a file in it")
    if config.checkpoint_dir is not None and config.checkpoint_dir.exists() and not config.checkpoint_dir.is_dir():
        raise UserError(f"--checkpoint_dir {config.checkpoint_dir} is a file; name a folder")


class RunWriter:
    """Writes one run. `metrics.json` marks it as finished.

    A new run is in its place once it can be resumed, and the run that it replaces is there until then. A resumed run is
    not touched before it has something new.
    """

    def __init__(self, config: RunConfig, data: Mapping[str, Any], device: torch.device, log_bytes: int = 0) -> None:
        """
        Args:
            data: what `config.json` says of the data besides its path.
            log_bytes: length of a resumed run's log when it was last saved.

        Raises:
            UserError: the folder exists and may not be replaced; nothing has been written.
        """
        check_run(config)
        self._config, self._train = config, config.train
        # Evaluation is in float32, whatever the flags.
        amp, precision = (config.train.amp, config.train.precision) if config.mode == "train" else (False, None)
        self._precision = resolve_precision(amp, precision, device)
        self._staged = None if config.resume else StagedFolder(config.output)
        self._log: DLLogger | None = None
        self._log_bytes, self._device = log_bytes, device
        self._board: Board | None = None
        self._n_members = 0
        self._about = {
            "data": str(config.data.resolve()),
            "feature_spec_file": config.feature_spec_file,
            "train": asdict(config.train),
            **data,
        }
        self._is_open = False
        if not config.resume:
            try:
                self._open()
            except BaseException:
                self._close()
                raise

    def _open(self) -> None:
        """Start or continue the log, and save the flags; does nothing the second time."""
        if self._is_open:
            return
        config, self._is_open = self._config, True
        if "log" not in config.without:
            self._log = DLLogger(self._placed(config.log_path or config.output / _LOG_NAME), self._log_bytes)
        if config.mode == "train":
            write_flags(self.folder / FLAGS_NAME, config.flags, config.train.seed)
        known = read_json(self.folder / CONFIG_NAME)
        if known:  # of a resumed run, whose data may have moved
            write_json(self.folder / CONFIG_NAME, {**known, **self._about})
        if self._log is not None and not self._log_bytes:
            given = {name: plain(value) for name, value in config.flags.items()}
            computed = {"seed": config.train.seed, "device": str(self._device), "precision": self._precision}
            self._log.parameters({**given, **computed})

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
        if self._board is not None:
            self._board.close()
        if self._staged is not None:
            self._staged.close()

    @property
    def folder(self) -> Path:
        """Where the run is being written."""
        return self._staged.folder if self._staged is not None else self._config.output.absolute()

    def _placed(self, path: Path) -> Path:
        """A path that may lie in the run folder, where that is being written."""
        output = self._config.output.absolute()
        inside = path.absolute().is_relative_to(output)
        return self.folder / path.absolute().relative_to(output) if inside else path

    def _keep(self) -> None:
        """The new run is usable: it takes its place."""
        if self._staged is not None and not self._staged.is_published:
            check_run(self._config)  # another process may have written there meanwhile
            self._staged.publish()

    def epoch(self, training: Training, rng_states: Sequence[torch.Tensor]) -> None:
        """Log the last epoch, save the model if it is the best so far, and save the state to resume from.

        Args:
            rng_states: one per rank, see `workflows.device.torch_device.rng_state`.
        """
        self._open()
        history, k = training.history, self._train.topk
        report = history.epochs[-1]
        if history.best_epoch is report:
            save_model(self.folder, training.model, {**self._about, "epoch": report.epoch})
            if self._config.checkpoint_dir is not None:
                save_reference(self._placed(self._config.checkpoint_dir), training.model)
        record = {
            "train_throughput": report.train_throughput,
            "train_epoch_time": report.train_s,
            "train_loss": report.train_loss,
        }
        if report.scores is not None:
            record |= {
                **self._named(report.scores),
                "validation_epoch_time": report.scores.seconds,
                "eval_throughput": report.scores.samples_per_s,
                "validation_loss": report.scores.loss,
            }
        if self._log is not None:
            self._log.epoch(report.epoch, record)
        if "tensorboard" not in self._config.without:
            self._to_board(report.epoch, record)
        if not console.is_terminal and "progress" not in self._config.without:
            known = [f"epoch {report.epoch}: loss {report.train_loss:.4f}"]
            known += report.scores.texts(k) if report.scores is not None else []
            console.print(", ".join([*known, f"{human(report.train_throughput)} samples/s in {self._precision}"]))
        # Must come last: a resumed run rewrites everything logged or saved after this.
        save_last(self.folder, training, rng_states, {"log_bytes": self._log.bytes if self._log is not None else 0})
        self._keep()

    def _named(self, scores: EvalMetrics) -> dict[str, float]:
        """Metrics of an epoch by name; names on a validation split have a prefix."""
        prefix = "" if self._train.validation == "none" else "validation_"
        return {prefix + name: value for name, value in scores.known(self._train.topk).items()}

    def _to_board(self, epoch: int, record: dict[str, float]) -> None:
        """Write an epoch's metrics for TensorBoard."""
        if self._board is None:
            from model.run.board import Board  # importing tensorboardX takes 0.1 s, in every rank

            self._board = Board(self.folder / _BOARD_NAME, epoch)
        self._board.add(epoch, record)

    def finish_training(self, history: History, test: EvalMetrics | None, popularity: EvalMetrics | None) -> None:
        """Write the summary, `metrics.json`, `curves.png` and the model card.

        Args:
            test: metrics of the saved model on test.
            popularity: metrics of the popularity baseline on test.
        """
        self._open()
        best, k = history.best_epoch, self._train.topk
        train = [epoch.train_throughput for epoch in history.epochs]
        evaluation = [epoch.scores.samples_per_s for epoch in history.epochs if epoch.scores is not None]
        validated = self._train.validation != "none"
        if "curves" not in self._config.without:
            from model.run.curves import draw_curves  # importing matplotlib takes 0.25 s, in every rank

            shown = None if validated else popularity
            draw_curves(self.folder / "curves.png", history, self._train.loss, k, shown)
        if self._log is not None:
            self._log.summary(
                {
                    "best_train_throughput": max(train),
                    "best_eval_throughput": max(evaluation, default=None),
                    "mean_train_throughput": mean(train),
                    "mean_eval_throughput": mean(evaluation) if evaluation else None,
                    "best_accuracy": best.quality,
                    "best_epoch": best.epoch,
                    "time_to_target": history.time_to_target_s,
                    "time_to_best_model": history.time_to_best_s,
                    **(test.known(k) if validated and test is not None else {}),
                }
            )
        chosen = {}
        if validated and best.scores is not None:
            chosen = {**self._named(best.scores), "validation_series_left_out": best.scores.series_left_out}
        self._finish(
            test,
            popularity,
            {
                **chosen,
                "train_loss": best.train_loss,
                "best_epoch": best.epoch,
                "epochs": len(history.epochs),
                "train_throughput": mean(train),
                "eval_throughput": mean(evaluation) if evaluation else None,
                "time_to_best_model": history.time_to_best_s,
                # As in the reference, the best epoch is chosen on the test rows, unless there is a validation split.
                "selected_on": "last" if best.quality is None else "validation" if validated else "test",
            },
        )

    def member(self, name: str, quality: tuple[float, float]) -> None:
        """Log a member's validation metrics; from here on the run can be resumed.

        Args:
            quality: expected HR@k and NDCG@k over all draws of the negatives.
        """
        self._open()
        k, (hit_rate, ndcg) = self._train.topk, quality
        if self._log is not None:
            named = {f"validation_hr@{k}": hit_rate, f"validation_ndcg@{k}": ndcg}
            self._log.epoch(self._n_members, {"member": name, **named})
        self._n_members += 1
        if "progress" not in self._config.without:
            console.print(f"validation {name}: expected HR@{k} {hit_rate:.4f}, NDCG@{k} {ndcg:.4f}")
        self._keep()

    def finish_members(
        self,
        model: NeuMF,
        recipe: dict[str, Any],
        throughput: float,
        quality: tuple[float, float],
        left_out: int,
        test: EvalMetrics | None,
        popularity: EvalMetrics | None,
    ) -> None:
        """Write the summed model and the other files of an ordinary run.

        Args:
            recipe: the members and their weights, as JSON.
            throughput: positives trained on per second.
            quality: expected HR@k and NDCG@k on the validation split, over all draws of the negatives.
            left_out: number of validation series left out of these means.
            test, popularity: as in `finish_training`.
        """
        k = self._train.topk
        save_model(self.folder, model, {**self._about, "recipe": recipe})
        if self._config.checkpoint_dir is not None:
            save_reference(self._placed(self._config.checkpoint_dir), model)
        validation = {f"validation_hr@{k}": quality[0], f"validation_ndcg@{k}": quality[1]}
        if self._log is not None:
            named = test.known(k) if test is not None else {}
            self._log.summary({"mean_train_throughput": throughput, **validation, **named})
        more = {
            **validation,
            "validation_series_left_out": left_out,
            "epochs": self._train.epochs,
            "best_epoch": self._train.epochs - 1,
            "train_throughput": throughput,
            "eval_throughput": test.samples_per_s if test is not None else None,
            "selected_on": "validation",
        }
        self._finish(test, popularity, more)
        shutil.rmtree(self.folder / STAGES_NAME, ignore_errors=True)

    def finish_test(self, scores: EvalMetrics, popularity: EvalMetrics) -> None:
        """Write the metrics of an evaluated checkpoint."""
        if self._log is not None:
            metrics = {**scores.known(self._train.topk), "eval_throughput": scores.samples_per_s}
            self._log.summary({**metrics, "validation_loss": scores.loss})
        self._finish(scores, popularity, {"eval_throughput": scores.samples_per_s})

    def _finish(self, scores: EvalMetrics | None, popularity: EvalMetrics | None, more: dict[str, Any]) -> None:
        k = self._train.topk
        metrics = {
            **_metrics(scores, k),
            **{f"popularity_{name}": _metrics(popularity, k)[name] for name in compared_names(k)},
            "validation_loss": scores.loss if scores else None,
            "series_left_out": scores.series_left_out if scores else None,
            **more,
            "precision": self._precision,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "seed": self._train.seed,
        }
        if (self.folder / CONFIG_NAME).exists():  # missing if a checkpoint is only evaluated
            write_card(self.folder, read_json(self.folder / CONFIG_NAME), metrics)
        write_json(self.folder / METRICS_NAME, metrics)  # last: it marks the run as finished
        self._keep()
        console.print(_outcome(scores, popularity, k))
        for split, name in (("test", "series_left_out"), ("validation", "validation_series_left_out")):
            if left_out := metrics.get(name):
                console.print(
                    f"left out of the means: {left_out:,} {split} series with {k} distinct items or fewer, in which "
                    "every model hits"
                )
        console.print(f"results in {self._config.output}")


def _metrics(scores: EvalMetrics | None, k: int) -> dict[str, float | None]:
    """All metrics by name, None for those that were not measured."""
    return (scores or UNKNOWN).to_dict(k)


def _outcome(scores: EvalMetrics | None, popularity: EvalMetrics | None, k: int) -> str:
    """The result of a run, in one line."""
    if scores is None or popularity is None:
        return "no test series with negatives, so nothing was evaluated; the last epoch was saved"
    baseline = popularity.compared(k)
    known = [
        f"{name.upper()} {value:.4f} (popularity {baseline[name]:.4f})" for name, value in scores.compared(k).items()
    ]
    if scores.quality is None:
        known.append("all test rows have the same label, so there is no AUC")
    return ", ".join([*known, f"validation loss {scores.loss:.4f}"] if scores.hit_rate is None else known)
