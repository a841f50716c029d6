"""The device of the tests that need a GPU; `--gpu-device cpu` rehearses them without one."""

from __future__ import annotations

import pytest
import torch

from workflows.device import torch_device, torch_precision
from workflows.errors import UserError


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    try:
        found = torch_device(request.config.getoption("--gpu-device"), None)
    except UserError as err:
        pytest.skip(str(err))
    torch_precision("fp32", found)  # whatever another test has set
    return found


@pytest.fixture
def graphs(device: torch.device) -> None:
    """Skips where there are no CUDA graphs."""
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
