"""Reading and redrawing existing results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.common.result import read_result, redraw
from workflows.common.errors import UserError


def test_the_plot_is_written_next_to_its_result(tmp_path: Path) -> None:
    path, drawn = tmp_path / "some.json", []
    path.write_text(json.dumps({"a": 1, "b": 2}))
    redraw(path, "some.json", {"a"}, lambda result, picture: drawn.append((result, picture)))
    assert drawn == [({"a": 1, "b": 2}, tmp_path / "some.png")]


@pytest.mark.parametrize(("text", "said"), [("{", "a result"), ("[]", "a result"), ('{"b": 1}', "a result")])
def test_another_file_is_rejected(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"other\.json is not {said}.*pass the some\.json"):
        read_result(path, "some.json", {"a"})
