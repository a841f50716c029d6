from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import preprocessing.__main__
from preprocessing.__main__ import main
from workflows.common.errors import UserError

_ROOT = Path(__file__).parents[2]
_GOOD = "user,item,time\n1,1,1\n1,2,2\n2,1,1\n2,3,2\n"

pytestmark = pytest.mark.usefixtures("forked")


# name → (file to write, its content, extra flags, parts of the message)
_BAD: dict[str, tuple[str, bytes, list[str], list[str]]] = {
    "missing column": ("log.csv", b"user,thing,time\n1,2,3\n", [], ["log.csv", "'thing'", "--item"]),
    "named column": (
        "log.csv",
        _GOOD.encode(),
        ["--user", "who", "--item", "item", "--time", "time"],
        ["log.csv", "no column 'who'", "'user'", "--user"],
    ),
    "empty": ("log.csv", b"", [], ["log.csv", "empty", "expected"]),
    "header only": ("log.csv", b"user,item,time\n", [], ["log.csv", "no rows", "expected"]),
    "text for an id": ("log.csv", _GOOD.encode() + b"ann,1,1\n", [], ["log.csv, line 6", "'user'", "'ann'", "fix"]),
    "text in u.data": ("u.data", b"1\t2\t3\t4\nx\t2\t3\t4\n", [], ["u.data, line 2", "'userId'", "'x'", "fix"]),
    "text in ratings.dat": ("ratings.dat", b"1::2::3::4\n1::y::3::4\n", [], ["ratings.dat, line 2", "'y'", "fix"]),
    "too few columns": ("log.csv", _GOOD.encode() + b"3,1\n", [], ["log.csv, line 6", "expected 3", "got 2", "fix"]),
    "not UTF-8, too many columns": (
        "log.csv",
        b"user,item,time\n1,2,3\n1,2,3,\xff\n",
        [],
        ["log.csv", "got 4", "encoding"],
    ),
    "garbage": ("log.csv", bytes(range(256)) * 4, [], ["log.csv", "not a UTF-8 text file", "expected"]),
    "no zip": ("log.zip", b"PK\x03\x04 and no more", [], ["log.zip", "not a readable zip", "download"]),
    "no parquet": ("log.parquet", b"PAR1 and no more", [], ["log.parquet", "not a readable Parquet", "complete"]),
    "no rating": ("log.csv", _GOOD.encode(), ["--min-rating", "3"], ["log.csv", "time and rating?", "--rating"]),
    "unnamed rating": (
        "log.csv",
        _GOOD.encode(),
        ["--user", "user", "--item", "item", "--time", "time", "--min-rating", "3"],
        ["--min-rating", "name it with --rating"],
    ),
    "dates for a rating": (
        "log.csv",
        b"user,item,time,rating\n1,1,1,2020-01-01\n1,2,2,2020-01-02\n",
        ["--min-rating", "3"],
        ["log.csv, line 2", "'rating'", "a number", "'2020-01-01'"],
    ),
    "one column twice": (
        "log.csv",
        _GOOD.encode(),
        ["--user", "user", "--item", "user", "--time", "time"],
        ["--user, --item, --time and --rating", "different columns"],
    ),
    "one name twice": ("log.csv", b"user,item,item,time\n1,2,3,4\n", [], ["log.csv", "'item'", "more than once"]),
    "blank lines only": ("log.csv", b"user,item,time\n\n\n", [], ["log.csv", "no rows", "expected"]),
    "blank rows only": ("log.csv", b"user,item,time\n,,\n,,\n", [], ["of 2 rows, 2 lack a user, item or time"]),
    "strict": (
        "log.csv",
        _GOOD.encode() + b"\n3,,1\n3,1,\n",
        ["--strict"],
        ["log.csv, line 7", "'item' is empty", "--strict", "fill it"],
    ),
    "workers' memory": (
        "log.csv",
        _GOOD.encode(),
        ["--workers", "3", "--memory-limit", "1MiB"],
        ["3 worker processes"],
    ),
    "no memory": ("log.csv", _GOOD.encode(), ["--memory-limit", "1MiB"], ["--memory-limit of 1 MiB is too little"]),
    "emit of a log": ("log.csv", _GOOD.encode(), ["--emit", "torch_tensor"], ["--emit", "prepare it first"]),
    "no workflow": ("log.csv", _GOOD.encode(), ["--workflow", "nowhere"], ["nowhere", "no folder prepared from a log"]),
    "nothing left": (
        "u.data",
        b"1\t2\t3\t4\n1\t3\t3\t4\n",
        ["--min-rating", "4"],
        ["no rows are left to train on: of 2 rows", "2 are rated below --min-rating"],
    ),
}


