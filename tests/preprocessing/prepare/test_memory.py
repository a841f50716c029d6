from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.prepare.memory import (
    MAX_PARTITIONS,
    check_workers,
    fits_gpu,
    gpu_partitions,
    parse_bytes,
    partitions_of,
    splits_of,
    threads_within,
)
from workflows.common.errors import UserError

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824", 2**30), ("0", 0), ("1GiB", 2**30), ("1gib", 2**30), ("2g", 2 * 10**9), ("500MB", 500 * 10**6),
        ("1.5 KiB", 1536), (" 3 tb ", 3 * 10**12), ("4Ti", 2**42), ("7b", 7), ("10 k", 10_000),
    ],
)  # fmt: skip
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 gig", "GiB", "1e9", "1,5g", "1GiBs", "nan", "1.g", "9" * 400])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; expected one such as 1GiB"):
        parse_bytes(text)


@given(limit=st.integers(0, 2**44), cores=st.integers(1, 512))
def test_threads_grow_with_the_limit_up_to_the_cores(limit: int, cores: int) -> None:
    def threads(limit: int | None) -> int:
        try:
            return threads_within(limit, cores)
        except UserError as err:
            assert limit is not None
            needed = re.search(r"allow (\d+) MiB or more", str(err))
            assert needed is not None
            assert threads_within(int(needed[1]) * MIB, cores) == 1  # the amount in the message is enough
            assert limit < int(needed[1]) * MIB
            return 0

    assert threads(None) == cores
    assert threads(limit) <= threads(limit + 100 * MIB) <= cores


@given(limit=st.one_of(st.none(), st.integers(2**30, 2**44)), cores=st.integers(1, 512))
def test_a_gpu_has_two_tasks_whatever_the_number_of_cores(limit: int | None, cores: int) -> None:
    assert threads_within(limit, cores, on_gpu=True) == min(2, cores)


@given(
    rows=st.integers(0, 2**36),
    negatives=st.integers(0, 2**36),
    free=st.integers(2**30, 2**38),
    tasks=st.integers(1, 4),
)
def test_gpu_partitions_are_as_few_as_fit(rows: int, negatives: int, free: int, tasks: int) -> None:
    def fits(partitions: int) -> bool:
        # Three int64 columns, sort keys and histories of each row, and each negative, in half of a task's memory.
        row_bytes = (24 * rows + 12 * negatives) / partitions
        return row_bytes * tasks * 2 <= free and (rows + negatives) / partitions <= 2**30

    found = gpu_partitions(rows, negatives, free, tasks)
    assert 1 <= found <= MAX_PARTITIONS
    assert fits(found) or found == MAX_PARTITIONS
    assert gpu_partitions(rows, negatives, 8 * free, tasks) <= found
    assert gpu_partitions(rows, negatives, free, 1) <= found
    assert gpu_partitions(rows, negatives * 2, free, tasks) >= found


@pytest.mark.parametrize(
    ("rows", "negatives", "free_gib", "partitions"),
    [
        (100_000, 943 * 100, 15, 1),
        (20_000_000, 138_000 * 100, 15, 1),  # MovieLens-20M on a T4 ...
        (20_000_000, 138_000 * 100, 79, 1),
        (1_000_000_000, 10**8 * 100, 79, 22),
    ],
)
def test_logs_that_fit_a_gpu_are_one_partition(rows: int, negatives: int, free_gib: int, partitions: int) -> None:
    assert gpu_partitions(rows, negatives, free_gib << 30, 2) == partitions


def test_a_log_stays_in_a_gpus_memory_if_it_leaves_half_to_the_tasks() -> None:
    assert fits_gpu(20_000_000, 15 << 30)  # MovieLens-20M on a T4
    assert not fits_gpu(200_000_000, 15 << 30)
    assert fits_gpu(500_000_000, 79 << 30)
    assert not fits_gpu(1_000_000_000, 79 << 30)


def test_workers_must_fit_within_the_limit() -> None:
    check_workers(None, 2)
    with pytest.raises(
        UserError, match=r"--memory-limit of 800 MiB is too little for 4 worker processes.*or run fewer"
    ):
        check_workers(800 * MIB, 4)
    with pytest.raises(UserError, match=r"allow (\d+) MiB or more") as caught:
        check_workers(1, 2)
    needed = int(re.findall(r"allow (\d+) MiB", str(caught.value))[0])
    check_workers(needed * MIB, 2)
    with pytest.raises(UserError):
        check_workers(needed * MIB, 3)


@given(rows=st.integers(0, 2**36), limit=st.none() | st.integers(400 * MIB, 2**40), tasks=st.integers(1, 64))
def test_there_are_more_partitions_for_larger_logs_and_lower_limits(rows: int, limit: int | None, tasks: int) -> None:
    found = partitions_of(rows, limit, tasks)
    assert 1 <= found <= 65536
    assert partitions_of(rows // 2, limit, tasks) <= found <= partitions_of(rows * 2, limit, tasks)
    assert partitions_of(rows, None, tasks) <= found
    if limit is not None:
        assert found <= partitions_of(rows, limit, tasks + 1)
        assert partitions_of(rows, limit + 100 * MIB, tasks) <= found


def test_a_limit_shrinks_partitions_until_they_fit() -> None:
    # 96 MiB besides the process for 32 tasks: 3 MiB each.
    few, many = (partitions_of(10**8, limit, 32) for limit in (None, 400 * MIB))
    assert 10 * few < many


def test_partitions_are_split_by_the_number_of_negatives() -> None:
    few = splits_of(600_000, 200_000 * 100, 8, 500 * MIB, 2)
    many = splits_of(600_000, 200_000 * 500, 8, 500 * MIB, 2)
    assert 1 < few < many
    assert splits_of(20_000_000, 138_000 * 100, 133, None, 2) == 1
    assert splits_of(10**9, 10**12, 8192, 500 * MIB, 2) == 1  # already at the maximum number of partitions
