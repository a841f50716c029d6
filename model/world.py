"""The processes that train together, one a device: who is there, and what they tell each other.

They are started by `--gpus N` (`model.launch`), by torchrun, or by SLURM's `srun`. Ranks may have different numbers of
rows and batches: before each step they agree how many samples it has over all of them, and they go on until none has
any, so that nobody waits for a rank that has finished (the freeze of Merlin's loader under torch's own wrapper).
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

from workflows.device import collective_backend
from workflows.errors import UserError

_PATIENCE = timedelta(minutes=30)  # evaluation by rank 0 alone, or a slow disk, may keep the others waiting
_PORT = 29500

SizedItem = TypeVar("SizedItem", bound=Sized)


@dataclass(frozen=True)
class Place:
    """Which of `size` processes this one is: `rank` of all, `local_rank` of those on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @staticmethod
    def of_environment(environment: Mapping[str, str] = os.environ) -> Place | None:
        """The place that torchrun (or `model.launch`) or SLURM's `srun` gave this process; None where neither did.

        Raises:
            UserError: their variables are no numbers, or do not fit together.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not {"RANK", "WORLD_SIZE"} <= environment.keys():
            # In a batch script outside `srun` SLURM sets the same names, but starts one process.
            in_script = "SLURM_JOB_ID" in environment and not {"SLURM_STEP_ID", "SLURM_STEPID"} & environment.keys()
            if in_script or not {"SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys():
                return None
            total = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
            names = ("SLURM_PROCID", total, "SLURM_LOCALID")
        try:
            rank, size, local = (int(environment.get(name, "0")) for name in names)
        except ValueError:
            given = ", ".join(f"{name}={environment.get(name)}" for name in names)
            raise UserError(f"the variables of the launcher should be whole numbers, got {given}") from None
        if not 0 <= rank < size or local < 0:
            raise UserError(f"rank {rank} (local {local}) of {size} processes: ranks should be 0 .. {size - 1}")
        return Place(rank, size, local)


class World:
    """All processes of a run, seen from one of them.

    Attributes:
        device: of this process.
        rank, size: which of how many it is.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1, host_group: Any = None) -> None:
        """
        Args:
            host_group: a process group for tensors on the host, where there are several processes.
        """
        self.device, self.rank, self.size, self._host_group = device, rank, size, host_group

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This rank's part of `total` consecutive things; the parts of all ranks follow each other."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor on the device up over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def copy_first(self, tensor: Tensor) -> None:
        """Give a tensor on the device, in place, the values that it has on the first rank."""
        if self.size > 1:
            dist.broadcast(tensor, 0)

    def start_sum(self, number: int) -> Callable[[], int]:
        """Begin to add a number up over all ranks, without the device; call the result for the sum."""
        if self.size == 1:
            return lambda: number
        tensor = torch.tensor([number], dtype=torch.int64)
        work = dist.all_reduce(tensor, group=self._host_group, async_op=True)

        def total() -> int:
            work.wait()
            return int(tensor)

        return total

    def same(self, number: int) -> int:
        """The number that the first rank has; also waits until all have come here."""
        return self.start_sum(number if self.is_first else 0)()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in their order; on the host, all of one shape and dtype."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor, group=self._host_group)
        return found

    def aligned(self, batches: Iterator[SizedItem]) -> Iterator[tuple[SizedItem | None, int]]:
        """Go through the batches of all ranks in step.

        Yields:
            This rank's next batch, None once it has no more, and how many samples the step has over all ranks; as long
            as any rank has a batch.
        """
        batch = next(batches, None)
        total = self.start_sum(len(batch) if batch is not None else 0)
        while samples := total():
            following = next(batches, None)
            total = self.start_sum(len(following) if following is not None else 0)
            yield batch, samples
            batch = following


@contextmanager
def joined(place: Place, device: torch.device, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Meet the other processes of the run (`MASTER_ADDR`, `MASTER_PORT`), and part at the end.

    Raises:
        UserError: the others did not come.
    """
    if place.size == 1:
        yield World(device)
        return
    address = environment.get("MASTER_ADDR") or _first_host(environment)
    port = environment.get("MASTER_PORT") or _port(environment)
    # Gloo would listen where this host's own name points to, which on many systems is the loopback interface.
    interface = _interface_to(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        dist.init_process_group(
            collective_backend(device),
            init_method=f"tcp://{address}:{port}",
            rank=place.rank,
            world_size=place.size,
            timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError) as err:  # torch's own errors of the network are RuntimeErrors
        raise UserError(
            f"rank {place.rank} did not meet the other {place.size - 1} processes at {address}:{port} ({err}); "
            "start all of them, with the same MASTER_ADDR and MASTER_PORT"
        ) from None
    try:
        yield World(device, place.rank, place.size, dist.new_group(backend="gloo", timeout=_PATIENCE))
    finally:
        with suppress(RuntimeError):  # where another rank has gone already
            dist.destroy_process_group()


def _interface_to(host: str) -> str | None:
    """The network interface by which a host is reached; None where that cannot be told."""
    try:
        family, kind, *_, where = socket.getaddrinfo(host, _PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # of datagrams: nothing is sent
            own = probe.getsockname()[0]
    except OSError:
        return None
    addresses = psutil.net_if_addrs().items()
    return next((name for name, known in addresses if own in {entry.address for entry in known}), None)


def _first_host(environment: Mapping[str, str]) -> str:
    """The host of SLURM's first process: `gpu[03-05,7],cpu1` begins with gpu03."""
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", names)
    return "".join(part or "" for part in found.groups()) if found else names


def _port(environment: Mapping[str, str]) -> int:
    """The same for all processes of a SLURM job, and another one for other jobs of the machine."""
    job = environment.get("SLURM_JOB_ID", "")
    return 20_000 + int(job) % 10_000 if job.isdigit() else _PORT
