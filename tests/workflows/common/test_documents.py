"""YAML and JSON of others end in plain values or in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from workflows.common.documents import load_json, load_yaml
from workflows.common.errors import UserError

_ALIAS_BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
_WIDE = str({f"k{n}": 1 for n in range(500)})
_WRONG_YAML = {
    "alias bomb": (_ALIAS_BOMB, "more than 500,000 values"),
    "an alias of itself": ("a: &a [*a]", "deep|values"),
    "deep": ("[" * 300 + "]" * 300, "deep"),
    "very deep": ("[" * 100_000, "deep"),
    "many values": ("[" + "a," * 100_000 + "]", "more than 50,000 values"),
    "wide merge": (f"a: &a {_WIDE}\nc: {{<<: [{'*a,' * 500}]}}", "more than 50,000 values .merges"),
    "many merges": (f"a: &a {_WIDE}\nc: [{'{<<: *a},' * 500}]", "more than 50,000 values .merges"),
    "merges of merges": (
        f"a0: &a0 {_WIDE}\n" + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}}}\n" for n in range(1, 400)),
        "more than 50,000 values .merges",
    ),
    "a name twice": ("a: {b: 1, b: 2}", "'b' appears twice, line 1, column 11"),
    "no number": ("a: !!int x", "'x' is no usable int, line 1, column 4"),
    "python tag": ("a: !!python/object/apply:os.system [ls]", "YAML"),
    "unknown tag": ("a: !vault x", "YAML"),
    "a set": ("a: !!set {x, y}", "a holds a set"),
    "binary": ("a: !!binary aGVsbG8=", "a holds a bytes"),
    "a date": ("a: !!timestamp 2024-01-31", "a holds a date"),
    "huge integer": ("a:\n  b: [1, " + "9" * 30 + "]", r"a\.b\.1 holds an integer beyond 64 bits"),
    "endless integer": ("a: " + "9" * 10_000, "YAML"),
    "NUL": ('a: "\\0"', "a holds a NUL"),
    "raw NUL": ("a: \0", "YAML"),
    "surrogate": ('a: ["\\ud800"]', "a.0 holds a NUL or half of|YAML"),
    "two documents": ("a: 1\n---\nb: 2", "YAML"),
    "list as a key": ("? [a]\n: b", "YAML"),
}


@pytest.mark.parametrize("name", _WRONG_YAML)
def test_hostile_yaml_is_one_short_message(tmp_path: Path, name: str) -> None:
    text, message = _WRONG_YAML[name]
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load_yaml(tmp_path / "spec.yaml", "a feature spec")
    assert str(raised.value).startswith(f"{tmp_path}/spec.yaml is not a feature spec: ")
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


def test_yaml_has_the_types_of_json(tmp_path: Path) -> None:
    text = "a: 1:30\nb: 1:30.5\nc: 2024-01-31\nd: 0x10\ne: 1.5e+3\nf: ~\ng: yes\nh: [3, -.inf]\ni: {<<: {x: 1}}"
    (tmp_path / "a.yaml").write_text(text)
    assert load_yaml(tmp_path / "a.yaml", "a file") == {
        "a": "1:30", "b": "1:30.5", "c": "2024-01-31", "d": 16, "e": 1500.0, "f": None, "g": True,
        "h": [3, float("-inf")], "i": {"x": 1},
    }  # fmt: skip


_WRONG_JSON = {
    "NaN": ('{"a": NaN}', "NaN is not a number of JSON"),
    "infinity": ('{"a": -Infinity}', "-Infinity is not a number of JSON"),
    "deep": ("[" * 100 + "]" * 100, "deep"),
    "very deep": ("[" * 100_000, "JSON"),
    "huge integer": ('{"a": {"b": ' + "9" * 30 + "}}", r"a\.b holds an integer beyond 64 bits"),
    "endless integer": ("9" * 10_000, "999… is not a number of JSON"),
    "many values": ("[" + "[]," * 349_000 + "[]]", "more than 500,000 values"),
    "a name twice": ('{"a": {"b": 1, "b": 2}}', "'b' appears twice"),
    "surrogate": ('{"\\ud800": 1}', "half of a surrogate pair"),
    "cut": ('{"a": ', "JSON"),
    "empty": ("", "JSON"),
}


@pytest.mark.parametrize("name", _WRONG_JSON)
def test_hostile_json_is_one_short_message(tmp_path: Path, name: str) -> None:
    text, message = _WRONG_JSON[name]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load_json(tmp_path / "config.json", "the config of a run")
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


def test_what_is_no_small_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a: \xff")
    (tmp_path / "large").write_bytes(b" " * ((1 << 20) + 1))
    for name, message in {
        "binary": "not UTF-8 text", "large": "more than 1,048,576 bytes", "gone": "No such file", ".": "not a file",
    }.items():  # fmt: skip
        for load in (load_yaml, load_json):
            with pytest.raises(UserError, match=message):
                load(tmp_path / name, "a file")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc: #", max_size=3), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(_VALUES)
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a.json").write_text(json.dumps(value), encoding="utf-8")
    assert load_json(folder / "a.json", "a file") == value
    (folder / "a.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    assert load_yaml(folder / "a.yaml", "a file") == value


@given(st.binary(max_size=200))
def test_any_bytes_end_in_values_or_a_message(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("documents") / "a"
    path.write_bytes(data)
    for load in (load_yaml, load_json):
        try:
            load(path, "a file")
        except UserError as err:
            assert str(path) in str(err)  # noqa: PT017


def test_only_paths_may_hold_what_is_not_utf8(tmp_path: Path) -> None:
    for name, text in (("a.json", '{"data": "/data/\\udcff"}'), ("a.yaml", 'data: "/data/\\uDCFF"')):
        load = load_json if name.endswith("json") else load_yaml
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="half of a surrogate pair"):
            load(tmp_path / name, "a file")
        assert load(tmp_path / name, "a file", paths=True) == {"data": "/data/\udcff"}
        (tmp_path / name).write_text(text.replace("cff", "800").replace("CFF", "800"))
        with pytest.raises(UserError, match="half of a surrogate pair"):
            load(tmp_path / name, "a file", paths=True)
