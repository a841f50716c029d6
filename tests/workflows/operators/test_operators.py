"""The operators in their own workflow, against leave-one-out in plain loops."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.merlin import Workflow, frame_dataset
from workflows.operators import AppendNegatives, LeaveOneOut
from workflows.operators.encode import EncodeIds
from workflows.operators.item_statistics import ItemStatistics
from workflows.operators.leave_one_out import TEST, TRAIN
from workflows.operators.saved import leave_one_out_workflow
from workflows.sampling.config import Sampling

import nvtabular as nvt  # isort: skip - after the Merlin door, which patches Dask for it


def make_log(rows: int, users: int, items: int, times: int, seed: int = 0) -> pd.DataFrame:
    """A log with many repeated pairs and ties in time; original ids are sparse and unsorted."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": rng.permutation(10 * users)[rng.integers(0, users, rows)],
            "item": rng.permutation(10 * items)[rng.integers(0, items, rows)],
            "time": rng.integers(0, times, rows),
        }
    )


def dataset_of(log: pd.DataFrame, partitions: int):
    """Partitions that hold whole users, by a hash of the original id."""
    home = pd.util.hash_array(log["user"].to_numpy()) % partitions
    parts = [log[home == number] for number in range(partitions)]
    return frame_dataset(lambda number: parts[number], partitions, meta=log.iloc[:0], cpu=True)


def make_workflow(sampling: Sampling = Sampling(), **options) -> Workflow:  # noqa: B008 - it is frozen
    encoder = EncodeIds(keep=["time"])
    statistics = ItemStatistics(encoder, "item", "time") if sampling.needs_statistics else None
    split = LeaveOneOut(encoder, "user", "item", "time", **options, sampling=sampling, statistics=statistics)
    return leave_one_out_workflow(encoder, split)


def split_log(log: pd.DataFrame, partitions: int = 1, **options) -> pd.DataFrame:
    """The output rows of the workflow for a log, from all partitions."""
    workflow = make_workflow(**options)
    dataset = dataset_of(log, partitions)
    workflow.fit(dataset)
    return workflow.transform(dataset).to_ddf().compute(scheduler="synchronous").reset_index(drop=True)


def transform(log: pd.DataFrame, **options) -> pd.DataFrame:
    """The operators called directly on one partition, without a scheduler: fast enough for many examples."""
    encoder = EncodeIds({name: log[name].drop_duplicates().sort_values() for name in ("user", "item")})
    encoded = encoder.transform(_Columns(["user", "item"]), log)
    encoded["time"] = log["time"].to_numpy()
    return LeaveOneOut(encoder, "user", "item", "time", **options).transform(None, encoded)


class _Columns:
    def __init__(self, names: list[str]) -> None:
        self.names = names


def expected_split(log: pd.DataFrame) -> tuple[list[tuple[int, int]], dict[int, int], dict[int, set[int]], int]:
    """(train pairs in order, held-out item of each user, all items of each user, number of items)."""
    user_ids = {original: code for code, original in enumerate(sorted(set(log["user"])))}
    item_ids = {original: code for code, original in enumerate(sorted(set(log["item"])))}
    first: dict[int, dict[int, int]] = defaultdict(dict)
    for user, item, time in log[["user", "item", "time"]].itertuples(index=False):
        times = first[user_ids[user]]
        times[item_ids[item]] = min(time, times.get(item_ids[item], time))
    train, held_out = [], {}
    for user in sorted(first):
        items = sorted(first[user], key=lambda item: (first[user][item], item))
        if 1 < len(items) < len(item_ids):
            held_out[user] = items.pop()
        train += [(user, item) for item in items]
    return train, held_out, {user: set(items) for user, items in first.items()}, len(item_ids)


