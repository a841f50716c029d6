"""The inference benchmark: its figures, invalid flags, and one real run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark.inference import command
from benchmark.inference.report import markdown, measured
from model.network.checkpoint import save_reference
from model.network.neumf import NeuMF, NeuMFConfig
from workflows.common.errors import UserError

_ROOT = Path(__file__).parents[2]
_TINY = ("--n_users", "50", "--n_items", "40", "-f", "4", "--layers", "8", "4", "--threads", "1", "--device", "cpu")


def _args(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


def test_the_default_batch_sizes_are_the_references() -> None:
    args = _args()
    sizes = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576]
    assert command._num_batches(args.batch_sizes, args.num_batches, None) == dict.fromkeys(sizes, 200)


def test_large_batch_sizes_may_have_fewer_batches() -> None:
    assert command._num_batches("1,100,1000", 20, 1000) == {1: 20, 100: 10, 1000: 3}
    assert command._num_batches("1000", 2, 10) == {1000: 2}


def test_figures_use_the_references_keys() -> None:
    found = command._figures(8, [0.1] * 9 + [1.1])
    keys = {f"batch_8_{name}_latency" for name in ("mean", "p50", "p90", "p95", "p99")}
    assert found.keys() == keys | {"batch_8_mean_throughput"}
    assert found["batch_8_mean_throughput"] == pytest.approx(40.0)
    assert found["batch_8_mean_latency"] == pytest.approx(0.2)
    assert found["batch_8_p50_latency"] == pytest.approx(0.1)
    assert 0.1 < found["batch_8_p95_latency"] < found["batch_8_p99_latency"] < 1.1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batch_sizes", "1,x"), "--batch_sizes should be numbers"),
        (("--batch_sizes", "0"), "--batch_sizes should be 1 or more"),
        (("--num_batches", "0"), "--num_batches"),
        (("--max_samples", "0"), "--max_samples"),
        (("--threads", "0"), "--threads"),
        (("--repeats", "0"), "--repeats"),
        (("--layers", "7"), "even"),
        (("--engines", "onnx", "--fp16"), "fp32"),
        (("--load_checkpoint_path", "missing.pth"), "missing.pth"),
        (("--run", "missing"), "no trained run"),
    ],
)
def test_invalid_flags_are_named(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        command.main(_args(*_TINY, "--output", str(tmp_path / "out"), *flags))
    assert not (tmp_path / "out").exists()


def test_engines_give_the_same_scores() -> None:
    model = NeuMF(NeuMFConfig(n_users=50, n_items=40, factors=4, layers=(8, 4))).eval()
    users, items = torch.randint(50, (99,)), torch.randint(40, (99,))
    with torch.inference_mode():
        expected = model(users, items)
        for name in ("eager", "onnx", "projections"):
            found = torch.as_tensor(command._engine(name, model)(users, items))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_run_writes_figures_and_a_plot_that_can_be_redrawn(tmp_path: Path) -> None:
    save_reference(tmp_path, NeuMF(NeuMFConfig(n_users=50, n_items=40, factors=4, layers=(8, 4))))
    flags = [*_TINY, "--load_checkpoint_path", str(tmp_path / "model.pth"), "--output", str(tmp_path / "out")]
    few = ["--batch_sizes", "1,64", "--num_batches", "3", "--engines", "eager", "onnx", "projections"]
    few += ["--repeats", "2", "--precision", "fp32", "bf16"]
    program = [sys.executable, "-m", "benchmark", "inference"]
    done = subprocess.run([*program, *flags, *few], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    target = tmp_path / "out" / "inference.json"
    result = json.loads(target.read_text())
    names = [(found["engine"], found["precision"]) for found in result["engines"]]
    assert names == [
        *((name, "fp32") for name in ("eager", "onnx", "projections")),
        ("eager", "bf16"),
        ("projections", "bf16"),
    ]
    assert result["num_batches"] == {"1": 3, "64": 3}
    for found in result["engines"]:
        for size in (1, 64):
            assert found[f"batch_{size}_mean_throughput"] == pytest.approx(size / found[f"batch_{size}_mean_latency"])
            rounds = [run[f"batch_{size}_mean_latency"] for run in found["runs"]]
            assert found[f"batch_{size}_mean_latency"] == pytest.approx(sum(rounds) / 2)
    assert "| batch size | throughput, samples/s | latency, ms: mean |" in markdown(result)
    assert len(measured(result)) == 5 * 2
    picture = target.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    command.main(_args("--draw", str(target)))
    assert picture.exists()
