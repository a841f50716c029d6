"""Output folders are complete or absent, and no foreign folder is touched."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from workflows.common.errors import UserError
from workflows.common.files import (
    check_output,
    check_outside,
    read_json,
    replace_file,
    staged_folder,
    write_json,
)

OURS = "stats.json"


def is_ours(folder: Path) -> bool:
    return (folder / OURS).is_file()


def make_ours(path: Path, content: str = "old") -> Path:
    path.mkdir()
    (path / OURS).write_text(content)
    return path


def snapshot(folder: Path) -> dict[str, str | None]:
    """Every path in a folder, including hidden ones, with the content of the files."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in paths}


def write_half(path: Path, overwrite: bool, error: BaseException | type[BaseException]) -> None:
    """Fail with a half-written output."""
    before = snapshot(path)
    with staged_folder(path, overwrite, is_ours) as staging:
        (staging / "half").mkdir()
        (staging / "half" / "part").write_text("rows")
        (staging / OURS).write_text("new")
        assert snapshot(path) == before
        raise error


def test_a_folder_appears_complete_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "below" / "out"
    with staged_folder(target, overwrite=False, is_ours=is_ours) as staging:
        assert staging.parent.parent == target.parent  # next to its destination, so that the rename is atomic
        (staging / "train").mkdir()
        (staging / "train" / "part").write_text("rows")
        assert not target.exists()
    assert snapshot(target.parent) == {"out": None, "out/train": None, "out/train/part": "rows"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    for target in (tmp_path / "out", tmp_path / "made" / "on the way" / "out"):
        with pytest.raises(error):
            write_half(target, overwrite=False, error=error)
        assert snapshot(tmp_path) == {}


def test_an_error_keeps_the_existing_folder(tmp_path: Path) -> None:
    make_ours(tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="half"):
        write_half(tmp_path / "out", overwrite=True, error=ValueError("half"))
    assert snapshot(tmp_path) == before


def test_overwrite_replaces_our_own_folder(tmp_path: Path) -> None:
    make_ours(tmp_path / "out")
    (tmp_path / "out" / "left over").write_text("gone with the rest")
    with staged_folder(tmp_path / "out", overwrite=True, is_ours=is_ours) as staging:
        (staging / OURS).write_text("new")
    assert snapshot(tmp_path) == {"out": None, f"out/{OURS}": "new"}


def test_overwrite_accepts_an_empty_folder_and_an_unused_path(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "free"):
        with staged_folder(tmp_path / name, overwrite=True, is_ours=is_ours) as staging:
            (staging / OURS).write_text("new")
        assert (tmp_path / name / OURS).read_text() == "new"


@pytest.mark.parametrize("holds", [True, False])
def test_an_existing_folder_is_rejected(tmp_path: Path, holds: bool) -> None:
    target = tmp_path / "out"
    target.mkdir()
    if holds:
        (target / OURS).write_text("old")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"exists already.*--overwrite"), staged_folder(target, False, is_ours):
        pytest.fail("the block must not run")
    assert snapshot(tmp_path) == before


def test_overwrite_leaves_a_foreign_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("years")
    (tmp_path / "home" / OURS).mkdir()  # a folder of that name does not make it ours
    before = snapshot(tmp_path)
    with (
        pytest.raises(UserError, match="was not written by this command"),
        staged_folder(tmp_path / "home", True, is_ours),
    ):
        pytest.fail("the block must not run")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "link to our folder", "dangling link"])
def test_files_and_links_are_rejected(tmp_path: Path, overwrite: bool, kind: str) -> None:
    target = tmp_path / "out"
    real = make_ours(tmp_path / "real")
    if kind == "file":
        target.write_text("a file")
    else:
        target.symlink_to(real if kind == "link to our folder" else tmp_path / "nowhere")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="out"), staged_folder(target, overwrite, is_ours):
        pytest.fail("the block must not run")
    assert snapshot(tmp_path) == before
    assert (real / OURS).read_text() == "old"
    assert target.is_symlink() == (kind != "file")


def test_a_folder_written_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UserError, match="exists already"), staged_folder(target, False, is_ours):
        make_ours(target, "theirs")
    assert snapshot(tmp_path) == {"out": None, f"out/{OURS}": "theirs"}