def check_split(log: pd.DataFrame, rows: pd.DataFrame, test_negatives: int, train_negatives: int) -> None:
    """Check every property of a split against the log. `rows` come from one partition."""
    pairs, held_out, seen, n_items = expected_split(log)
    assert rows.dtypes.astype(str).to_dict() == {"user": "int32", "item": "int32", "label": "float32", "split": "int8"}
    assert rows["split"].is_monotonic_increasing
    train, test = rows[rows["split"] == TRAIN], rows[rows["split"] == TEST]
    assert len(train) + len(test) == len(rows)

    positives = train[train["label"] == 1]
    assert list(zip(positives["user"], positives["item"], strict=True)) == pairs
    train_items = defaultdict(set)
    for user, item in pairs:
        train_items[user].add(item)
    blocks = []
    for user, item in pairs:
        blocks.append((user, item))
        if len(train_items[user]) < n_items:
            blocks += [(user, None)] * train_negatives
    assert len(train) == len(blocks)
    for (user, item, label), block in zip(
        train[["user", "item", "label"]].itertuples(index=False), blocks, strict=True
    ):
        assert user == block[0]
        assert label == (block[1] is not None)
        if block[1] is None:
            assert 0 <= item < n_items
            assert item not in train_items[user]

    length = 1 + test_negatives
    assert len(test) == length * len(held_out)
    for number, (user, item) in enumerate(held_out.items()):
        series = test.iloc[number * length : (number + 1) * length]
        assert (series["user"] == user).all()
        assert series["item"].iloc[0] == item
        assert series["label"].tolist() == [1.0] + [0.0] * test_negatives
        assert item not in train_items[user]  # no leak
        negatives = set(series["item"].iloc[1:])
        unseen = set(range(n_items)) - seen[user]
        assert negatives <= unseen  # no false negative
        assert len(negatives) == min(test_negatives, len(unseen))


