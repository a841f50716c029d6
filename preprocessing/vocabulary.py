"""Text ids as 64-bit keys, and back: a hash stands for each text while rows are sorted and encoded.

Two texts with one hash would pass for one id, so the texts are kept beside the rows and compared when they are put
in order: that case is found and refused, never overlooked.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflows.counters import mix
from workflows.errors import UserError


def bucket_of(keys: np.ndarray, buckets: int) -> np.ndarray:
    """uint16 bucket of each int64 key (or integer id), by a hash that nothing else influences."""
    high = (mix(keys.astype(np.int64)) >> 32) & ((1 << 32) - 1)
    return ((high * buckets) >> 32).astype(np.uint16)


def text_buckets(partitions: int) -> int:
    """Into how many buckets the texts of a log are spread: each is a few times smaller than its rows."""
    return max(1, partitions // 8)


def text_keys(texts: pa.Array) -> np.ndarray:
    """The int64 key of each text, the same in every process (SipHash with pandas' fixed key)."""
    from pandas.util import hash_array  # here, so that a log without text does not wait for pandas

    return hash_array(texts.to_numpy(zero_copy_only=False), categorize=False).view(np.int64)


def spill_texts(column: pa.ChunkedArray, path: Path, buckets: int) -> np.ndarray:
    """Write the distinct texts of a column, a record batch for each bucket of keys.

    Returns:
        int64 key of each row.
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
    """The distinct texts of a bucket over all files.

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
            "would be taken for one; change one of them"
        )
    return distinct


def in_order(parts: list[pa.Array]) -> pa.Array:
    """All texts in the order of their code points."""
    texts = pa.concat_arrays(parts)
    return texts.take(pc.sort_indices(texts))  # UTF-8 bytes are in the order of code points
