from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.__main__ import main
from preprocessing.spec.feature_spec import read_feature_spec
from preprocessing.spec.reader import read_mapping
from workflows.common.errors import UserError
from workflows.device.loops import COMPILED_ROWS

Prepare = Callable[..., Path]
Files = Callable[[Path, str], list[pd.DataFrame]]

_IDS = st.one_of(
    st.just(lambda n: n),
    st.just(lambda n: n * 2**40 - 2**41),  # negative and beyond 32 bits
    st.just(lambda n: 'ßeta,"a" zß'[n % 8 :] + chr(0x1F600 - 997 * n)),  # code points not in alphabetical order
)


@st.composite
def _logs(draw: st.DrawFn) -> pd.DataFrame:
    """A small dense log with many duplicates, equal times, and users with one or all items."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    row = st.tuples(
        st.integers(0, n_users - 1),
        st.integers(0, n_items - 1),
        st.integers(-3, 6),
        st.integers(1, 5),
        st.integers(0, 19),
    )
    rows = draw(st.lists(row, min_size=1, max_size=50))
    user_of, item_of = draw(_IDS), draw(_IDS)
    columns: dict[str, list[Any]] = {"user": [], "item": [], "time": [], "rating": []}
    for user, item, time, rating, gap in rows:
        values = {"user": user_of(user), "item": item_of(item), "time": time, "rating": float(rating)}
        for place, name in enumerate(columns):
            columns[name].append(None if place == gap else values[name])
    return pd.DataFrame(columns, dtype=object)


def _write(log: pd.DataFrame, path: Path, kind: str) -> Path:
    if kind == "csv":
        log.to_csv(path, index=False)
    else:
        columns = {name: pa.array(log[name].tolist()) for name in log}
        pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def _reference(log: pd.DataFrame, min_rating: float | None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Plain pandas reference: (interactions (user, item, held_out) as encoded ids by user and time, counts)."""
    wanted = ["user", "item", "time"] + (["rating"] if min_rating is not None else [])
    kept = log.dropna(subset=wanted)
    counts = {"rows_read": len(log), "dropped_missing": len(log) - len(kept), "dropped_below_min_rating": 0}
    if min_rating is not None:
        enough = kept[kept["rating"].astype(float) >= min_rating]
        counts["dropped_below_min_rating"] = len(kept) - len(enough)
        kept = enough
    first = kept.groupby(["user", "item"], as_index=False)["time"].min()
    counts["dropped_duplicates"] = len(kept) - len(first)
    for name in ("user", "item"):
        rank = {original: place for place, original in enumerate(sorted(first[name].unique()))}
        first[name] = first[name].map(rank).astype(int)
    first = first.sort_values(["user", "time", "item"]).reset_index(drop=True)
    size = first.groupby("user")["item"].transform("size")
    is_last = ~first["user"].duplicated(keep="last")
    first["held_out"] = is_last & (size >= 2) & (size < first["item"].nunique())
    return first, counts