def multiset(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(list(rows.columns)).reset_index(drop=True)


LOGS = st.lists(
    st.tuples(st.integers(-3, 4), st.integers(0, 6), st.integers(0, 3)),
    min_size=1,
    max_size=40,
).map(lambda rows: pd.DataFrame(rows, columns=["user", "item", "time"]))


@given(LOGS, st.integers(0, 5), st.integers(0, 3), st.integers(0, 9))
def test_the_split_of_any_log_matches_plain_loops(log: pd.DataFrame, tests: int, trains: int, seed: int) -> None:
    rows = transform(log, test_negatives=tests, train_negatives=trains, sampling=Sampling(seed=seed))
    check_split(log, rows, tests, trains)


@pytest.mark.parametrize(("tests", "trains"), [(100, 0), (5, 4)])
def test_the_workflow_splits_a_log(tests: int, trains: int) -> None:
    log = make_log(4000, users=120, items=150, times=40)
    check_split(log, split_log(log, test_negatives=tests, train_negatives=trains), tests, trains)


def test_the_result_does_not_depend_on_partitions_or_row_order() -> None:
    log = make_log(1500, users=60, items=40, times=15)
    options = {"test_negatives": 10, "train_negatives": 3}
    expected = multiset(split_log(log, 1, **options))
    shuffled = log.sample(frac=1, random_state=3)
    for rows in (
        split_log(log, 3, **options),
        split_log(log, 8, **options),
        split_log(shuffled, 1, **options),
        split_log(shuffled.reset_index(drop=True), 3, **options),
    ):
        pd.testing.assert_frame_equal(multiset(rows), expected)


def test_series_stay_whole_in_every_partition() -> None:
    # The order of partitions is free, but the rows of a series are consecutive, positive first.
    rows = split_log(make_log(1500, users=60, items=40, times=15), 8, test_negatives=10)
    test = rows[rows["split"] == TEST]
    users, labels = (test[name].to_numpy().reshape(-1, 11) for name in ("user", "label"))
    assert (users == users[:, :1]).all()
    assert (labels == [1.0] + [0.0] * 10).all()


def test_empty_partitions() -> None:
    # Two users in sixteen partitions.
    log = pd.DataFrame({"user": [4, 4, 4, 9], "item": [1, 2, 3, 5], "time": [1, 2, 3, 1]})
    one = transform(log, test_negatives=2, train_negatives=1)
    check_split(log, one, 2, 1)
    rows = split_log(log, 16, test_negatives=2, train_negatives=1)
    pd.testing.assert_frame_equal(multiset(rows), multiset(one))


def test_empty_input_gives_empty_output_with_all_columns() -> None:
    encoder = EncodeIds({"user": pd.Series([4, 9]), "item": pd.Series([1, 2, 3])})
    nothing = pd.DataFrame({"user": [], "item": [], "time": []}).astype({"user": "int32", "item": "int32", "time": int})
    rows = LeaveOneOut(encoder, "user", "item", "time", 2, 1).transform(None, nothing)
    assert len(rows) == 0
    assert rows.dtypes.astype(str).to_dict() == {"user": "int32", "item": "int32", "label": "float32", "split": "int8"}


def test_users_with_one_interaction_are_in_train_only() -> None:
    # The second user's three rows are the same pair.
    log = pd.DataFrame({"user": [1, 2, 2, 2, 3, 3], "item": [7, 7, 7, 7, 7, 8], "time": [5, 3, 2, 1, 1, 2]})
    log = pd.concat([log, pd.DataFrame({"user": [3, 4], "item": [9, 10], "time": [0, 0]})])
    rows = split_log(log, test_negatives=1)
    train, test = rows[rows["split"] == TRAIN], rows[rows["split"] == TEST]
    assert list(zip(train["user"], train["item"], strict=True)) == [(0, 0), (1, 0), (2, 2), (2, 0), (3, 3)]
    assert list(zip(test["user"], test["item"], strict=True)) == [(2, 1), (2, 3)]


def test_users_who_have_seen_every_item_are_in_train_only_and_get_no_negatives() -> None:
    log = pd.DataFrame({"user": [1, 1, 1, 2, 2], "item": [5, 6, 7, 5, 6], "time": [1, 2, 3, 1, 2]})
    rows = split_log(log, test_negatives=3, train_negatives=2)
    check_split(log, rows, 3, 2)
    train, test = rows[rows["split"] == TRAIN], rows[rows["split"] == TEST]
    everything = train[train["user"] == 0]
    assert everything["label"].tolist() == [1.0, 1.0, 1.0]
    assert test["item"].tolist() == [1, 2, 2, 2]  # user 2 has one unseen item, so it repeats


def test_the_last_interaction_is_the_largest_item_at_the_latest_time() -> None:
    log = pd.DataFrame(
        {
            "user": [1, 1, 1, 1, 2, 2, 2],
            "item": [30, 20, 40, 10, 40, 20, 40],
            "time": [9, 9, 5, 9, 1, 2, 3],  # user 2's item 40 counts at 1, so item 20 is the last
        }
    )
    log = pd.concat([log, pd.DataFrame({"user": [3], "item": [50], "time": [0]})])
    test = split_log(log, test_negatives=1).query("split == 1 and label == 1")
    assert list(zip(test["user"], test["item"], strict=True)) == [(0, 2), (1, 1)]  # items 30 and 20


def test_rows_with_ids_unseen_by_fit_are_dropped() -> None:
    log = make_log(300, users=20, items=30, times=9)
    later = pd.DataFrame({"user": [*log["user"][:3], 999, 999], "item": [999, 999, 999, *log["item"][:2]]})
    later["time"] = 99  # would be last for their users if the ids were known
    workflow = make_workflow(test_negatives=3, train_negatives=2)
    workflow.fit(dataset_of(log, 2))
    expected = workflow.transform(log)
    pd.testing.assert_frame_equal(workflow.transform(pd.concat([log, later])), expected)
    assert expected[["user", "item"]].min().tolist() == [0, 0]
    nothing = workflow.transform(later)
    assert len(nothing) == 0
    assert nothing.dtypes.tolist() == expected.dtypes.tolist()


def test_train_negatives_can_include_the_held_out_item() -> None:
    # Training must not know the held-out item: it is one of two candidates, so it has to appear.
    log = pd.DataFrame({"user": [1, 1, 2], "item": [5, 6, 7], "time": [1, 2, 1]})
    train = transform(log, test_negatives=1, train_negatives=50).query("split == 0 and user == 0 and label == 0")
    assert set(train["item"]) == {1, 2}


def test_ids_can_be_strings() -> None:
    log = make_log(300, users=20, items=15, times=6)
    log["user"] = "u" + log["user"].astype(str)
    names = ["b", "a", "Z", "ä", "10", "9", "", " ", "𐐀", "\uffff"]
    log["item"] = [names[item % len(names)] for item in log["item"]]
    rows = split_log(log, 3, test_negatives=3, train_negatives=1)
    one = split_log(log, 1, test_negatives=3, train_negatives=1)
    pd.testing.assert_frame_equal(multiset(rows), multiset(one))
    check_split(log, one, 3, 1)  # sorts by code point, like Python


def test_the_seed_determines_the_negatives_and_leaves_the_split_unchanged() -> None:
    log = make_log(1500, users=60, items=200, times=15)
    options = {"test_negatives": 10, "train_negatives": 2}
    one, again, other = (split_log(log, **options, sampling=Sampling(seed=seed)) for seed in (5, 5, 6))
    pd.testing.assert_frame_equal(one, again)
    assert len(one) == len(other)
    positives = one["label"] == 1
    pd.testing.assert_frame_equal(one[positives], other[positives])
    for part in (TRAIN, TEST):
        negatives = ~positives & (one["split"] == part)
        assert (one.loc[negatives, "item"] != other.loc[negatives, "item"]).mean() > 0.5


def test_the_split_does_not_depend_on_the_number_of_negatives() -> None:
    log = make_log(500, users=30, items=60, times=15)
    few, many = transform(log, test_negatives=1), transform(log, test_negatives=9, train_negatives=4)
    pairs = [frame[frame["label"] == 1].reset_index(drop=True) for frame in (few, many)]
    pd.testing.assert_frame_equal(*pairs)


def test_a_dataframe_is_transformed_like_a_dataset() -> None:
    log = make_log(300, users=20, items=30, times=9).set_index(np.arange(300)[::-1] * 7)  # a misleading index
    workflow = make_workflow(test_negatives=3)
    workflow.fit(dataset_of(log, 2))
    pd.testing.assert_frame_equal(multiset(workflow.transform(log)), multiset(split_log(log, test_negatives=3)))


def test_the_schema_matches_the_output() -> None:
    log = make_log(50, users=5, items=9, times=5)
    workflow = make_workflow(test_negatives=3)
    workflow.fit(dataset_of(log, 2))
    dtypes = {name: str(dtype.to_numpy) for name, dtype in workflow.output_dtypes.items()}
    assert dtypes == {"user": "int32", "item": "int32", "label": "float32", "split": "int8"}


# --- Popularity and time ----------------------------------------------------------------------------------------


def encoded(log: pd.DataFrame) -> pd.DataFrame:
    """The log with ids encoded by rank, as in `EncodeIds`."""
    codes = {name: {value: code for code, value in enumerate(sorted(set(log[name])))} for name in ("user", "item")}
    return log.assign(**{name: log[name].map(code) for name, code in codes.items()})


def times_of(log: pd.DataFrame) -> tuple[dict[tuple[int, int], int], dict[int, int]]:
    """(earliest time of each encoded pair, earliest time of each encoded item)."""
    rows = encoded(log)
    return rows.groupby(["user", "item"])["time"].min().to_dict(), rows.groupby("item")["time"].min().to_dict()


KINDS = [
    Sampling(kind=kind, time_aware=time_aware, seed=3)
    for kind in ("exact", "popularity", "uniform")
    for time_aware in (False, True)
]


@pytest.mark.parametrize("sampling", KINDS, ids=repr)
def test_a_complete_workflow_with_each_kind_of_negatives(sampling: Sampling) -> None:
    log = make_log(1200, users=40, items=60, times=200)
    options: dict[str, Any] = {"test_negatives": 8, "train_negatives": 2, "sampling": sampling}
    rows = split_log(log, 1, **options)
    for partitions in (3, 8):
        pd.testing.assert_frame_equal(multiset(split_log(log, partitions, **options)), multiset(rows))
    if sampling.kind != "uniform":
        check_split(log, rows, 8, 2)
    pairs, since = times_of(log)
    if not sampling.time_aware:
        return
    seen = defaultdict(set)
    for user, item in pairs:
        seen[user].add(item)
    time = None
    for user, item, label in rows[["user", "item", "label"]].itertuples(index=False):
        if label:
            time = pairs[user, item]
        else:
            appeared = {other for other, first in since.items() if first <= time}
            assert item in appeared or (sampling.kind != "uniform" and appeared <= seen[user])


def test_popular_items_are_drawn_in_proportion_to_the_power_of_their_counts() -> None:
    # Items 0, 1, 2, 3 occur 1, 16, 81 and 256 times; users below 5000 have seen only item 4 and draw from these four.
    counts = {0: 1, 1: 16, 2: 81, 3: 256}
    rows = [(10_000 + item, item) for item, times in counts.items() for _ in range(times)]
    log = pd.DataFrame(rows + [(user, 4) for user in range(5000)], columns=["user", "item"]).assign(time=0)
    options = {"test_negatives": 0, "train_negatives": 3}
    rows = split_log(log, 2, **options, sampling=Sampling(kind="popularity", exponent=0.5)).query("user < 5000")
    drawn = Counter(rows.query("label == 0")["item"].tolist())
    assert set(drawn) == set(counts)
    total = sum(drawn.values())
    for item, weight in ((0, 1), (1, 4), (2, 9), (3, 16)):
        chance = weight / 30
        assert abs(drawn[item] / total - chance) < 5 * (chance * (1 - chance) / total) ** 0.5


def test_popularity_and_time_aware_negatives_need_item_statistics() -> None:
    encoder = EncodeIds()
    for sampling in (Sampling(kind="popularity"), Sampling(time_aware=True)):
        with pytest.raises(ValueError, match="ItemStatistics"):
            LeaveOneOut(encoder, "user", "item", "time", sampling=sampling)
    statistics = ItemStatistics(encoder, "item", "time")
    with pytest.raises(ValueError, match="time column"):
        AppendNegatives(encoder, "user", "item", sampling=Sampling(time_aware=True), statistics=statistics)
    with pytest.raises(ValueError, match=r"exact, uniform, popularity, got 'popular'"):
        AppendNegatives(encoder, "user", "item", sampling=Sampling(kind="popular"))


def test_an_operator_is_pickled_without_its_candidates() -> None:
    log = make_log(200, users=10, items=20, times=9)
    workflow = make_workflow(Sampling(kind="popularity"), test_negatives=3)
    workflow.fit(dataset_of(log, 2))
    rows = workflow.transform(log)
    operator = workflow.output_node.op
    copy = pickle.loads(pickle.dumps(operator))
    assert copy._candidates is None
    assert operator._candidates is not None
    inputs = encoded(log).astype({"user": "int32", "item": "int32"})
    pd.testing.assert_frame_equal(copy.transform(None, inputs), rows)


# --- Negatives after each row -----------------------------------------------------------------------------------


def append_workflow(kind: type = Workflow, **options: Any) -> Any:
    encoder = EncodeIds()
    sampling = options.get("sampling", Sampling())
    columns = (["user", "item"] >> encoder) + ["time"]
    if sampling.needs_statistics:
        options["statistics"] = ItemStatistics(encoder, "item", "time")
        columns = columns >> options["statistics"]
    return kind(columns >> AppendNegatives(encoder, "user", "item", time="time", **options))


def run(workflow: Any, log: pd.DataFrame, partitions: int = 1) -> pd.DataFrame:
    dataset = dataset_of(log, partitions)
    workflow.fit(dataset)
    return workflow.transform(dataset).to_ddf().compute(scheduler="synchronous").reset_index(drop=True)


@pytest.mark.parametrize("kind", [Workflow, nvt.Workflow], ids=["ours", "stock"])
@pytest.mark.parametrize("sampling", KINDS, ids=repr)
def test_rows_are_followed_by_their_negatives(kind: type, sampling: Sampling) -> None:
    log = make_log(300, users=25, items=14, times=30)
    everything = pd.DataFrame({"user": 999, "item": sorted(set(log["item"])), "time": 40})
    log = pd.concat([log, everything], ignore_index=True)
    rows = run(append_workflow(kind, per_positive=3, sampling=sampling, label="clicked"), log)
    assert rows.dtypes.astype(str).to_dict() == {"user": "int32", "item": "int32", "clicked": "float32"}
    _, since = times_of(log)
    expected = encoded(log).sort_values("user", kind="stable")  # keeps the order of each user's rows, and repeats
    seen = expected.groupby("user")["item"].agg(set)
    place, found = 0, list(rows.itertuples(index=False, name=None))
    for user, item, time in expected.itertuples(index=False):
        assert found[place] == (user, item, 1.0)
        unseen = set(since) if sampling.kind == "uniform" else set(since) - seen[user]
        appeared = {other for other in unseen if not sampling.time_aware or since[other] <= time}
        negatives = found[place + 1 : place + 4] if unseen else []
        for whose, negative, label in negatives:
            assert (whose, label) == (user, 0.0)
            assert negative in (appeared or unseen)
        place += 1 + len(negatives)
    assert place == len(rows)


def test_appended_negatives_do_not_depend_on_partitions_and_unknown_ids_are_dropped() -> None:
    log = make_log(300, users=25, items=40, times=30)
    workflow = append_workflow(sampling=Sampling(kind="popularity"))
    one = run(workflow, log)
    pd.testing.assert_frame_equal(
        multiset(run(append_workflow(sampling=Sampling(kind="popularity")), log, 5)), multiset(one)
    )
    unknown = pd.DataFrame({"user": [log["user"][0], -5], "item": [-5, log["item"][0]], "time": 1})
    found = workflow.transform(pd.concat([unknown, log], ignore_index=True))
    pd.testing.assert_frame_equal(found.reset_index(drop=True), one)
    nothing = workflow.transform(unknown)
    assert len(nothing) == 0
    assert nothing.dtypes.tolist() == one.dtypes.tolist()


def test_leave_one_out_in_a_stock_workflow() -> None:
    log = make_log(400, users=20, items=30, times=9)
    encoder = EncodeIds()
    columns = (["user", "item"] >> encoder) + ["time"]
    stock = nvt.Workflow(columns >> LeaveOneOut(encoder, "user", "item", "time", test_negatives=5, train_negatives=1))
    check_split(log, run(stock, log), 5, 1)