def _bad_input(folder: Path, case: str) -> tuple[list[str], list[str]]:
    name, content, flags, message = _BAD[case]
    (folder / name).write_bytes(content)
    return ["--input", str(folder / name), *flags], message


def _entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("case", list(_BAD))
def test_bad_input_is_explained_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    argv, parts = _bad_input(tmp_path, case)
    before = _entries(tmp_path)
    with pytest.raises(UserError) as caught:
        main([*argv, "--output", str(tmp_path / "new" / "below" / "out"), "--device", "cpu"])
    for part in parts:
        assert part in str(caught.value)
    assert _entries(tmp_path) == before


@pytest.mark.parametrize("kept", [None, 0, 3000])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_log_that_shrinks_or_vanishes_while_it_is_read_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, kept: int | None
) -> None:
    log = tmp_path / f"log.{suffix}"
    rows = [{"user": time % 50, "item": time % 70, "time": time} for time in range(1000)]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), log)
    elif suffix == "jsonl":
        log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        log.write_text("user,item,time\n" + "".join(f"{','.join(map(str, row.values()))}\n" for row in rows))
    partition_log = preprocessing.__main__.partition_log

    def shrinks(*given: Any) -> Any:
        log.unlink() if kept is None else os.truncate(log, kept)
        return partition_log(*given)

    monkeypatch.setattr(preprocessing.__main__, "partition_log", shrinks)
    with pytest.raises((UserError, FileNotFoundError), match=re.escape(str(log))):
        main(["--input", str(log), "--output", str(tmp_path / "out")])
    assert _entries(tmp_path) <= {log.name}


def test_a_missing_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv does not exist"):
        main(["--input", str(tmp_path / "gone.csv"), "--output", str(tmp_path / "out")])
    assert not _entries(tmp_path)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["--user", "user"], "--user and --item"),
        (["--item", "item", "--time", "time"], "--user and --item"),
        (["--rating", "rating", "--order", "file"], "--user and --item"),
        (["--user", "user", "--item", "item"], "--time.*--order file or --order random"),
        (
            ["--user", "user", "--item", "item", "--time", "time", "--order", "file"],
            "place of times; leave out --time, or",
        ),
        (["--time-format", "%Y", "--order", "random"], "place of times; leave out --time-format, or --order"),
        (["--order", "file", "--time-aware"], "--time-aware needs times"),
        (["--order", "random", "--time-aware"], "--time-aware needs times"),
    ],
)
def test_columns_must_be_named_all_or_none_and_have_one_order(tmp_path: Path, named: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["--input", str(tmp_path), "--output", str(tmp_path / "out"), *named])


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**30])
@pytest.mark.parametrize("action", ["--output", "--raw"])
def test_seeds_have_one_bound(tmp_path: Path, seed: int, action: str) -> None:
    flags = ["--synthetic", "20x30x90", action, str(tmp_path / "out"), "-s", str(seed)]
    with pytest.raises(UserError, match=rf"--seed should be 0 \.\. 2\^63-1 \(9223372036854775807\), got {seed}"):
        main(flags)
    assert not _entries(tmp_path)


