from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.spec.ranges import ValueRanges
from preprocessing.spec.values import Block


def _block(ids: list[int], numbers: list[float]) -> Block:
    return Block(0, len(ids), {"x": np.array(ids, dtype=np.int64), "n": np.array(numbers, dtype=float)}, [])


@given(blocks=st.lists(st.lists(st.integers(0, 500) | st.integers(0, 2**22), max_size=20), max_size=6))
def test_distinct_ids_are_counted_across_blocks(blocks: list[list[int]]) -> None:
    survey = ValueRanges({"x": "id", "n": "number"})
    for ids in blocks:
        survey.add("train", _block(ids, [0.0] * len(ids)))
    everything = {id_ for ids in blocks for id_ in ids}
    assert survey.distinct("x") == len(everything)
    assert survey.found == {"x": max(everything, default=-1) + 1}


def test_number_ranges_cover_train_only_and_id_ranges_all_mappings() -> None:
    survey = ValueRanges({"x": "id", "n": "number"})
    survey.add("train", _block([1, 2], [3.0, -1.0]))
    survey.add("train", _block([0], [4.0]))
    survey.add("test", _block([9], [100.0]))
    assert survey.ranges == {"n": (-1.0, 4.0)}
    assert survey.found == {"x": 10}
