"""Detection of run folders; `tests/train/test_metrics.py` checks their contents."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from model.run.run_writer import is_run

OURS = {
    "log.json": "DLLL {}",
    "config.json": json.dumps({"format": 1, "model": {}, "train": {}, "data": "x"}),
    "metrics.json": json.dumps({"hr@10": 0.5, "peak_rss_mib": 100.0, "seed": 1}),
}
THEIRS = ["", "{}", "[]", '{"model": {}, "train": {}}', '{"seed": 1}', '{"DLLL": 1}', '"format model train"']


@pytest.mark.parametrize("name", OURS)
def test_each_of_our_files_identifies_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(OURS[name])
    assert is_run(tmp_path)


@pytest.mark.parametrize("content", THEIRS)
def test_other_files_of_the_same_names_do_not(tmp_path: Path, content: str) -> None:
    for name in OURS:
        (tmp_path / name).write_text(content)
    assert not is_run(tmp_path)


def test_folders_of_those_names_do_not(tmp_path: Path) -> None:
    assert not is_run(tmp_path / "gone")
    for name in OURS:
        (tmp_path / name).mkdir()
    assert not is_run(tmp_path)


@pytest.mark.parametrize("name", ["log.json", "config.yaml"])
def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert not is_run(tmp_path)
