from __future__ import annotations

import pytest

from preprocessing.arguments import parse_args
from workflows.common.errors import UserError

_LOG = ["--input", "a", "--output", "b"]


def test_help_lists_all_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    lines = (line.strip() for line in capsys.readouterr().out.splitlines())
    words = {word.strip(",") for line in lines if line.startswith("-") for word in line.split("  ")[0].split()}
    assert {word for word in words if word.startswith("-")} == {
        "-h", "--help",
        "--sample", "--input", "--synthetic", "--check", "--raw", "--features", "--workflow", "--extend",
        "--user", "--item", "--time", "--rating", "--columns", "--min-rating", "--strict",
        "--order", "--text-ids", "--time-format", "--delimiter", "--quoting", "--encoding", "--comment",
        "--output", "--overwrite",
        "--test-negatives", "--valid_negative", "--train-negatives", "--negatives", "--popularity-exponent",
        "--time-aware", "-s", "--seed",
        "--feature_spec_in", "--feature_spec_out", "--emit",
        "--device", "--partitions", "--memory-limit", "--workers", "--scheduler",
    }  # fmt: skip


def test_the_references_flag_spellings_and_the_defaults() -> None:
    args = parse_args([*_LOG, "--valid_negative", "7", "-s", "3"])
    assert (args.test_negatives, args.seed) == (7, 3)
    defaults = parse_args(_LOG)
    assert (defaults.test_negatives, defaults.train_negatives, defaults.seed) == (100, 0, 1)
    assert (defaults.negatives, defaults.popularity_exponent, defaults.time_aware) == ("exact", 0.75, False)
    assert (defaults.workers, defaults.scheduler, defaults.partitions, defaults.memory_limit) == (None,) * 4


def test_several_inputs_column_names_and_sizes() -> None:
    args = parse_args(["--input", "a", "b*.csv", "--output", "c", "--columns", "u,i,t", "--memory-limit", "1.5GiB"])
    assert args.input == ["a", "b*.csv"]
    assert args.columns == ["u", "i", "t"]
    assert args.memory_limit == 3 << 29


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--output", "b"],
        ["--input", "--output", "b"],
        [*_LOG, "--sample", "ml-100k"],
        [*_LOG, "--synthetic", "small"],
        [*_LOG, "--check", "c"],
        [*_LOG, "--workers", "2", "--scheduler", "h:1"],
        ["--sample", "ml-32m", "--output", "b"],
        [*_LOG, "--over"],  # no abbreviations
        [*_LOG, "--seed", "x"],
        [*_LOG, "--negatives", "popular"],
        [*_LOG, "--emit", "csv"],
        [*_LOG, "--memory-limit", "lots"],
        [*_LOG, "--device", "gpu"],
    ],
)
def test_wrong_usage_exits_with_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err.lower()


def test_an_invalid_size_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args([*_LOG, "--memory-limit", "lots"])
    assert "'lots' is not a size; expected one such as 1GiB" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--input", "a"], ["--output DIR is missing"]),
        (["--synthetic", "small"], ["--output DIR is missing"]),
        ([*_LOG, "--raw", "r.csv"], ["--raw is for --synthetic", "leave out --output"]),
        (["--synthetic", "small", "--raw", "r.csv", "--output", "b"], ["leave out --output"]),
        ([*_LOG, "--features"], ["--features is for --sample"]),
        ([*_LOG, "--extend"], ["--extend needs --workflow"]),
        ([*_LOG, "--workers", "0"], ["--workers should be 1 or more, got 0"]),
        ([*_LOG, "--partitions", "0"], ["--partitions should be 1 .. 8192, got 0"]),
        ([*_LOG, "--partitions", "8193"], ["--partitions should be 1 .. 8192, got 8193"]),
        ([*_LOG, "--memory-limit", "1g", "--scheduler", "h:1"], ["--memory-limit", "--scheduler"]),
        (["--input", "a", "--extend", "--workers", "-1"], ["--output", "--extend", "--workers"]),  # all at once
    ],
)
def test_impossible_combinations_are_reported_together(argv: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_args(argv)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--check", "x", "--emit", "parquet"], "--emit: not for --check"),
        (["--synthetic", "small", "--output", "y", "--text-ids"], "--text-ids: not for --synthetic"),
        (["--sample", "ml-100k", "--output", "y", "--delimiter", ";"], "--delimiter: not for --sample"),
        (["--check", "x", "--output", "y", "--negatives", "uniform"], "--negatives, --output: not for --check"),
        (["--synthetic", "small", "--raw", "x.csv", "--min-rating", "3"], "--min-rating: not for --raw"),
        (["--input", "x.csv", "--output", "y", "--emit", "parquet"], "--emit: not for preparing a log"),
        (
            ["--input", "x", "--output", "y", "--feature_spec_in", "z", "--workers", "2"],
            "--workers: not for transcoding",
        ),
        (["--input", "x", "--output", "y", "--feature_spec_in", "z", "-s", "7"], "--seed: not for transcoding"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(argv: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        parse_args(argv)
