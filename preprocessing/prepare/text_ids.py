"""Text ids as 64-bit keys, and back: each text is represented by a hash while rows are sorted and encoded.

Two texts with the same hash would become one id, so the texts are spilled beside the rows and compared when they are
sorted: a collision is always detected and refused.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflows.common.errors import UserError
from workflows.sampling.counter_rng import mix


def bucket_of(keys: np.ndarray, buckets: int) -> np.ndarray:
    """uint16 bucket of each int64 key (or integer id), by a hash of that key alone."""
    high = (mix(keys.astype(np.int64)) >> 32) & ((1 << 32) - 1)
    return ((high * buckets) >> 32).astype(np.uint16)


def text_buckets(partitions: int) -> int:
    """Number of buckets for the texts of a log; each is a few times smaller than its rows."""
    return max(1, partitions // 8)


def text_keys(texts: pa.Array) -> np.ndarray:
    """The int64 key of each text, the same in every process (SipHash with pandas' fixed key)."""
    from pandas.util import hash_array  # imported here so that a log without text does not wait for pandas

    return hash_array(texts.to_numpy(zero_copy_only=False), categorize=False).view(np.int64)


def spill_texts(column: pa.ChunkedArray, path: Path, buckets: int) -> np.ndarray:
    """Write the distinct texts of a column, one record batch per bucket of keys.

    Returns:
        int64 key of each row's text.
    """
    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.cast(pa.large_string())
    keys = text_keys(texts)
    bucket = bucket_of(keys, buckets)
    order = np.argsort(bucket, kind="stable")
    table = pa.record_batch({"key": keys[order], "text": texts.take(pa.array(order))})
    cuts = np.searchsorted(bucket[order], np.arange(buckets + 1))
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for start, stop in pairwise(cuts.tolist()):
            writer.write_batch(table.slice(start, stop - start))
    partial.replace(path)
    return keys[encoded.indices.to_numpy()]


def texts_of_bucket(bucket: int, paths: list[Path]) -> pa.Array:
    """The distinct texts of a bucket across all files.

    Raises:
        UserError: two texts have the same key.
    """
    batches = []
    for path in paths:
        with pa.memory_map(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(bucket))
    table = pa.Table.from_batches(batches)
    _, first, inverse = np.unique(table.column("key").to_numpy(), return_index=True, return_inverse=True)
    texts = table.column("text").combine_chunks()
    distinct = texts.take(pa.array(first))
    same = pc.equal(texts, distinct.take(pa.array(inverse)))
    if not pc.all(same, min_count=0).as_py():
        at = pc.index(same, False).as_py()
        raise UserError(
            f"the ids {texts[at].as_py()!r} and {distinct[int(inverse[at])].as_py()!r} have the same 64-bit hash and "
            "would become one id; change one of them"
        )
    return distinct


def in_order(parts: list[pa.Array]) -> pa.Array:
    """All texts, sorted by code point."""
    texts = pa.concat_arrays(parts)
    return texts.take(pc.sort_indices(texts))  # UTF-8 bytes sort by code point