def write_both(slow: Path, target: Path) -> None:
    with staged_folder(target, False, is_ours) as fast:
        (slow / OURS).write_text("slow")
        (fast / OURS).write_text("fast")


def test_two_concurrent_blocks_for_one_path_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UserError, match="exists already"), staged_folder(target, False, is_ours) as slow:
        write_both(slow, target)
    assert snapshot(tmp_path) == {"out": None, f"out/{OURS}": "fast"}


def test_a_relative_path_is_resolved_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with staged_folder(Path("out"), overwrite=False, is_ours=is_ours) as staging:
        (staging / OURS).write_text("new")
        os.chdir(tmp_path / "elsewhere")  # the destination was resolved at the start
    assert (tmp_path / "out" / OURS).read_text() == "new"


def test_a_finished_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    # Temporary folders are private; an output folder should follow the umask.
    mask = os.umask(0o027)
    try:
        with staged_folder(tmp_path / "out", overwrite=False, is_ours=is_ours):
            pass
        (tmp_path / "plain").mkdir()
        assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    finally:
        assert os.umask(mask) == 0o027  # read, not changed


@pytest.mark.parametrize("name", ["out", "out/log.csv", "out/raw/log.csv", "link.csv"])
def test_a_folder_that_holds_an_input_is_not_replaced(tmp_path: Path, name: str) -> None:
    target = make_ours(tmp_path / "out")
    (target / "raw").mkdir()
    for file in ("log.csv", "raw/log.csv"):
        (target / file).write_text("rows")
    (tmp_path / "link.csv").symlink_to(target / "log.csv")
    inputs = [tmp_path / "elsewhere", tmp_path / name]
    with pytest.raises(UserError, match=f"holds {tmp_path / name}, which this command reads"):
        check_output(target, True, is_ours, inputs)
    check_output(target, True, is_ours, [tmp_path / "out2"])


@pytest.mark.parametrize("output", ["logs/out", "logs/new/out", "link/out"])
def test_an_output_inside_an_input_is_rejected(tmp_path: Path, output: str) -> None:
    # The next run would read the output of this one.
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to("logs")
    with pytest.raises(UserError, match=f"lies in {tmp_path / 'logs'}, which this command reads"):
        check_outside(tmp_path / output, [tmp_path / "elsewhere", tmp_path / "logs"])
    check_outside(tmp_path / "logs-out", [tmp_path / "logs"])


def test_the_folder_of_a_running_block_is_not_swept(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a", overwrite=False, is_ours=is_ours) as first:
        (first / OURS).write_text("first")
        with pytest.raises(ValueError, match="half"):
            write_half(tmp_path / "a", overwrite=False, error=ValueError("half"))
        assert (first / OURS).read_text() == "first"
    assert snapshot(tmp_path) == {"a": None, f"a/{OURS}": "first"}


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "null", '{"a"}', "[" * 100_000, "\0"])
def test_json_that_is_not_an_object_reads_as_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert read_json(tmp_path / "a.json") == {}
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    assert read_json(tmp_path / "a.json") == {}


def test_an_existing_json_object_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    assert read_json(tmp_path / "gone.json") == {}
    assert read_json(tmp_path) == {}


def test_check_output_accepts_an_unused_path(tmp_path: Path) -> None:
    check_output(tmp_path / "free", overwrite=False, is_ours=is_ours)
    check_output(tmp_path / "free", overwrite=True, is_ours=is_ours)
    assert snapshot(tmp_path) == {}


def test_json_is_written_atomically(tmp_path: Path) -> None:
    value = {"users": 3, "nested": {"list": [1, 2.5, None, "ü"]}}
    write_json(tmp_path / "a.json", {"old": True})
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"not json": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == value
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_replace_file_keeps_the_old_file_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model"
    replace_file(file, b"old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"model could not be written: No space left.* MiB are free in"):
            replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"


def test_json_has_null_for_numbers_that_it_lacks(tmp_path: Path) -> None:
    numbers = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, 2)], "c": {"d": np.float64("nan")}, "e": "NaN"}
    write_json(tmp_path / "x.json", numbers)
    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": None}, "e": "NaN"}
