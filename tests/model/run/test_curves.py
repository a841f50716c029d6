"""`curves.png` names the loss that was trained and the one that evaluation reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

import model.run.curves
from model.evaluation.metrics import EvalMetrics
from model.run.curves import draw_curves
from model.training.config import CHOICES
from model.training.trainer import EpochReport, History


@pytest.mark.parametrize(
    ("loss", "title", "evaluated"),
    [
        ("bce", "Binary cross-entropy", "evaluated"),
        ("softmax", "Softmax cross-entropy over all items", "evaluated: binary cross-entropy"),
        ("bce-all", "Binary cross-entropy over all items", "evaluated: binary cross-entropy"),
    ],
)
def test_the_first_panel_names_both_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, title: str, evaluated: str
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(model.run.curves, "write_picture", lambda _, figure: figures.append(figure))
    scores = EvalMetrics(hit_rate=0.5, ndcg=0.25, loss=0.4, seconds=1.0, samples_per_s=1.0)
    history = History(tuple(EpochReport(epoch, 0.3, 10, 1.0, scores) for epoch in range(2)), 2.0)
    draw_curves(tmp_path / "curves.png", history, loss, 10, None)
    panel = figures[0].axes[0]
    assert panel.get_title() == title
    legend = panel.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train", evaluated]


def test_every_loss_has_a_name() -> None:
    assert set(model.run.curves._LOSSES) == set(CHOICES["loss"])
