"""Mapping between original and encoded ids."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.vocabulary import Id, Vocabulary
from workflows.common.errors import UserError

int64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(int64, min_size=1, unique=True))
def test_integers_are_found_as_integers_and_as_text(originals: list[int]) -> None:
    ids = Vocabulary("user", pd.Series(originals, dtype="int64"))
    numbers = list(range(len(originals)))
    for given_ids in (originals, [str(one) for one in originals], np.array(originals)):
        assert ids.known(given_ids).tolist() == numbers
        assert ids.spelt(given_ids).tolist() == originals
    assert ids.originals(np.array(numbers)).tolist() == originals


@given(st.lists(st.text(), min_size=1, unique=True))
def test_text_is_matched_exactly(originals: list[str]) -> None:
    ids = Vocabulary("item", pd.Series(originals, dtype=object))
    assert ids.known(originals).tolist() == list(range(len(originals)))
    assert ids.spelt(originals).tolist() == originals


@pytest.mark.parametrize("one", ["7", " 7", "7 ", "\t7\r", "\u00a07", "07", "007", "7.0", "7.000", 7, 7.0, np.int64(7)])
def test_integers_are_read_as_in_a_log(one: Id) -> None:
    ids = Vocabulary("user", pd.Series([7, 1, 10, 0]))
    assert ids.known([one, 1]).tolist() == [0, 1]
    assert ids.spelt([one, 1]).tolist() == [7, 1]


@pytest.mark.parametrize(
    "one", ["+7", "", " ", "x", "1_0", "7.5", "7 1", "٧", 8, True, 2**70, str(2**70), "1" * 5000, None]
)
def test_ids_in_another_form_are_unknown(one: Id) -> None:
    ids = Vocabulary("user", pd.Series([7, 1, 10, 0]))
    assert ids.find([7, one, "7"]).tolist() == [0, -1, 0]
    with pytest.raises(UserError, match=r"not among the 4 users .*such as 7, 1, 10"):
        ids.known([one])


def test_ids_beyond_64_signed_bits() -> None:
    ids = Vocabulary("item", pd.Series([2**64 - 1, 3], dtype="uint64"))
    assert ids.known([str(2**64 - 1), " 3"]).tolist() == [0, 1]
    assert ids.find([-1, 2**64, 2**63]).tolist() == [-1, -1, -1]
    assert ids.spelt([2**64 - 1]).tolist() == [2**64 - 1]


def test_blanks_around_text_do_not_count_but_those_within_do() -> None:
    ids = Vocabulary("item", pd.Series(["a b", "ab", "07", " c "]))
    assert ids.known([" a b", "a b\t", "ab ", " 07", " c ", "ab"]).tolist() == [0, 0, 1, 2, 3, 1]
    assert ids.find(["a  b", "7", "c", ""]).tolist() == [-1] * 4
    assert ids.spelt([" a b ", " new one ", " c "]).tolist() == ["a b", "new one", " c "]


def test_integers_may_refer_to_text_ids() -> None:
    ids = Vocabulary("user", pd.Series(["7", "07", "a"]))
    assert ids.find([7, "07", "b"]).tolist() == [0, 1, -1]


def test_one_non_integer_id_turns_all_ids_into_text() -> None:
    ids = Vocabulary("user", pd.Series([7, 8]))
    assert ids.spelt([7, "8"]).tolist() == [7, 8]
    assert ids.spelt([7, " 08", "nobody "]).tolist() == ["7", "8", "nobody"]


@pytest.mark.parametrize(("originals", "named"), [(["a", "b", "a"], "'a'"), ([7, 8, 7], "7")])
def test_duplicate_ids_are_refused(originals: list, named: str) -> None:
    with pytest.raises(UserError, match=f"contains {named} twice"):
        Vocabulary("user", pd.Series(originals))
