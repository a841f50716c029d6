"""Counts the memory traffic of NumPy functions in real array code, by the rule of `benchmark.cost_model.counter`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any
from unittest import mock

import array_api_compat.numpy
import numpy as np

from benchmark.cost_model.cost import SECTOR_BYTES, Cost, sort_bytes
from benchmark.cost_model.counter import Counter
from benchmark.cost_model.host_kernels import argument, compile_for_host


class CountedArray(np.ndarray):
    """An array whose NumPy operations are counted, as are those of every array derived from it.

    Arrays created from scratch (`arange`, `zeros`) are counted once they are combined with one of these.
    """

    counter: Counter

    @staticmethod
    def wrap(array: np.ndarray, counter: Counter) -> CountedArray:
        counted = array.view(CountedArray)
        counted.counter = counter
        return counted

    def __array_finalize__(self, origin: Any) -> None:
        if isinstance(origin, CountedArray):
            self.counter = origin.counter

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **more: Any) -> Any:
        more |= {"out": tuple(map(_plain, out))} if out else {}
        run = functools.partial(getattr(ufunc, method), *map(_plain, inputs), **more)
        return self._counted(ufunc.__name__, inputs, run)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        plain_args, plain_kwargs = _plain_all(args), {name: _plain_all(value) for name, value in kwargs.items()}
        return self._counted(func.__name__, (args, kwargs), functools.partial(func, *plain_args, **plain_kwargs))

    def __getitem__(self, key: Any) -> Any:
        parts = [part for part in (key if isinstance(key, tuple) else (key,)) if _is_array(part)]
        if not parts:
            return super().__getitem__(key)  # a view
        name = "compress" if any(part.dtype == bool for part in parts) else "take"
        return self._counted(name, (self, key), lambda: _plain(self)[_plain_all(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.counter.add("put", Cost(1, float(_nbytes((key, value))), float(_nbytes(value))))
        _plain(self)[_plain_all(key)] = _plain(value)

    def astype(self, *args: Any, **more: Any) -> Any:
        return self._counted("astype", (self,), lambda: _plain(self).astype(*args, **more))

    def _counted(self, name: str, inputs: Any, run: Callable[[], Any]) -> Any:
        out = run()
        read, written = float(_nbytes(inputs)), float(_nbytes(out))
        if name == "take":  # rows of the first array at the indices in the second
            table = next(_arrays(inputs))
            row = table.nbytes / max(1, len(table))
            read += written * max(1.0, SECTOR_BYTES / row if row else 1.0) - table.nbytes
        elif name in ("sort", "argsort"):
            (keys,) = _arrays(inputs)
            read = written = sort_bytes(keys.size, keys.shape[-1], keys.itemsize) / 2
        elif name in ("reshape", "broadcast_to", "expand_dims", "shape", "ndim"):
            read = written = 0.0
        self.counter.add(name, Cost(1, read, written))
        return self._wrapped(out)

    def _wrapped(self, out: Any) -> Any:
        if isinstance(out, tuple):
            return tuple(map(self._wrapped, out))
        return CountedArray.wrap(out, self.counter) if _is_array(out) and out.ndim else out


@contextmanager
def kernels_on_host(counter: Counter) -> Iterator[None]:
    """Within, workflows run a GPU's code on counted arrays; a kernel moves each array that it is given once.

    Raises:
        UserError: there is no C++ compiler.
    """
    from workflows.operators import encode, leave_one_out
    from workflows.sampling import interactions, kernels, negatives

    library = compile_for_host()

    def launch(name: str, elements: int, *arguments: Any) -> None:
        if elements:
            counter.add(f"kernel {name}", Cost(1, float(_nbytes(arguments))))
            getattr(library, name)(*map(argument, arguments))

    def new(create: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: CountedArray.wrap(create(*args, **more), counter)

    with ExitStack() as patches:
        for module in (encode, interactions, leave_one_out, negatives):
            patches.enter_context(mock.patch.object(module, "gpu_kernels", return_value=kernels))
        patches.enter_context(mock.patch.object(kernels, "launch", launch))
        for name in ("empty", "zeros"):  # kernels write into them
            patches.enter_context(mock.patch.object(array_api_compat.numpy, name, new(getattr(np, name))))
        yield


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if _is_array(value):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _arrays(part)
    elif isinstance(value, dict):
        yield from _arrays(list(value.values()))


def _nbytes(value: Any) -> int:
    """Bytes of all arrays in a value; elements of a broadcast array count once."""
    return sum(
        prod(n for n, stride in zip(array.shape, array.strides, strict=True) if stride or not n) * array.itemsize
        for array in _arrays(value)
    )


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, CountedArray) else value


def _plain_all(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_plain_all, value))
    return _plain(value)
