"""CPU scoring: compiled loops over the nonzero units of the folded network (`model.compiled.folding`).

The contribution of a row (its user and side features) or an item to all hidden units is computed once, by matrix
products, and stored in a table with its GMF factors. A pair adds one row of each table, then those of its few active
units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.compiled import score_loops
from model.compiled.folding import fold
from model.data.batch import runs
from model.network.neumf import NeuMF

_PAIRS = 1 << 17  # scored at a time: enough to share items, whose table is far larger than the rows'
_ROWS = 1 << 14  # maximum rows of a table
_TILE_ROWS = 64  # rows that share each read of an item
_SHARED_PAIRS = 1024  # pairs that justify another thread
_BLOCK_ITEMS = 4096  # items projected at a time
_TABLE_BYTES = 1 << 30  # limit for the table of all items; above it, item rows are computed per chunk


class CompiledScorer:
    """See `model.scoring.scorer.Scorer`."""

    def __init__(self, model: NeuMF, threads: int) -> None:
        """
        Args:
            model: float32, with at least one hidden layer.
            threads: number of threads.
        """
        folded, factors = fold(model), model.config.factors
        self._model, self._threads, self._pool = model, threads, ThreadPoolExecutor(threads)
        self._bias, head = folded.bias, model.final.weight[0].detach()
        self._by_row, self._by_item = model.split_columns(folded.entry)
        self._gmf_head = head[:factors]
        widths = np.array([layer.out_features for layer in model.mlp], dtype=np.uint64)
        self._n_units, self._largest = int(widths.sum()), int(widths.max())
        self._network = score_loops.Network(
            widths=widths,
            factors=factors,
            passed=folded.passed.numpy(),
            head=head[factors:].numpy(),
            bias=np.float32(model.final.bias.item()),
        )
        n_items = model.config.n_items
        held = 4 * n_items * (len(folded.bias) + factors) <= _TABLE_BYTES
        self._items = self._item_rows(torch.arange(n_items)) if held else None

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        n_items = self._model.config.n_items
        if len(items) and not 0 <= items.min() <= items.max() < n_items:
            raise IndexError(f"item ids should be in [0, {n_items})")
        order = None
        if len(users) > _PAIRS and not side and (users[1:] < users[:-1]).any():
            order = users.argsort()
            users, items = users[order], items[order]
        logits = torch.empty(len(users))
        for start in range(0, len(users), _PAIRS):
            end = start + _PAIRS
            logits[start:end] = self._pairs(users[start:end], items[start:end], [column[start:end] for column in side])
        return logits if order is None else torch.empty_like(logits).index_copy_(0, order, logits)

    def all_items(self, users: Tensor, *side: Tensor, items: Tensor | None = None) -> Tensor:
        logits = torch.empty(len(users), self._model.config.n_items if items is None else len(items))
        for top in range(0, len(users), _TILE_ROWS):
            bottom = top + _TILE_ROWS
            rows = self._rows(users[top:bottom], [column[top:bottom] for column in side])
            for start, table in self._tables(items):
                found = torch.empty(len(rows), len(table))
                self._share(
                    len(table), score_loops.score_all, found.numpy(), score_loops.Tables(_flat(rows), _flat(table))
                )
                logits[top:bottom, start : start + len(table)] = found
        return logits

    def _tables(self, items: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """The table of some items (None: all) in blocks: the start of each and its rows."""
        if self._items is not None:
            yield 0, self._items if items is None else nn.functional.embedding(items, self._items)
            return
        ids = torch.arange(self._model.config.n_items) if items is None else items
        for start in range(0, len(ids), _ROWS):
            yield start, self._item_rows(ids[start : start + _ROWS])

    def _pairs(self, users: Tensor, items: Tensor, side: Sequence[Tensor]) -> Tensor:
        starts, index = runs(users, *side)
        if len(starts) > _ROWS:
            halves = (slice(None, len(users) // 2), slice(len(users) // 2, None))
            return torch.cat(
                [self._pairs(users[half], items[half], [column[half] for column in side]) for half in halves]
            )
        rows = self._rows(users[starts], [column[starts] for column in side])
        if self._items is None:
            distinct, items = items.unique(return_inverse=True)
            table = self._item_rows(distinct)
        else:
            table = self._items
        # Sort by item, truncated to 16 bits, which NumPy sorts in linear time.
        shift = max(0, len(table).bit_length() - 16)
        order = np.argsort((items.numpy() >> shift).astype(np.uint16), kind="stable")
        own_rows, own_items = (column.numpy().astype(np.int32)[order] for column in (index, items))
        found = np.empty(len(users), dtype=np.float32)
        tables = score_loops.Tables(_flat(rows), _flat(table))
        self._share(len(users), score_loops.score_pairs, found, score_loops.Pairs(own_rows, own_items), tables)
        logits = torch.empty(len(users))
        logits.numpy()[order] = found
        return logits

    def _rows(self, users: Tensor, side: Sequence[Tensor]) -> Tensor:
        """The rows' contributions to all hidden units, and their factors for the items' GMF embeddings: [R, S + F]."""
        factors = self._model.config.factors
        n_units = len(self._bias)
        rows = torch.empty(len(users), n_units + factors)
        inputs = self._model.row_inputs(users, side)
        torch.addmm(self._bias, inputs, self._by_row.T, out=rows[:, :n_units])
        torch.mul(self._model.mf_user_embed(users), self._gmf_head, out=rows[:, n_units:])
        return rows

    def _item_rows(self, items: Tensor) -> Tensor:
        """The items' contributions to all hidden units, and their GMF embeddings: [I, S + F]."""
        factors = self._model.config.factors
        n_units = len(self._bias)
        table = torch.empty(len(items), n_units + factors)
        for start in range(0, len(items), _BLOCK_ITEMS):
            part, rows = (of_all[start : start + _BLOCK_ITEMS] for of_all in (items, table))
            torch.mm(self._model.item_inputs(part), self._by_item.T, out=rows[:, :n_units])
            rows[:, n_units:] = self._model.mf_item_embed(part)
        return table

    def _share(self, n: int, loop: Callable[..., None], *arrays: Any) -> None:
        """Split the scoring of `n` pairs or items among threads.

        Args:
            loop: of `model.compiled.score_loops`.
            arrays: its arguments between the part and the network.
        """

        def work(part: tuple[int, int]) -> None:
            # Torch aligns memory to cache lines; NumPy may not.
            units = torch.empty(self._n_units).numpy()
            scratch = score_loops.Scratch(
                units, np.empty(self._largest, np.float32), np.empty(self._largest, np.uint64)
            )
            loop(*part, *arrays, self._network, scratch)

        parts = min(self._threads, 1 + n // _SHARED_PAIRS)
        cuts = pairwise(n * number // parts for number in range(parts + 1))
        for _ in (self._pool.map if parts > 1 else map)(work, cuts):
            pass  # raises exceptions from the threads


def _flat(table: Tensor) -> np.ndarray:
    return table.view(-1).numpy()
