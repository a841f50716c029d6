"""What the compiled loops share: compiler options, types, and operations that only LLVM has.

numba recompiles a loop when the file of the loop changes, not when a file that it imports does. So after a change to
this file, touch `train_loops.py` and `score_loops.py` beside it. After renaming a tuple that the loops take, leave an
alias under its old name: numba reads the signatures of an old cache before it sees that the cache is out of date.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

F32, I32, I64, U64 = types.float32, types.int32, types.int64, types.uint64
VECTOR, MATRIX = F32[::1], F32[:, ::1]
# Neither `True` nor "nnan": a NaN loss must stay NaN.
FAST: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"}}
inlined = njit(inline="always")
U = np.uint64  # type of all indices in the loops: spares the check for negative indices
ZERO = np.float32(0.0)
AHEAD = U(2)  # prefetch distance for item rows, in samples


def tuple_type(kind: type[tuple], *fields: types.Type) -> types.Type:
    """The numba type of a `NamedTuple` class, given the types of its fields.

    numba converts a number that is an argument, but not one in a named tuple: a field of type float32 takes an
    `np.float32`, not a `float`.
    """
    return types.BaseTuple.from_types(fields, kind)


@intrinsic
def lowest_bit(typing_context, bits):
    """The index of the lowest set bit of a nonzero integer."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return U64(U64), generate


@intrinsic
def _prefetch(typing_context, array, index):
    """Prefetch the cache line of array[index]."""

    def generate(context, builder, signature, arguments):
        structure = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(structure.data, [arguments[1]]), ir.PointerType(ir.IntType(8)))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, *(ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, index), generate


@inlined
def prefetch_row(table, row, width):
    """Prefetch a row of a flat float32 matrix [rows, width]."""
    for index in range(row * width, (row + U(1)) * width, U(16)):
        _prefetch(table, index)


def _vector(context, builder, kind, array, index, width):
    """A pointer to `width` float32 of an array, starting at `index`, as one vector; `kind` is its numba type."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(ir.FloatType(), width).as_pointer())


@intrinsic
def positive_bits(typing_context, units, at):
    """A word with the bits of units at … at + 63 that are positive or NaN set."""

    def generate(context, builder, signature, arguments):
        values = builder.load(_vector(context, builder, signature.args[0], *arguments, 64), align=4)
        return builder.bitcast(builder.fcmp_unordered(">", values, ir.Constant(values.type, None)), ir.IntType(64))

    return U64(units, at), generate


def _row_adder(width):
    """`add_rows` for rows of a width known at compile time: a vector that stays in registers.

    Loops over elements would be half as fast, since the compiler assumes that any two arrays may alias.
    """

    @intrinsic
    def add(typing_context, total, at, table, offset, stride, listed, numbers, lists, n_listed):
        def generate(context, builder, signature, arguments):
            total, at, table, offset, stride, listed, numbers, lists, n_listed = arguments
            kinds, vector = signature.args, ir.VectorType(ir.FloatType(), width)
            values = context.make_array(kinds[5])(context, builder, listed).data
            rows = context.make_array(kinds[6])(context, builder, numbers).data
            target = _vector(context, builder, kinds[0], total, at, width)
            result = cgutils.alloca_once(builder, vector)
            builder.store(builder.load(target, align=4), result)
            with cgutils.for_range(builder, n_listed, intp=ir.IntType(64)) as loop:
                t = builder.add(lists, loop.index)
                row = builder.mul(builder.load(builder.gep(rows, [t])), stride)
                source = _vector(context, builder, kinds[2], table, builder.add(offset, row), width)
                value = builder.load(builder.gep(values, [t]))
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
                factor = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), width), None))
                product = builder.fmul(factor, builder.load(source, align=4), flags=["contract"])
                builder.store(builder.fadd(builder.load(result), product, flags=["contract"]), result)
            builder.store(builder.load(result), target, align=4)
            return context.get_dummy_value()

        return types.void(total, at, table, offset, stride, listed, numbers, lists, n_listed), generate

    return add


_add_64, _add_16, _add_1 = (_row_adder(width) for width in (64, 16, 1))


@inlined
def add_rows(total, at, width, table, offset, stride, listed, numbers, lists, n_listed):
    """total[at : at + width] += sum over t of listed[t] * row numbers[t] of a table.

    Args:
        total, table: float32, flat.
        offset, stride: row r of the table starts at offset + stride * r.
        listed, numbers: float32 and uint64.
        lists, n_listed: t is lists … lists + n_listed - 1.
    """
    start = U(0)
    while start < width:
        left = width - start
        if left >= U(64):
            _add_64(total, at + start, table, offset + start, stride, listed, numbers, lists, n_listed)
            start += U(64)
        elif left >= U(16):
            _add_16(total, at + start, table, offset + start, stride, listed, numbers, lists, n_listed)
            start += U(16)
        else:
            _add_1(total, at + start, table, offset + start, stride, listed, numbers, lists, n_listed)
            start += U(1)