def test_the_greatest_seed_works(tmp_path: Path) -> None:
    main(["--synthetic", "20x30x90", "--raw", str(tmp_path / "log.csv"), "-s", str(2**63 - 1)])
    main(["--input", str(tmp_path / "log.csv"), "--output", str(tmp_path / "out"), "-s", str(2**63 - 1)])


def test_columns_cannot_be_named_for_the_sample(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for --input"):
        main(["--sample", "ml-100k", "--output", str(tmp_path / "out"), "--user", "u", "--item", "i", "--time", "t"])


@pytest.mark.parametrize("what", ["file", "empty folder", "folder", "link"])
def test_an_existing_output_is_kept_without_overwrite(tmp_path: Path, what: str) -> None:
    (tmp_path / "log.csv").write_text(_GOOD)
    output = tmp_path / "out"
    if what == "file":
        output.write_text("precious")
    elif what == "link":
        output.symlink_to(tmp_path / "nowhere")
    else:
        output.mkdir()
        if what == "folder":
            (output / "stats.json").write_text("precious")
    before = _entries(tmp_path)
    with pytest.raises(UserError, match=r"out exists already.*--overwrite"):
        main(["--input", str(tmp_path / "log.csv"), "--output", str(output), "--device", "cpu"])
    assert _entries(tmp_path) == before


@pytest.mark.parametrize("what", ["file", "folder", "folder with stats.json", "link"])
def test_overwrite_does_not_replace_foreign_files_or_folders(tmp_path: Path, what: str) -> None:
    (tmp_path / "log.csv").write_text(_GOOD)
    output = tmp_path / "out"
    if what == "file":
        output.write_text("precious")
    else:
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "precious").write_text("precious")
        if what == "folder with stats.json":  # a common file name
            (tmp_path / "theirs" / "stats.json").write_text('{"users": 3, "seed": 1}')
        output.symlink_to("theirs") if what == "link" else (tmp_path / "theirs").rename(output)
    before = _entries(tmp_path)
    with pytest.raises(UserError, match=r"out .*--overwrite leaves it alone"):
        main(["--input", str(tmp_path / "log.csv"), "--output", str(output), "--device", "cpu", "--overwrite"])
    assert _entries(tmp_path) == before


