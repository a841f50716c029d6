"""What a run records of its data: sets of users as text, and folders that differ."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.data.popularity import count_positives
from model.data.record import check_encoding, data_record, decode_users, encode_users, recorded_fingerprint
from model.distributed.process_group import ProcessGroup
from preprocessing.fingerprint import Fingerprint
from workflows.common.errors import UserError


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_set_of_users_survives_as_text(trained: list[bool]) -> None:
    text = encode_users(np.array(trained))
    assert (text == "all") == all(trained)
    assert decode_users(text, len(trained)).tolist() == trained


def test_the_text_is_one_bit_per_user() -> None:
    text = encode_users(np.array([True, False, True] + [False] * 6))
    assert zlib.decompress(base64.b64decode(text)) == bytes([0b10100000, 0])
    many = np.random.default_rng(0).random(138_493) < 0.5  # incompressible
    assert len(encode_users(many)) < 24_000


BOMB = base64.b64encode(zlib.compress(bytes(1 << 24), 9)).decode()


@pytest.mark.parametrize(
    "text", ["", "ALL", "é", "====", BOMB, encode_users(np.array([True, False] * 8)), ["all"], 7, None]
)
def test_a_text_that_is_no_set_of_users_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_users(text, 8)


def test_users_with_a_train_positive_are_those_trained_on(train_rows: Callable[..., object]) -> None:
    parts = [[(0, 1, 1.0), (0, 1, 1.0), (2, 3, 0.0)], [(4, 0, 1.0), (5, 2, 0.0), (5, 3, 0.5)]]
    rows = train_rows(parts, 7, 4)
    counts = count_positives(rows, ProcessGroup(torch.device("cpu")))  # type: ignore[arg-type]
    assert counts.has_any.tolist() == [True, False, False, False, True, True, False]
    assert counts.of_items.tolist() == [1, 2, 0, 1]


def test_folders_are_told_apart_by_encoding_and_split(tmp_path: Path) -> None:
    record, run = data_record(Fingerprint("e", "s"), np.array([True, False])), Path("run")
    assert recorded_fingerprint(record) == Fingerprint("e", "s")
    for found, note in (({"encoding": "e", "split": "s"}, ""), ({"encoding": "e", "split": "t"}, "the split differs")):
        (tmp_path / "stats.json").write_text(json.dumps({"fingerprint": found}))
        assert note in check_encoding(record, run, tmp_path)
    (tmp_path / "stats.json").write_text(json.dumps({"fingerprint": {"encoding": "f", "split": "s"}}))
    with pytest.raises(UserError, match=r"was prepared anew from another log .* \(the encoding differs\)"):
        check_encoding(record, run, tmp_path)
    for unknown in ({}, {"fingerprint": None}, {"fingerprint": "e"}, {"fingerprint": {"encoding": "e"}}):
        assert check_encoding(unknown, run, tmp_path) == ""
