from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from preprocessing.sources import inputs
from preprocessing.sources.inputs import input_files
from workflows.common.errors import UserError


def _listed(inputs: Sequence[str | Path]) -> list[Path]:
    files = input_files(inputs, Path("unused"))
    assert [file.display_name for file in files] == [str(file.path) for file in files]
    return [file.path for file in files]


def _touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_a_folder_expands_to_its_sorted_files_without_spark_side_files(tmp_path: Path) -> None:
    logs = _touch(tmp_path, "a.csv", "b.csv", "year=2024/month=1/part-0.csv", "year=2024/month=2/part-0.csv")
    _touch(tmp_path, "_SUCCESS", ".a.csv.crc", "_metadata", "_temporary/0/part-0.csv", ".hidden/x.csv")
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert _listed([tmp_path]) == logs


def test_a_pattern_expands_to_its_sorted_matches(tmp_path: Path) -> None:
    b, a, c = _touch(tmp_path, "2024-02.csv", "2024-01.csv", "2025/part-0.csv")
    _touch(tmp_path, "2024-03.txt", "_2024.csv", ".2024.csv", "2025/_SUCCESS")
    assert _listed([f"{tmp_path}/2024-*.csv"]) == [a, b]
    assert _listed([f"{tmp_path}/*.csv"]) == [a, b]
    assert _listed([f"{tmp_path}/202[45]*"])[-1] == c  # a matching folder is expanded
    assert _listed([f"{tmp_path}/**/*.csv"]) == [a, b, c]
    assert _listed([f"{tmp_path}/**/2025"]) == [c]


def test_a_relative_pattern_is_resolved_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "a.csv")
    monkeypatch.chdir(tmp_path)
    assert _listed(["*.csv"]) == [Path("a.csv")]


def test_file_urls_are_paths(tmp_path: Path) -> None:
    named, _ = _touch(tmp_path, "my log#1.csv", "b.csv")
    assert _listed([f"file://{tmp_path}/my%20log%231.csv", f"file://localhost{tmp_path}/*.csv"])[0] == named
    assert len(_listed([f"file://{tmp_path}"])) == 2
    with pytest.raises(UserError, match=r"/gone\.csv does not exist"):
        _listed([f"file://{tmp_path}/gone.csv"])


def test_a_file_name_with_brackets_is_not_a_pattern(tmp_path: Path) -> None:
    bracketed, _ = _touch(tmp_path, "log[1].csv", "log1.csv")
    assert _listed([bracketed]) == [bracketed]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    a, b = _touch(tmp_path, "a.csv", "b.csv")
    (tmp_path / "c.csv").symlink_to(b)
    assert _listed([b, tmp_path, f"{tmp_path}/*.csv"]) == [b, a]


def test_linked_folders_are_read_and_link_loops_terminate(tmp_path: Path) -> None:
    (linked,) = _touch(tmp_path, "elsewhere/a.csv")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "part").symlink_to(linked.parent)
    (tmp_path / "logs" / "loop").symlink_to(tmp_path / "logs")
    (found,) = _listed([tmp_path / "logs"])
    assert found.resolve() == linked


@pytest.mark.parametrize("name", ["ratings.csv", "ratings.dat", "u.data"])
@pytest.mark.parametrize("inner", ["", "ml/"])
def test_a_movielens_folder_expands_to_its_ratings_file_only(tmp_path: Path, name: str, inner: str) -> None:
    ratings, *_ = _touch(tmp_path, inner + name, inner + "movies.csv", "README.txt")
    assert _listed([tmp_path]) == [ratings]


def test_two_data_sets_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    ratings = _touch(tmp_path, "ml-1m/ratings.dat", "ml-20m/ratings.csv")
    with pytest.raises(UserError, match=r"holds .*ml-1m/ratings\.dat and .*ml-20m/ratings\.csv; name the one you mean"):
        _listed([tmp_path])
    assert _listed([f"{tmp_path}/*/ratings.*"]) == ratings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gone.csv", r"gone\.csv does not exist; --input takes"),
        ("gone-*.csv", r"gone-\*\.csv: no file to read; --input takes"),
        ("empty", r"empty: no file to read; --input takes"),
        ("_*", r"_\*: no file to read"),
        ("pipe", r"pipe is not a file or folder"),
    ],
)
def test_inputs_without_files_are_refused(tmp_path: Path, given: str, message: str) -> None:
    _touch(tmp_path, "empty/_SUCCESS", "_metadata", "fine.csv", "a/x.csv")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=message):
        _listed([tmp_path / "fine.csv", tmp_path / given])


def test_no_input_and_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no input"):
        _listed([])
    _touch(tmp_path, "a", "b", "c")
    monkeypatch.setattr(inputs, "_MAX_FILES", 2)
    with pytest.raises(UserError, match="more than 2 files"):
        _listed([tmp_path])
