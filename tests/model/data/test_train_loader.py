"""Epochs over known rows: none lost, none repeated, exact negatives, on any number of ranks."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from model.data import partitions
from model.data import train_loader as batches_module
from model.data.batch import Batch
from model.data.dataset import Rows, open_train
from model.data.train_loader import SamplingConfig, TrainLoader, check_labels
from model.distributed.process_group import ProcessGroup
from model.training.config import CHOICES
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError
from workflows.sampling.candidates import Candidates
from workflows.sampling.config import Sampling, build_candidates

CPU = torch.device("cpu")
ALONE = ProcessGroup(CPU)
Row = tuple[int, int, float]
N_ITEMS = 30
_NUMBERS = itertools.count()


def config(**change: object) -> SamplingConfig:
    values = {"batch_size": 16, "per_positive": 4, "kind": "exact", "in_memory": False, "seed": 1}
    return SamplingConfig(**{**values, **change})  # type: ignore[arg-type]


def listed(batch: Batch) -> list[Row]:
    return list(zip(batch.users.tolist(), batch.items.tolist(), batch.labels.tolist(), strict=True))


def epoch(
    rows: Rows, number: int, world: ProcessGroup = ALONE, candidates: Candidates | None = None, **change: object
) -> list[list[Row]]:
    return [listed(batch) for batch in TrainLoader(rows, config(**change), world, candidates).epoch(number)]


def popularity(rows: list[Row]) -> Candidates:
    """Items weighted by their number of positives."""
    counts = np.bincount([item for _, item, label in rows if label > 0], minlength=N_ITEMS)
    return build_candidates(N_ITEMS, Sampling(kind="popularity"), counts, None, torch.zeros(0))


def flat(batches: list[list[Row]]) -> list[Row]:
    return [row for batch in batches for row in batch]


def user_rows(sizes: list[int], first_user: int = 0, seed: int = 0) -> list[Row]:
    """Distinct positives: sizes[i] items of user first_user + i."""
    rng = np.random.default_rng((seed, first_user))
    return [
        (first_user + place, int(item), 1.0)
        for place, size in enumerate(sizes)
        for item in rng.choice(N_ITEMS, size, replace=False)
    ]


def check_exact_epoch(batches: list[list[Row]], rows: list[Row], batch_size: int, per_positive: int) -> None:
    """Every row once, and `per_positive` negatives for each positive, none a positive of its user."""
    seen: dict[int, set[int]] = {}
    for user, item, label in rows:
        if label > 0:
            seen.setdefault(user, set()).add(item)
    sizes = [len(batch) for batch in batches]
    # Whole groups of a positive and its negatives, if a batch has room for one.
    assert all(batch_size - per_positive <= size <= batch_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= batch_size
    found = Counter(flat(batches))
    added = found - Counter(rows)
    assert Counter(rows) <= found
    assert sum(added.values()) == sum(found.values()) - len(rows)
    owners: Counter = Counter()
    for (user, item, label), times in added.items():
        assert label == 0.0
        assert item not in seen[user]
        owners[user] += times
    positives = Counter(user for user, _, label in rows if label > 0)
    assert owners == Counter(
        {u: per_positive * n for u, n in positives.items() if per_positive and len(seen[u]) < N_ITEMS}
    )


FOLDERS = {
    "several parts": [user_rows([5, 9, 3]), user_rows([7, 2], 3), user_rows([30, 29, 1, 4], 5)],
    "tiny parts": [[row] for row in user_rows([1] * 9)],
    "one part": [user_rows([4, 11, 6, 1, 20])],
    "one row": [[(2, 3, 1.0)]],
    "one user": [user_rows([25])],
    "empty parts first, between and last": [[], user_rows([5, 6]), [], user_rows([8], 2), []],
}


@pytest.mark.parametrize("parts", FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize("in_memory", [False, True], ids=["merlin", "memory"])
def test_every_row_once_with_exact_negatives(train_rows: Callable, parts: list[list[Row]], in_memory: bool) -> None:
    rows = train_rows(parts, 12, N_ITEMS)
    everything = flat(parts)
    for batch_size in (7, 10_000):  # one that does not divide the rows, one larger than the data
        batches = epoch(rows, 0, batch_size=batch_size, in_memory=in_memory)
        check_exact_epoch(batches, everything, batch_size, 4)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, N_ITEMS), max_size=4), min_size=1, max_size=4).filter(any),
    st.integers(1, 40),
    st.integers(0, 3),
    st.booleans(),
)
def test_every_row_once_in_random_folders(
    write_folder: Callable[..., Path], parts: list[list[int]], batch_size: int, per_positive: int, in_memory: bool
) -> None:
    first = np.cumsum([0, *map(len, parts)]).tolist()
    content = [user_rows(sizes, start) for sizes, start in zip(parts, first, strict=False)]
    folder = write_folder(content, 16, N_ITEMS, name=f"folder{next(_NUMBERS)}")
    rows = open_train(folder, read_feature_spec(folder), CPU)
    batches = epoch(rows, 2, batch_size=batch_size, per_positive=per_positive, in_memory=in_memory)
    check_exact_epoch(batches, flat(content), batch_size, per_positive)


@pytest.mark.parametrize("in_memory", [False, True], ids=["merlin", "memory"])
def test_epochs_differ_and_a_seed_repeats_them(train_rows: Callable, in_memory: bool) -> None:
    parts = [user_rows([6, 7, 8], 3 * part) for part in range(5)]
    rows = train_rows(parts, 15, N_ITEMS)
    first, second, other = (epoch(rows, n, seed=s, in_memory=in_memory) for n, s in ((0, 1), (1, 1), (0, 2)))
    again = epoch(rows, 0, seed=1, in_memory=in_memory)
    assert first == again
    for different in (second, other):
        negatives = [Counter(row for row in flat(batches) if not row[2]) for batches in (first, different)]
        shared = sum((negatives[0] & negatives[1]).values()) / sum(negatives[0].values())
        assert shared < 0.7  # two independent draws share some by chance
        positives = [[row for row in flat(batches) if row[2]] for batches in (first, different)]
        assert sorted(positives[0]) == sorted(positives[1])
        assert positives[0] != positives[1]


def test_an_epoch_can_be_iterated_repeatedly(train_rows: Callable) -> None:
    rows = train_rows(FOLDERS["several parts"], 12, N_ITEMS)
    for in_memory in (False, True):
        batches = TrainLoader(rows, config(in_memory=in_memory), ALONE)
        first = [listed(batch) for batch in batches.epoch(0)]
        list(batches.epoch(1))
        assert [listed(batch) for batch in batches.epoch(0)] == first


@pytest.mark.parametrize("in_memory", [False, True], ids=["merlin", "memory"])
def test_prefetching_does_not_change_the_batches(
    train_rows: Callable, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    rows = train_rows(FOLDERS["several parts"], 12, N_ITEMS)
    before = threading.active_count()
    found = epoch(rows, 0, in_memory=in_memory)
    assert threading.active_count() == before
    monkeypatch.setattr(batches_module, "prefetch", lambda batches, _: batches)
    assert epoch(rows, 0, in_memory=in_memory) == found


def test_the_order_of_partitions_changes_between_epochs(train_rows: Callable) -> None:
    parts = [user_rows([8], user) for user in range(8)]
    batches = TrainLoader(train_rows(parts, 8, N_ITEMS), config(), ALONE)
    orders = []
    for seed in range(3):
        users = torch.cat([block.users for block in batches._streamed(seed)])
        orders.append(torch.unique_consecutive(users).tolist())
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_the_rows_of_a_batch_are_mixed(train_rows: Callable) -> None:
    batches = epoch(train_rows([user_rows([10] * 12)], 12, N_ITEMS), 0, batch_size=10_000)
    labels = [label for _, _, label in flat(batches)]
    blocks = [labels[start : start + 100] for start in range(0, 500, 100)]
    assert all(5 <= sum(block) <= 40 for block in blocks)  # one in five is a positive


def test_blocks_contain_whole_users_and_respect_the_size_limit(train_rows: Callable) -> None:
    sizes = [1 + (7 * user) % 13 for user in range(60)]
    parts = [user_rows(sizes[start : start + 12], start) for start in range(0, 60, 12)]
    rows = train_rows(parts, 60, N_ITEMS)
    batches = TrainLoader(rows, config(), ALONE)
    assert batches.block_rows == sum(sizes) // 4
    for limit in (batches.block_rows, 20, 5, 1):
        batches.block_rows = limit
        blocks = list(batches._streamed(3))
        # At most part of one user's rows is carried over from the previous block.
        assert max(map(len, blocks)) <= limit + max(sizes) - 1
        assert sum(map(len, blocks)) == sum(sizes)
        owners = [user for block in blocks for user in block.users.unique().tolist()]
        assert len(owners) == len(set(owners)) == 60


def test_the_block_is_bounded_for_large_sets() -> None:
    rows: Any = SimpleNamespace(n_rows=10**9, columns=SimpleNamespace(n_items=5))
    assert TrainLoader(rows, config(), ALONE).block_rows == 1 << 20


# Partitions that twelve users of 20 rows make at 25 rows per partition.
CUTS = {"sorted in memory": 9, "row groups": 4, "row groups without statistics": 1}


@pytest.mark.parametrize("layout", CUTS)
def test_partitions_contain_whole_users_so_negatives_are_exact(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    # Both the partition size and the row groups of 30 rows end in the middle of a user.
    monkeypatch.setattr(partitions, "_PART_ROWS", 25)
    rows_of_user, n_users, n_items = 20, 12, 40
    folder = write_folder([[(0, 0, 1.0)]], n_users, n_items, time_ordered=layout != "sorted in memory")
    users = np.repeat(np.arange(n_users, dtype=np.int32), rows_of_user)
    items = np.tile(np.arange(rows_of_user, dtype=np.int32), n_users)
    table = pa.table({"user": users, "item": items, "label": np.ones(len(users), dtype=np.float32)})
    file = folder / "train" / "part-00000.parquet"
    pq.write_table(table, file, row_group_size=30, write_statistics="without" not in layout)
    rows = open_train(folder, read_feature_spec(folder), CPU)

    parts = [rows.dataset.to_ddf().partitions[part].compute() for part in range(rows.n_partitions)]
    assert len(parts) == CUTS[layout]
    owners = [user for part in parts for user in part["user"].unique()]
    assert owners == list(range(n_users))  # each user in one partition, all in order
    for number in range(2):
        everything = flat(epoch(rows, number, per_positive=2, batch_size=64))
        assert Counter(user for user, _, _ in everything) == dict.fromkeys(range(n_users), 3 * rows_of_user)
        assert all((item >= rows_of_user) == (label == 0) for _, item, label in everything)


def test_rows_with_label_0_are_kept_and_get_no_negatives(train_rows: Callable) -> None:
    part = [(0, 1, 1.0), (0, 2, 0.0), (0, 3, 0.0), (1, 4, 0.0), (2, 5, 1.0), (2, 5, 0.0)]
    rows = train_rows([part], 3, N_ITEMS)
    for in_memory in (False, True):
        for number in range(3):
            check_exact_epoch(epoch(rows, number, in_memory=in_memory), part, 16, 4)


def test_a_partition_may_contain_only_rows_with_label_0(train_rows: Callable) -> None:
    parts = [[(0, 1, 0.0), (0, 2, 0.0)], [(1, 1, 1.0)]]
    check_exact_epoch(epoch(train_rows(parts, 2, N_ITEMS), 0), flat(parts), 16, 4)
    nothing = [[(0, 1, 0.0), (0, 2, 0.0)]]
    assert sorted(flat(epoch(train_rows(nothing, 2, N_ITEMS, name="negatives"), 0))) == flat(nothing)


@pytest.mark.parametrize("change", [{"kind": "static"}, {"per_positive": 0}, {"per_positive": 0, "kind": "uniform"}])
def test_no_negatives_are_drawn_if_none_are_configured(train_rows: Callable, change: dict[str, object]) -> None:
    parts = [[(0, 1, 1.0), (0, 2, 0.0)], [(1, 1, 1.0), (1, 0, 0.0), (1, 3, 0.0)]]
    rows = train_rows(parts, 2, N_ITEMS)
    for number in range(2):
        assert sorted(flat(epoch(rows, number, **change))) == sorted(flat(parts))


def test_the_rows_of_a_user_who_has_seen_every_item_are_kept(train_rows: Callable) -> None:
    everything = [(0, item, 1.0) for item in range(N_ITEMS)]
    parts = [[*everything, (1, 0, 1.0)]]
    check_exact_epoch(epoch(train_rows(parts, 2, N_ITEMS), 0), flat(parts), 16, 4)
    alone = epoch(train_rows([everything], 1, N_ITEMS, name="alone"), 0)
    assert sorted(flat(alone)) == everything


def test_every_repeat_of_a_positive_is_a_row(train_rows: Callable) -> None:
    part = [(0, 1, 1.0), (0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.0)]
    check_exact_epoch(epoch(train_rows([part], 2, N_ITEMS), 0), part, 16, 4)


def test_exact_negatives_are_uniform_over_unseen_items(train_rows: Callable, assert_uniform: Callable) -> None:
    part = [(user, item, 1.0) for user in range(40) for item in (0, 7, 29)]
    batches = epoch(train_rows([part], 40, N_ITEMS), 0, per_positive=40, batch_size=4096)
    drawn = Counter(item for _, item, label in flat(batches) if not label)
    assert not {0, 7, 29} & set(drawn)
    assert_uniform(np.array([drawn[item] for item in range(N_ITEMS) if item not in (0, 7, 29)]))


@pytest.mark.parametrize("parts", FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize("in_memory", [False, True], ids=["merlin", "memory"])
def test_popularity_negatives_are_never_the_users_own_items(
    train_rows: Callable, parts: list[list[Row]], in_memory: bool
) -> None:
    rows, everything = train_rows(parts, 12, N_ITEMS), flat(parts)
    candidates = popularity(everything)
    for number in range(2):
        batches = epoch(rows, number, candidates=candidates, kind="popularity", in_memory=in_memory)
        check_exact_epoch(batches, everything, 16, 4)


def test_popularity_negatives_are_weighted_by_interactions(train_rows: Callable) -> None:
    # Two groups of users with the same history within a group, and users who make items 1 .. 20 popular.
    groups = {"few": range(30), "most of the popular": range(30, 60)}
    seen = {"few": [0, 7, 29], "most of the popular": [*range(10, 21), 25]}
    part = [(user, item, 1.0) for name, users in groups.items() for user in users for item in seen[name]]
    part += [(60 + user, item, 1.0) for item in range(1, 21) for user in range(item * 4)]
    part = sorted(part)
    candidates = popularity(part)
    batches = epoch(
        train_rows([part], 140, N_ITEMS), 0, candidates=candidates, kind="popularity", per_positive=60, batch_size=4096
    )
    counts = Counter(item for _, item, _ in part)
    for name, users in groups.items():
        weights = {item: counts[item] ** 0.75 for item in counts if item not in seen[name]}
        drawn = Counter(item for user, item, label in flat(batches) if user in users and not label)
        assert drawn.keys() <= weights.keys()  # items without interactions are almost never drawn
        expected = np.array(list(weights.values())) / sum(weights.values()) * drawn.total()
        assert expected.min() >= 5
        assert stats.chisquare([drawn[item] for item in weights], expected).pvalue > 1e-6


def test_items_without_interactions_are_drawn_if_nothing_else_is_left(train_rows: Callable) -> None:
    part = [(0, item, 1.0) for item in range(N_ITEMS - 1)]
    batches = epoch(train_rows([part], 1, N_ITEMS), 0, candidates=popularity(part), kind="popularity")
    assert Counter(row for row in flat(batches) if not row[2]) == {(0, N_ITEMS - 1, 0.0): 4 * (N_ITEMS - 1)}


def test_uniform_negatives_may_be_any_item(train_rows: Callable, assert_uniform: Callable) -> None:
    part = [(user, item, 1.0) for user in range(40) for item in (0, 7, 29)]
    batches = epoch(train_rows([part], 40, N_ITEMS), 0, per_positive=40, batch_size=4096, kind="uniform")
    negatives = [row for row in flat(batches) if not row[2]]
    assert Counter(user for user, _, _ in negatives) == dict.fromkeys(range(40), 120)
    assert_uniform(np.bincount([item for _, item, _ in negatives], minlength=N_ITEMS))


@pytest.mark.parametrize("kind", ["exact", "popularity", "uniform"])
def test_negatives_do_not_depend_on_partitions_or_blocks(train_rows: Callable, kind: str) -> None:
    sizes = [3, 9, 1, 14, 6, 8]
    content = [user_rows([size], user) for user, size in enumerate(sizes)]
    candidates = popularity(flat(content)) if kind == "popularity" else None
    layouts = [content, [flat(content)], [flat(content[:2]), flat(content[2:])]]
    epochs = []
    for place, parts in enumerate(layouts):
        rows = train_rows(parts, 6, N_ITEMS, name=f"layout{place}")
        for in_memory in (False, True):
            epochs.append(Counter(flat(epoch(rows, 3, candidates=candidates, kind=kind, in_memory=in_memory))))
    assert all(counted == epochs[0] for counted in epochs)


def test_samples_per_epoch_counts_the_negatives(train_rows: Callable) -> None:
    rows = train_rows([user_rows([5, 6])], 2, N_ITEMS)
    for kind, expected in (("exact", 55), ("uniform", 55), ("static", 11)):
        for world in (ALONE, ProcessGroup(CPU, 1, 3)):
            assert TrainLoader(rows, config(kind=kind), world).samples_per_epoch() == expected


def test_samples_per_epoch_excludes_held_out_rows(train_rows: Callable) -> None:
    rows = train_rows([user_rows([5, 6, 1])], 4, N_ITEMS)
    validation_items = torch.tensor([3, 4, -1, -1], dtype=torch.int32)
    for kind, expected in (("exact", 50), ("uniform", 50), ("static", 10)):
        assert (
            TrainLoader(rows, config(kind=kind), ALONE, validation_items=validation_items).samples_per_epoch()
            == expected
        )


def test_batch_dtypes(train_rows: Callable) -> None:
    rows = train_rows([user_rows([5, 6])], 2, N_ITEMS)
    for batch in TrainLoader(rows, config(), ALONE).epoch(0):
        assert batch.users.dtype == batch.items.dtype == torch.int32
        assert batch.labels.dtype == torch.float32
        assert batch.users.shape == batch.items.shape == batch.labels.shape == (len(batch),)


@pytest.mark.parametrize("kind", ["exact", "uniform"])
@pytest.mark.parametrize("in_memory", [False, True], ids=["merlin", "memory"])
def test_a_negative_keeps_the_side_features_of_its_positive(
    write_frames: Callable[..., Path], kind: str, in_memory: bool
) -> None:
    # The hour identifies the row, and the age the user.
    users = np.repeat(np.arange(6), 5)
    columns = {"user": users, "item": np.tile(np.arange(5), 6), "label": 1.0, "hour": np.arange(30), "age": users / 10}
    frame = pd.DataFrame(columns)
    frame.loc[frame["hour"] % 10 == 9, "label"] = 0.0
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_context": ["hour", "age"]}
    sizes = {"user": 6, "item": N_ITEMS, "hour": 30}
    folder = write_frames({"train": frame.sample(frac=1.0, random_state=1)}, channels, sizes)
    rows = open_train(folder, read_feature_spec(folder), CPU)
    assert rows.names == ("user", "item", "label", "hour", "age")
    batches = list(TrainLoader(rows, config(kind=kind, in_memory=in_memory, batch_size=17), ALONE).epoch(0))
    assert [column.dtype for column in batches[0].side] == [torch.int32, torch.float32]
    found = [row for batch in batches for row in zip(*(column.tolist() for column in batch.columns), strict=True)]
    positives = frame[frame["label"] > 0]
    on_disk = Counter((r.user, r.item, r.label, r.hour, round(r.age, 3)) for r in frame.itertuples())
    rounded = Counter((user, item, label, hour, round(age, 3)) for user, item, label, hour, age in found)
    assert on_disk <= rounded
    drawn = rounded - on_disk
    assert sum(drawn.values()) == 4 * len(positives)
    assert all(label == 0.0 and hour // 5 == user == round(10 * age) for user, _, label, hour, age in drawn.elements())
    assert Counter(hour for _, _, _, hour, _ in drawn.elements()) == dict.fromkeys(positives["hour"], 4)


@pytest.mark.parametrize("change", [{"kind": "static"}, {"per_positive": 0}])
@pytest.mark.parametrize("label", [1.0, 0.0])
def test_rows_with_one_label_and_no_negatives_are_refused(
    train_rows: Callable, change: dict[str, object], label: float
) -> None:
    rows = train_rows([[(0, 1, label)], [(1, 2, label), (1, 3, label)]], 2, N_ITEMS)
    with pytest.raises(UserError, match=f"all train rows have the label {label:g}.*--negatives exact"):
        check_labels(rows, config(**change), CPU)
    check_labels(rows, config(), CPU)
    mixed = train_rows([[(0, 1, label)], [(1, 2, label), (1, 3, 1.0 - label)]], 2, N_ITEMS, name="mixed")
    check_labels(mixed, config(**change), CPU)


def of_ranks(rows: Rows, number: int, size: int, **more: Any) -> list[list[list[Row]]]:
    """The batches of each rank."""
    return [epoch(rows, number, ProcessGroup(CPU, rank, size), **more) for rank in range(size)]


@pytest.mark.parametrize("parts", FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize("batch_size", [7, 10_000])
def test_streaming_ranks_read_every_row_once(train_rows: Callable, parts: list[list[Row]], batch_size: int) -> None:
    rows = train_rows(parts, 12, N_ITEMS)
    alone = Counter(flat(epoch(rows, 0, batch_size=batch_size)))
    for size in (1, 2, 3, 4):
        ranks = of_ranks(rows, 0, size, batch_size=batch_size)
        together = [row for batches in ranks for row in flat(batches)]
        assert Counter(together) == alone
        check_exact_epoch([together], flat(parts), len(together), 4)
        owners = [{user for user, _, _ in flat(batches)} for batches in ranks]
        assert sum(map(len, owners)) == len(set().union(*owners))
        for rank, batches in enumerate(ranks):
            share = batch_size * (rank + 1) // size - batch_size * rank // size
            assert all(share - 4 <= len(batch) <= share for batch in batches[:-1])
            assert all(0 < len(batch) <= share for batch in batches[-1:])
        # Partitions are assigned to ranks round-robin.
        assert sum(not batches for batches in ranks) == max(0, size - rows.n_partitions)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "exact") for name in FOLDERS), *(("several parts", kind) for kind in CHOICES["negatives"])],
)
@pytest.mark.parametrize("batch_size", [7, 10_000])
def test_in_memory_ranks_split_the_batches_of_a_single_rank(
    train_rows: Callable, name: str, kind: str, batch_size: int
) -> None:
    parts = FOLDERS[name]
    rows = train_rows(parts, 12, N_ITEMS)
    candidates = popularity(flat(parts)) if kind == "popularity" else None
    more: dict[str, Any] = {"candidates": candidates, "kind": kind, "batch_size": batch_size, "in_memory": True}
    alone = epoch(rows, 1, **more)
    for size in (1, 2, 3, 4):
        steps = list(zip(*of_ranks(rows, 1, size, **more), strict=True))
        assert [flat(list(shares)) for shares in steps] == alone
        assert all(max(map(len, shares)) - min(map(len, shares)) <= 5 for shares in steps)  # one group


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, N_ITEMS), max_size=3), min_size=1, max_size=5).filter(any),
    st.integers(1, 4),
    st.integers(4, 40),
    st.booleans(),
    st.data(),
)
def test_ranks_leave_out_held_out_rows(
    write_folder: Callable[..., Path],
    parts: list[list[int]],
    size: int,
    batch_size: int,
    in_memory: bool,
    data: st.DataObject,
) -> None:
    first = np.cumsum([0, *map(len, parts)]).tolist()
    content = [user_rows(sizes, start) for sizes, start in zip(parts, first, strict=False)]
    folder = write_folder(content, 16, N_ITEMS, name=f"folder{next(_NUMBERS)}")
    rows = open_train(folder, read_feature_spec(folder), CPU)
    validation_items = torch.full((16,), -1, dtype=torch.int32)
    own: dict[int, list[int]] = {}
    for user, item, _ in flat(content):
        own.setdefault(user, []).append(item)
    for user, items in own.items():
        if len(items) > 1:
            validation_items[user] = data.draw(st.sampled_from([-1, *items]))
    kept = [row for row in flat(content) if validation_items[row[0]] != row[1]]
    found: Counter = Counter()
    for rank in range(size):
        sampling = config(batch_size=batch_size, in_memory=in_memory)
        batches = TrainLoader(rows, sampling, ProcessGroup(CPU, rank, size), validation_items=validation_items)
        found.update(flat([listed(batch) for batch in batches.epoch(0)]))
    check_exact_epoch([list(found.elements())], kept, found.total(), 4)


def test_ranks_get_other_partitions_every_epoch(train_rows: Callable) -> None:
    rows = train_rows([user_rows([4], user) for user in range(8)], 8, N_ITEMS)
    owners = set()
    for number in range(4):
        own = frozenset(user for user, _, _ in flat(epoch(rows, number, ProcessGroup(CPU, 1, 2))))
        assert len(own) == 4
        owners.add(own)
    assert len(owners) > 1


def test_each_rank_shuffles_its_rows_differently(train_rows: Callable) -> None:
    parts = [[(user, item, 1.0) for item in range(N_ITEMS)] for user in range(2)]
    rows = train_rows(parts, 2, N_ITEMS)
    ranks = of_ranks(rows, 0, 2, kind="static", batch_size=100)
    orders = [[item for _, item, _ in flat(batches)] for batches in ranks]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(N_ITEMS))
    assert orders[0] != orders[1]


def test_shares_keep_the_side_features_of_their_rows(write_frames: Callable[..., Path]) -> None:
    users, items = np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6)
    frame = pd.DataFrame({"user": users, "item": items, "label": 1.0, "hour": np.arange(30), "age": users / 10})
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_context": ["hour", "age"]}
    folder = write_frames({"train": frame}, channels, {"user": 6, "item": N_ITEMS, "hour": 30})
    rows = open_train(folder, read_feature_spec(folder), CPU)
    sampling = config(in_memory=True, batch_size=17)
    for size in (1, 2, 3, 4):
        ranks = [TrainLoader(rows, sampling, ProcessGroup(CPU, rank, size)).epoch(0) for rank in range(size)]
        for whole, *shares in zip(TrainLoader(rows, sampling, ALONE).epoch(0), *ranks, strict=True):
            for column, *pieces in zip(whole.columns, *(share.columns for share in shares), strict=True):
                assert torch.equal(torch.cat(pieces), column)


@pytest.mark.parametrize("in_memory", [False, True], ids=["merlin", "memory"])
def test_a_positive_and_its_negatives_stay_together(train_rows: Callable, in_memory: bool) -> None:
    rows = train_rows([user_rows([5, 9, 3]), user_rows([7, 2], 3)], 12, N_ITEMS)
    batches = list(TrainLoader(rows, config(batch_size=16, in_memory=in_memory), ALONE).epoch(0))
    for batch in batches:
        assert batch.group_size == 5
        groups = [column.view(-1, 5) for column in (batch.users, batch.labels)]
        assert (groups[0] == groups[0][:, :1]).all()
        assert groups[1].tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]] * len(groups[1])
    owners = torch.cat([batch.users.view(-1, 5)[:, 0] for batch in batches]).tolist()
    assert owners != sorted(owners)  # the groups are shuffled


def test_rows_without_negatives_give_ungrouped_samples(train_rows: Callable) -> None:
    parts = [[(0, 1, 1.0), (0, 2, 0.0), (1, 4, 1.0)]]
    batches = list(TrainLoader(train_rows(parts, 3, N_ITEMS), config(in_memory=True), ALONE).epoch(0))
    assert [batch.group_size for batch in batches] == [1]
    check_exact_epoch([listed(batch) for batch in batches], flat(parts), 16, 4)
