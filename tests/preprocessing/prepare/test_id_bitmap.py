from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.prepare import id_bitmap
from preprocessing.prepare.id_bitmap import IdBitmap

_LOWS = st.sampled_from([-(2**63), -9, 0, 2**31 - 5, 2**40 + 3, 2**63 - 300])


@given(_LOWS, st.lists(st.lists(st.integers(0, 250), max_size=30), min_size=1, max_size=4))
def test_distinct_integers_of_all_parts_are_sorted(low: int, parts: list[list[int]]) -> None:
    found = IdBitmap.distinct([IdBitmap.from_ids(np.array([low + n for n in part], dtype=np.int64)) for part in parts])
    expected = sorted({low + n for part in parts for n in part})
    if not expected:
        assert found is None
    else:
        assert found is not None
        assert found.dtype == np.int64
        assert found.tolist() == expected


def test_too_wide_a_range_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_bitmap, "_MAX_RANGE", 1000)
    near, far = (IdBitmap.from_ids(np.array(ids)) for ids in ([0, 999], [0, 1000]))
    assert far is None
    assert IdBitmap.distinct([near, far]) is None
    assert (
        IdBitmap.distinct([near, IdBitmap.from_ids(np.array([10**12]))]) is None
    )  # each part is narrow, but their union is not
    assert IdBitmap.distinct([near]).tolist() == [0, 999]
