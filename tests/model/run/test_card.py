"""The model card matches config and metrics, and its commands exist."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest

import model.export.__main__
import model.recommend.__main__
import model.run.arguments
from model.run.card import write_card

CONFIG: dict[str, Any] = {
    "format": 1,
    "data": "/data/shop",
    "features": {"user": "reader", "item": "book"},
    "model": {
        "n_users": 12345, "n_items": 678, "factors": 16, "layers": [64, 32], "dropout": 0.35,
        "arch": "neumf",
        "row_side": [{"name": "age", "cardinality": None}], "item_side": [{"name": "kind", "cardinality": 3}],
    },
    "train": {
        "topk": 7, "batch_size": 8192, "negative_samples": 4, "negatives": "exact", "learning_rate": 0.004,
        "beta1": 0.9, "beta2": 0.999, "eps": 1e-08, "amp": False, "precision": None, "seed": 11, "eval": "sampled",
        "loss": "bce", "members": [],
    },
}  # fmt: skip
METRICS: dict[str, Any] = {
    "hr@7": 0.61234, "ndcg@7": 0.3, "mrr": 0.25, "coverage@7": 0.5, "popularity_hr@7": 0.31, "popularity_ndcg@7": 0.16,
    "auc": None, "popularity_auc": None, "epochs": 14, "best_epoch": 9, "train_loss": 0.125, "selected_on": "test",
    "precision": "fp32", "series_left_out": 0,
}  # fmt: skip


def card(tmp_path: Path, config: dict[str, Any] = CONFIG, **metrics: Any) -> str:
    write_card(tmp_path, config, {**METRICS, **metrics})
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_scores_are_and_what_was_left_out(tmp_path: Path) -> None:
    assert "Scores are probabilities among the negatives" in card(tmp_path)
    assert "Left out" not in card(tmp_path, series_left_out=0)
    assert "Left out: 1,234 series with 7 distinct items or fewer" in card(tmp_path, series_left_out=1234)
    softmax = {**CONFIG, "train": {**CONFIG["train"], "loss": "softmax"}}
    assert "Scores are logits" in card(tmp_path, softmax)


def test_the_card_reports_config_and_metrics(tmp_path: Path) -> None:
    lines = card(tmp_path).splitlines()
    assert lines[0] == "# NeuMF, trained on `/data/shop`"
    for line in (
        "| users | 12,345 (feature `reader`) |",
        "| items | 678 (feature `book`) |",
        "| side features | `age`, `kind` |",
        "| widths of the MLP | 64 32 |",
        "| epochs | 14; the weights are those of epoch 9, counted from 0 |",
        "| negatives | 4 a positive, exact |",
        "| precision | fp32 |",
        "| seed | 11 |",
        "| HR@7 | 0.6123 | 0.3100 |",
        "| MRR | 0.2500 |  |",
        "Each positive was ranked against the others of its test series.",
        "The epoch was chosen on these test rows, as in the reference, so the figures are on the high side.",
    ):
        assert line in lines
    assert not any(line.startswith("| AUC") for line in lines)
    assert "\n\n\n" not in "\n".join(lines)


def test_the_card_describes_other_kinds_of_evaluation(tmp_path: Path) -> None:
    none = dict.fromkeys(("hr@7", "ndcg@7", "mrr", "coverage@7", "popularity_hr@7", "popularity_ndcg@7"))
    by_rows = card(tmp_path, **none, auc=0.75, popularity_auc=0.5)
    assert "| AUC | 0.7500 | 0.5000 |" in by_rows
    assert "ranked against" not in by_rows
    assert "| HR@7" not in by_rows
    assert "no test rows" in card(tmp_path, **none, selected_on="last")
    assert "The epoch was chosen on a validation split." in card(tmp_path, selected_on="validation")
    config = copy.deepcopy(CONFIG)
    config["train"] |= {"eval": "full"}
    full = card(tmp_path, config, precision="bf16")
    assert "against all items its user does not have in train" in full
    assert "| precision | bf16 |" in full


@pytest.mark.parametrize("name", ["a`b|c", "two\nlines", "\udcff"])
def test_untrusted_names_do_not_break_the_markdown(tmp_path: Path, name: str) -> None:
    config = copy.deepcopy(CONFIG)
    config["data"], config["features"]["user"] = name, name
    lines = card(tmp_path, config).splitlines()
    assert len(lines) == len(card(tmp_path).splitlines())
    assert lines[0].count("`") == 2
    (users,) = (line for line in lines if line.startswith("| users"))
    assert users.replace("\\|", "").count("|") == 3


def test_the_commands_exist(tmp_path: Path) -> None:
    commands = card(tmp_path).split("```")[1].strip().splitlines()
    parsers = {
        "model.recommend": model.recommend.__main__.parse_args,
        "model.export": model.export.__main__.parse_args,
        "train.py": model.run.arguments.parse_args,
    }
    (tmp_path / "config.yaml").write_text("factors: 8\n")
    used = set()
    for command in commands:
        python, *words = shlex.split(command.replace("RUN", str(tmp_path)).replace(" ID", " 7"))
        assert python == "python"
        program, *flags = [word for word in words if word != "-m"]
        parsers[program](flags)
        used.add(program)
    assert used == set(parsers)


def test_the_card_of_an_ensemble_lists_its_members(tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIG)
    config["model"] |= {"arch": "gmf", "layers": [0], "row_side": [], "item_side": []}
    config["train"] |= {"members": ["softmax", "item-item"]}
    member = {"kind": "softmax", "seed": 1, "width": 8, "penalty": 0.70711, "recency": 0.5, "weight": 1.25}
    config["recipe"] = {"members": [member, {**member, "kind": "item-item"}], "by_popularity": -0.25}
    metrics = {name: value for name, value in METRICS.items() if name != "train_loss"} | {"selected_on": "validation"}
    write_card(tmp_path, config, metrics)
    lines = (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()
    for line in (
        "| widths of the MLP | no MLP |",
        "| epochs | 14 of each member |",
        "(-0.2500 times the logarithm of an item's count is added):",
        "| softmax | 8 | 0.707 | 0.5 | 1.250 |",
        "| item-item | 8 | 0.707 | 0.5 | 1.250 |",
        "Members and their weights were chosen on a validation split.",
    ):
        assert line in lines
