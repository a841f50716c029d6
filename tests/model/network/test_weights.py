"""Weights of others: each kind of fault is one message."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.network.checkpoint import load_run, load_weights, save_model
from model.network.neumf import NeuMF, NeuMFConfig, require_network
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError

SHAPE = NeuMFConfig(n_users=5, n_items=6, factors=3, layers=(8, 4))
CPU, NAME = torch.device("cpu"), "mf_user_embed.weight"


def network() -> NeuMF:
    return NeuMF(SHAPE, torch.Generator().manual_seed(1))


def with_value(row: int, value: float) -> Callable[[Tensor], Tensor]:
    return lambda good: good.index_fill(0, torch.tensor([row]), value)


TENSORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (lambda good: good.to_sparse(), "not a dense one"),
    "meta": (lambda good: good.to("meta"), "a meta tensor"),
    "quantized": (lambda good: torch.quantize_per_tensor(good, 0.1, 0, torch.qint8), "a quantized tensor"),
    "integers": (lambda good: good.long(), "floating-point numbers, got torch.int64"),
    "complex": (lambda good: good.to(torch.complex64), "floating-point numbers, got torch.complex64"),
    "NaN": (with_value(3, float("nan")), "holds NaN"),
    "infinite": (with_value(4, -float("inf")), "holds NaN or values beyond float32"),
    "beyond float32": (lambda good: with_value(0, 1e300)(good.double()), "beyond float32"),
    "a list": (lambda good: good.tolist(), r"expected \(5, 3\), got a list"),
    "a view of one value": (lambda good: good[:1, :1].expand(10**9, 10**9), r"got \(1000000000, 1000000000\)"),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_an_unusable_tensor_is_named(tmp_path: Path, fault: str) -> None:
    change, message = TENSORS[fault]
    weights = network().state_dict()
    torch.save({**weights, NAME: change(weights[NAME])}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=rf"model\.pth.*{NAME}.*{message}"):
        load_weights(tmp_path / "model.pth", network())


def test_other_contents_say_what_is_expected(tmp_path: Path) -> None:
    weights, path = network().state_dict(), tmp_path / "model.pt"
    for content, message in (
        (network(), r"save the state dict alone \(torch\.save\(model\.state_dict\(\), PATH\)\)"),
        ({"epoch": 3, "state": dict(weights)}, "perhaps they are in its entry 'state'"),
        ({**weights, 3: torch.ones(1)}, "names are text, got 3"),
        ({**weights, f"module.{NAME}": weights[NAME]}, "twice"),
        ({**weights, "": torch.ones(1)}, ": expected nothing"),
        ({f"{number}" * 400: torch.ones(1) for number in range(10, 99)}, "and 77 more"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message) as raised:
            load_weights(path, network())
        assert "weights_only" not in str(raised.value)
        assert len(str(raised.value)) < 3_000
    with path.open("wb") as file:
        file.truncate(1 << 34)  # sparse; taken for an old format, of which torch says how to load it unsafely
    with pytest.raises(UserError, match="other Python objects than tensors, or is damaged"):
        load_weights(path, network())


def test_sizes_that_a_file_claims_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({NAME: torch.ones(1_000)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, bytes(1 << 22) if name.endswith("/0") else content)
    with pytest.raises(UserError, match=r"claim 4,19.* bytes, more than the file has"):
        load_weights(path, network())
    header = b'{"a":{"dtype":"F32","shape":[1000000000000000],"data_offsets":[0,4000000000000000]}}'
    for size in (len(header), 1 << 60):
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + header)
        with pytest.raises(UserError, match="not a readable checkpoint"):
            load_weights(tmp_path / "model.safetensors", network())


def test_a_config_may_claim_any_size(tmp_path: Path) -> None:
    save_model(tmp_path, network(), {"data": "d", "feature_spec_file": "f"})
    config = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"n_users": 5', '"n_users": 2000000000', "fit|needs"),
        ('"factors": 3', '"factors": 2000000000', "needs .* TiB|needs .* GiB"),
        ('"factors": 3', '"factors": 3.5', "whole numbers"),
        ('"factors": 3', '"factors": true', "whole numbers"),
        ('"n_items": 6', '"n_items": 1' + "0" * 30, "64 bits"),
        ('"arch": "neumf"', '"arch": "' + "x" * 9_999 + '"', "--arch"),
    ):
        assert old in config
        (tmp_path / "config.json").write_text(config.replace(old, new))
        with pytest.raises(UserError, match=message) as raised:
            load_run(tmp_path, CPU)
        assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize("arch", ["gmf", "mlp", "neumf"])
def test_the_number_of_parameters_is_known_before(arch: str) -> None:
    sides = {"row_side": (SideFeature("a", 5), SideFeature("b")), "item_side": (SideFeature("c", 9),)}
    shape = NeuMFConfig(n_users=50, n_items=6, factors=3, layers=(8, 4), arch=arch, **(sides if arch != "gmf" else {}))
    held = sum(tensor.numel() for tensor in NeuMF(shape).state_dict().values())
    assert held <= shape.n_parameters <= held + 5  # room for unknown values of a row's feature
    with pytest.raises(UserError, match="KiB of memory or more"):
        require_network(shape, "flags", 4, left_bytes=16 * held - 1)
