"""Constants of the fused step's kernels for a network and a group size. No Triton."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from model.network.neumf import NeuMFConfig

MAX_WIDTH = 256  # of levels from the second on, whose activations of a tile are held whole
_MASK = (1 << 32) - 1
_IN_TILE = 64 * 128  # most weights between two levels whose gradients a program sums
_LEAST = 16  # units a side of a matrix product in Triton
# At least 164 KiB of shared memory on a multiprocessor. On 10.0, Triton 3.7 compiles no tile of 64 rows.
_LARGE_SHARED = ((8, 0), (8, 7), (10, 0), (10, 3), (11, 0))
_SCALE = {torch.float16: 256.0}  # keeps gradients of single samples within float16's range


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Size of a tile, and how it is compiled.

    Attributes:
        rows: samples, of which as many are in use as make whole groups.
        block: units of the first level computed at a time.
        warps: of 32 threads.
        registers: most per thread; None leaves it to the compiler.
        programs: as many as a multiprocessor runs at a time.
    """

    rows: int = 64
    block: int = 64
    warps: int = 4
    registers: int | None = None
    programs: int = 2

    @staticmethod
    def for_gpu(capability: tuple[int, int], precision: str) -> Tile:
        """The tile for GPUs of a compute capability, by counting instructions, registers and shared memory.

        Chosen among those with 12 warps on a multiprocessor, where shared memory allows it, for few spilled registers
        and few instructions a sample. The same tile for all GPUs of a kind, and not the
        fastest of a trial, since another tile sums in another order.
        """
        half = precision in ("fp16", "bf16")
        if capability[0] == 9:  # products of 64 rows by four warps together
            return Tile(registers=168, programs=3) if half else Tile(block=32)
        if half or capability in _LARGE_SHARED:
            return Tile(rows=32, registers=168, programs=3)
        return Tile(rows=32)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Constants of the kernels for batches of one group size.

    Attributes:
        widths: of the hidden layers, padded. A padded unit has weights and output 0, so its gradients are 0.
        factors: of GMF, padded.
        group: consecutive samples that share a user; 1: each sample by itself.
        kind: dtype of activations, of their gradients and of the operands of products.
        products: "ieee" or "tf32", the operands of float32 products.
    """

    widths: tuple[int, ...]
    factors: int
    group: int
    kind: torch.dtype
    products: str
    tile: Tile

    @staticmethod
    def of(config: NeuMFConfig, group: int, precision: str, tile: Tile) -> Plan:
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
        return Plan(
            widths=tuple(map(padded, config.layers[1:])),
            factors=padded(config.factors),
            group=group if 2 * group <= tile.rows else 1,  # a group of more than half a tile would leave much unused
            kind=kind,
            products="tf32" if precision == "tf32" else "ieee",
            tile=tile,
        )

    @property
    def scale(self) -> float:
        """Gradients within the kernels are those of the summed loss times this."""
        return _SCALE.get(self.kind, 1.0)

    @property
    def units_at(self) -> tuple[int, ...]:
        """Where each level's units begin, and where the last level's end."""
        return (0, *accumulate(self.widths))

    @property
    def weights_at(self) -> tuple[int, ...]:
        """Where the weights between each level and the next begin."""
        return (0, *accumulate(a * b for a, b in pairwise(self.widths)))

    @property
    def unit_keys(self) -> tuple[int, ...]:
        """A hash of each unit's number, 32 bits with a sign, for dropout's decisions."""
        return tuple(_mixed(unit * 0x9E3779B9 + 1 & _MASK) for unit in range(self.units_at[-1]))

    @property
    def samples_per_tile(self) -> int:
        return self.tile.rows // self.group * self.group

    @property
    def sums(self) -> int:
        """Numbers that a program always sums over its samples: loss, biases, and the weights of the head."""
        return 2 + self.units_at[-1] + self.widths[-1] + self.factors

    @property
    def sums_at(self) -> tuple[int, ...]:
        """For each level, where among a program's sums the gradient of the weights below it begins; 0 if a library's
        product makes it. Last, the number of all sums."""
        found, end = [0, 0], -(-self.sums // _LEAST) * _LEAST  # aligned for wide accesses
        for size in (a * b for a, b in pairwise(self.widths[1:])):
            found.append(end if size <= _IN_TILE else 0)
            end += size if size <= _IN_TILE else 0
        return (*found[: len(self.widths)], end)

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of `kernels.tile_step`."""
        return {
            "WIDTHS": self.widths,
            "WEIGHTS_AT": self.weights_at,
            "UNITS_AT": self.units_at,
            "SUMS_AT": self.sums_at,
            "FACTORS": self.factors,
            "GROUP": self.group,
            "SLOTS": padded(self.tile.rows // self.group + 1) if self.group > 1 else _LEAST,
            "ROWS": self.tile.rows,
            "BLOCK": min(self.tile.block, self.widths[0]),
            "SCALE": self.scale,
            "PRODUCTS": self.products,
        }

    @property
    def options(self) -> dict[str, int]:
        """Compiler options of `kernels.tile_step`."""
        more = {} if self.tile.registers is None else {"maxnreg": self.tile.registers}
        # Loads are not pipelined: other warps hide them, and a way through shared memory takes more instructions.
        return {"num_warps": self.tile.warps, "num_stages": 1, "enable_fp_fusion": True, **more}


def _mixed(x: int) -> int:
    """`kernels._mix`, as a number with a sign."""
    x = (x ^ x >> 16) * 0x7FEB352D & _MASK
    x = (x ^ x >> 15) * 0x846CA68B & _MASK
    x ^= x >> 16
    return x - (x >> 31 << 32)


def padded(width: int) -> int:
    """The next power of two, at least 16."""
    return max(_LEAST, 1 << (width - 1).bit_length())


def rounded(x: Tensor, plan: Plan) -> Tensor:
    """float32 values as the operands of products, as `kernels._rounded` makes them."""
    if plan.products == "tf32":
        bits = x.view(torch.int32)
        return (bits + 0xFFF + (bits >> 13 & 1) & ~0x1FFF).view(torch.float32)
    return x.to(plan.kind).float()
