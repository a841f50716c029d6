from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.prepare import text_ids
from preprocessing.prepare.text_ids import bucket_of, in_order, spill_texts, text_keys, texts_of_bucket
from workflows.common.errors import UserError

_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=25)


@given(columns=st.lists(_TEXTS, min_size=1, max_size=3), buckets=st.sampled_from([1, 3, 40]))
def test_distinct_texts_are_returned_sorted_by_code_point(
    fresh: Callable[[], Path], columns: list[list[str]], buckets: int
) -> None:
    folder = fresh()
    paths = [folder / str(number) for number in range(len(columns))]
    for path, column in zip(paths, columns, strict=True):
        keys = spill_texts(pa.chunked_array([column[:3], column[3:]], pa.string()), path, buckets)
        assert keys.dtype == np.int64
        assert keys.tolist() == text_keys(pa.array(column, pa.string())).tolist()  # a row has the key of its text
    parts = [texts_of_bucket(bucket, paths) for bucket in range(buckets)]
    for bucket, part in enumerate(parts):
        assert (bucket_of(text_keys(part), buckets) == bucket).all()
    assert in_order(parts).to_pylist() == sorted({text for column in columns for text in column})


def test_texts_sort_by_code_point_where_other_orders_differ() -> None:
    # UTF-16 order puts U+10437 before U+FFFF; collation puts "a" before "Z" and "ä" before "b".
    texts = ["\U00010437", "\uffff", "ä", "b", "a", "Z", "10", "9", "", " "]
    assert in_order([pa.array(texts[:4]), pa.array(texts[4:])]).to_pylist() == sorted(texts)


def test_keys_are_the_same_in_every_process() -> None:
    texts = ["", "a", "ünï", "\U0001f600", "a" * 1000]
    imports = "import pyarrow as pa; from preprocessing.prepare.text_ids import text_keys"
    code = f"{imports}; print(*text_keys(pa.array({texts!r})))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [int(key) for key in found.split()] == text_keys(pa.array(texts)).tolist()


def test_different_texts_have_different_keys() -> None:
    assert len(np.unique(text_keys(pa.array([f"item-{number}" for number in range(200_000)])))) == 200_000


@pytest.mark.parametrize("files", [1, 2])
def test_two_texts_with_one_key_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    # With three hash bits, nine texts must collide.
    keys = text_ids.text_keys
    monkeypatch.setattr(text_ids, "text_keys", lambda texts: keys(texts) & 7)
    texts = [f"text {number}" for number in range(9)]
    paths = [tmp_path / str(number) for number in range(files)]
    for number, path in enumerate(paths):
        spill_texts(pa.chunked_array([texts[number::files]]), path, 2)
    with pytest.raises(UserError, match=r"the ids 'text \d' and 'text \d' have the same 64-bit hash"):
        list(map(partial(texts_of_bucket, paths=paths), range(2)))


def test_the_same_text_in_several_files_is_not_a_collision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = text_ids.text_keys
    monkeypatch.setattr(text_ids, "text_keys", lambda texts: keys(texts) & 7)
    for name in "ab":
        spill_texts(pa.chunked_array([["x", "x"]]), tmp_path / name, 1)
    assert texts_of_bucket(0, [tmp_path / "a", tmp_path / "b"]).to_pylist() == ["x"]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.integers(1, 65536))
def test_buckets_are_in_range_and_independent_of_the_integer_width(keys: list[int], buckets: int) -> None:
    found = bucket_of(np.array(keys, dtype=np.int64), buckets)
    assert found.dtype == np.uint16
    assert all(0 <= bucket < buckets for bucket in found.tolist())
    narrow = np.array([key % 1000 for key in keys])
    assert bucket_of(narrow.astype(np.int32), buckets).tolist() == bucket_of(narrow, buckets).tolist()
