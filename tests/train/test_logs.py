"""From a log to recommendations: real data, and data that leaves nothing to rank."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import model.recommend.__main__
import preprocessing.__main__
import train
from preprocessing.sources.movielens import sample_file
from workflows.common.errors import run_command

ROOT = Path(__file__).parents[2]
FLAGS = ["-b", "256", "-f", "4", "--layers", "16", "8", "-l", "0.01", "--device", "cpu"]
Command = Callable[..., subprocess.CompletedProcess[str]]


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("DLLL ")) for line in path.read_text().splitlines()]


def single_interactions(path: Path) -> Path:
    pd.DataFrame({"user": range(9), "item": [0, 1, 2] * 3, "time": range(9)}).to_csv(path, index=False)
    return path


def test_a_log_without_times_trains(tmp_path: Path) -> None:
    # As Book-Crossing: semicolons, every field quoted, text ids, no times, ratings 0 to 10.
    log, data, run = tmp_path / "BX-Book-Ratings.csv", str(tmp_path / "data"), tmp_path / "run"
    rows = [f'"{user}";"0{item}00{item}X";"{(user + item) % 11}"' for user in range(30) for item in range(user % 7, 40)]
    log.write_text("\n".join(['"User-ID";"ISBN";"Book-Rating"', *rows]) + "\n", encoding="ascii")
    named = ["--user", "User-ID", "--item", "ISBN", "--rating", "Book-Rating", "--min-rating", "1"]
    preprocessing.__main__.main(["--input", str(log), "--output", data, *named, "--order", "random", "--device", "cpu"])
    assert json.loads((tmp_path / "data" / "stats.json").read_text())["order"] == "random"
    assert "<td>random</tr>" in (tmp_path / "data" / "report.html").read_text()
    flags = [*FLAGS, "-e", "1", "-s", "1", "-k", "3", "--validation", "leave-one-out", "--without", "curves"]
    train.main(["--data", data, "--output", str(run), *flags])
    assert 0 <= metrics_of(run)["hr@3"] <= 1


@pytest.mark.parametrize(
    ("single", "negatives", "series"),
    [(False, "0", 40), (True, "20", 0), (True, "0", 0)],
    ids=["no negatives", "single interactions", "neither"],
)
def test_data_without_series_to_rank_trains_and_recommends(
    raw_log: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    single: bool,
    negatives: str,
    series: int,
) -> None:
    log = single_interactions(tmp_path / "log.csv") if single else raw_log
    data, run = str(tmp_path / "data"), tmp_path / "run"
    preprocessing.__main__.main(["--input", str(log), "--output", data, "--test-negatives", negatives])
    assert json.loads((tmp_path / "data" / "stats.json").read_text())["test_series"] == series
    train.main(["--data", data, "--output", str(run), *FLAGS, "-e", "2", "-s", "1", "-k", "3"])
    assert "nothing was evaluated" in capsys.readouterr().out
    metrics = metrics_of(run)
    unknown = ["hr@3", "ndcg@3", "popularity_hr@3", "popularity_ndcg@3", "validation_loss", "eval_throughput"]
    assert [metrics[name] for name in unknown] == [None] * 6
    assert (metrics["selected_on"], metrics["best_epoch"], metrics["epochs"]) == ("last", 1, 2)
    assert metrics["train_loss"] > 0
    *_, epoch, summary = (line["data"] for line in log_of(run / "log.json") if line["type"] == "LOG")
    assert set(epoch) == {"train_throughput", "train_epoch_time", "train_loss"}
    assert [summary[name] for name in ("best_accuracy", "best_eval_throughput", "time_to_target")] == [None] * 3
    with Image.open(run / "curves.png") as image:
        image.load()
        assert image.width < 1.5 * image.height  # only the loss
    model.recommend.__main__.main(["--run", str(run), "--user", "0", "8", "-k", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "user 0"
    assert lines.index("user 8") == 4
    seen = pd.read_csv(log).groupby("user")["item"].agg(set)
    for user, start in ((0, 2), (8, 6)):
        recommended = {int(line.split()[1]) for line in lines[start : start + 2]}
        assert len(recommended) == 2
        assert not recommended & seen[user]


def test_from_a_real_log_to_recommendations(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    training = f"--data {data} --output {run} -e 1 -n 2 -b 8192 -f 8 --layers 16 8 -l 0.01 -s 1"
    steps = [
        command("-m", "preprocessing", "--sample", "ml-100k", "--output", data),
        command(str(ROOT / "train.py"), *training.split(), cwd=tmp_path),  # from another working directory
        command(*f"-m model.recommend --run {run} --user 196 -k 10 --titles {data}/titles.parquet".split()),
    ]
    assert [step.stderr for step in steps] == ["", "", ""]
    metrics = metrics_of(tmp_path / "run")
    assert metrics["hr@10"] > 0.2  # twice the chance level among 101 items

    raw = pd.read_parquet(sample_file("MovieLens100k_data.parquet.brotli"))
    items = pd.read_parquet(sample_file("MovieLens100k_items.parquet.brotli"))
    rated = set(raw.loc[raw["user_id"] == 196, "movie_id"])
    assert len(rated) == 39
    lines = steps[2].stdout.splitlines()
    assert lines[0] == "user 196"
    rows = [line.split(maxsplit=3) for line in lines[2:]]
    assert [row[0] for row in rows] == [str(rank) for rank in range(1, 11)]
    recommended = [int(row[1]) for row in rows]
    assert len(set(recommended)) == 10
    assert set(recommended) <= set(raw["movie_id"])
    assert not set(recommended) & rated
    scores = [float(row[2]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    titles = dict(zip(items["movie_id"], items["movie_title"], strict=True))
    assert [row[3] for row in rows] == [" ".join(titles[item].split()) for item in recommended]

    with pytest.raises(SystemExit) as done:
        run_command(lambda: model.recommend.__main__.main(["--run", run, "--user", "99999"]))
    assert done.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: user '99999' is not among the 943 users")