def _sorted_by_user(files: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows, stably sorted by user."""
    rows = pd.concat(files) if files else pd.DataFrame({"user": [], "item": [], "label": []}).astype(int)
    return rows.sort_values("user", kind="stable").reset_index(drop=True)


def _check_train(files: list[pd.DataFrame], expected: pd.DataFrame, n_items: int, per_positive: int) -> None:
    for part in files:
        assert part["user"].is_monotonic_increasing
    train = _sorted_by_user(files)
    kept = expected[~expected["held_out"]]
    positives = train[train["label"] == 1]
    assert positives[["user", "item"]].to_numpy().tolist() == kept[["user", "item"]].to_numpy().tolist()
    for user, rows in train.groupby("user"):
        own = set(kept["item"][kept["user"] == user])
        if len(own) == n_items:  # no negatives exist
            assert (rows["label"] == 1).all()
            continue
        labels = rows["label"].to_numpy().reshape(-1, 1 + per_positive)
        assert (labels[:, 0] == 1).all()
        assert (labels[:, 1:] == 0).all()
        negatives = rows["item"][rows["label"] == 0]
        assert not own & set(negatives)
        assert negatives.between(0, n_items - 1).all()


def _check_test(files: list[pd.DataFrame], expected: pd.DataFrame, n_items: int, negatives: int) -> int:
    """Check the test rows; returns the number of series with repeats."""
    for part in files:
        assert part["user"].is_monotonic_increasing
    test = _sorted_by_user(files)
    width = 1 + negatives
    assert len(test) % width == 0
    users, items, labels = (test[name].to_numpy().reshape(-1, width) for name in ("user", "item", "label"))
    held_out = expected[expected["held_out"]]
    assert users[:, 0].tolist() == held_out["user"].tolist()
    assert (users == users[:, :1]).all()
    assert items[:, 0].tolist() == held_out["item"].tolist()
    assert (labels == [1] + [0] * negatives).all()
    repeated = 0
    for user, row in zip(users[:, 0], items[:, 1:], strict=True):
        unseen = set(range(n_items)) - set(expected["item"][expected["user"] == user])
        assert set(row) <= unseen
        assert len(set(row)) == min(negatives, len(unseen))
        repeated += len(unseen) < negatives
    return repeated


def _check_folder(folder: Path) -> dict[str, Any]:
    """Check that the spec lists exactly the existing data files; returns the stats."""
    spec = read_feature_spec(folder)
    listed = {name for chunks in spec.source_spec.values() for chunk in chunks for name in chunk.files}
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith(("train/", "test/"))} == listed
    others = {"feature_spec.yaml", "stats.json", "report.html", "categories/user.parquet", "categories/item.parquet"}
    assert names - listed - {"titles.parquet"} == others | {"workflow/workflow.json"}
    assert spec.channel_spec == {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]}
    stats = json.loads((folder / "stats.json").read_text())
    assert (spec.cardinality("user"), spec.cardinality("item")) == (stats["users"], stats["items"])
    assert spec.metadata.test_samples_per_series == 1 + stats["test_negatives"]
    assert spec.metadata.train_negatives == stats["train_negatives"]
    assert spec.metadata.time_ordered
    for name in listed:
        assert pq.read_schema(folder / name).types == [pa.int32(), pa.int32(), pa.float32()]
        assert pq.read_metadata(folder / name).num_rows
    return stats


@settings(max_examples=30, deadline=None)
@given(
    log=_logs(),
    kind=st.sampled_from(["csv", "parquet"]),
    min_rating=st.sampled_from([None, None, 2.0, 3.5]),
    test_negatives=st.sampled_from([0, 1, 3, 100]),
    train_negatives=st.sampled_from([0, 0, 1, 4]),
    partitions=st.sampled_from([1, 2, 5]),
)
def test_random_logs_match_a_pandas_reference(
    fresh: Callable[[], Path],
    prepare_log: Prepare,
    mapping_files: Files,
    log: pd.DataFrame,
    kind: str,
    min_rating: float | None,
    test_negatives: int,
    train_negatives: int,
    partitions: int,
) -> None:
    expected, counts = _reference(log, min_rating)
    path = _write(log, fresh() / "log", kind)
    flags = ["--test-negatives", str(test_negatives), "--train-negatives", str(train_negatives)]
    flags += ["--partitions", str(partitions), "--user", "user", "--item", "item", "--time", "time"]
    flags += [] if min_rating is None else ["--rating", "rating", "--min-rating", str(min_rating)]
    if expected.empty:
        with pytest.raises(UserError):
            prepare_log(path, *flags)
        return
    folder = prepare_log(path, *flags)
    stats = _check_folder(folder)
    n_items = expected["item"].nunique()
    train, test = mapping_files(folder, "train"), mapping_files(folder, "test")
    _check_train(train, expected, n_items, train_negatives)
    repeated = _check_test(test, expected, n_items, test_negatives)

    size = expected.groupby("user").size()
    kept = int((~expected["held_out"]).sum())
    assert stats | counts == stats
    assert stats["interactions"] == len(expected)
    assert (stats["users"], stats["items"]) == (len(size), n_items)
    assert (stats["train_positives"], stats["train_rows"]) == (kept, sum(map(len, train)))
    assert stats["test_series"] == int(expected["held_out"].sum())
    assert stats["users_with_one_interaction"] == int((size == 1).sum())
    assert stats["users_with_all_items"] == int(((size == n_items) & (size > 1)).sum())
    assert stats["series_with_repeated_negatives"] == repeated
    assert math.isclose(stats["density"], len(expected) / (len(size) * n_items))
    assert stats["rows_read"] == stats["interactions"] + sum(
        stats[f"dropped_{why}"] for why in ("missing", "below_min_rating", "duplicates")
    )

    enough = log if min_rating is None else log[log["rating"].astype(float) >= min_rating]
    for name in ("user", "item"):
        table = pq.read_table(folder / "categories" / f"{name}.parquet").to_pydict()
        originals = sorted(enough.dropna(subset=["user", "item", "time"])[name].unique())
        assert table == {"id": list(range(len(originals))), "original": originals}


def _made_log(seed: int, strings: bool) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 60, 700)
    log = pd.DataFrame({"user": users, "item": rng.zipf(1.3, 700) % 90, "time": rng.integers(0, 40, 700)})
    return log.assign(user=log["user"].map("user {}".format)) if strings else log


@pytest.mark.parametrize("strings", [False, True])
def test_partitions_and_row_order_do_not_change_the_rows(
    tmp_path: Path, prepare_log: Prepare, mapping_files: Files, strings: bool
) -> None:
    log = _made_log(1, strings)
    flags = ["--test-negatives", "10", "--train-negatives", "2"]
    found = []
    for partitions, seed in ((1, None), (3, 2), (8, 3)):
        rows = log if seed is None else log.sample(frac=1, random_state=seed)
        folder = prepare_log(_write(rows, tmp_path / "log", "csv"), *flags, "--partitions", str(partitions))
        assert json.loads((folder / "stats.json").read_text())["partitions"] == partitions
        found.append([_sorted_by_user(mapping_files(folder, name)) for name in ("train", "test")])
    for other in found[1:]:
        for rows, same_rows in zip(found[0], other, strict=True):
            pd.testing.assert_frame_equal(rows, same_rows)


def test_the_same_log_and_seed_give_the_same_bytes(
    tmp_path: Path, prepare_log: Prepare, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    log = _made_log(2, strings=True)
    path = _write(log, tmp_path / "log", "csv")
    # Fewer negatives than unseen items, so that the draw is random.
    flags = ["--test-negatives", "5", "--train-negatives", "1"]
    first = prepare_log(path, *flags)
    content = folder_bytes(first)
    assert folder_bytes(prepare_log(path, *flags)) == content
    shuffled = _write(log.sample(frac=1, random_state=0), tmp_path / "shuffled", "csv")
    assert folder_bytes(prepare_log(shuffled, *flags)) == content

    (first / "stray").write_text("of an older run")
    main(["--input", str(path), "--output", str(first), "--device", "cpu", "--overwrite", *flags])
    assert folder_bytes(first) == content
    assert [entry.name for entry in first.parent.iterdir()] == [first.name]

    other = folder_bytes(prepare_log(path, *flags, "--seed", "8"))
    assert {name for name in content if name.startswith(("categories", "test"))} <= set(other)
    assert any(other[name] != content[name] for name in content if name.startswith("test/"))
    assert all(other[name] == content[name] for name in content if name.startswith("categories/"))


def test_many_pieces_give_the_same_bytes_as_one(
    tmp_path: Path,
    prepare_log: Prepare,
    folder_bytes: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = _made_log(3, strings=False)
    # Only one piece has an id beyond 32 bits.
    path = _write(
        pd.concat([log, pd.DataFrame({"user": [2**40] * 2, "item": [1, 2], "time": [1, 2]})]), tmp_path / "l", "csv"
    )
    whole = folder_bytes(prepare_log(path))
    monkeypatch.setattr("preprocessing.sources.text.PIECE_BYTES", 500)
    assert folder_bytes(prepare_log(path)) == whole


def test_ties_and_duplicates_in_a_hand_made_log(tmp_path: Path, prepare_log: Prepare, mapping_files: Files) -> None:
    log = tmp_path / "log.csv"
    # ann: "é" and "z" tie on the last time, and é has the larger code point; her second "a" is a duplicate.
    # bob: 10 sorts after 9 by value. cy has one interaction.
    log.write_text("user,item,time\nann,z,5\nann,é,5\nann,a,1\nann,a,9\ncy,b,1\n", encoding="utf-8")
    folder = prepare_log(log, "--test-negatives", "1")
    items = ["a", "b", "z", "é"]
    train = _sorted_by_user(mapping_files(folder, "train"))
    assert [(row.user, items[row.item]) for row in train.itertuples()] == [(0, "a"), (0, "z"), (1, "b")]
    test = _sorted_by_user(mapping_files(folder, "test"))
    assert [(row.user, items[row.item]) for row in test.itertuples()] == [(0, "é"), (0, "b")]

    log.write_text("user,item,time\nbob,10,5\nbob,9,5\nbob,1,2\nx,2,1\n")
    folder = prepare_log(log, "--test-negatives", "1")
    assert _sorted_by_user(mapping_files(folder, "test"))["item"].tolist() == [3, 1]


def test_a_log_without_test_series_has_no_test_mapping(tmp_path: Path, prepare_log: Prepare) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n1,1,1\n2,2,2\n3,1,3\n")
    folder = prepare_log(log)
    assert list(read_feature_spec(folder).source_spec) == ["train"]
    assert json.loads((folder / "stats.json").read_text())["users_with_one_interaction"] == 3


def test_unreadable_titles_are_skipped_with_a_note(
    tmp_path: Path, prepare_log: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "u.data").write_text("1\t1\t3\t1\n1\t2\t3\t2\n2\t3\t3\t1\n")
    (tmp_path / "u.item").write_text("no titles at all\n")
    folder = prepare_log(tmp_path)
    _check_folder(folder)
    assert not (folder / "titles.parquet").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "no titles.parquet: " in said
    assert "no id column" in said


@pytest.mark.parametrize("time_aware", [False, True])
@pytest.mark.parametrize("kind", ["exact", "popularity", "uniform"])
def test_each_kind_of_negatives_is_independent_of_the_number_of_partitions(
    tmp_path: Path, prepare_log: Prepare, mapping_files: Files, kind: str, time_aware: bool
) -> None:
    path = _write(_made_log(4, strings=True), tmp_path / "log", "csv")
    flags = ["--test-negatives", "5", "--train-negatives", "2", "--negatives", kind]
    flags += ["--popularity-exponent", "1.5"] + (["--time-aware"] if time_aware else [])
    found = []
    for partitions in ("1", "7"):
        folder = prepare_log(path, *flags, "--partitions", partitions)
        found.append([_sorted_by_user(mapping_files(folder, name)) for name in ("train", "test")])
        stats = json.loads((folder / "stats.json").read_text())
        expected = {"negatives": kind, "popularity_exponent": 1.5 if kind == "popularity" else None}
        assert expected | {"time_aware": time_aware} == {k: stats[k] for k in [*expected, "time_aware"]}
    for rows, same_rows in zip(*found, strict=True):
        pd.testing.assert_frame_equal(rows, same_rows)


@pytest.mark.parametrize("unit", [1, 10**3, 10**9])
@pytest.mark.parametrize("flags", [[], ["--time-aware"]])
def test_large_partitions_give_the_same_rows_as_small_ones(
    tmp_path: Path, prepare_log: Prepare, mapping_files: Files, unit: int, flags: list[str]
) -> None:
    """Large partitions use compiled loops if times fit (seconds, milliseconds), small ones array code."""
    rng, rows = np.random.default_rng(6), 2 * COMPILED_ROWS
    columns = {"user": rng.integers(0, 400, rows), "item": rng.zipf(1.1, rows) % 9_000}
    log = pd.DataFrame({**columns, "time": rng.integers(10**9, 16 * 10**8, rows) * unit})
    assert len(log[["user", "item"]].drop_duplicates()) > COMPILED_ROWS
    path = _write(log, tmp_path / "log", "csv")
    found = []
    for partitions in ("1", "7"):
        folder = prepare_log(path, "--test-negatives", "20", *flags, "--partitions", partitions)
        found.append([_sorted_by_user(mapping_files(folder, name)) for name in ("train", "test")])
    for rows_of_large, rows_of_small in zip(*found, strict=True):
        pd.testing.assert_frame_equal(rows_of_large, rows_of_small)


def test_a_memory_limit_does_not_change_the_rows(tmp_path: Path, prepare_log: Prepare, mapping_files: Files) -> None:
    path = _write(_made_log(5, strings=False), tmp_path / "log", "csv")
    found = [
        [_sorted_by_user(mapping_files(prepare_log(path, *flags), name)) for name in ("train", "test")]
        for flags in ([], ["--memory-limit", "400MiB"])
    ]
    for rows, same_rows in zip(*found, strict=True):
        pd.testing.assert_frame_equal(rows, same_rows)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "ml-100k"
    main(["--sample", "ml-100k", "--output", str(folder), "--device", "cpu"])
    return folder


def test_the_sample_has_the_published_counts(sample: Path) -> None:
    stats = _check_folder(sample)
    assert (stats["users"], stats["items"], stats["interactions"]) == (943, 1682, 100_000)
    assert (stats["test_series"], stats["train_rows"], stats["dropped_duplicates"]) == (943, 99_057, 0)
    spec = read_feature_spec(sample)
    spec.write(sample.parent)
    assert read_feature_spec(sample.parent) == spec
    table = read_mapping(sample, spec, "test", ["user", "item", "label"])
    assert table.num_rows == 943 * 101


def test_the_sample_matches_a_pandas_reference(sample: Path, mapping_files: Files) -> None:
    from preprocessing.sources.movielens import sample_file

    raw = pd.read_parquet(sample_file("MovieLens100k_data.parquet.brotli"))
    raw = raw.rename(columns={"user_id": "user", "movie_id": "item", "timestamp": "time"})
    expected, _ = _reference(raw, None)
    _check_train(mapping_files(sample, "train"), expected, 1682, 0)
    assert _check_test(mapping_files(sample, "test"), expected, 1682, 100) == 0

    # Decoded with the categories, the prepared pairs equal the raw ones.
    back = {
        n: pd.read_parquet(sample / "categories" / f"{n}.parquet").set_index("id")["original"] for n in ("user", "item")
    }
    rows = pd.concat([*mapping_files(sample, "train"), *mapping_files(sample, "test")])
    rows = rows[rows["label"] == 1]
    pairs = set(zip(rows["user"].map(back["user"]), rows["item"].map(back["item"]), strict=True))
    assert pairs == set(zip(raw["user"], raw["item"], strict=True))


def test_the_sample_has_titles(sample: Path) -> None:
    titles = pq.read_table(sample / "titles.parquet").to_pydict()
    assert len(titles["item"]) == len(set(titles["item"])) == 1682
    assert titles["title"][titles["item"].index("1")] == "Toy Story (1995)"
