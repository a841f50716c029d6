"""NeuMF initialised from a trained GMF and MLP: the paper's formula on their scores."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from model.network.checkpoint import load_run, save_model
from model.network.neumf import NeuMF, NeuMFConfig
from model.network.pretrained import start_from
from workflows.common.errors import UserError

CPU = torch.device("cpu")
PAIRS = torch.cartesian_prod(torch.arange(7), torch.arange(9)).T


def network(arch: str, seed: int = 0, **change: Any) -> NeuMF:
    shape = {"n_users": 7, "n_items": 9, "factors": 3, "layers": (8, 6, 4), **change}
    model = NeuMF(NeuMFConfig(arch=arch, **shape), torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(seed + parameter.numel()))
    return model


def written(folder: Path, model: NeuMF) -> Path:
    folder.mkdir()
    save_model(folder, model, {"data": "d", "feature_spec_file": "f", "train": {}})
    return folder


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("first", ["gmf", "mlp"])
@pytest.mark.parametrize("layers", [(8, 6, 4), (8,)])
def test_scores_are_the_weighted_sum_of_both(tmp_path: Path, alpha: float, first: str, layers: tuple[int, ...]) -> None:
    both = {arch: network(arch, seed, layers=layers) for seed, arch in enumerate(("gmf", "mlp"))}
    runs = [written(tmp_path / arch, both[arch]) for arch in (first, "mlp" if first == "gmf" else "gmf")]
    model = network("neumf", 5, layers=layers)
    start_from(model, runs, alpha)
    expected = alpha * both["gmf"](*PAIRS) + (1.0 - alpha) * both["mlp"](*PAIRS)
    torch.testing.assert_close(model(*PAIRS), expected)


@pytest.mark.parametrize(("arch", "others"), [("gmf", "mlp"), ("mlp", "mf_")])
def test_with_one_run_the_other_branch_keeps_its_initial_weights(tmp_path: Path, arch: str, others: str) -> None:
    model, run = network("neumf", 5), network(arch)
    before = copy.deepcopy(model.state_dict())
    start_from(model, [written(tmp_path / arch, run)], 0.5)
    for name, value in model.state_dict().items():
        if name.startswith(others):
            assert torch.equal(value, before[name])
        elif not name.startswith("final"):
            assert torch.equal(value, run.state_dict()[name])


def test_runs_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    gmf, mlp = (written(tmp_path / arch, network(arch)) for arch in ("gmf", "mlp"))
    model = network("neumf", 5)
    for runs, told in (
        ([gmf, gmf], f"one run of --arch gmf and one of --arch mlp; {gmf} has the same branch"),
        ([written(tmp_path / "neumf", network("neumf"))], "got neumf"),
        (
            [written(tmp_path / "wide", network("gmf", factors=4))],
            r"mf_user_embed.weight: expected \(7, 3\), got \(7, 4\)",
        ),
        ([written(tmp_path / "deep", network("mlp", layers=(8, 6, 5, 4)))], "mlp.2.weight: expected nothing, got"),
        ([gmf, written(tmp_path / "more", network("mlp", n_users=8))], "mlp_user_embed.weight"),
        ([tmp_path / "none"], "no trained run"),
        ([mlp, tmp_path], "no trained run"),
    ):
        with pytest.raises(UserError, match=told):
            start_from(model, runs, 0.5)


def test_a_run_starts_from_both_and_is_tested_without_them(write_folder: Callable[..., Path]) -> None:
    rows = [(user, (user + n) % 12, 1.0) for user in range(8) for n in range(4)]
    series = [(user, (user + n) % 12, float(n == 4)) for user in range(8) for n in range(4, 9)]
    data = write_folder([rows], 8, 12, [series], 5)
    flags = ["-f", "3", "--layers", "6", "4", "-k", "2", "-b", "64", "--device", "cpu", "-s", "1", "-e", "1"]
    runs = {arch: data.parent / arch for arch in ("gmf", "mlp", "neumf")}
    for arch in ("gmf", "mlp"):
        train.main(["--data", str(data), "--output", str(runs[arch]), *flags, "--arch", arch, "-l", "0.05"])
    both = [str(runs[arch]) for arch in ("gmf", "mlp")]
    start = ["--data", str(data), "--output", str(runs["neumf"]), *flags, "-l", "1e-9", "--pretrained", *both]
    train.main([*start, "--alpha", "0.25"])
    users, items = torch.cartesian_prod(torch.arange(8), torch.arange(12)).T
    scores = {arch: load_run(run, CPU).model(users, items).detach() for arch, run in runs.items()}
    torch.testing.assert_close(scores["neumf"], 0.25 * scores["gmf"] + 0.75 * scores["mlp"], rtol=1e-4, atol=1e-5)
    checkpoint = ["--load_checkpoint_path", str(runs["gmf"] / "model.safetensors")]
    for wrong, told in (
        (checkpoint, "omit --load_checkpoint_path"),
        (["--arch", "mlp"], r"both branches \(--arch neumf\), got --arch mlp"),
    ):
        with pytest.raises(UserError, match=told):
            train.main([*start, *wrong, "--overwrite"])
    # The run's checkpoint and configuration suffice; the pretrained runs are not read.
    for arch in ("gmf", "mlp"):
        runs[arch].rename(runs[arch].with_name(f"{arch}-moved"))
    tested, known = data.parent / "tested", str(runs["neumf"] / "config.yaml")
    place = ["--config", known, "--output", str(tested), "--mode", "test"]
    train.main([*place, "--load_checkpoint_path", str(runs["neumf"] / "model.safetensors")])
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (tested, runs["neumf"])]
    for name in ("hr@2", "ndcg@2", "mrr"):
        assert metrics[0][name] == metrics[1][name]
