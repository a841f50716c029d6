"""Process group: ranks and collectives, one process per device.

Processes are started by `--gpus N` (`model.distributed.launch`), torchrun or SLURM's `srun`. Ranks may have different
numbers of rows and batches: before each step they sum the number of samples over all ranks, and they continue until it
is 0, so that no rank waits for one that has finished (as Merlin's loader hangs under torch's own wrapper).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor
from torch import distributed as dist

from workflows.common.errors import UserError
from workflows.device.torch_device import collective_backend

_PATIENCE = timedelta(minutes=30)  # evaluation on rank 0 alone or a slow disk may keep the others waiting
_PORT = 29500
# NVIDIA's images may have a build of torch from before it renamed these.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

SizedItem = TypeVar("SizedItem", bound=Sized)


@dataclass(frozen=True)
class RankInfo:
    """Position of this process: global `rank` of `size`, and `local_rank` on its machine.

    Attributes:
        local_size: processes on this machine, as far as the launcher says: torchrun and `--gpus` do.
        may_see_one_gpu: whether it may see only its own GPU, as under SLURM with `--gpus-per-task` or `--gpu-bind`;
            torchrun and `--gpus` show each process the GPUs of all.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    may_see_one_gpu: bool = False

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> RankInfo | None:
        """Read the variables of torchrun (or `model.distributed.launch`) or SLURM's `srun`; None if neither set them.

        Raises:
            UserError: the variables are not numbers or are inconsistent.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not {"RANK", "WORLD_SIZE"} <= environment.keys():
            # In a batch script outside `srun`, SLURM sets the same names but starts only one process.
            in_script = "SLURM_JOB_ID" in environment and not {"SLURM_STEP_ID", "SLURM_STEPID"} & environment.keys()
            if in_script or not {"SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys():
                return None
            total = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
            names = ("SLURM_PROCID", total, "SLURM_LOCALID")
        try:
            rank, size, local = (int(environment.get(name, "0")) for name in names)
            local_size = max(1, int(environment.get("LOCAL_WORLD_SIZE", "1")))
        except ValueError:
            given = ", ".join(f"{name}={environment.get(name)}" for name in names)
            raise UserError(f"the launcher's environment variables should be integers, got {given}") from None
        if not 0 <= rank < size or local < 0:
            raise UserError(f"rank {rank} (local {local}) of {size} processes: ranks should be 0 .. {size - 1}")
        return RankInfo(rank, size, local, min(local_size, size), may_see_one_gpu=names[0] == "SLURM_PROCID")


class ProcessGroup:
    """The process group of a run, as seen by one rank.

    Attributes:
        device: device of this process.
        rank, size: rank of this process, and number of processes.
        local_size: of these processes on this machine, as far as known.
    """

    def __init__(
        self, device: torch.device, rank: int = 0, size: int = 1, host_group: Any = None, local_size: int = 1
    ) -> None:
        """
        Args:
            host_group: a process group for host tensors, if there are several processes.
        """
        self.device, self.rank, self.size, self._host_group = device, rank, size, host_group
        self.local_size = local_size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This rank's contiguous slice of `total` elements; the slices of all ranks are in rank order."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce a device tensor (sum), in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_reduce_scatter(self, tensor: Tensor) -> Callable[[], None]:
        """Start summing a flat device tensor over all ranks, in place; each rank gets the sums of its `share` only, the
        rest keeps its values. Call the result to wait: on the current stream, not on the host, if it is on a GPU.

        Args:
            tensor: contiguous, its length a multiple of `size`.
        """
        if self.size == 1:
            return lambda: None
        return _reduce_scatter(tensor[self.share(len(tensor))], tensor, async_op=True).wait

    def start_all_gather(self, tensor: Tensor) -> Callable[[], None]:
        """Start filling a flat device tensor from every rank's `share` of it, in place; see `start_reduce_scatter`."""
        if self.size == 1:
            return lambda: None
        return _all_gather(tensor, tensor[self.share(len(tensor))], async_op=True).wait

    def broadcast(self, tensor: Tensor) -> None:
        """Broadcast a device tensor from rank 0, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)

    def start_sum(self, number: int) -> Callable[[], int]:
        """Start summing a number over all ranks, on the host; call the result to wait for the sum."""
        if self.size == 1:
            return lambda: number
        tensor = torch.tensor([number], dtype=torch.int64)
        work = dist.all_reduce(tensor, group=self._host_group, async_op=True)

        def total() -> int:
            work.wait()
            return int(tensor)

        return total

    def broadcast_int(self, number: int) -> int:
        """Broadcast a number from rank 0; also acts as a barrier."""
        return self.start_sum(number if self.is_first else 0)()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Gather the tensors of all ranks, in rank order; host tensors of equal shape and dtype."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor, group=self._host_group)
        return found

    def aligned(self, batches: Iterator[SizedItem]) -> Iterator[tuple[SizedItem | None, int]]:
        """Iterate over the batches of all ranks in lockstep.

        Yields:
            This rank's next batch (None once it has no more) and the number of samples over all ranks, until no rank
            has a batch.
        """
        batch = next(batches, None)
        total = self.start_sum(len(batch) if batch is not None else 0)
        while samples := total():
            next_batch = next(batches, None)
            total = self.start_sum(len(next_batch) if next_batch is not None else 0)
            yield batch, samples
            batch = next_batch


class LostRankError(UserError):
    """Another process of the group has ended."""


@contextmanager
def init_process_group(
    rank_info: RankInfo, device: torch.device, environment: Mapping[str, str] = os.environ
) -> Iterator[ProcessGroup]:
    """Initialise the process group (`MASTER_ADDR`, `MASTER_PORT`), and destroy it at the end.

    Raises:
        UserError: the processes could not connect.
        LostRankError: another process has ended.
    """
    if rank_info.size == 1:
        yield ProcessGroup(device)
        return
    address = environment.get("MASTER_ADDR") or _first_host(environment)
    port = environment.get("MASTER_PORT") or _port(environment)
    # Gloo would listen on the address of this host's name, which on many systems is the loopback interface.
    interface = _interface_to(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        dist.init_process_group(
            collective_backend(device),
            init_method=f"tcp://{address}:{port}",
            rank=rank_info.rank,
            world_size=rank_info.size,
            timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError) as err:  # torch reports network errors as RuntimeError
        raise UserError(
            f"rank {rank_info.rank} could not connect to the other {rank_info.size - 1} processes at {address}:{port} "
            f"({err}); start all processes with the same MASTER_ADDR and MASTER_PORT"
        ) from None
    try:
        host_group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield ProcessGroup(device, rank_info.rank, rank_info.size, host_group, rank_info.local_size)
    except RuntimeError as err:
        if not (isinstance(err, dist.DistError) or "gloo" in str(err)):
            raise
        raise LostRankError(
            f"rank {rank_info.rank} lost the connection to another process, whose own output says why it ended; start "
            "all again, with --resume if the run has a saved state"
        ) from err
    finally:
        with suppress(RuntimeError):  # if another rank has already exited
            dist.destroy_process_group()


def _interface_to(host: str) -> str | None:
    """The network interface on the route to a host; None if unknown."""
    try:
        family, kind, *_, where = socket.getaddrinfo(host, _PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # UDP: nothing is sent
            local = probe.getsockname()[0]
    except OSError:
        return None
    addresses = psutil.net_if_addrs().items()
    return next((name for name, known in addresses if local in {entry.address for entry in known}), None)


def _first_host(environment: Mapping[str, str]) -> str:
    """The host of SLURM's first process, e.g. gpu03 for `gpu[03-05,7],cpu1`."""
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", names)
    return "".join(part or "" for part in found.groups()) if found else names


def _port(environment: Mapping[str, str]) -> int:
    """A port derived from the SLURM job id: the same in all its processes, different for other jobs on the machine."""
    job = environment.get("SLURM_JOB_ID", "")
    return 20_000 + int(job) % 10_000 if job.isdigit() else _PORT
