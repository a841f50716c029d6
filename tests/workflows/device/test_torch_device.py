"""Device selection without a GPU, and with simulated ones."""

from __future__ import annotations

import pytest
import torch

from workflows.common.errors import UserError
from workflows.device import torch_device as torch_door
from workflows.device.frames import FrameDevice
from workflows.device.torch_device import (
    collective_backend,
    frames_beside,
    gpu_index,
    matrix_precision,
    mixed_dtype,
    multiplies_bfloat16,
    resolve_precision,
    rng_state,
    set_rng_state,
    synchronize,
    to_device,
    torch_device,
    torch_generator,
)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_without_a_gpu_torch_runs_on_the_cpu(no_gpu: None, name: str) -> None:
    assert torch_device(name, None) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "gpus", "visible", "asked"),
    [
        ("cuda", None, 0, "--device cuda needs 1"),
        ("cuda", 1, 0, "--gpus 1 needs 1"),
        ("auto", 1, 0, "--gpus 1 needs 1"),
        ("auto", 3, 2, "--gpus 3 needs 3 GPU(s), but 2 are visible"),
        ("cuda", 8, 4, "--gpus 8 needs 8 GPU(s), but 4 are visible"),
    ],
)
def test_too_few_gpus_suggest_the_cpu(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int | None, visible: int, asked: str
) -> None:
    pretend_gpus(monkeypatch, visible)
    with pytest.raises(UserError) as caught:
        torch_device(name, gpus)
    assert asked in str(caught.value)
    assert "--device cpu" in str(caught.value)


@pytest.mark.parametrize(("name", "gpus"), [("auto", None), ("cuda", None), ("auto", 2), ("cuda", 2)])
def test_gpus_are_used_if_there_are_enough(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int | None) -> None:
    pretend_gpus(monkeypatch, 2)
    assert torch_device(name, gpus).type == "cuda"
    assert torch_device("cpu", None).type == "cpu"


def test_a_generator_neither_reads_nor_advances_the_global_one() -> None:
    cpu = torch.device("cpu")
    state = torch.get_rng_state()
    first = torch.rand(5, generator=torch_generator(3, cpu))
    torch.testing.assert_close(torch.get_rng_state(), state)
    torch.manual_seed(99)
    torch.testing.assert_close(torch.rand(5, generator=torch_generator(3, cpu)), first)
    assert not torch.equal(torch.rand(5, generator=torch_generator(4, cpu)), first)
    torch.set_rng_state(state)


@pytest.mark.parametrize(("name", "local_rank", "visible"), [("auto", 1, 2), ("cuda", 1, 2), ("auto", 0, 2)])
def test_each_process_takes_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, name: str, local_rank: int, visible: int
) -> None:
    pretend_gpus(monkeypatch, visible)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert torch_device(name, None, local_rank) == torch.device("cuda", local_rank)
    assert taken == [local_rank]


def test_more_processes_than_gpus_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="local rank 2 needs 3 GPU"):
        torch_device("auto", None, 2)
    assert torch_device("cpu", None, 2) == torch.device("cpu")


@pytest.mark.parametrize("local_rank", [0, 1, 3])
def test_a_slurm_task_may_see_only_its_own_gpu(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    pretend_gpus(monkeypatch, 1)
    assert torch_device("auto", None, local_rank, may_see_one_gpu=True) == torch.device("cuda", 0)
    if local_rank:  # torchrun shows each process all GPUs: two would share this one
        with pytest.raises(UserError, match=f"local rank {local_rank} needs {local_rank + 1} GPU"):
            torch_device("auto", None, local_rank)


def test_slurm_tasks_that_see_all_gpus_take_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 4)
    assert [gpu_index("auto", None, rank, may_see_one_gpu=True) for rank in range(4)] == [0, 1, 2, 3]
    pretend_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="local rank 2 needs 3 GPU"):
        gpu_index("auto", None, 2, may_see_one_gpu=True)
    pretend_gpus(monkeypatch, 1)
    with pytest.raises(UserError, match="--gpus 4 needs 4 GPU"):
        gpu_index("auto", 4, 0, may_see_one_gpu=True)


