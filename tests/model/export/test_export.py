"""Exported checkpoints, read by a small network that is independent of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import model.export.__main__
from model.network.checkpoint import load_run, load_weights, save_model
from model.network.neumf import NeuMF, NeuMFConfig
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError

CPU = torch.device("cpu")
SHAPE = {"n_users": 7, "n_items": 9, "factors": 3, "layers": (8, 6, 4)}


class Theirs(nn.Module):
    """NeuMF as in its paper, with the reference's parameter names: [GMF, MLP] into one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mf_user_embed, self.mf_item_embed = nn.Embedding(7, 3), nn.Embedding(9, 3)
        self.mlp_user_embed, self.mlp_item_embed = nn.Embedding(7, 4), nn.Embedding(9, 4)
        self.mlp = nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 4)])
        self.final = nn.Linear(3 + 4, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        deep = torch.cat([self.mlp_user_embed(user), self.mlp_item_embed(item)], dim=1)
        for layer in self.mlp:
            deep = torch.clamp(layer(deep), min=0)
        shallow = self.mf_user_embed(user) * self.mf_item_embed(item)
        return self.final(torch.cat([shallow, deep], dim=1))


def network(seed: int = 3, **more: object) -> NeuMF:
    return NeuMF(NeuMFConfig(**{**SHAPE, **more}), torch.Generator().manual_seed(seed)).eval()  # type: ignore[arg-type]


def trained(folder: Path, ours: NeuMF) -> Path:
    folder.mkdir()
    save_model(folder, ours, {"data": "d", "feature_spec_file": "f", "train": {}})
    return folder


PAIRS = torch.cartesian_prod(torch.arange(7), torch.arange(9)).T


def test_their_network_gives_our_scores_after_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = network(), Theirs()
    run = trained(tmp_path / "run", ours)
    model.export.__main__.main(["--run", str(run), "--format", "nvidia"])
    assert capsys.readouterr().out == f"wrote {run / 'model.pth'}\n"
    weights = torch.load(run / "model.pth", map_location="cpu", weights_only=True)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "mf_user_embed.weight": (7, 3),
        "mf_item_embed.weight": (9, 3),
        "mlp_user_embed.weight": (7, 4),
        "mlp_item_embed.weight": (9, 4),
        "mlp.0.weight": (6, 8),
        "mlp.0.bias": (6,),
        "mlp.1.weight": (4, 6),
        "mlp.1.bias": (4,),
        "final.weight": (1, 7),
        "final.bias": (1,),
    }
    theirs.load_state_dict(weights)
    torch.testing.assert_close(theirs(*PAIRS).squeeze(1), ours(*PAIRS))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_our_network_gives_their_scores_after_import(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(5)
    ours, theirs = network(), Theirs()
    torch.save({prefix + name: value for name, value in theirs.state_dict().items()}, tmp_path / "model.pth")
    load_weights(tmp_path / "model.pth", ours)
    torch.testing.assert_close(ours(*PAIRS), theirs(*PAIRS).squeeze(1))


def test_weights_survive_an_export_and_import(tmp_path: Path) -> None:
    ours, again = network(), network(4)
    run = trained(tmp_path / "run", ours)
    model.export.__main__.main(
        ["--run", str(run), "--format", "nvidia", "--output", str(tmp_path / "new" / "their.pth")]
    )
    load_weights(tmp_path / "new" / "their.pth", again)
    for name, value in load_run(run, CPU).model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", network())
    (run / "model.pth").write_bytes(b"old")
    command = ["--run", str(run), "--format", "nvidia"]
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        model.export.__main__.main(command)
    assert (run / "model.pth").read_bytes() == b"old"
    model.export.__main__.main([*command, "--overwrite"])
    assert torch.load(run / "model.pth", map_location="cpu", weights_only=True).keys() == network().state_dict().keys()


def test_a_network_that_the_reference_lacks_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", network(row_side=(SideFeature("age"),)))
    with pytest.raises(UserError, match="side features age"):
        model.export.__main__.main(["--run", str(run), "--format", "nvidia"])
    assert not (run / "model.pth").exists()


def test_a_missing_run_and_a_folder_as_output_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained run"):
        model.export.__main__.main(["--run", str(tmp_path), "--format", "nvidia"])
    run = trained(tmp_path / "run", network())
    with pytest.raises(UserError, match="is a folder"):
        model.export.__main__.main(["--run", str(run), "--format", "nvidia", "--output", str(tmp_path)])
