"""Weights on disk: round trips and refused files."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from model.network.checkpoint import load_run, load_weights, save_model, save_reference
from model.network.neumf import NeuMF, NeuMFConfig
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError

CPU = torch.device("cpu")
# The required keys of a run's config besides the network.
ABOUT = {"data": "/somewhere", "feature_spec_file": "feature_spec.yaml"}


def network(seed: int = 0, **change: Any) -> NeuMF:
    shape: dict[str, Any] = {"n_users": 5, "n_items": 6, "factors": 3, "layers": (8, 4), "dropout": 0.25}
    return NeuMF(NeuMFConfig(**{**shape, **change}), torch.Generator().manual_seed(seed))


def scores(model: NeuMF) -> torch.Tensor:
    users, items = torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij")
    return model.eval()(users.flatten(), items.flatten()).detach()


def assert_same_scores(first: NeuMF, second: NeuMF) -> None:
    torch.testing.assert_close(scores(first), scores(second), rtol=0.0, atol=0.0)


def test_a_run_survives_a_round_trip(tmp_path: Path) -> None:
    model = network()
    save_model(tmp_path, model, {**ABOUT, "epoch": 3})
    run = load_run(tmp_path, CPU)
    assert_same_scores(run.model, model)
    assert run.model.config == model.config
    assert not run.model.training
    assert run.folder == tmp_path
    assert (run.config["data"], run.config["epoch"]) == ("/somewhere", 3)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_saving_again_replaces(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_model(tmp_path, network(seed), ABOUT)
        save_reference(tmp_path, network(seed))
    assert_same_scores(load_run(tmp_path, CPU).model, network(2))
    loaded = network(9)
    load_weights(tmp_path / "model.pth", loaded)
    assert_same_scores(loaded, network(2))


@pytest.mark.parametrize("mask", [0o027, 0o000])
def test_weights_have_the_permissions_of_any_other_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_model(tmp_path, network(), ABOUT)
        save_reference(tmp_path, network())
        for name in ("model.safetensors", "config.json", "model.pth"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        assert os.umask(before) == mask  # unchanged


def test_the_reference_checkpoint_is_a_plain_state_dict(tmp_path: Path) -> None:
    save_reference(tmp_path / "new" / "folder", network())
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["model.pth"]
    weights = torch.load(tmp_path / "new" / "folder" / "model.pth", weights_only=True)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in network().state_dict().items()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_reference_weights_load_with_and_without_prefix(tmp_path: Path, prefix: str, kind: type) -> None:
    model, path = network(1), tmp_path / "model.pth"
    torch.save(kind((prefix + name, value) for name, value in model.state_dict().items()), path)
    loaded = network(2)
    load_weights(path, loaded)
    assert_same_scores(loaded, model)


def test_safetensors_load_as_weights(tmp_path: Path) -> None:
    save_model(tmp_path, network(1), ABOUT)
    loaded = network(2)
    load_weights(tmp_path / "model.safetensors", loaded)
    assert_same_scores(loaded, network(1))


def test_all_mismatched_shapes_and_names_are_listed(tmp_path: Path) -> None:
    save_reference(tmp_path, network(n_users=7, factors=2, layers=(8, 5, 4)))
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "model.pth", network())
    message = str(error.value)
    for wrong in (
        "mf_user_embed.weight: expected (5, 3), got (7, 2)",
        "mf_item_embed.weight: expected (6, 3), got (6, 2)",
        "mlp_user_embed.weight: expected (5, 4), got (7, 4)",
        "mlp.0.weight: expected (4, 8), got (5, 8)",
        "mlp.1.weight: expected nothing, got (4, 5)",
        "final.weight: expected (1, 7), got (1, 6)",
    ):
        assert wrong in message
    assert "mlp_item_embed" not in message
    assert "--factors" in message


def test_a_missing_weight_is_listed(tmp_path: Path) -> None:
    weights = network().state_dict()
    del weights["final.bias"]
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"final\.bias: expected \(1,\), got nothing"):
        load_weights(tmp_path / "model.pth", network())


def test_entries_that_are_not_weights_are_ignored(tmp_path: Path) -> None:
    torch.save({**network(1).state_dict(), "epoch": 7}, tmp_path / "model.pth")
    loaded = network(2)
    load_weights(tmp_path / "model.pth", loaded)
    assert_same_scores(loaded, network(1))


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, how: str) -> None:
    path, touched = tmp_path / "model.pth", tmp_path / "touched"
    content = {**network().state_dict(), "final.bias": _Malicious(touched)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"final.bias": _Malicious(touched)}, protocol=2))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_weights(path, network())
    assert not touched.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert touched.exists()  # unsafe loading does execute it


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense", bytes(1000)])
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not a readable checkpoint"):
        load_weights(path, network())


@pytest.mark.parametrize("value", [[1, 2], torch.ones(3), 5])
def test_anything_but_a_dict_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "model.pth")
    with pytest.raises(UserError, match="expected a state dict"):
        load_weights(tmp_path / "model.pth", network())


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_safetensors_are_refused(tmp_path: Path, keep: int) -> None:
    save_model(tmp_path, network(), ABOUT)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable checkpoint"):
        load_run(tmp_path, CPU)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained run"):
        load_run(tmp_path, CPU)
    save_model(tmp_path, network(), ABOUT)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_run(tmp_path, CPU)


_SHAPE = {"n_users": 5, "n_items": 6, "factors": 3, "layers": [8, 4], "dropout": 0.25}


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({**ABOUT, "model": None}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "layers": 3}}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "n_users": "five"}}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "n_users": 0}}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "surprise": 1}}),
        json.dumps({**ABOUT, "model": {name: value for name, value in _SHAPE.items() if name != "n_items"}}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "row_side": 3}}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "row_side": [{"name": "x", "cardinality": "2"}]}}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "item_side": [{"cardinality": 2}]}}),
        json.dumps({**ABOUT, "model": {**_SHAPE, "item_side": [["x", 2]]}}),
        json.dumps({**ABOUT, "model": _SHAPE, "features": {"user": 3}}),
        json.dumps({**ABOUT, "model": _SHAPE, "features": "user"}),
        json.dumps({"model": _SHAPE}),
        json.dumps({**ABOUT, "model": _SHAPE, "data": 3}),
    ],
)
def test_an_invalid_config_is_refused(tmp_path: Path, config: str) -> None:
    save_model(tmp_path, network(), ABOUT)
    (tmp_path / "config.json").write_text(json.dumps({**ABOUT, "model": _SHAPE}))
    load_run(tmp_path, CPU)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError):
        load_run(tmp_path, CPU)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, network(), ABOUT)
    safetensors.torch.save_file(dict(network(factors=2).state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="mf_user_embed"):
        load_run(tmp_path, CPU)


def side_network(seed: int = 0) -> NeuMF:
    sides = {"row_side": (SideFeature("age"),), "item_side": (SideFeature("kind", 3), SideFeature("price"))}
    model = network(seed, **sides)
    model.set_item_tables((torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6.0)))
    return model


def side_scores(model: NeuMF) -> torch.Tensor:
    ids = torch.arange(5)
    return model.eval()(ids, ids, torch.linspace(-1, 1, 5)).detach()


def test_a_run_with_side_features_keeps_its_item_tables(tmp_path: Path) -> None:
    save_model(tmp_path, side_network(), ABOUT)
    config = json.loads((tmp_path / "config.json").read_text())["model"]
    assert config["row_side"] == [{"name": "age", "cardinality": None}]
    assert config["item_side"] == [{"name": "kind", "cardinality": 3}, {"name": "price", "cardinality": None}]
    model = load_run(tmp_path, CPU).model
    assert model.config == side_network().config
    assert [table.tolist() for table in model.item_tables] == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]]
    torch.testing.assert_close(side_scores(model), side_scores(side_network()), rtol=0.0, atol=0.0)
    save_reference(tmp_path, model)
    loaded = side_network(seed=9)
    load_weights(tmp_path / "model.pth", loaded)
    torch.testing.assert_close(side_scores(loaded), side_scores(model), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("value", [-1, 4])
def test_an_item_table_beyond_its_cardinality_is_refused(tmp_path: Path, value: int) -> None:
    model = side_network()
    model.item_tables[0][2] = value
    save_model(tmp_path, model, ABOUT)
    with pytest.raises(UserError, match=r"item_side_0 holds values of 'kind' beyond"):
        load_run(tmp_path, CPU)
