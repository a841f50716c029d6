from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.prepare import id_bitmap
from preprocessing.prepare.id_bitmap import Present

_LOWS = st.sampled_from([-(2**63), -9, 0, 2**31 - 5, 2**40 + 3, 2**63 - 300])


@given(_LOWS, st.lists(st.lists(st.integers(0, 250), max_size=30), min_size=1, max_size=4))
def test_distinct_integers_of_all_parts_are_sorted(low: int, parts: list[list[int]]) -> None:
    found = Present.distinct([Present.of(np.array([low + n for n in part], dtype=np.int64)) for part in parts])
    expected = sorted({low + n for part in parts for n in part})
    if not expected:
        assert found is None
    else:
        assert found is not None
        assert found.dtype == np.int64
        assert found.tolist() == expected


def test_too_wide_a_range_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_bitmap, "_MAX_RANGE", 1000)
    near, far = (Present.of(np.array(ids)) for ids in ([0, 999], [0, 1000]))
    assert far is None
    assert Present.distinct([near, far]) is None
    assert (
        Present.distinct([near, Present.of(np.array([10**12]))]) is None
    )  # each part is narrow, but their union is not
    assert Present.distinct([near]).tolist() == [0, 999]
