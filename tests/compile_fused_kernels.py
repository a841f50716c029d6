"""Compiles the fused step's kernels for GPUs, on any machine, and counts what the machine code needs.

python tests/compile_fused_kernels.py --write  # the table, benchmark/cost_model/fused_kernels.json, docs/gpu.md

It is a program because Triton compiles nothing in a process in which TRITON_INTERPRET has been set.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMMAND = "python tests/compile_fused_kernels.py --write"
TABLE = ROOT / "benchmark" / "cost_model" / "fused_kernels.json"
DOCS = ROOT / "docs" / "gpu.md"
MARKS = "<!-- fused kernels -->\n", "<!-- end of fused kernels -->\n"

PRECISIONS, GROUPS = ("fp16", "bf16", "tf32"), (5, 1)
# Of a multiprocessor: KiB of shared memory, warps, programs. (CUDA C++ Programming Guide, compute capabilities.)
LIMITS = {
    80: (164, 64, 32),
    86: (100, 48, 16),
    90: (228, 64, 32),
    100: (228, 64, 32),
    120: (100, 48, 24),
}
_RESERVED_BYTES = 1024  # of shared memory, for each program
_REGISTERS, _REGISTERS_AT_ONCE = 16384, 256  # of a quarter of a multiprocessor; in the units in which a warp gets them
_LEAST_LOOP = 20  # instructions; shorter branches back are the end of a kernel, or wait


class _Launches:
    """In place of `kernels`: notes what the step launches."""

    def __init__(self, kernels: Any) -> None:
        self.found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        for name in ("tile_step", "gather_rows", "segment_sum"):
            setattr(self, name, self._noted(getattr(kernels, name)))

    def _noted(self, kernel: Any) -> Any:
        class Noted:
            def __getitem__(_, grid: object) -> Any:  # noqa: N805
                return lambda *args, **constants: self.found.append((kernel, args, constants))

        return Noted()


def launches(architecture: int, precision: str, group: int) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Kernel, arguments and constants of what the step of the default network launches, without Adam and with it."""
    import torch

    from model.data.batch import Batch
    from model.network.neumf import NeuMF, NeuMFConfig
    from model.training.fused import kernels, step
    from model.training.fused.plan import Tile
    from model.training.optimizer import create_state

    model = NeuMF(NeuMFConfig(n_users=3, n_items=2, factors=64, layers=(256, 256, 128, 64), dropout=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(model.parameters())
    create_state(optimizer)
    users, labels = torch.zeros(group, dtype=torch.int32), torch.zeros(group)
    noted = step.kernels = _Launches(kernels)
    for adam in (None, step.TableAdam(optimizer, torch.tensor(0.01))):
        tile = Tile.for_gpu((architecture // 10, architecture % 10), precision)
        fused = step.FusedStep(model, group, precision, tile, adam)
        fused.gradients(Batch.from_columns(iter((users, users, labels)), group), torch.tensor(1.0))
    return noted.found


def compiled(kernel: Any, args: Sequence[Any], constants: dict[str, Any], architecture: int) -> dict[str, int]:
    """What the machine code of a launch needs, and its instructions of a warp outside and inside its loops.

    A kernel has at most one loop with, for `tile_step`, which loops over tiles, two of equally many passes in it.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    signature, fixed, attributes = {}, {}, {}
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    values = dict(zip(kernel.arg_names, args, strict=False)) | constants
    for at, name in enumerate(kernel.arg_names):
        value = values[name]
        signature[name] = _type(value) if name not in constants else "constexpr"
        if signature[name] == "constexpr":
            fixed[(at,)] = value
        elif signature[name][0] == "*" and value.storage_offset() * value.element_size() % 16 == 0:
            attributes[(at,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, fixed, attributes)
    built = triton.compile(source, GPUTarget("cuda", architecture, 32), options)
    if kernel.__name__ == "tile_step":
        assert "max.NaN.f32" in built.asm["ptx"], "ReLU would turn NaN into 0"  # which the interpreter does not show
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])

        def told(tool: str, option: str) -> str:
            command = [tools / tool, option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        registers, spilled = map(
            int, re.search(r"REG:(\d+) STACK:(\d+)", told("cuobjdump", "--dump-resource-usage")).groups()
        )
        lines = re.findall(r"^\s*(?:(\.L_\w+):|/\*[0-9a-f]+\*/\s+(.*?);)", told("nvdisasm", "-c"), re.MULTILINE)
    labels, instructions = {}, []
    for label, instruction in lines:
        if label:
            labels[label] = len(instructions)
        else:
            instructions.append(instruction)
    back = [
        (labels[found[1]], at)
        for at, instruction in enumerate(instructions)
        if (found := re.search(r"BRA.*?(\.L_\w+)", instruction)) and labels[found[1]] <= at - _LEAST_LOOP
    ]
    start, end = max(back, key=lambda ends: ends[1] - ends[0], default=(0, -1))
    # Branches back from behind the loop's end come from code that is out of line.
    inner = sum(end_ - start_ + 1 for start_, end_ in back if start < start_ and end_ < end)
    warps, shared = built.metadata.num_warps, built.metadata.shared
    kib, most_warps, most_programs = LIMITS[architecture]
    by_registers = _REGISTERS // (-(-registers * 32 // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE) * 4
    programs = min(min(by_registers, most_warps) // warps, kib * 1024 // (shared + _RESERVED_BYTES), most_programs)
    return {
        "warps": warps,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": shared,
        "programs": programs,
        "resident_warps": programs * warps,
        "outside": len(instructions) - (end - start + 1),
        "loop": end - start + 1,
        "inner_loops": inner,
    }


def _type(value: Any) -> str:
    """Triton's name of an argument's type."""
    import torch

    pointers = {
        torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
        torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
    }  # fmt: skip
    if isinstance(value, torch.Tensor):
        return pointers[value.dtype]
    return {float: "fp32", int: "i32", type(None): "constexpr"}[type(value)]


def rows(architecture: int, precision: str, group: int, tiles: bool) -> Iterator[dict[str, Any]]:
    """The table's rows for an architecture; others than `tile_step` unless `tiles`, for one precision and group.

    `warp_instructions` are of all warps of a program: for `tile_step` per sample of a full tile, without those before
    the first tile; for `gather_rows` per row; for `segment_sum` per id, and `warp_instructions_a_pass` for each pass of
    up to `rows` rows.
    """
    seen = set()
    for kernel, args, constants in launches(architecture, precision, group):
        name = kernel.__name__
        what = {"tile_step": f"groups of {group}", "gather_rows": f"{constants.get('WIDTH')} columns"}.get(name)
        if name == "segment_sum":
            parts = ("weighted " * constants["WEIGHTED"], f"{constants['WIDTH']} columns", ", Adam" * constants["ADAM"])
            what = "".join(parts)
        key = (name, what, *(_type(each) for each in args))
        if key in seen or (name != "tile_step" and (tiles or (precision, group) != (PRECISIONS[0], GROUPS[0]))):
            continue
        seen.add(key)
        found = compiled(kernel, args, constants, architecture)
        outside, loop, inner = found.pop("outside"), found.pop("loop"), found.pop("inner_loops")
        n, warps = constants["ROWS"], found["warps"]
        row = {"kernel": name, "what": what, "precision": precision, "architecture": f"sm_{architecture}", "rows": n}
        row |= found
        if name == "segment_sum":
            row |= {"warp_instructions": outside * warps, "warp_instructions_a_pass": loop * warps}
        elif name == "gather_rows":
            row |= {"warp_instructions": round((outside + loop) * warps / n, 1)}
        else:
            passes = constants["WIDTHS"][0] // constants["BLOCK"]
            row |= {"warp_instructions": round((loop + inner * (passes - 1)) * warps / (n // group * group), 1)}
        yield row


def table(found: Sequence[dict[str, Any]]) -> str:
    """Some rows of the table in Markdown: `tile_step` with the first of `GROUPS`, `segment_sum` for one GPU."""
    lines = [
        "| kernel | | precision | GPU | rows | warps | registers | spilled bytes | shared bytes | programs an SM "
        "| warps an SM | warp instructions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        if row["what"] == f"groups of {GROUPS[0]}" or (row["kernel"], row["architecture"]) == ("segment_sum", "sm_80"):
            each = f" + {row['warp_instructions_a_pass']} a pass" if "warp_instructions_a_pass" in row else ""
            names = (*row.values(),)[:11]
            lines.append(f"| `{names[0]}` | {' | '.join(map(str, names[1:]))} | {row['warp_instructions']}{each} |")
    return "\n".join(lines) + "\n"


def in_docs(text: str, found: Sequence[dict[str, Any]]) -> str:
    """A text with the table between its marks."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + "\n" + table(found) + "\n" + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", default=list(LIMITS), choices=LIMITS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--groups", type=int, nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--tiles", action="store_true", help="only tile_step")
    parser.add_argument("--write", action="store_true", help="write the whole table to its files")
    args = parser.parse_args()
    found = [
        row
        for precision in args.precisions
        for architecture in args.architectures
        for group in args.groups
        for row in rows(architecture, precision, group, args.tiles)
    ]
    found.sort(key=lambda row: row["kernel"] != "tile_step")
    written = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in found) + "\n]\n"
    if args.write:
        TABLE.write_text(written, encoding="utf-8")
        DOCS.write_text(in_docs(DOCS.read_text(encoding="utf-8"), found), encoding="utf-8")
    else:
        sys.stdout.write(written)


if __name__ == "__main__":
    main()
