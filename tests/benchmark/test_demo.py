"""The demo's commands are valid, and its table shows the run's metrics."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmark.__main__
import model.recommend.__main__
import model.run.arguments
import preprocessing.__main__
from benchmark import demo
from workflows.common.errors import UserError

METRICS = {
    "hr@10": 0.6111,
    "ndcg@10": 0.3222,
    "popularity_hr@10": 0.4333,
    "popularity_ndcg@10": 0.2444,
    "train_throughput": 123_456.0,
}
OF_RECIPE = {"hr@10": 0.7555, "ndcg@10": 0.5666, "train_throughput": 654_321.0}


def test_every_stage_is_a_valid_command() -> None:
    prepare, train, recipe, recommend = (shlex.split(command) for command in demo._STAGES.values())
    prepared = preprocessing.__main__.parse_args(prepare[prepare.index("preprocessing") + 1 :])
    trained = model.run.arguments.parse_args(train[1:])
    recommended = model.recommend.__main__.parse_args(recommend[recommend.index("model.recommend") + 1 :])
    ensemble = model.run.arguments.parse_args(recipe[1:])
    assert prepared.output == trained.data == ensemble.data == demo.DATA
    assert trained.output == recommended.run == demo.RUN
    assert recommended.titles.parent == demo.DATA
    assert ensemble.output == demo.RECIPE
    assert model.run.arguments.run_config(ensemble).train.validation == "leave-one-out"
    model.run.arguments.run_config(trained)
    assert prepared.overwrite
    assert trained.overwrite
    assert ensemble.overwrite


def test_the_stages_run_in_order_and_the_results_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        started.append(command)
        for folder, metrics in ((demo.RUN, METRICS), (demo.RECIPE, OF_RECIPE)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    demo.main(argparse.Namespace())
    assert started == [[sys.executable, *shlex.split(command)] for command in demo._STAGES.values()]
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows[:3] == [
        ["HR@10", "0.4333", "0.6111", "0.7555"],
        ["NDCG@10", "0.2444", "0.3222", "0.5666"],
        ["training samples/s", "", "123 k", "654 k"],
    ]
    for shown in (*demo._STAGES, str(demo.RUN), str(demo.RECIPE)):
        assert shown in out


def test_a_failing_stage_ends_the_demo_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        started.append(command)
        return subprocess.CompletedProcess(command, len(started) + 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as done:
        demo.main(argparse.Namespace())
    assert done.value.code == 2
    assert len(started) == 1


def test_a_stage_killed_by_the_system_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9))
    with pytest.raises(UserError, match=r"-m preprocessing .* was killed by SIGKILL"):
        demo.main(argparse.Namespace())


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--fast"]])
def test_unknown_benchmarks_are_rejected(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as done:
        benchmark.__main__.main()
    assert done.value.code == 2
