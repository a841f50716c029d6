"""The training loop: epochs of steps, evaluation after each, the best model kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.batches import Batch, EpochBatches
from model.config import TrainConfig
from model.evaluation import Scores
from model.neumf import NeuMF
from workflows.device import synchronize, torch_autocast_dtype
from workflows.errors import UserError
from workflows.progress import stage


@dataclass(frozen=True)
class EpochReport:
    """One epoch: mean training loss, samples trained on, and the evaluation after it (None without test rows)."""

    epoch: int
    train_loss: float
    train_samples: int
    train_s: float
    scores: Scores | None

    @property
    def train_throughput(self) -> float:
        """Samples trained on per second of the whole epoch: loading, sampling and steps."""
        return self.train_samples / self.train_s

    @property
    def quality(self) -> float | None:
        """What epochs are compared by; None where nothing is known."""
        return self.scores.quality if self.scores is not None else None


@dataclass(frozen=True)
class TrainReport:
    """All epochs; the best one is the one that was saved: by HR@k (or AUC), the earliest of equal ones, or the last
    one where neither is known."""

    epochs: list[EpochReport]
    best: EpochReport
    time_to_best_s: float
    time_to_target_s: float | None


class Step:
    """One optimiser step over a batch, with mixed precision and accumulation where asked for."""

    def __init__(self, model: NeuMF, config: TrainConfig, device: torch.device) -> None:
        self.model, self.pieces = model, config.grads_accumulated
        self.optimizer = torch.optim.Adam(
            model.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self._autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        dtype = torch_autocast_dtype(device)
        if config.amp:
            self._autocast = lambda: torch.autocast(device.type, dtype=dtype)
        # Only float16 needs its gradients scaled; bfloat16 has float32's range.
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.amp and dtype is torch.float16)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the batch's summed loss, a float32 scalar on the device (no host sync)."""
        self.optimizer.zero_grad(set_to_none=True)
        size = math.ceil(len(batch) / self.pieces)
        total = torch.zeros((), device=batch.labels.device)
        for start in range(0, len(batch), size):
            piece = batch.cut(start, start + size)
            with self._autocast():
                logits = self.model(piece.users, piece.items, *piece.side)
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), piece.labels, reduction="sum")
            self._scaler.scale(loss / len(batch)).backward()
            total += loss.detach()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return total


def fit(
    model: NeuMF,
    batches: EpochBatches,
    evaluation: Callable[[NeuMF], Scores] | None,
    config: TrainConfig,
    device: torch.device,
    on_epoch: Callable[[EpochReport, bool], None],
) -> TrainReport:
    """Train, evaluating after every epoch.

    Args:
        evaluation: measures the test rows; None where there are none.
        on_epoch: called after each epoch with its report and whether it is the best so far.

    Raises:
        UserError: the loss is no number any more.
    """
    step = Step(model, config, device)
    reports: list[EpochReport] = []
    best: EpochReport | None = None
    started = time.perf_counter()
    time_to_best_s, time_to_target_s = 0.0, None
    with stage("train", config.epochs * batches.samples_per_epoch(), "samples") as running:
        for epoch in range(config.epochs):
            epoch_started = time.perf_counter()
            model.train()
            loss, samples = torch.zeros((), device=device, dtype=torch.float64), 0
            for batch in batches.epoch(epoch):
                loss += step(batch)
                samples += len(batch)
                running.advance(len(batch))
            mean_loss = float(loss) / samples  # host sync: once per epoch
            synchronize(device)
            train_s = time.perf_counter() - epoch_started
            if not math.isfinite(mean_loss):
                raise UserError(
                    f"the training loss of epoch {epoch} is {mean_loss}; "
                    f"lower --learning_rate (now {config.learning_rate})"
                )
            scores = evaluation(model) if evaluation is not None else None
            report = EpochReport(epoch, mean_loss, samples, train_s, scores)
            reports.append(report)
            running.note(", ".join([f"loss {mean_loss:.4f}", *(scores.texts(config.topk) if scores else [])]))
            quality, best_quality = report.quality, best.quality if best is not None else None
            is_best = quality is None or best_quality is None or quality > best_quality
            if is_best:
                best, time_to_best_s = report, time.perf_counter() - started
            on_epoch(report, is_best)
            if quality is not None and quality >= config.threshold:
                time_to_target_s = time.perf_counter() - started
                break
    assert best is not None  # epochs >= 1
    return TrainReport(reports, best, time_to_best_s, time_to_target_s)
