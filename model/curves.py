"""`curves.png`: how loss and ranking developed, so that people can look instead of reading numbers."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from model.trainer import EpochReport


def draw_curves(
    path: Path, epochs: list[EpochReport], best_epoch: int, k: int, popularity: tuple[float, float]
) -> None:
    """Loss, HR@k and NDCG@k per epoch; the best epoch is marked, the popularity baseline is a dashed line."""
    numbers = [report.epoch for report in epochs]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    left.plot(numbers, [report.train_loss for report in epochs], marker="o", markersize=3, label="train")
    left.plot(numbers, [report.scores.loss for report in epochs], marker="o", markersize=3, label="test series")
    left.set_title("Binary cross-entropy")
    left.legend(frameon=False)
    panels = (
        (middle, f"HR@{k}", [report.scores.hit_rate for report in epochs], popularity[0]),
        (right, f"NDCG@{k}", [report.scores.ndcg for report in epochs], popularity[1]),
    )
    for axes, name, values, baseline in panels:
        axes.plot(numbers, values, marker="o", markersize=3, color="tab:green", label="NeuMF")
        axes.axhline(baseline, linestyle="--", color="tab:gray", label="popularity")
        best = next(i for i, number in enumerate(numbers) if number == best_epoch)
        axes.plot(numbers[best], values[best], marker="*", markersize=13, color="tab:orange", linestyle="none",
                  label=f"saved: epoch {best_epoch}, {values[best]:.3f}")  # fmt: skip
        axes.set_title(name)
        axes.legend(frameon=False, loc="lower right")
    for axes in (left, middle, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial, dpi=110, metadata={"Software": None})
    plt.close(figure)
    partial.replace(path)