def test_a_failed_overwrite_keeps_the_old_folder(
    tmp_path: Path, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    log, output = tmp_path / "log.csv", tmp_path / "out"
    log.write_text(_GOOD)
    output.mkdir()  # an empty folder may be replaced
    argv = ["--input", str(log), "--output", str(output), "--device", "cpu", "--overwrite"]
    main(argv)
    content = folder_bytes(tmp_path)
    log.write_text(_GOOD + "3,x,1\n")
    with pytest.raises(UserError, match="line 6"):
        main(argv)
    log.write_text(_GOOD)
    assert folder_bytes(tmp_path) == content


@pytest.mark.parametrize("inside", ["log.csv", "raw/log.csv"])
def test_an_output_that_contains_the_input_is_kept(tmp_path: Path, inside: str) -> None:
    (tmp_path / "first.csv").write_text(_GOOD)
    output = tmp_path / "out"
    main(["--input", str(tmp_path / "first.csv"), "--output", str(output), "--device", "cpu"])
    log = output / inside
    log.parent.mkdir(exist_ok=True)
    log.write_text(_GOOD)
    before = _entries(tmp_path)
    with pytest.raises(UserError, match=r"out holds .*log\.csv, which this command reads"):
        main(["--input", str(log), "--output", str(output), "--device", "cpu", "--overwrite"])
    assert _entries(tmp_path) == before


def test_dropped_rows_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time,rating\n1,1,1,5\n1,2,2,5\n2,1,1,5\n2,3,2,5\n2,3,3,5\n,1,1,5\n1,3,4,2\n")
    argv = ["--input", str(log), "--device", "cpu", "--output"]
    main([*argv, str(tmp_path / "a"), "--min-rating", "3"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "left out of 7 rows: missing 1, below min rating 1, duplicates 1"
    log.write_text(_GOOD)
    main([*argv, str(tmp_path / "b")])
    assert "left out" not in capsys.readouterr().out


def _run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    temporary = folder / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "preprocessing", *argv, "--device", "cpu"],
        cwd=_ROOT,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not list(temporary.iterdir())
    temporary.rmdir()
    return done


def _assert_refused(done: subprocess.CompletedProcess[str], parts: list[str]) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    for part in parts:
        assert part in done.stderr


def test_help_is_fast_because_it_does_not_import_merlin() -> None:
    code = "import sys, preprocessing.__main__ as command\ntry: command.main(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "preprocessing.arguments" in loaded
    assert not loaded & {"nvtabular", "merlin", "torch", "workflows.merlin", "dask.dataframe", "distributed"}


@pytest.mark.parametrize("case", ["text for an id", "no zip"])
def test_the_command_refuses_bad_input_with_status_2(tmp_path: Path, case: str) -> None:
    argv, parts = _bad_input(tmp_path, case)
    before = _entries(tmp_path)
    _assert_refused(_run(tmp_path, *argv, "--output", str(tmp_path / "out")), parts)
    assert _entries(tmp_path) == before


def test_the_command_refuses_an_output_it_cannot_write_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(_GOOD)
    done = _run(tmp_path, "--input", str(tmp_path / "log.csv"), "--output", str(tmp_path / "log.csv" / "out"))
    _assert_refused(done, ["log.csv"])
    assert _entries(tmp_path) == {"log.csv"}


def test_the_command_prepares_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml.zip", "w", zipfile.ZIP_DEFLATED) as file:
        rows = [f"{user},{item},3.5,{user * item}\n" for user in range(1, 6) for item in range(1, 4 + user)]
        file.writestr("ml/ratings.csv", "userId,movieId,rating,timestamp\n" + "".join(rows))
        file.writestr("ml/movies.csv", 'movieId,title,genres\n1,"One, the (1990)",x\n')
    done = _run(tmp_path, "--input", str(tmp_path / "ml.zip"), "--output", str(tmp_path / "new" / "out"))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "5 users × 8 items, 30 interactions" in done.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    titles = pq.read_table(tmp_path / "new" / "out" / "titles.parquet")
    assert titles == pa.table({"item": ["1"], "title": ["One, the (1990)"]})


def _signalled(log: Path, output: Path, number: signal.Signals, moment: str) -> int:
    """Prepare in a separate process and signal it once its staging folder (or `moment` in it) exists."""
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocessing", "--input", str(log), "--output", str(output), "--device", "cpu"],
        cwd=_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(output.parent.glob(f".out.*.partial/out/{moment}")):
            assert process.poll() is None, "the process ended before the signal"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert b"Traceback" not in err, err.decode()
    return process.returncode


@pytest.fixture(scope="module")
def large_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that takes seconds to prepare, in pieces that take milliseconds each."""
    rows = 1_500_000
    rng = np.random.default_rng(0)
    columns = {"user": rng.integers(0, 20_000, rows), "item": rng.integers(0, 5_000, rows), "time": np.arange(rows)}
    path = tmp_path_factory.mktemp("large") / "log.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=20_000)
    return path


@pytest.mark.parametrize("moment", ["", ".spill/0*", "train/*"], ids=["at the start", "reading", "writing"])
def test_sigterm_leaves_no_files(tmp_path: Path, large_log: Path, moment: str) -> None:
    assert _signalled(large_log, tmp_path / "new" / "out", signal.SIGTERM, moment) == 143
    assert _entries(tmp_path) == set()


def test_leftovers_of_a_killed_run_are_removed_by_the_next(tmp_path: Path, large_log: Path) -> None:
    assert _signalled(large_log, tmp_path / "out", signal.SIGKILL, ".spill/0*") == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    (tmp_path / "log.csv").write_text(_GOOD)
    main(["--input", str(tmp_path / "log.csv"), "--output", str(tmp_path / "out"), "--device", "cpu"])
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "out"}
