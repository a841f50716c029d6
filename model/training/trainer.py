"""The training loop: epochs of steps, evaluation after each epoch, selection of the best model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from model.evaluation.metrics import EvalMetrics
from model.network.neumf import NeuMF
from model.training.config import TrainConfig
from model.training.protocols import EpochLoader, TrainStep
from model.training.schedule import learning_rate
from model.training.threads import torch_threads
from workflows.common.errors import UserError
from workflows.common.progress import Stage
from workflows.device.torch_device import own_stream, synchronize


class DivergedError(UserError):
    """The loss or the scores of an epoch are NaN or infinite; the history has the epochs before it."""


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number, 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def is_count(value: Any) -> bool:
    """Whether a value of JSON is a whole number, 0 or more."""
    return isinstance(value, int) and is_number(value)


@dataclass(frozen=True)
class EpochReport:
    """One epoch: mean training loss, samples over all ranks, and the evaluation after it (None if nothing to evaluate
    on)."""

    epoch: int
    train_loss: float
    train_samples: int
    train_s: float
    scores: EvalMetrics | None

    @property
    def train_throughput(self) -> float:
        """Samples trained on per second of the whole epoch: loading, sampling and steps."""
        return self.train_samples / self.train_s

    @property
    def quality(self) -> float | None:
        """The metric that selects the best epoch; None if there is none."""
        return self.scores.quality if self.scores is not None else None


@dataclass(frozen=True)
class History:
    """Progress of a run. The best epoch, whose model is saved, has the highest HR@k (or AUC), the earliest if tied;
    without either metric it is the last.

    Attributes:
        seconds: duration of the epochs, including evaluation.
        best: index of the best epoch.
        time_to_best_s, time_to_target_s: seconds until the best epoch was evaluated, and until `--threshold` was
            reached.
    """

    epochs: tuple[EpochReport, ...] = ()
    seconds: float = 0.0
    best: int = 0
    time_to_best_s: float = 0.0
    time_to_target_s: float | None = None

    @property
    def best_epoch(self) -> EpochReport:
        return self.epochs[self.best]

    def then(self, report: EpochReport, seconds: float, threshold: float) -> History:
        """The history with one more epoch, completed `seconds` after the first began."""
        best, time_to_best_s, time_to_target_s = self.best, self.time_to_best_s, self.time_to_target_s
        known = self.best_epoch.quality if self.epochs else None
        if report.quality is None or known is None or report.quality > known:
            best, time_to_best_s = len(self.epochs), seconds
        if time_to_target_s is None and report.quality is not None and report.quality >= threshold:
            time_to_target_s = seconds
        return History((*self.epochs, report), seconds, best, time_to_best_s, time_to_target_s)

    def aimed_at(self, threshold: float) -> History:
        """The history for another `--threshold`, reached in another epoch or in none; the same for its own."""
        good = (one.quality is not None and one.quality >= threshold for one in self.epochs)
        reached = next((number for number, is_good in enumerate(good) if is_good), None)
        if reached is None:
            return replace(self, time_to_target_s=None)
        if self.time_to_target_s is not None and reached == len(self.epochs) - 1:  # where training ended
            return self
        evaluated = ((one.train_s, one.scores.seconds if one.scores else 0.0) for one in self.epochs[: reached + 1])
        return replace(self, time_to_target_s=sum(map(sum, evaluated)))

    def ends(self, config: TrainConfig) -> bool:
        """Whether training is over: all epochs done, target reached, or no improvement for `patience` epochs."""
        waited = len(self.epochs) - 1 - self.best
        return (
            len(self.epochs) >= config.epochs
            or self.time_to_target_s is not None
            or (config.patience is not None and waited >= config.patience)
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(known: dict[str, Any]) -> History:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError for anything else."""
        epochs = []
        for epoch in known["epochs"]:
            scores = EvalMetrics(**epoch["scores"]) if epoch["scores"] is not None else None
            epochs.append(EpochReport(**{**epoch, "scores": scores}))
        history = History(**{**known, "epochs": tuple(epochs)})
        wrong = [number for number, report in enumerate(history.epochs) if not _is_usable(number, report)]
        if wrong:
            raise ValueError(f"epoch {wrong[0]} of the history should have its number and its metrics, of 0 or more")
        times = (history.seconds, history.time_to_best_s)
        is_timed = all(map(is_number, times)) and (
            history.time_to_target_s is None or is_number(history.time_to_target_s)
        )
        if not is_timed or not is_count(history.best) or history.best >= max(1, len(epochs)):
            raise ValueError("the history should have times, and its best epoch be one of its epochs")
        return history


