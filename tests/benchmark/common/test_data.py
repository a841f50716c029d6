"""Prepared folders in a cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.common import data
from benchmark.common.data import cache_folder, prepared_folder
from preprocessing.synthetic.log import Shape


def test_a_folder_is_prepared_once_for_each_shape_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []

    def run_program(*argv: str) -> str:
        started.append(argv)
        folder = Path(argv[argv.index("--output") + 1])
        folder.mkdir(parents=True)
        (folder / "feature_spec.yaml").touch()
        return ""

    monkeypatch.setattr(data, "run_program", run_program)
    with cache_folder(tmp_path / "cache") as cache:
        folders = [prepared_folder(Shape(30, 40, 300), cache, *flags) for flags in ((), (), ("--test-negatives", "0"))]
    assert folders[0] == folders[1] != folders[2]
    assert len(started) == 2
    assert started[0][:4] == ("-m", "preprocessing", "--synthetic", "30x40x300")
    assert started[1][-4:-2] == ("--test-negatives", "0")


def test_a_cache_without_a_name_is_not_kept() -> None:
    with cache_folder(None) as cache:
        assert cache.is_dir()
    assert not cache.exists()
