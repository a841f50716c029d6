"""The recommendation benchmark: both variants on a small run, as processes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from benchmark.recommend import command
from benchmark.recommend.report import markdown, measured
from benchmark.recommend.run import sample
from model.network.checkpoint import save_model
from model.network.neumf import NeuMF, NeuMFConfig
from workflows.common.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    folder.mkdir()
    rows = {"user": np.repeat(np.arange(30), 4), "item": np.tile(np.arange(8), 15), "label": np.ones(120)}
    pq.write_table(pa.table(rows), data / "train.parquet")
    chunk = {"type": "parquet", "features": list(rows), "files": ["train.parquet"]}
    spec = {
        "channel_spec": {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        "feature_spec": {"user": {"cardinality": 30}, "item": {"cardinality": 8}, "label": {}},
        "metadata": {"time_ordered": True},
        "source_spec": {"train": [chunk]},
    }
    (data / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    model = NeuMF(NeuMFConfig(n_users=30, n_items=8, factors=4, layers=(8, 4)), torch.Generator().manual_seed(1))
    save_model(folder, model, {"data": str(data), "feature_spec_file": "feature_spec.yaml"})
    return folder


def parsed(*flags: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


def test_both_variants_are_measured(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "results" / "recommend.json"
    folder = target.parent
    flags = ["--run", run, "--all", "--plain-users", 7, "--repeats", 1, "--threads", 1, "--output", folder]
    command.main(parsed(*flags))
    result = json.loads(target.read_text())
    assert {name: found["runs"][0]["users"] for name, found in result["results"].items()} == {"product": 30, "plain": 7}
    for found in result["results"].values():
        assert found["users_per_s"] > 0
        assert found["peak_rss_mib"] > 50
        assert found["runs"][0]["threads"] == 1
    assert "times as many users/s" in capsys.readouterr().out
    assert markdown(result).splitlines()[2].startswith("| product | 30 |")
    assert measured(result)[0].values == [result["results"]["product"]["users_per_s"]]
    picture = target.with_suffix(".png")
    picture.unlink()
    command.main(parsed("--draw", target))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    users = np.arange(100)
    assert set(sample(users, 10)) < set(sample(users, 20)) < set(sample(users, None)) == set(range(100))


@pytest.mark.parametrize("flag", ["--users", "--plain-users", "--repeats", "--threads"])
def test_counts_below_one_are_rejected(run: Path, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        command.main(parsed("--run", run, flag, -1))
