from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.check import check, rules
from preprocessing.check.check import check_folder, print_check

Found = list[tuple[str, str]]
_SERIES = 3


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (check, rules):
        monkeypatch.setattr(module, "BLOCK_ROWS", 4)


def _frame(rows: list[tuple[Any, ...]], *more: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["u", "i", "l", *more])


def _good() -> dict[str, pd.DataFrame]:
    """3 users with one test series of 3 rows each, and 5 items."""
    train = [(0, 0, 1), (0, 1, 1), (1, 2, 1), (1, 4, 1), (2, 3, 1)]
    test = [(0, 2, 1), (0, 3, 0), (0, 4, 0), (1, 0, 1), (1, 1, 0), (1, 3, 0), (2, 0, 1), (2, 1, 0), (2, 2, 0)]
    return {"train": _frame(train), "test": _frame(test)}


def _write(folder: Path, tables: dict[str, pd.DataFrame], **sections: Any) -> Path:
    """Write each mapping as one Parquet file of int64 and float64 columns; `sections` override parts of the spec."""
    content = {
        "channel_spec": {"user_ch": ["u"], "item_ch": ["i"], "label_ch": ["l"]},
        "feature_spec": {"u": {"cardinality": 3}, "i": {"cardinality": 5}, "l": {}},
        "metadata": {"test_samples_per_series": _SERIES, "time_ordered": True},
        "source_spec": {
            name: [{"type": "parquet", "features": list(table), "files": [f"{name}.parquet"]}]
            for name, table in tables.items()
        },
    }
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(content | sections))
    return folder


def _found(folder: Path) -> Found:
    return [(finding.severity, str(finding)) for finding in check_folder(folder, "feature_spec.yaml")]


def _only(folder: Path, severity: str, *parts: str) -> None:
    """The check has exactly one finding, of this severity, whose message contains all parts."""
    found = _found(folder)
    assert [kind for kind, _ in found] == [severity], found
    for part in parts:
        assert part in found[0][1]


def test_a_good_folder_has_no_findings(tmp_path: Path) -> None:
    assert _found(_write(tmp_path, _good())) == []


def test_folders_prepared_by_this_program_have_no_findings(prepare_log: Callable[..., Path], write_lines: Any) -> None:
    rng = np.random.default_rng(3)
    rows = [f"{rng.integers(20)},{rng.integers(40)},{time}" for time in range(300)]
    log = write_lines("log.csv", ["user,item,time", *rows])
    for flags in ([], ["--train-negatives", "2"], ["--test-negatives", "0"]):
        folder = prepare_log(log, "--user", "user", "--item", "item", "--time", "time", "--test-negatives", "5", *flags)
        assert _found(folder) == []


def test_errors_in_the_spec_are_reported(tmp_path: Path) -> None:
    _only(_write(tmp_path, _good(), channel_spec={"user_ch": ["u"]}), "error", "label_ch")


def test_all_missing_and_unreadable_files_are_reported(tmp_path: Path) -> None:
    folder = _write(tmp_path, _good() | {"more": _good()["train"][["u", "i"]]})
    (folder / "train.parquet").write_bytes(b"PAR1garbage")
    (folder / "test.parquet").unlink()
    pq.write_table(pa.table({"u": [1]}), folder / "more.parquet")
    found = _found(folder)
    assert [kind for kind, _ in found] == ["error"] * 3
    for message, (name, told) in zip(
        (message for _, message in sorted(found)),
        [("more", "with columns u, i"), ("test", "does not exist"), ("train", "not a readable Parquet file")],
        strict=True,
    ):
        assert f"source_spec.{name}.0: " in message
        assert told in message