def _is_usable(number: int, report: EpochReport) -> bool:
    """Whether a report that was read has the types of one that was written."""
    scores = asdict(report.scores) if report.scores is not None else {}
    lacking = {name for name, value in scores.items() if value is None}
    return (
        report.epoch == number
        and is_count(report.train_samples)
        and is_number(report.train_s)
        and report.train_s > 0
        and isinstance(report.train_loss, float)
        and math.isfinite(report.train_loss)
        and all(is_number(value) for value in scores.values() if value is not None)
        and not lacking & {"loss", "seconds", "samples_per_s"}
        and ("hit_rate" in lacking) == ("ndcg" in lacking)
    )


@dataclass
class Training:
    """A network being trained, its step and its history; `last/` holds these and torch's random state."""

    model: NeuMF
    step: TrainStep
    history: History = field(default_factory=History)

    def fit(
        self,
        loader: EpochLoader,
        evaluation: Callable[[NeuMF], EvalMetrics] | None,
        config: TrainConfig,
        on_epoch: Callable[[Training], None],
        progress: Stage,
    ) -> History:
        """Train until the history ends, evaluating after every epoch.

        Args:
            evaluation: selects the best epoch; None if there is nothing to evaluate on.
            on_epoch: called by every rank after each epoch.

        Raises:
            DivergedError: an epoch's loss or scores are NaN or infinite.
        """
        started = time.perf_counter() - self.history.seconds
        while not self.history.ends(config):
            report = self._epoch(loader, len(self.history.epochs), config, progress)
            scores = evaluation(self.model) if evaluation is not None else None
            if scores is not None and not scores.is_finite:
                raise _diverged(f"scores after epoch {report.epoch} are NaN or infinite", self.history, config)
            report = replace(report, scores=scores)
            texts = scores.texts(config.topk) if scores is not None else []
            progress.note(", ".join([f"loss {report.train_loss:.4f}", *texts]))
            self.history = self.history.then(report, time.perf_counter() - started, config.threshold)
            on_epoch(self)
        return self.history

    def _epoch(self, loader: EpochLoader, number: int, config: TrainConfig, progress: Stage) -> EpochReport:
        world, started = self.step.world, time.perf_counter()
        expected = max(1, loader.samples_per_epoch())
        self.model.train()
        loss, samples = torch.zeros((), device=world.device, dtype=torch.float64), 0
        steps = loader.steps(number)
        with torch_threads(self.step.threads), own_stream(world.device), closing(steps):
            for batch, total in steps:
                rate = learning_rate(config, (number + samples / expected) / config.epochs)
                self.step.optimizer.param_groups[0]["lr"] = rate
                loss += self.step(batch, total)
                samples += total
                progress.advance(total)
        mean_loss = float(world.sum(loss)) / samples  # host sync: once per epoch
        synchronize(world.device)
        train_s = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise _diverged(f"training loss of epoch {number} is {mean_loss}", self.history, config)
        return EpochReport(number, mean_loss, samples, train_s, None)


def _diverged(what: str, history: History, config: TrainConfig) -> DivergedError:
    kept = f"; epoch {history.best_epoch.epoch} was the best before it" if history.epochs else ""
    return DivergedError(f"training diverged: the {what}{kept}; lower --learning_rate (now {config.learning_rate})")
