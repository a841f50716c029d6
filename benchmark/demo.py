"""The whole workflow on real data, with the commands a user would type."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.table import Table

from workflows.common.errors import UserError, how_it_ended
from workflows.common.progress import console, human

DATA, RUN, RECIPE = Path("data/ml-100k"), Path("runs/ml-100k"), Path("runs/ml-100k-recipe")
_USER = "196"
# Settings that suit 100,000 interactions; the flags' defaults suit 20 million. Many negatives, a small network and
# dropout: more of anything else overfits. As in the reference, the best epoch is chosen on the test series.
SETTINGS = (
    "--epochs 14 --batch_size 8192 --factors 16 --layers 64 32 16 --dropout 0.35 --negative_samples 16 "
    "--learning_rate 0.004 --beta1 0.9 --beta2 0.999"
)
_STAGES = {
    "preprocess": f"-m preprocessing --sample ml-100k --output {DATA} --overwrite",
    "train, evaluate, draw": f"train.py --data {DATA} --output {RUN} --overwrite {SETTINGS} --seed 1",
    "train the recipe": f"train.py --config configs/ml-100k.yaml --data {DATA} --output {RECIPE} --overwrite --seed 1",
    "recommend": f"-m model.recommend --run {RUN} --user {_USER} -k 10 --titles {DATA}/titles.parquet",
}


def add_arguments(_: argparse.ArgumentParser) -> None:
    """No arguments."""


def main(_: argparse.Namespace) -> None:
    seconds = {}
    for name, command in _STAGES.items():
        console.rule(name)
        console.print(f"$ python {command}", style="dim")
        started = time.perf_counter()
        result = subprocess.run([sys.executable, *shlex.split(command)], check=False)
        if result.returncode < 0:
            raise UserError(f"python {command} {how_it_ended(result.returncode)}")
        if result.returncode:
            sys.exit(result.returncode)  # it has said why
        seconds[name] = time.perf_counter() - started
    plain, recipe = (json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in (RUN, RECIPE))
    console.rule("results")
    console.print(_table(plain, recipe, seconds))
    console.print(f"Data: {DATA}   Run: {RUN} (metrics.json, curves.png, log.json, model.safetensors)")
    console.print(f"Recipe: {RECIPE}, several GMF models in one, chosen without looking at test (docs/quality.md)")
    console.print(f"Recommendations as a page and a service: .venv/bin/python -m model.serve --run {RUN}")
    console.print(
        "The same for your own log, a CSV or Parquet file with a user, an item and a time column:\n"
        "  .venv/bin/python -m preprocessing --input LOG.csv --user USER --item ITEM --time TIME --output data/mine\n"
        f"  .venv/bin/python train.py --data data/mine {SETTINGS} --seed 1\n"
        "  .venv/bin/python -m model.recommend --run runs/mine --user ID",
    )


def _table(plain: dict, recipe: dict, seconds: dict[str, float]) -> Table:
    table = Table("", "popularity", "NeuMF", "recipe")
    for name in ("hr@10", "ndcg@10"):
        values = plain["popularity_" + name], plain[name], recipe[name]
        table.add_row(name.upper(), *(f"{value:.4f}" for value in values))
    table.add_row("training samples/s", "", human(plain["train_throughput"]), human(recipe["train_throughput"]))
    table.add_section()
    for name, duration in seconds.items():
        table.add_row(name, "", *(("", f"{duration:.1f} s") if "recipe" in name else (f"{duration:.1f} s",)))
    return table