def test_wrong_lengths_and_values_are_reported_for_each_mapping(tmp_path: Path) -> None:
    tables = _good()
    folder = _write(tmp_path, tables)
    content = yaml.safe_load((folder / "feature_spec.yaml").read_text())
    content["source_spec"]["train"] = [
        {"type": "parquet", "features": ["u", "i"], "files": ["train.parquet"]},
        {"type": "csv", "features": ["l"], "files": ["labels.csv"]},
    ]
    (folder / "labels.csv").write_text("1\n1\n")
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(content))
    bad = tables["test"].astype({"i": "float64"})
    bad.loc[[1, 5], "i"] = [7, np.nan]
    bad.loc[8, "l"] = 4
    bad.loc[4, "u"] = -1
    bad.to_parquet(folder / "test.parquet", index=False)
    messages = [message for kind, message in _found(folder) if kind == "error"]
    for told in (
        "train.parquet …: 5 rows, labels.csv …: 2 rows",
        "test.parquet, row 2: feature 'i' in 1 rows (expected an id 0 .. 4, found 7.0)",
        "test.parquet, row 6: feature 'i' in 1 rows (expected a value, found nothing)",
        "test.parquet, row 5: feature 'u' in 1 rows (expected an id 0 .. 2, found -1)",
        "test.parquet, row 9: feature 'l' in 1 rows (expected a label 0 .. 1, found 4",
    ):
        assert any(told in message for message in messages), (told, messages)
    assert len(messages) == 5


def test_wrong_values_are_counted_over_all_blocks(tmp_path: Path) -> None:
    tables = _good()
    tables["test"]["i"] = [0, 5, 1, 0, 6, 1, 0, 7, 1]
    _only(_write(tmp_path, tables), "error", "row 2: feature 'i' in 3 rows", "found 5")


def test_a_mapping_without_rows_is_an_error(tmp_path: Path) -> None:
    _only(_write(tmp_path, _good() | {"more": _frame([]).astype("int64")}), "error", "source_spec.more: has no rows")


def test_a_cardinality_much_larger_than_the_ids_is_a_note(tmp_path: Path) -> None:
    features = {"u": {"cardinality": 3}, "i": {"cardinality": 11}, "l": {}}
    _only(_write(tmp_path, _good(), feature_spec=features), "note", "feature_spec.i.cardinality", "11, found 5")
    features["i"] = {"cardinality": 10}
    assert _found(_write(tmp_path, _good(), feature_spec=features)) == []


def test_cardinalities_may_be_auto_or_missing(tmp_path: Path) -> None:
    features = {"u": {"cardinality": "auto"}, "i": {}, "l": {}}
    assert _found(_write(tmp_path, _good(), feature_spec=features)) == []


def test_an_incomplete_test_series_is_an_error(tmp_path: Path) -> None:
    tables = _good()
    tables["test"] = tables["test"][:8]
    _only(
        _write(tmp_path, tables),
        "error",
        "test_samples_per_series",
        "the 8 test rows are not whole series of 3; correct",
    )


@pytest.mark.parametrize(
    "labels", [[1, 0, 0, 1, 0, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 0, 0, 0, 0, 0]]
)
def test_a_series_must_begin_with_its_only_positive(tmp_path: Path, labels: list[int]) -> None:
    tables = _good()
    tables["test"]["l"] = labels
    _only(_write(tmp_path, tables), "error", "the one that begins in row 7 does not", "correct the rows")


@pytest.mark.parametrize("label", [0, 1])
def test_a_constant_label_is_an_error(tmp_path: Path, label: int) -> None:
    tables = _good()
    tables["test"]["l"] = label
    messages = [message for kind, message in _found(_write(tmp_path, tables)) if kind == "error"]
    assert any(f"3 series hold {9 * label} positives" in message for message in messages)


def test_series_of_several_users_are_a_note(tmp_path: Path) -> None:
    tables = _good()
    tables["test"].loc[1, "u"] = 2
    tables["test"].loc[1, "i"] = 4
    found = _found(_write(tmp_path, tables))
    assert ("note", "note: test: series hold rows of more than one user (found 1 of 3)") in found


def test_a_repeated_item_in_a_series_is_a_note(tmp_path: Path) -> None:
    tables = _good()
    tables["test"].loc[8, "i"] = 1
    _only(_write(tmp_path, tables), "note", "more than once", "found 1 of 3")


def test_a_test_positive_in_train_is_an_error(tmp_path: Path) -> None:
    tables = _good()
    tables["train"].loc[1, "i"] = 2
    _only(_write(tmp_path, tables), "error", "also positives in train", "found 1 of 3: user 0 and item 2")
    tables["train"]["l"] = [1, 0, 1, 1, 1]  # as a train negative it is not a leak
    assert _found(_write(tmp_path, tables)) == []


