"""The lines of `log.json`, as a parser of NVIDIA's DLLogger reads them."""

from __future__ import annotations

import json
import os
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from model.run.dllogger import DLLogger
from workflows.common.errors import UserError


def read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def test_lines_follow_the_dllogger_format(tmp_path: Path) -> None:
    path = tmp_path / "some" / "log.json"
    with closing(DLLogger(path)) as log:
        log.parameters({"epochs": 2, "data": "there"})
        log.epoch(0, {"hr@10": 0.5})
        log.epoch(1, {"hr@10": 0.25})
        log.summary({"best_epoch": 0, "time_to_target": None})
        lines = read_lines(path)  # each line is flushed at once
    assert lines == read_lines(path)
    for line in lines:
        assert isinstance(line["timestamp"], str)
        assert isinstance(line["elapsedtime"], str)
        assert abs(datetime.fromisoformat(line["datetime"]).timestamp() - float(line["timestamp"])) < 1e-3
    elapsed = [float(line["elapsedtime"]) for line in lines]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] >= 0.0

    kinds = [line["type"] for line in lines]
    units = kinds.count("METADATA")
    assert kinds == ["METADATA"] * units + ["LOG"] * 4
    for line in lines[:units]:
        assert set(line) == {"timestamp", "datetime", "elapsedtime", "type", "metric", "metadata"}
        assert line["metadata"] == {"unit": line["metadata"]["unit"]}
    by_metric = {line["metric"]: line["metadata"]["unit"] for line in lines[:units]}
    assert by_metric["train_throughput"] == by_metric["eval_throughput"] == "samples/s"
    assert by_metric["time_to_best_model"] == by_metric["time_to_target"] == "s"

    parameters, first, second, summary = lines[units:]
    assert set(parameters) == {"timestamp", "datetime", "elapsedtime", "type", "step", "data"}
    assert (parameters["step"], parameters["data"]) == ("PARAMETER", {"epochs": 2, "data": "there"})
    assert (first["step"], first["data"]) == ([0], {"hr@10": 0.5})
    assert (second["step"], second["data"]) == ([1], {"hr@10": 0.25})
    assert (summary["step"], summary["data"]) == ([], {"best_epoch": 0, "time_to_target": None})


def test_an_existing_log_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    for run in range(2):
        with closing(DLLogger(path)) as log:
            log.parameters({"run": run})
    assert [line["data"] for line in read_lines(path) if line["type"] == "LOG"] == [{"run": 1}]


def test_a_log_continues_from_its_saved_length(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    with closing(DLLogger(path)) as log:
        log.parameters({"run": 0})
        log.epoch(0, {"loss": 1.0})
        kept = log.bytes
        log.epoch(1, {"loss": 0.5})
    before = path.read_bytes()
    with closing(DLLogger(path, kept)) as log:
        assert log.bytes == kept
        log.epoch(1, {"loss": 0.25})
    assert path.read_bytes()[:kept] == before[:kept]
    logged = [(line["step"], line["data"]) for line in read_lines(path) if line["type"] == "LOG"]
    assert logged == [("PARAMETER", {"run": 0}), ([0], {"loss": 1.0}), ([1], {"loss": 0.25})]


def test_a_missing_log_is_started_anew(tmp_path: Path) -> None:
    with closing(DLLogger(tmp_path / "log.json", 1000)) as log:
        log.epoch(3, {})
    lines = read_lines(tmp_path / "log.json")
    assert lines[0]["type"] == "METADATA"
    assert lines[-1]["step"] == [3]


@pytest.mark.parametrize("kept_bytes", [0, 1000])
def test_a_log_that_is_no_file_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    os.mkfifo(tmp_path / "log.json")
    for path in (tmp_path / "log.json", Path("/dev/full")):
        with pytest.raises(UserError, match=f"{path} exists and is not a file"):
            DLLogger(path, kept_bytes)
