"""Counts the memory traffic and floating-point operations of torch operators in real code.

The rule: an operator reads each input from memory once and writes each output once; views are free. Exceptions are
operators that touch only part of an array (rows of a table) or make several passes over it (sorts). The result is the
traffic of a program that runs one operator after another, as a GPU does unless operators are fused. Only matrix
products count as operations.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmark.cost_model.cost import POSITION_BYTES, SECTOR_BYTES, Cost, sort_bytes

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh"}
_RANDOM = {"random_", "normal_", "uniform_", "bernoulli_"}
_OVERWRITES = {"copy_", "_foreach_copy_", "zero_", "fill_", *_RANDOM}
_TAKES_ROWS = {"index_select", "embedding", "index", "gather", "take"}
_ADDS_ROWS = {"index_add_": 3, "scatter_add_": 3}  # argument index of the added values
_PUTS_ROWS = {"index_put_": 2, "scatter_": 3}


class Counter:
    """Costs by stage and operator of code inside `torch_operators`, and of arrays (`benchmark.cost_model.arrays`).

    A stage lasts for a `with stage(…)` block, or for the calls of a method passed to `watch`.
    """

    def __init__(self, stage_of: Mapping[str, str] | None = None) -> None:
        """
        Args:
            stage_of: operators that always belong to one stage, wherever they are called.
        """
        self.costs: dict[str, dict[str, Cost]] = {}
        self._stage, self._stage_of = "", stage_of or {}

    def add(self, operator: str, cost: Cost, stage: str | None = None) -> None:
        found = self.costs.setdefault(self._stage_of.get(operator, stage or self._stage), {})
        found[operator] = found.get(operator, Cost()).plus(cost)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        before, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = before

    @contextmanager
    def watch(self, owner: Any, method: str, stage: str) -> Iterator[None]:
        """Charge calls of `owner.method` to a stage."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def watched(*args: Any, **more: Any) -> Any:
            with self.stage(stage):
                return original(*args, **more)

        setattr(owner, method, watched)
        try:
            yield
        finally:
            setattr(owner, method, original)

    @contextmanager
    def torch_operators(self, backward: str = "backward") -> Iterator[None]:
        """Count torch operators on this thread; those that autograd calls belong to the stage `backward`."""
        with _Dispatch(self, backward):
            yield


class _Dispatch(TorchDispatchMode):
    def __init__(self, counter: Counter, backward: str) -> None:
        super().__init__()
        self._counter, self._backward = counter, backward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func._schema.name.startswith("aten::"):
            return func(*args, **kwargs)
        if func._overloadpacket not in flop_registry and _has_kernel(func.name(), _COMPOSITE):
            with self:  # it decomposes into other operators, which are counted
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        if not (func.is_view or name in _FREE):
            in_backward = torch._C._current_graph_task_id() != -1
            self._counter.add(name, _torch_cost(func, args, kwargs, out), self._backward if in_backward else None)
        return out


def _torch_cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cost:
    name, packet = func._overloadpacket.__name__, func._overloadpacket
    given = _tensors(out)
    read = written = 0.0
    taken: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        tensors = _tensors(args[number] if number < len(args) else kwargs.get(argument.name))
        taken += tensors
        changed = argument.alias_info is not None and argument.alias_info.is_write
        written += changed * sum(map(_size, tensors))
        read += (not (changed and (argument.is_out or name in _OVERWRITES))) * sum(map(_size, tensors))
    written += sum(_size(tensor) for tensor in given if not any(tensor is other for other in taken))
    cost = Cost(1, *_corrected(name, args, kwargs, taken, given, read, written))
    if packet in flop_registry:
        # That of the operands: a product may be of another type, and the operands come last.
        half = taken[-1].dtype in (torch.float16, torch.bfloat16)
        flops = float(flop_registry[packet](*args, **kwargs, out_val=out))
        cost.half_flops, cost.fp32_flops = (flops, 0.0) if half else (0.0, flops)
    elif name in _RANDOM:
        cost.draws = float(given[0].numel())
    return cost


def _corrected(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    taken: list[Tensor],
    given: list[Tensor],
    read: float,
    written: float,
) -> tuple[float, float]:
    """Bytes read and written, corrected for operators that do not pass over each array exactly once."""
    if name in _TAKES_ROWS and not any(tensor.dtype is torch.bool for tensor in taken[1:]):
        read += _rows(args[0], given[0]) - _size(args[0])
    elif name in _ADDS_ROWS or name in _PUTS_ROWS:
        values = args[(_ADDS_ROWS | _PUTS_ROWS)[name]]
        touched = _rows(args[0], values) if isinstance(values, Tensor) and values.ndim else _size(args[0])
        read += (touched if name in _ADDS_ROWS else 0.0) - _size(args[0])
        written += touched - _size(args[0])
    elif name == "embedding_dense_backward":  # zeroes the whole table's gradient, then adds rows
        touched = _rows(given[0], args[0])
        read, written = read + touched, written + touched
    elif name == "_fused_adam_":  # may scale the gradients, but does not write them here
        written -= sum(map(_size, args[1]))
    elif name in ("sort", "argsort"):
        dim = kwargs.get("dim", next((arg for arg in args[1:] if type(arg) is int), -1))
        read = written = sort_bytes(args[0].numel(), args[0].shape[dim], args[0].element_size()) / 2
    elif name == "randperm":  # on a GPU, a sort of random keys
        read = written = sort_bytes(given[0].numel(), given[0].numel(), POSITION_BYTES) / 2
    return read, written


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> float:
    """Bytes of the distinct elements in memory: those of an expanded tensor count once."""
    lengths = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not n)
    return float(prod(lengths) * tensor.element_size())


def _rows(table: Tensor, values: Tensor) -> float:
    """Bytes moved to gather or scatter `values`, rows of a table, each at least one sector."""
    row = prod(table.shape[1:]) * table.element_size()
    return values.numel() * values.element_size() * max(1.0, SECTOR_BYTES / row) if row else 0.0