def test_a_test_negative_that_is_a_train_positive_is_a_note(tmp_path: Path) -> None:
    tables = _good()
    tables["test"].loc[8, "i"] = 3
    _only(_write(tmp_path, tables), "note", "negatives", "found 1 of 6: user 2 and item 3")


@settings(max_examples=40, deadline=None)
@given(
    train=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=20),
    items=st.lists(st.integers(0, 4), min_size=9, max_size=9),
)
def test_leak_counts_match_brute_force(fresh: Callable[[], Path], train: Any, items: list[int]) -> None:
    test = [(row // 3, item, int(row % 3 == 0)) for row, item in enumerate(items)]
    metadata = {"test_samples_per_series": 3}
    folder = _write(fresh(), {"train": _frame(train), "test": _frame(test)}, metadata=metadata)
    known = {(u, i) for u, i, label in train if label}
    positives, negatives = ({(u, i) for u, i, label in test if label == kind} for kind in (1, 0))
    leaks, hidden = positives & known, negatives & known
    messages = [message for _, message in _found(folder)]
    assert any(
        f"found {len(leaks)} of {len(positives)}:" in m for m in messages if "also positives in train" in m
    ) == bool(leaks)
    assert any(f"found {len(hidden)} of {len(negatives)}:" in m for m in messages if "negatives are" in m) == bool(
        hidden
    )


def test_violating_time_ordered_is_an_error(tmp_path: Path) -> None:
    tables = _good()
    tables["train"] = tables["train"].iloc[[0, 2, 1, 3, 4]]
    message = (
        "a user's train rows are not contiguous (expected one run per user, found 2 more, first in row 3 of train)"
    )
    _only(_write(tmp_path, tables), "error", message)
    assert _found(_write(tmp_path, tables, metadata={"test_samples_per_series": 3})) == []


@given(users=st.lists(st.integers(0, 3), min_size=1, max_size=25))
def test_counts_of_split_user_runs_match_brute_force(fresh: Callable[[], Path], users: list[int]) -> None:
    rows = [(user, 0, 1) for user in users]
    features = {"u": {"cardinality": 4}, "i": {"cardinality": 1}, "l": {}}
    folder = _write(fresh(), {"train": _frame(rows)}, feature_spec=features)
    runs = [user for index, user in enumerate(users) if index == 0 or user != users[index - 1]]
    again = len(runs) - len(set(runs))
    messages = [message for _, message in _found(folder) if "not contiguous" in message]
    assert len(messages) == bool(again)
    assert all(f"found {again:,} more," in message for message in messages)


@pytest.mark.parametrize(("cut", "users_cut"), [(2, 0), (3, 1)])
def test_files_that_split_a_user_violate_time_ordered(tmp_path: Path, cut: int, users_cut: int) -> None:
    tables = _good()
    folder = _write(tmp_path, tables)
    content = yaml.safe_load((folder / "feature_spec.yaml").read_text())
    content["source_spec"]["train"][0]["files"] = ["a.parquet", "b.parquet"]
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(content))
    tables["train"][:cut].to_parquet(folder / "a.parquet", index=False)
    tables["train"][cut:].to_parquet(folder / "b.parquet", index=False)
    if users_cut:
        _only(folder, "error", "train files split users", "found 1")
    else:
        assert _found(folder) == []


def _with_side(tables: dict[str, pd.DataFrame], values: Callable[[int], Any]) -> dict[str, pd.DataFrame]:
    return {name: table.assign(s=[values(item) for item in table.i]) for name, table in tables.items()}


@pytest.mark.parametrize("value", [lambda i: i / 2, lambda i: f"genre {i % 2}"])
def test_an_item_feature_must_have_one_value_per_item(tmp_path: Path, value: Callable[[int], Any]) -> None:
    text = isinstance(value(0), str)
    shown = value if text else lambda item: f"{value(item):g}"
    channel = "categorical_item_inputs" if text else "item_numbers"
    sections = {
        "channel_spec": {"user_ch": ["u"], "item_ch": ["i"], "label_ch": ["l"], channel: ["s"]},
        "feature_spec": {"u": {"cardinality": 3}, "i": {"cardinality": 5}, "l": {}, "s": {}},
    }
    tables = _with_side(_good(), value)
    assert _found(_write(tmp_path, tables, **sections)) == []
    tables["test"].loc[4, "s"] = value(2)  # item 1, which has another value in train
    _only(_write(tmp_path, tables, **sections), "error", "feature_spec.s", f"item 1 has both {shown(2)} and {shown(1)}")


def test_undeclared_series_are_detected_and_noted(tmp_path: Path) -> None:
    _only(
        _write(tmp_path, _good(), metadata={}),
        "note",
        "test_samples_per_series: test series of 3 rows, found in the data",
    )


def test_test_rows_that_do_not_form_series_are_a_note(tmp_path: Path) -> None:
    tables = _good()
    for test in (tables["test"][:8], tables["test"].assign(u=[0, 0, 0, 1, 1, 1, 1, 1, 1]), tables["test"][2:]):
        folder = _write(tmp_path, tables | {"test": test}, metadata={})
        notes = [message for kind, message in _found(folder) if kind == "note"]
        assert any("AUC instead of HR and NDCG" in message for message in notes)


def test_a_test_mapping_without_ids_is_an_error(tmp_path: Path) -> None:
    tables = _good()
    tables["test"] = tables["test"][["u", "l"]]
    _only(_write(tmp_path, tables), "error", "source_spec.test: has no feature i")


def test_test_labels_may_be_implied_by_position(tmp_path: Path) -> None:
    tables = _good()
    tables["test"] = tables["test"][["u", "i"]]
    assert _found(_write(tmp_path, tables)) == []
    tables["train"].loc[1, "i"] = 2
    _only(_write(tmp_path, tables), "error", "found 1 of 3: user 0 and item 2")


@pytest.mark.parametrize(
    ("ids", "originals", "severity", "told"),
    [
        (range(5), list("abcde"), "", ""),
        (range(6), list("abcdef"), "error", "expected 5, found 6"),
        (range(4), list("abcd"), "error", "expected 5, found 4"),
        ([0, 1, 2, 4, 3], list("abcde"), "error", "should count 0 .. 4"),
        (range(5), list("abcda"), "error", "1 original values are duplicates"),
    ],
)
def test_the_table_of_originals_has_a_row_for_each_id(
    tmp_path: Path, ids: Any, originals: list[str], severity: str, told: str
) -> None:
    folder = _write(tmp_path, _good())
    (folder / "categories").mkdir()
    pq.write_table(pa.table({"id": list(ids), "original": originals}), folder / "categories" / "i.parquet")
    if severity:
        _only(folder, severity, "categories/i.parquet", told)
    else:
        assert _found(folder) == []


def test_fewer_originals_than_declared_ids_are_a_note(tmp_path: Path) -> None:
    features = {"u": {"cardinality": 3}, "i": {"cardinality": 6}, "l": {}}
    folder = _write(tmp_path, _good(), feature_spec=features)
    (folder / "categories").mkdir()
    pq.write_table(pa.table({"id": range(5), "original": list("abcde")}), folder / "categories" / "i.parquet")
    _only(folder, "note", "expected 6, found 5")


def test_text_ids_are_checked_after_transcoding(tmp_path: Path) -> None:
    tables = {name: table.assign(u=table.u.map(lambda u: f"u{u}")) for name, table in _good().items()}
    features: dict[str, Any] = defaultdict(dict, u={}, i={"cardinality": 5}, l={})
    _only(_write(tmp_path, tables, feature_spec=dict(features)), "note", "transcode the folder")


def test_the_command_prints_findings_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = _good()
    tables["train"].loc[1, "i"] = 2
    tables["test"].loc[8, "i"] = 1
    folder = _write(tmp_path, tables)
    assert not print_check(folder, "feature_spec.yaml")
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder}: 1 errors, 1 notes"
    assert print_check(_write(tmp_path, _good()), "feature_spec.yaml")
    assert capsys.readouterr().out == f"{folder}: 0 errors, 0 notes\n"
