"""Torch's device: choice, precision, random state, process groups' backend, CUDA graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice, frame_device

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def torch_device(name: str, gpus: int | None, local_rank: int = 0, may_see_one_gpu: bool = False) -> torch.device:
    """Pick the torch device of a training or scoring process, and make it this thread's current one.

    Args and errors: as `gpu_index`.
    """
    import torch

    index = gpu_index(name, gpus, local_rank, may_see_one_gpu)
    if index is None:
        return torch.device("cpu")
    torch.cuda.set_device(index)  # creates a context on the GPU
    return torch.device("cuda", index)


def gpu_index(name: str, gpus: int | None, local_rank: int = 0, may_see_one_gpu: bool = False) -> int | None:
    """The GPU of a training or scoring process, among the visible ones; None for the CPU. Leaves the GPUs alone.

    Args:
        name: "auto", "cpu" or "cuda"; "auto" takes a GPU if one is visible.
        gpus: number of devices requested by `--gpus`, None if it was not given.
        local_rank: rank of this process on this machine; also the index of its GPU.
        may_see_one_gpu: whether the launcher (SLURM) may show each process only its own GPU. If processes were to share
            the one that they see, NCCL would refuse to connect them.

    Raises:
        UserError: more GPUs are requested than are visible; the message says how to run on the CPU.
    """
    import torch

    if name == "cpu":
        return None
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if may_see_one_gpu and visible == 1:
        local_rank = 0
    wanted = max(gpus or 0, 1 if name == "cuda" else 0, local_rank + 1 if visible else 0)
    if wanted > visible:
        asked = f"--gpus {gpus}" if gpus else f"local rank {local_rank}" if local_rank else "--device cuda"
        raise UserError(
            f"{asked} needs {wanted} GPU(s), but {visible} are visible; run on the CPU with --device cpu "
            "(--gpus N then starts N processes)"
        )
    return local_rank if visible else None


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device.

    Only a copy from pinned memory to a GPU is left running: one to the host could be read before it has arrived.
    """
    running = device.type == "cuda" and tensor.device.type == "cpu" and tensor.is_pinned()
    return tensor.to(device, non_blocking=running)


def frames_beside(device: torch.device) -> FrameDevice:
    """Where dataframes live that feed a torch device: on the same GPU, or on the CPU where cuDF does not work."""
    return frame_device("cpu" if device.type == "cpu" else "auto", device.index or 0)


def torch_generator(seed: int, device: torch.device) -> torch.Generator:
    """A separate generator on `device`, independent of torch's global one."""
    import torch

    return torch.Generator(device=device).manual_seed(seed)


def resolve_precision(amp: bool, precision: str | None, device: torch.device) -> str:
    """The precision that `--amp` and `--precision` mean on a device: "fp32", "tf32", "fp16" or "bf16".

    "tf32" is float32 with matrix products of 19-bit operands.

    `--amp` is float16 on a GPU, as in the reference. On a CPU it is bfloat16 if that is faster, otherwise float32.

    Raises:
        UserError: "tf32" without a GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16")
    if precision is not None or not amp:
        return precision or "fp32"
    if device.type == "cuda":
        return "fp16"
    return "bf16" if multiplies_bfloat16(device) else "fp32"


def mixed_dtype(precision: str) -> torch.dtype | None:
    """The dtype of mixed precision; None for float32 throughout, with or without TF32 products."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Within, float32 matrix products use TF32 if `precision` is "tf32"; elsewhere they are full float32."""
    import torch

    if device.type != "cuda":
        yield
        return
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def matrix_product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The product of two matrices of one dtype, summed in float32 and returned in another dtype.

    On a CPU, where float16 products may be summed in float16, in float32 throughout.
    """
    import torch

    if a.device.type != "cuda":
        return (a.float() @ b.float()).to(dtype)
    return a @ b if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products beat float32: on a GPU, and on a CPU with matrix tiles (AMX).

    On a CPU with only vector instructions for bfloat16, the conversions cost as much as the products gain.
    """
    import torch

    return device.type == "cuda" or bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def rng_state(device: torch.device) -> torch.Tensor:
    """State of torch's global generator for a device (the one dropout uses), uint8 on the host."""
    import torch

    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(device: torch.device, state: torch.Tensor) -> None:
    """Restore torch's global generator for a device from a state returned by `rng_state`."""
    import torch

    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def collective_backend(device: torch.device) -> str:
    """The process-group backend for tensors on a device."""
    return "nccl" if device.type == "cuda" else "gloo"


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that timings include its work (host sync: around timers only)."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU; None for a CPU, whose memory is shared with other processes."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Within, this thread's work on a GPU is on a stream of its own, beside what other threads do on the default one.

    It follows all that was begun before, and all that is begun later follows it. On a CPU this does nothing.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    stream, outer = _own_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


@functools.cache
def _own_stream(device: torch.device) -> Any:
    """Always the same one, because torch keeps freed memory for the stream that had it."""
    import torch

    return torch.cuda.Stream(device)


def mark_ready(device: torch.device) -> Any:
    """A mark after all work so far on the current stream of a GPU, for `wait_until_ready`; None on a CPU."""
    import torch

    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def wait_until_ready(mark: Any, tensors: Iterable[torch.Tensor]) -> None:
    """Let the current stream wait for a mark of another one, and keep the tensors, made there, until it has used them.

    The host does not wait.
    """
    import torch

    if mark is None:
        return
    for tensor in tensors:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(mark)
        tensor.record_stream(stream)


def graph_capture(device: torch.device) -> Callable[[Callable[[], T]], tuple[Callable[[], None], T]]:
    """A function that captures a CUDA graph of work that only launches kernels, without running them.

    It returns a function that replays the graph on the same memory, and the result of the work, whose tensors hold
    valid values after each replay. Replays advance torch's global generator as eager execution does.

    Raises:
        UserError: the device is not a GPU.
    """
    import torch

    if device.type != "cuda":
        raise UserError("--cuda-graphs needs an NVIDIA GPU; leave it out on a CPU")

    def capture(work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph = torch.cuda.CUDAGraph()
        # Other threads (the Loader's, NCCL's) keep using the GPU meanwhile and are not captured.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result

    return capture


def gpu_capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a GPU, (9, 0) for Hopper; None for a CPU."""
    import torch

    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for a CPU."""
    import torch

    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def gpu_name(device: torch.device) -> str:
    """The name by which the driver knows a GPU ("NVIDIA A100-SXM4-40GB"); "CPU" for a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Within, a torch operation that makes the host wait for a GPU raises RuntimeError, in any thread.

    The check is CUDA's (`set_sync_debug_mode`). It does not see waits of other libraries; on a CPU it does nothing.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
