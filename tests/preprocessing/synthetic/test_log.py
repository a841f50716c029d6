"""Synthetic logs have exactly the requested shape, MovieLens-like tails, and the same bytes for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.synthetic import log, rows
from preprocessing.synthetic.log import Ids, Shape, parse_shape, write_log
from workflows.common.errors import UserError


@pytest.fixture
def little_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks and buckets so small that a small log has many."""
    monkeypatch.setattr(rows, "_BLOCK_ROWS", 5_000)
    monkeypatch.setattr(log, "_BUCKET_ROWS", 7_000)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    users, items = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    return Shape(users, items, draw(st.integers(max(users, items), users * items)))


def test_shapes_are_parsed_by_name_and_by_numbers() -> None:
    assert parse_shape("ml-20m") == Shape(138_493, 26_744, 20_000_263)
    assert parse_shape("small").rows == 100_000
    assert parse_shape("3x5x15") == Shape(3, 5, 15)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ml-21m", "ml-20m"),
        ("", "USERSxITEMSxROWS"),
        ("3x5", "USERSxITEMSxROWS"),
        ("3x5x-15", "USERSxITEMSxROWS"),
        ("3x5x15\n", "USERSxITEMSxROWS"),
        ("0x5x5", "1 to"),
        ("3x5x16", "5 to 15 rows"),  # more rows than pairs
        ("3x5x4", "5 to 15 rows"),  # some item would not occur
        ("999999999x5x999999999", "100,000,000"),
    ],
)
def test_invalid_shapes_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_shape(text)


@given(shapes(), st.integers(0, 5), st.booleans())
def test_a_log_has_exactly_the_rows_users_and_items_of_its_shape(
    fresh: Callable[[], Path], shape: Shape, seed: int, shuffled: bool
) -> None:
    path = fresh() / "log.csv"
    write_log(shape, path, seed, shuffled=shuffled)
    log = pd.read_csv(path)
    assert list(log) == ["userId", "movieId", "rating", "timestamp"]
    assert len(log) == len(log[["userId", "movieId"]].drop_duplicates()) == shape.rows
    assert set(log["userId"]) == set(range(1, shape.users + 1))
    assert log["movieId"].nunique() == shape.items
    assert log["userId"].value_counts().min() >= min(20, shape.rows // shape.users)
    assert log["rating"].isin(np.arange(1, 11) / 2).all()
    assert log["timestamp"].between(789_652_009, 1_427_784_002).all()
    assert [path] == list(path.parent.iterdir())


def test_tails_and_ties_resemble_movielens(tmp_path: Path) -> None:
    write_log(Shape(3_000, 2_000, 400_000), tmp_path / "log.csv", 1)
    log = pd.read_csv(tmp_path / "log.csv")
    users, items = log["userId"].value_counts(), log["movieId"].value_counts()
    assert users.min() == 20
    assert users.mean() > 1.5 * users.median()
    assert items.iloc[:200].sum() > 0.4 * len(log)  # the top tenth of items
    assert items.iloc[-1000:].sum() < 0.1 * len(log)  # the bottom half
    assert 0.01 < log.duplicated(["userId", "timestamp"]).mean() < 0.3


@pytest.mark.usefixtures("little_blocks")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_log(Shape(500, 300, 20_000), tmp_path / name, seed)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.usefixtures("little_blocks")
def test_sorted_logs_are_by_user_then_time_and_shuffled_logs_have_the_same_rows(tmp_path: Path) -> None:
    shape = Shape(500, 300, 40_000)
    write_log(shape, tmp_path / "sorted.csv", 1, shuffled=False)
    write_log(shape, tmp_path / "shuffled.csv", 1, shuffled=True)
    ordered, mixed = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("sorted", "shuffled"))
    by_time = ordered.sort_values(["userId", "timestamp"], kind="stable")
    pd.testing.assert_frame_equal(ordered, by_time)
    columns = list(ordered)
    pd.testing.assert_frame_equal(
        ordered.sort_values(columns, ignore_index=True), mixed.sort_values(columns, ignore_index=True)
    )
    # In random order, every tenth of the file has a tenth of the low-numbered users' rows.
    low = (mixed["userId"].to_numpy() <= 250).reshape(10, -1)
    shares, share = low.mean(axis=1), low.mean()
    assert (np.abs(shares - share) < 5 * np.sqrt(share * (1 - share) / low.shape[1])).all()
    neighbours = (np.diff(mixed["userId"]) == 0).mean()
    expected = ((mixed["userId"].value_counts() / shape.rows) ** 2).sum()
    assert neighbours < 2 * expected


def test_item_ids_do_not_correlate_with_time(tmp_path: Path) -> None:
    write_log(Shape(100, 300, 10_000), tmp_path / "log.csv", 1, shuffled=False)
    log = pd.read_csv(tmp_path / "log.csv")
    same_user = np.diff(log["userId"]) == 0
    assert 0.45 < (np.diff(log["movieId"])[same_user] > 0).mean() < 0.55


@pytest.mark.parametrize("ids", ["text", "int64"])
def test_other_id_types_encode_the_same_users_and_items(tmp_path: Path, ids: Ids) -> None:
    shape = Shape(200, 100, 5_000)
    write_log(shape, tmp_path / "int.csv", 1)
    write_log(shape, tmp_path / "other.csv", 1, ids=ids)
    plain, other = pd.read_csv(tmp_path / "int.csv"), pd.read_csv(tmp_path / "other.csv")
    assert (plain[["rating", "timestamp"]] == other[["rating", "timestamp"]]).all(axis=None)
    for name, number in (("userId", shape.users), ("movieId", shape.items)):
        pairs = pd.DataFrame({"plain": plain[name], "other": other[name]}).drop_duplicates()
        assert len(pairs) == pairs["plain"].nunique() == pairs["other"].nunique() == number
    if ids == "text":
        assert other["userId"].str.fullmatch("u[0-9a-f]{16}").all()
    else:
        assert other["userId"].dtype == np.int64
        assert other["userId"].abs().max() > 2**60


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.usefixtures("little_blocks")
def test_progress_adds_up_to_the_number_of_rows(tmp_path: Path, shuffled: bool) -> None:
    steps: list[float] = []
    write_log(Shape(500, 300, 20_000), tmp_path / "log.csv", 1, shuffled=shuffled, progress=steps.append)
    assert sum(steps) == 20_000
    assert len(steps) > 3


def test_the_buckets_of_an_interrupted_log_are_removed(tmp_path: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_log(Shape(20, 30, 400), tmp_path / "log.csv", 1, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
