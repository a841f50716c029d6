"""Validates the cost model on this machine: samples/s predicted from counts and measured rates against measured ones.

Runs a single thread and measures CPU seconds, so that other programs on the machine have little effect.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import model.training.step
from benchmark.cost_model.bounds import Machine, Streams, bound
from benchmark.cost_model.stages import Counted, count_training, network_config
from benchmark.training import variants as settings
from benchmark.training.limits import measure_rates, median_s
from benchmark.training.plain_training import PlainNeuMF, PlainStep, Samples
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF
from model.training.config import TrainConfig
from preprocessing.synthetic.log import Shape

_GROUP = 1 + settings.NEGATIVES
_CPU = torch.device("cpu")


def check_on_this_machine(shape: Shape, batch_size: int, size: int = 2048, mib: int = 256) -> dict[str, Any]:
    """Predicted and measured samples/s of the product's and the reference's steps on this CPU, in float32.

    Args:
        size, mib: see `measure_rates`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        n = batch_size // _GROUP * _GROUP
        rates = _rates(size, mib)
        chunk = model.training.step.CHUNK_SAMPLES
        programs = {
            "torch step": (count_training(shape, n, "fp32", chunk=chunk), "copy_gb_per_s", _torch_step_s(shape, n)),
            # Its operators return arrays too large for the allocator to cache: each one takes new pages.
            "plain step": (
                count_training(shape, n, "fp32", plain=True, chunk=n),
                "new_gb_per_s",
                _plain_step_s(shape, n),
            ),
        }
    finally:
        torch.set_num_threads(threads)
    found: dict[str, Any] = {"threads": 1, "clock": "CPU seconds", "batch_size": n, "rates": rates}
    for name, (counted, memory, seconds) in programs.items():
        predicted, measured = predict(counted, rates, memory), n / seconds
        found[name] = {
            "predicted_samples_per_s": predicted,
            "measured_samples_per_s": measured,
            "predicted_over_measured": predicted / measured,
        }
    return found


def predict(counted: Counted, rates: dict[str, float], memory: str) -> float:
    """Samples/s of a CPU that runs one operator after another.

    Args:
        rates: measured rates; gathers use their own rate, everything else the one named `memory`.
    """
    seconds = 0.0
    for stage, operators in counted.stages.items():
        cpu = Machine(
            memory_gb_per_s=rates["gather_gb_per_s" if stage == "gather" else memory],
            fp32_tflops=rates["fp32_gflop_per_s"] / 1e3,
            tf32_tflops=rates["fp32_gflop_per_s"] / 1e3,
            half_tflops=rates["bf16_gflop_per_s"] / 1e3,
            host_gb_per_s=1.0,
            link_gb_per_s=1.0,
            draws_per_s=rates["draws_per_s"],
            source="measured",
        )
        seconds += 1.0 / bound({stage: operators}, Streams(), cpu, "fp32")["serial_samples_per_s"]
    return 1.0 / seconds


def _rates(size: int, mib: int) -> dict[str, float]:
    """`measure_rates`, plus a copy into new memory (GB/s, read plus written) and random numbers per second."""
    source, mask = torch.ones(mib << 18), torch.empty(mib << 14)
    copy_s = median_s(source.clone, time.process_time)
    draw_s = median_s(lambda: mask.bernoulli_(0.5), time.process_time)
    return {
        **measure_rates(size, mib, time.process_time),
        "new_gb_per_s": 2 * source.numel() * source.element_size() / copy_s / 1e9,
        "draws_per_s": mask.numel() / draw_s,
    }


def _torch_step_s(shape: Shape, n: int) -> float:
    step = model.training.step.Step(
        NeuMF(network_config(shape.users, shape.items)), TrainConfig(batch_size=n), ProcessGroup(_CPU), compiled=False
    )
    users, items, labels = _samples(shape, n)
    batch = Batch(users.int(), items.int(), labels, group_size=_GROUP)
    return median_s(lambda: step(batch, n), time.process_time)


def _plain_step_s(shape: Shape, n: int) -> float:
    step, samples = PlainStep(PlainNeuMF(shape.users, shape.items)), Samples(*_samples(shape, n))
    return median_s(lambda: step(samples), time.process_time)


def _samples(shape: Shape, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Users, items and labels of random groups, each of a single user."""
    users = torch.randint(shape.users, (n // _GROUP,)).repeat_interleave(_GROUP)
    return users, torch.randint(shape.items, (n,)), (torch.arange(n) % _GROUP == 0).float()
