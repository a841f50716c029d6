"""The interpreter that these tests rely on: bfloat16 as GPUs compute it, and programs in a chosen order."""

from __future__ import annotations

import torch
from interpreted_triton import programs, tl, triton


@triton.jit
def rounding(x, out, SIZE: tl.constexpr):  # noqa: N803
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at).to(tl.bfloat16))


@triton.jit
def product(a, b, out, SIZE: tl.constexpr):  # noqa: N803
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def numbered(out, counter):
    tl.store(out + tl.program_id(0), tl.load(counter))
    tl.store(counter, tl.load(counter) + 1)


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 3 * 2**-8, 255.9, 3.4e38, 0.0, 1e-40])
    x = torch.cat((halves, torch.randn(248, generator=torch.Generator().manual_seed(1))))
    out = torch.empty(256, dtype=torch.bfloat16)
    rounding[(1,)](x, out, SIZE=256)
    assert torch.equal(out, x.bfloat16())


def test_products_of_bfloat16() -> None:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    out = torch.empty(16, 16)
    product[(1,)](a, b, out, SIZE=16)
    torch.testing.assert_close(out, a.float() @ b.float())


def test_programs_in_a_chosen_order() -> None:
    out, counter = torch.full((5,), -1), torch.zeros(1, dtype=torch.int64)
    with programs(lambda n: [n - 1, 0, 2]):
        numbered[(5,)](out, counter)
    assert out.tolist() == [1, -1, 2, -1, 0]
    numbered[(5,)](out, counter.zero_())
    assert out.tolist() == [0, 1, 2, 3, 4]
