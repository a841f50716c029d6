"""`curves.png`: a plot of loss and ranking metrics per epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model.evaluation.metrics import EvalMetrics
from model.training.trainer import History
from workflows.common.render import write_picture

_LOSSES = {
    "bce": "Binary cross-entropy",
    "softmax": "Softmax cross-entropy over all items",
    "bce-all": "Binary cross-entropy over all items",
}

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it logs the one-off building of its cache


def draw_curves(path: Path, history: History, loss: str, k: int, popularity: EvalMetrics | None) -> None:
    """Plot loss, and HR@k and NDCG@k or AUC, per epoch; the saved epoch is marked.

    Only the loss if nothing was evaluated.

    Args:
        loss: the loss that was trained, as `TrainConfig.loss`; evaluation reports binary cross-entropy for any.
        popularity: the baseline on the same rows, dashed; None if unknown.
    """
    epochs, best_epoch = history.epochs, history.best_epoch.epoch
    numbers = [report.epoch for report in epochs]
    scores = [report.scores for report in epochs if report.scores is not None]
    metrics = list(scores[0].compared(k)) if len(scores) == len(epochs) else []
    baselines = popularity.compared(k) if popularity is not None else {}
    figure = Figure(figsize=(5 + 4 * len(metrics), 3.8), layout="constrained")
    panels = figure.subplots(1, 1 + len(metrics), squeeze=False)
    losses = panels[0, 0]
    losses.plot(numbers, [report.train_loss for report in epochs], **_LINE, label="train")
    losses.set_title(_LOSSES[loss])
    if len(scores) == len(epochs):
        evaluated = "evaluated" if loss == "bce" else f"evaluated: {_LOSSES['bce'].lower()}"
        losses.plot(numbers, [score.loss for score in scores], **_LINE, label=evaluated)
    for axes, name in zip(panels[0, 1:], metrics, strict=True):
        values = [score.compared(k)[name] for score in scores]
        saved = values[numbers.index(best_epoch)]
        axes.plot(numbers, values, **_LINE, color="tab:green", label="NeuMF")
        if name in baselines:
            axes.axhline(baselines[name], linestyle="--", color="tab:gray", label="popularity")
        axes.plot(best_epoch, saved, "*", markersize=13, color="tab:orange", label=f"saved: {saved:.3f}")
        axes.set_title(name.upper())
        axes.set_ylim(0.0, max([*values, *baselines.values()]) * 1.08 or 1.0)
    for axes in panels[0]:
        axes.legend(frameon=False, loc="best")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    write_picture(path, figure)


_LINE: dict[str, Any] = {"marker": "o", "markersize": 3}