def test_looking_for_a_gpu_creates_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert gpu_index("cuda", 2) == 0
    assert gpu_index("auto", None, 1) == 1
    assert gpu_index("cpu", 2) is None
    with pytest.raises(UserError):
        gpu_index("cuda", 3)
    assert taken == []


@pytest.mark.parametrize(
    ("device", "asked"), [("cpu", ("cpu", 0)), ("cuda:0", ("auto", 0)), ("cuda:3", ("auto", 3)), ("cuda", ("auto", 0))]
)
def test_dataframes_live_beside_the_torch_device(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: tuple[str, int]
) -> None:
    found: list[tuple[str, int]] = []
    beside = FrameDevice(on_cpu=True)
    monkeypatch.setattr(torch_door, "frame_device", lambda *given: found.append(given) or beside)
    assert frames_beside(torch.device(device)) is beside
    assert found == [asked]


@pytest.mark.parametrize(
    ("source", "pinned", "target", "running"),
    [
        ("cpu", False, "cpu", False),
        ("cpu", False, "cuda:1", False),
        ("cpu", True, "cuda:1", True),
        ("cpu", True, "cpu", False),
        ("cuda:1", False, "cpu", False),
        ("cuda:0", False, "cuda:1", False),
    ],
)
def test_only_a_copy_from_pinned_memory_to_a_gpu_is_left_running(
    source: str, pinned: bool, target: str, running: bool
) -> None:
    class Stub:
        device = torch.device(source)

        def is_pinned(self) -> bool:
            return pinned

        def to(self, device: torch.device, *, non_blocking: bool) -> tuple[torch.device, bool]:
            return device, non_blocking

    assert to_device(Stub(), torch.device(target)) == (torch.device(target), running)  # type: ignore[arg-type]
    values = torch.arange(3)
    assert to_device(values, torch.device("cpu")) is values


@pytest.mark.parametrize(
    ("amp", "precision", "on_cpu", "on_amx", "on_gpu"),
    [
        (False, None, "fp32", "fp32", "fp32"),
        (False, "fp32", "fp32", "fp32", "fp32"),
        (False, "fp16", "fp16", "fp16", "fp16"),
        (False, "bf16", "bf16", "bf16", "bf16"),
        (True, None, "fp32", "bf16", "fp16"),
        (True, "bf16", "bf16", "bf16", "bf16"),
    ],
)
def test_flags_resolve_to_the_precision_of_the_device(
    monkeypatch: pytest.MonkeyPatch, amp: bool, precision: str | None, on_cpu: str, on_amx: str, on_gpu: str
) -> None:
    for amx, expected in ((False, on_cpu), (True, on_amx)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        assert resolve_precision(amp, precision, torch.device("cpu")) == expected
    assert resolve_precision(amp, precision, torch.device("cuda")) == on_gpu


def test_mixed_precision_has_a_dtype() -> None:
    assert [mixed_dtype(name) for name in ("fp32", "tf32", "fp16", "bf16")] == [
        None,
        None,
        torch.float16,
        torch.bfloat16,
    ]


def test_tf32_needs_a_gpu_and_ends_with_the_training_step() -> None:
    with pytest.raises(UserError, match="tf32 needs an NVIDIA GPU"):
        resolve_precision(False, "tf32", torch.device("cpu"))
    gpu = torch.device("cuda")
    assert resolve_precision(False, "tf32", gpu) == "tf32"
    with matrix_precision("tf32", gpu):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"  # as evaluation needs it
    with matrix_precision("bf16", gpu):
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_global_generator_resumes_from_a_saved_state() -> None:
    cpu = torch.device("cpu")
    state = rng_state(cpu)
    first = torch.rand(5)
    set_rng_state(cpu, state)
    assert torch.equal(torch.rand(5), first)


def test_the_collective_backend_depends_on_the_device() -> None:
    assert collective_backend(torch.device("cpu")) == "gloo"
    assert collective_backend(torch.device("cuda", 1)) == "nccl"


def test_synchronize_waits_only_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize(torch.device("cpu"))
    assert waited == []
    synchronize(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


@pytest.mark.parametrize("amx", [True, False])
def test_bfloat16_pays_off_on_gpus_and_on_cpus_with_amx(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert multiplies_bfloat16(torch.device("cpu")) is amx
    assert multiplies_bfloat16(torch.device("cuda"))
