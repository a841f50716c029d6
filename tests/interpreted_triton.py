"""Triton's interpreter: its kernels on CPU tensors. To be imported before anything that imports Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

with pytest.MonkeyPatch.context() as environment:  # not for the processes that tests start
    environment.setenv("TRITON_INTERPRET", "1")  # Triton's own library reads it when it is imported
    triton = pytest.importorskip("triton", reason="the kernels need Triton, see requirements/dev.in")
    triton.knobs.runtime.interpret = True

import triton.language as tl
from triton.runtime import interpreter


def _repair_bfloat16() -> None:
    """Let bfloat16 round to nearest even, and products multiply its values.

    The interpreter of Triton 3.7 holds bfloat16 as uint16. It cuts off the lower bits of a float32, and multiplies
    the bits of a matrix as if they were integers.
    """
    builder = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot

    def single(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
        return repaired_cast(None, x, tl.float32) if x.dtype.scalar is tl.bfloat16 else x

    def repaired_cast(self: object, x: interpreter.TensorHandle, to: tl.dtype) -> interpreter.TensorHandle:
        kinds = x.dtype.scalar, to.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            bits = torch.from_numpy(x.data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")
            return interpreter.TensorHandle(bits, tl.bfloat16)
        return cast(self, x, to)

    builder.cast_impl = repaired_cast
    builder.create_dot = lambda self, a, b, *more: dot(self, single(a), single(b), *more)


def _patch_once() -> None:
    """Replace Triton's functions once for each module of kernels: each call of one does it again, in half its time."""
    patch, patched = interpreter._patch_lang, set[str]()

    def patch_once(function: Callable[..., object]) -> interpreter._LangPatchScope:
        if function.__module__ not in patched:
            patched.add(function.__module__)
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


_repair_bfloat16()
_patch_once()


@contextmanager
def programs(chosen: Callable[[int], Sequence[int]]) -> Iterator[None]:
    """Run those programs of each launch, in that order, which `chosen` gives for a number of programs."""
    builder, launch = interpreter.interpreter_builder, interpreter.GridExecutor.__call__

    def launch_chosen(executor: interpreter.GridExecutor, *args: object, **constants: object) -> None:
        order = chosen(executor.grid[0])
        executor.grid = (len(order),)
        patched.setattr(builder, "set_grid_idx", lambda x, y, z: setattr(builder, "grid_idx", (order[x], y, z)))
        launch(executor, *args, **constants)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter.GridExecutor, "__call__", launch_chosen)
        yield
