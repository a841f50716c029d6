"""Files saved by torch: tensors come back, everything else is one reason that advises nothing unsafe."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workflows.device.torch_file import load_torch_file


class Malice:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_come_back_in_both_formats(tmp_path: Path, is_zip: bool) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    assert load_torch_file(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["zip", "old format", "pickle"])
def test_no_code_runs_and_no_advice_is_passed_on(tmp_path: Path, kind: str) -> None:
    path, malice = tmp_path / "a.pt", {"a": torch.ones(1), "b": Malice(tmp_path / "made")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(malice["b"]))
    else:
        torch.save(malice, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="other Python objects than tensors") as raised:
        load_torch_file(path)
    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "made").exists()


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {"pipe": "not a file", ".": "not a file", "gone": "no such file"}.items():
        with pytest.raises(ValueError, match=reason):
            load_torch_file(tmp_path / name)
