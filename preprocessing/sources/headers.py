"""The column names of a file of any format, before it is read as a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources.json_records import is_json_lines, sample_of
from preprocessing.sources.log import ReadOptions
from preprocessing.sources.sniff import header_layout, named_layout
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError


def columns_of(
    source: SourceFile, options: ReadOptions, has_columns: Callable[[Sequence[str]], bool]
) -> tuple[str, ...]:
    """The columns of a Parquet file, of text with a header or as named by `options`, or of the first JSON line.

    Raises:
        UserError: there are none: the file is empty, not text, or its rows have another number of fields than named.
    """
    if source.head == b"PAR1":
        try:
            return tuple(pq.read_schema(source.path).names)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
            raise UserError(f"{source.display_name}: not a readable Parquet file ({err}); is it complete?") from None
    if options.names is not None:
        named_layout(source.path, source.display_name, options.names, options)
        return options.names
    if is_json_lines(source):
        return tuple(sample_of(source).names)
    return header_layout(source.path, source.display_name, options, has_columns).names
