"""`python train.py`: train NeuMF on a prepared folder, with the flags of NVIDIA's NCF reference."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from model.distributed.launch import await_launcher, end_at_once, end_with_launcher, launch
from model.distributed.process_group import LostRankError, RankInfo, init_process_group
from model.run.arguments import parse_args, run_config
from workflows.common.errors import run_command
from workflows.device.memory import require_address_space, require_process_memory, torch_address_space
from workflows.device.torch_device import frames_beside, gpu_index, torch_device

_RANK_BYTES = 384 << 20  # of a run on very small data
_RANK_THREADS_BYTES = 1 << 30  # of address space, for the threads of a rank


def main(argv: Sequence[str] | None = None) -> None:
    config = run_config(parse_args(argv))
    rank_info = RankInfo.from_environment()
    if rank_info is None and (config.gpus or 1) > 1:
        gpu_index(config.device, config.gpus)  # check that there are enough devices
        require_process_memory(_RANK_BYTES, config.gpus or 1)
        require_address_space(torch_address_space() + _RANK_THREADS_BYTES)  # with less, ranks may wait for ever
        status = launch(config.gpus or 1, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
        if status:
            sys.exit(status)
        return
    if rank_info is None:
        require_process_memory(_RANK_BYTES)
    rank_info = rank_info or RankInfo()
    device = torch_device(config.device, config.gpus, rank_info.local_rank, rank_info.may_see_one_gpu)
    end_with_launcher()
    frames_beside(device)  # before Merlin is imported, which otherwise looks for a GPU itself
    from model.run.session import run  # imports Merlin and the rest, which the launcher does not need

    try:
        with init_process_group(rank_info, device) as world:
            run(config, world)
    except LostRankError:
        await_launcher()
        raise


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ or "SLURM_STEP_ID" in os.environ:
        end_at_once(lambda: run_command(main))
    run_command(main)
