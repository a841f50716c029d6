"""The device for the GPU tests; `--gpu-device cpu` rehearses them without a GPU."""

from __future__ import annotations

import pytest
import torch

from workflows.common.errors import UserError
from workflows.device.torch_device import torch_device


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    try:
        found = torch_device(request.config.getoption("--gpu-device"), None)
    except UserError as err:
        pytest.skip(str(err))
    return found


@pytest.fixture
def graphs(device: torch.device) -> None:
    """Skips if CUDA graphs are not available."""
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
