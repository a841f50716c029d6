"""`curves.png`: how loss and ranking developed, so that people can look instead of reading numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model.evaluation import Scores
from model.trainer import EpochReport

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of the cache it builds once


def draw_curves(path: Path, epochs: list[EpochReport], best_epoch: int, k: int, popularity: Scores | None) -> None:
    """Loss, HR@k and NDCG@k per epoch; the saved epoch is marked, the popularity baseline is a dashed line.

    Where nothing was evaluated (`popularity` is None), only the loss.
    """
    numbers = [report.epoch for report in epochs]
    scores = [report.scores for report in epochs if report.scores is not None]
    evaluated = popularity is not None and len(scores) == len(epochs)
    figure = Figure(figsize=(13 if evaluated else 5, 3.8), layout="constrained")
    panels = figure.subplots(1, 3 if evaluated else 1, squeeze=False)
    loss = panels[0, 0]
    loss.plot(numbers, [report.train_loss for report in epochs], **_LINE, label="train")
    loss.set_title("Binary cross-entropy")
    if popularity is not None and evaluated:
        loss.plot(numbers, [score.loss for score in scores], **_LINE, label="test series")
        for axes, name, values, baseline in (
            (panels[0, 1], f"HR@{k}", [score.hit_rate for score in scores], popularity.hit_rate),
            (panels[0, 2], f"NDCG@{k}", [score.ndcg for score in scores], popularity.ndcg),
        ):
            saved = values[numbers.index(best_epoch)]
            axes.plot(numbers, values, **_LINE, color="tab:green", label="NeuMF")
            axes.axhline(baseline, linestyle="--", color="tab:gray", label="popularity")
            axes.plot(best_epoch, saved, "*", markersize=13, color="tab:orange", label=f"saved: {saved:.3f}")
            axes.set_title(name)
            axes.set_ylim(0.0, max([*values, baseline]) * 1.08)
    for axes in panels[0]:
        axes.legend(frameon=False, loc="best")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial, dpi=110, metadata={"Software": None})
    partial.replace(path)


_LINE: dict[str, Any] = {"marker": "o", "markersize": 3}
