"""Item statistics over arbitrary partitions, against pandas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from workflows.merlin import Workflow, frame_dataset
from workflows.operators.encode import EncodeIds
from workflows.operators.item_statistics import ItemStatistics

TIMES = st.integers(-(2**62), 2**62)


def fitted(parts: list[pd.DataFrame], encoder: EncodeIds) -> tuple[Any, ItemStatistics]:
    statistics = ItemStatistics(encoder, "item", "time")
    workflow = Workflow((["item"] >> encoder) + ["time"] >> statistics)
    workflow.fit(frame_dataset(lambda number: parts[number], len(parts), meta=parts[0].iloc[:0], cpu=True))
    return workflow, statistics


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), TIMES), max_size=12), min_size=1, max_size=4))
def test_counts_and_first_times_match_pandas(parts: list[list[tuple[int, int]]]) -> None:
    frames = [pd.DataFrame(rows, columns=["item", "time"], dtype="int64") for rows in parts]
    log = pd.concat(frames)
    items = sorted({*log["item"], 4, 11})  # items 4 and 11 may not occur
    encoder = EncodeIds({"item": pd.Series([item for item in items if item != 6])})  # and item 6 is unknown
    _, statistics = fitted(frames, encoder)
    groups = log.groupby("item")["time"]
    known = encoder.categories["item"]
    assert statistics.counts.tolist() == [int(groups.size().get(item, 0)) for item in known]
    assert statistics.since.tolist() == [int(groups.min().get(item, 2**63 - 1)) for item in known]
    assert {statistics.counts.dtype, statistics.since.dtype} == {np.dtype(np.int64)}


def test_rows_are_passed_through_and_refitting_starts_afresh() -> None:
    first = pd.DataFrame({"item": [3, 5, 3], "time": [9, 8, 7]})
    workflow, statistics = fitted([first], EncodeIds())
    assert workflow.transform(first).to_dict("list") == {"item": [0, 1, 0], "time": [9, 8, 7]}
    assert (statistics.counts.tolist(), statistics.since.tolist()) == ([2, 1], [7, 8])
    second = pd.DataFrame({"item": [8], "time": [1]})
    workflow.fit(frame_dataset(lambda _: second, 1, meta=second.iloc[:0], cpu=True))
    assert (statistics.counts.tolist(), statistics.since.tolist()) == ([1], [1])
