"""Exported networks in their target programs, against the network itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from torch import Tensor

import model.export.__main__
from model.data.record import encode_users
from model.export import onnx_graph
from model.export.formats import FILES
from model.network.checkpoint import load_weights, save_model
from model.network.neumf import NeuMF, NeuMFConfig
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError

SHAPES = {
    "plain": {"layers": (8, 6, 4)},
    "no hidden layer": {"layers": (8,)},
    "gmf": {"arch": "gmf"},
    "mlp": {"arch": "mlp", "layers": (8, 6, 4)},
    "side features": {
        "layers": (8, 6, 4),
        "row_side": (SideFeature("age"), SideFeature("users", 3)),
        "item_side": (SideFeature("kind", 2), SideFeature("price")),
    },
}


def network(shape: str) -> NeuMF:
    config = NeuMFConfig(n_users=7, n_items=9, factors=3, **SHAPES[shape])  # type: ignore[arg-type]
    ours = NeuMF(config, torch.Generator().manual_seed(3)).eval()
    if config.item_side:
        ours.set_item_tables((torch.arange(9, dtype=torch.int32) % 3, torch.arange(9) / 4))
    return ours


def pairs(shape: str, n: int) -> list[Tensor]:
    """Users, items and side features of `n` rows."""
    generator = torch.Generator().manual_seed(n)
    ids = [torch.randint(size, (n,), generator=generator) for size in (7, 9)]
    side = [torch.rand(n, generator=generator), torch.randint(3, (n,), generator=generator)]
    return ids + (side if "row_side" in SHAPES[shape] else [])


def written(folder: Path, shape: str, data: Path | str = "nowhere") -> Path:
    folder.mkdir()
    save_model(folder, network(shape), {"data": str(data), "feature_spec_file": "feature_spec.yaml"})
    return folder


def export(run: Path, name: str, *flags: str) -> None:
    model.export.__main__.main(["--run", str(run), "--format", name, *flags])


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_runtime_gives_the_networks_scores(tmp_path: Path, shape: str) -> None:
    export(folder := written(tmp_path / "run", shape), "onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [one.name for one in session.get_inputs()]
    assert names == ["users", "items", "row_side.age", "row_side.users"][: len(names)]
    assert [one.shape for one in (*session.get_inputs(), *session.get_outputs())] == [["batch"]] * (len(names) + 1)
    for n in (0, 1, 5, 1000):
        given = pairs(shape, n)
        (found,) = session.run(["logits"], dict(zip(names, (one.numpy() for one in given), strict=True)))
        torch.testing.assert_close(torch.from_numpy(found), network(shape)(*given), rtol=1e-5, atol=1e-6)
    onnx.checker.check_model(folder / "model.onnx", full_check=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_out_of_range_get_no_score(tmp_path: Path, shape: str) -> None:
    """Neither -1, which would be the last row of a table, nor the number of ids, nor more than 32 bits."""
    folder, given = written(tmp_path / "run", shape), pairs(shape, 12)
    expected = network(shape)(*given)
    for name in ("onnx", "torch-export"):
        export(folder, name)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names, program = [one.name for one in session.get_inputs()], torch.export.load(folder / "model.pt2").module()
    for column, n in ((0, 7), (1, 9), (3, 3))[: len(given) - 1]:
        for row, wrong in enumerate((-1, n, -n, 1 << 40, -(1 << 40))):
            changed = [one.clone() for one in given]
            changed[column][row] = wrong
            feed = dict(zip(names, (one.numpy() for one in changed), strict=True))
            (found,) = session.run(["logits"], feed)
            assert np.isnan(found).nonzero()[0].tolist() == [row]
            kept = [number for number in range(12) if number != row]
            torch.testing.assert_close(torch.from_numpy(found)[kept], expected[kept], rtol=1e-5, atol=1e-6)
            with pytest.raises((IndexError, RuntimeError), match="out of"):
                program(*changed)


def test_a_network_too_large_for_onnx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "_MAX_BYTES", 500)
    folder = written(tmp_path / "run", "plain")
    with pytest.raises(UserError, match="torch-export"):
        export(folder, "onnx")
    assert not (folder / "model.onnx").exists()


# A third-party program that cannot import anything from this project.
ELSEWHERE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("model", "workflows", "preprocessing", "benchmark", "train"):
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
import torch

for folder in sys.argv[1:]:
    program = torch.export.load(f"{folder}/model.pt2").module()
    batches = torch.load(f"{folder}/given.pt", weights_only=True)
    torch.save([program(*batch) for batch in batches], f"{folder}/found.pt")
"""


def test_the_exported_program_runs_without_this_project(tmp_path: Path) -> None:
    batches = {
        shape: [tuple(pairs(shape, n)) for n in (0, 1, 5, 1000)] for shape in ("plain", "side features", "gmf", "mlp")
    }
    folders = []
    for shape, given in batches.items():
        folders.append(written(folder := tmp_path / shape, shape))
        export(folder, "torch-export")
        torch.save(given, folder / "given.pt")
        assert str(Path(model.export.__main__.__file__).parent).encode() not in (folder / "model.pt2").read_bytes()
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE, *map(str, folders)], cwd=tmp_path, check=True)
    for folder, (shape, given) in zip(folders, batches.items(), strict=True):
        for batch, found in zip(given, torch.load(folder / "found.pt", weights_only=True), strict=True):
            torch.testing.assert_close(found, network(shape)(*batch))


