"""`python -m benchmark inference`: latency and samples/s of each scoring engine, by batch size.

Like the reference's `inference.py`, it scores pairs of random users and items. This is the worst case for projections,
since hardly any two pairs of a batch share a user.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.common.result import redraw, write_result
from benchmark.inference.plot import draw_inference
from model.network.checkpoint import load_run, load_weights
from model.network.neumf import NeuMF, NeuMFConfig
from model.scoring.scorer import Scorer
from workflows.common.errors import UserError
from workflows.common.progress import console
from workflows.device import DEVICES
from workflows.device.torch_device import gpu_name, matrix_precision, mixed_dtype, synchronize, torch_device

ENGINES = {
    "eager": "the network as it is",
    "compiled": "through torch.compile",
    "onnx": "exported, in ONNX Runtime",
    "projections": "from projections, as in evaluation",
}
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_WARM_UP = 10
_SEED = 1
Score = Callable[..., Any]  # (users [B], items [B]) -> logits [B]
Key = tuple[str, str]  # engine, precision
Round = dict[int, dict[Key, list[float]]]  # batch size -> key -> seconds of each batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = ",".join(str(4**power) for power in range(11))
    parser.add_argument("--batch_sizes", default=sizes, metavar="N,N", help=f"default: {sizes}")
    parser.add_argument("--num_batches", type=int, default=200, metavar="N", help="batches of each size (default: 200)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="rounds of all sizes (default: 1)")
    parser.add_argument(
        "--max_samples", type=int, metavar="N", help="limit on samples per size (fewer batches, at least 3)"
    )
    parser.add_argument("--n_users", type=int, default=138_493, metavar="N")
    parser.add_argument("--n_items", type=int, default=26_744, metavar="N")
    parser.add_argument("-f", "--factors", type=int, default=64, metavar="N")
    parser.add_argument("--layers", type=int, nargs="+", default=[256, 256, 128, 64], metavar="N")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, metavar="NAME",
        help=f"of weights and products: {', '.join(PRECISIONS)} (onnx: fp32 only; default: fp32, on a GPU tf32 fp16)",
    )  # fmt: skip
    parser.add_argument("--fp16", action="store_const", const=["fp16"], dest="precision", help="--precision fp16")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--load_checkpoint_path", type=Path, metavar="FILE", help="weights (default: random ones)")
    weights.add_argument("--run", type=Path, metavar="DIR", help="a trained run, in place of shape and weights")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one per core")
    parser.add_argument("--output", type=Path, default=Path("benchmark/results/inference"), metavar="DIR")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only redraw the plot of a result")


def main(args: argparse.Namespace) -> None:
    if args.draw:
        redraw(args.draw, "inference.json", ("machine", "shape", "num_batches", "engines"), draw_inference)
        return
    counts = _num_batches(args.batch_sizes, args.num_batches, args.max_samples)
    for name, value in {"threads": args.threads, "repeats": args.repeats}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} should be 1 or more, got {value}")
    device = torch_device(args.device, None)
    default = ["fp32"] if device.type == "cpu" else ["tf32", "fp16"]
    asked = [
        (name, precision)
        for precision in dict.fromkeys(args.precision or default)
        for name in ENGINES
        if name in args.engines and (name != "onnx" or precision == "fp32")
    ]
    if not asked:
        raise UserError("--engines onnx computes in fp32; leave out --precision, or name another engine")
    if args.threads:
        torch.set_num_threads(args.threads)
    models = {
        precision: _network(args, device).to(mixed_dtype(precision) or torch.float32)
        for precision in dict.fromkeys(precision for _, precision in asked)
    }
    config = models[asked[0][1]].config
    engines = {(name, precision): _engine(name, models[precision]) for name, precision in asked}
    rounds = [_round(f"round {number + 1}", engines, config, counts, device) for number in range(args.repeats)]
    result: dict[str, Any] = {
        "device": gpu_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
        "shape": {name: getattr(config, name) for name in ("n_users", "n_items", "factors", "layers")},
        "num_batches": {str(size): count for size, count in counts.items()},
        "engines": [
            {"engine": key[0], "what": ENGINES[key[0]], "precision": key[1], **_all_figures(rounds, key)}
            for key in asked
        ],
    }
    write_result(args.output / "inference.json", result, draw_inference)


def _num_batches(sizes: str, count: int, max_samples: int | None) -> dict[int, int]:
    """Number of batches of each size, from the flags."""
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise UserError(f"--batch_sizes should be numbers separated by commas, got {sizes!r}") from None
    if min(numbers) < 1:
        raise UserError(f"--batch_sizes should be 1 or more, got {min(numbers)}")
    for name, value in {"num_batches": count, "max_samples": max_samples}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} should be 1 or more, got {value}")
    most = {size: count if max_samples is None else max(3, max_samples // size) for size in numbers}
    return {size: min(count, limit) for size, limit in most.items()}


def _network(args: argparse.Namespace, device: torch.device) -> NeuMF:
    if args.run:
        model = load_run(args.run, device).model
        if model.config.row_side:
            names = ", ".join(feature.name for feature in model.config.row_side)
            raise UserError(f"{args.run} takes {names} with each pair, but this command generates only users and items")
        return model
    shape = NeuMFConfig(n_users=args.n_users, n_items=args.n_items, factors=args.factors, layers=tuple(args.layers))
    model = NeuMF(shape, torch.Generator().manual_seed(_SEED))
    if args.load_checkpoint_path:
        load_weights(args.load_checkpoint_path, model)
    return model.to(device).eval()


def _engine(name: str, model: NeuMF) -> Score:
    if name == "onnx":
        return _onnx(model)
    if name == "compiled":
        return torch.compile(model, dynamic=True)
    return Scorer(model) if name == "projections" else model


def _onnx(model: NeuMF) -> Score:
    """A session on the CPU, with the same number of threads as torch."""
    import onnxruntime

    from model.export.onnx_graph import write_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as torch's, see `share_cores`
    with tempfile.TemporaryDirectory(prefix="neumf-benchmark-") as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(path, model)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def score(users: Tensor, items: Tensor) -> Any:
        return session.run(None, {"users": users.cpu().numpy(), "items": items.cpu().numpy()})[0]

    return score


def _round(
    name: str, engines: dict[Key, Score], shape: NeuMFConfig, counts: dict[int, int], device: torch.device
) -> Round:
    """All sizes once."""
    found: Round = {}
    for size, count in counts.items():
        found[size] = _measure(engines, shape, size, count, device)
        for key, latencies_s in found[size].items():
            speed, median_s = size / np.mean(latencies_s), np.median(latencies_s)
            told = f"{speed:,.0f} samples/s, median {1000 * median_s:,.3f} ms"
            console.print(f"{name}, batches of {size:,}, {', '.join(key)}: {told}")
    return found


@torch.inference_mode()
def _measure(
    engines: dict[Key, Score], shape: NeuMFConfig, size: int, count: int, device: torch.device
) -> dict[Key, list[float]]:
    """Seconds of each batch by engine; the engines take turns on every batch, and warm-up batches are not timed."""
    generator = torch.Generator().manual_seed(_SEED)
    latencies_s: dict[Key, list[float]] = {key: [] for key in engines}
    warm_up = min(_WARM_UP, count)
    for number in range(warm_up + count):
        users, items = (
            torch.randint(n, (size,), generator=generator).to(device) for n in (shape.n_users, shape.n_items)
        )
        for key, score in engines.items():
            with matrix_precision(key[1], device):
                synchronize(device)
                started = time.perf_counter()
                score(users, items)
                synchronize(device)
                if number >= warm_up:
                    latencies_s[key].append(time.perf_counter() - started)
    return latencies_s


def _all_figures(rounds: Sequence[Round], key: Key) -> dict[str, Any]:
    """Of all sizes: over the batches of all rounds, and of each round."""

    def figures(some: Sequence[Round]) -> dict[str, float]:
        found: dict[str, float] = {}
        for size in some[0]:
            found |= _figures(size, [seconds for each in some for seconds in each[size][key]])
        return found

    return {**figures(rounds), "runs": [figures([each]) for each in rounds]}


def _figures(size: int, latencies_s: Sequence[float]) -> dict[str, float]:
    """Samples/s and seconds, under the reference's keys."""
    mean = float(np.mean(latencies_s))
    quantiles = {f"p{percent}": float(np.percentile(latencies_s, percent)) for percent in (50, 90, 95, 99)}
    latencies = {f"batch_{size}_{name}_latency": value for name, value in {"mean": mean, **quantiles}.items()}
    return {f"batch_{size}_mean_throughput": size / mean, **latencies}
