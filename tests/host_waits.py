"""Operators that would make the host wait for a GPU, counted on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
# Their result, or its shape, has to reach the host.
_WAITS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN._unique2.default,
    _ATEN.unique_consecutive.default,
    _ATEN.unique_dim.default,
    _ATEN.bincount.default,
    _ATEN.equal.default,
}


class HostWaits(TorchDispatchMode):
    """Lists the operators that wait, in this thread.

    Attributes:
        found: their names, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A mask is turned into positions first, and repeats are summed unless their sum is given.
        masked = function in (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default) and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        summed = function is _ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if function in _WAITS or masked or summed:
            self.found.append(str(function))
        return function(*args, **kwargs)