def test_safetensors_contain_parameters_and_shape(tmp_path: Path) -> None:
    export(folder := written(tmp_path / "run", "side features"), "safetensors")
    again = NeuMF(network("side features").config)
    load_weights(folder / "neumf.safetensors", again)
    torch.testing.assert_close(
        again.eval()(*pairs("side features", 5)), network("side features")(*pairs("side features", 5))
    )
    with safetensors.safe_open(folder / "neumf.safetensors", "pt") as file:
        shape = json.loads(file.metadata()["model"])
    assert (shape["n_users"], shape["layers"]) == (7, [8, 6, 4])
    assert shape["row_side"][1] == {"name": "users", "cardinality": 3}


@pytest.fixture
def data(write_folder: Callable[..., Path]) -> Path:
    folder = write_folder([[(0, 0, 1.0)]], 7, 9)
    (folder / "categories").mkdir()
    for name, ids in (("user", [f"u{number}" for number in range(7)]), ("item", list(range(100, 109)))):
        table = pa.table({"id": pa.array(range(len(ids)), pa.int32()), "original": ids})
        pq.write_table(table, folder / "categories" / f"{name}.parquet")
    return folder


def test_the_inner_product_of_embeddings_is_the_gmf_part(data: Path) -> None:
    folder = written(data.parent / "run", "plain", data)
    trained = encode_users(np.array([True, False, True, True, True, False, True]))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trained_users": trained}))
    export(folder, "embeddings")
    users, items = (pd.read_parquet(folder / f"embeddings/{name}.parquet") for name in ("users", "items"))
    assert list(users.columns) == ["id", "original", "trained", "gmf", "mlp"]
    assert list(items.columns) == ["id", "original", "gmf", "mlp"]
    assert users["trained"].tolist() == [True, False, True, True, True, False, True]
    assert users["original"].tolist() == [f"u{number}" for number in range(7)]
    assert items["original"].tolist() == list(range(100, 109))
    assert items["id"].tolist() == list(range(9))
    ours = network("plain")
    with torch.no_grad():
        ours.final.weight[:, 3:] = 0.0  # without the MLP
        ours.final.bias.zero_()
    by_network = ours(*torch.cartesian_prod(torch.arange(7), torch.arange(9)).T).reshape(7, 9)
    found = np.stack(users["gmf"].to_list()) @ np.stack(items["gmf"].to_list()).T
    np.testing.assert_allclose(found, by_network.detach().numpy(), rtol=1e-4, atol=1e-9)
    for frame, table in ((users, ours.mlp_user_embed), (items, ours.mlp_item_embed)):
        np.testing.assert_array_equal(np.stack(frame["mlp"].to_list()), table.weight.detach().numpy())
    assert pq.read_schema(folder / "embeddings/users.parquet").field("gmf").type == pa.list_(pa.float32(), 3)


@pytest.mark.parametrize(("arch", "width"), [("gmf", 3), ("mlp", 4)])
def test_a_missing_branch_has_no_embeddings(data: Path, arch: str, width: int) -> None:
    export(folder := written(data.parent / "run", arch, data), "embeddings")
    for name in ("users", "items"):
        table = pq.read_table(folder / f"embeddings/{name}.parquet")
        assert table.column_names == ["id", "original", *(["trained"] if name == "users" else []), arch]
        assert table.schema.field(arch).type == pa.list_(pa.float32(), width)


def test_embeddings_replace_only_embeddings(data: Path, tmp_path: Path) -> None:
    folder = written(data.parent / "run", "plain", data)
    export(folder, "embeddings", "--output", str(tmp_path / "vectors"))
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        export(folder, "embeddings", "--output", str(tmp_path / "vectors"))
    export(folder, "embeddings", "--output", str(tmp_path / "vectors"), "--overwrite")
    with pytest.raises(UserError, match="not written by this command"):
        export(folder, "embeddings", "--output", str(data), "--overwrite")
    moved = data.rename(data.with_name("moved"))
    with pytest.raises(UserError, match="--data"):
        export(folder, "embeddings")
    export(folder, "embeddings", "--data", str(moved))
    with pytest.raises(UserError, match="--data is for --format embeddings"):
        export(folder, "onnx", "--data", str(moved))


@pytest.mark.parametrize("name", FILES)
def test_equal_runs_give_equal_files(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "run", "plain")
    contents = []
    for place in ("one", "two"):
        export(folder, name, "--output", str(tmp_path / place / "network.bin"))
        contents.append((tmp_path / place / "network.bin").read_bytes())
    assert contents[0] == contents[1]
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        export(folder, name, "--output", str(tmp_path / "one/network.bin"))
    export(folder, name, "--output", str(tmp_path / "one/network.bin"), "--overwrite")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["network.bin"]
