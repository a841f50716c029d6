"""Find the user, item, time and rating columns of a file, by well-known names or as named by flags."""

from __future__ import annotations

from collections.abc import Sequence

from preprocessing.sources.dialect import RECOGNISED
from preprocessing.sources.log import LogColumns
from workflows.common.errors import UserError, bounded

NO_TIMES = "if the log has no times, say how to order it with --order file or --order random"
_SHOWN = 50
_NO_HEADER = "if that is the first row of text without a header, name all columns in order with --columns"

# Column names that need no --user, --item, --time: those of MovieLens and of the reference's data sets.
_KNOWN_COLUMNS = (
    LogColumns(user="user_id", item="item_id", time="timestamp", rating="rating"),
    LogColumns(user="userId", item="movieId", time="timestamp", rating="rating"),
    LogColumns(user="user", item="item", time="time", rating="rating"),
)


def shown(names: Sequence[str]) -> str:
    """Names of columns for a message: few, and none long."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(bounded(name)) for name in names[:_SHOWN]) + more


def recognise(display_name: str, names: Sequence[str], with_rating: bool, with_time: bool = True) -> LogColumns:
    """The columns of a log with well-known column names; without the rating and the time if they are not wanted.

    Raises:
        UserError: no known set of names matches.
    """
    known = known_columns(names, with_rating, with_time)
    if known is not None:
        return known
    roles = ["user", "item", *(["time"] if with_time else []), *(["rating"] if with_rating else [])]
    flags = " and ".join([", ".join(f"--{role}" for role in roles[:-1]), f"--{roles[-1]}"])
    no_times = f"; {NO_TIMES}" if with_time else ""
    raise UserError(
        f"{display_name}: which columns hold {flags.replace('--', '')}? Name them with {flags}{no_times}; "
        f"its columns are {shown(names)}{_hint(names)}; {_NO_HEADER}"
    )


def known_columns(names: Sequence[str], with_rating: bool, with_time: bool = True) -> LogColumns | None:
    """The columns of a log with well-known column names; None if they have other names."""
    for known in _KNOWN_COLUMNS:
        columns = known if with_rating else known.without_rating()
        columns = columns if with_time else columns.without_time()
        if set(columns.names) <= set(names):
            return columns
    return None


def _hint(names: Sequence[str]) -> str:
    """What may be wrong with a file of which no columns are known."""
    if any("\ufffd" in name for name in names):
        return " (not UTF-8; name the encoding with --encoding)"
    return f" ({RECOGNISED})" if len(names) == 1 else ""


def require_columns(display_name: str, names: Sequence[str], columns: LogColumns, from_header: bool = False) -> None:
    """Raises UserError if a column of the log is missing from a file or appears twice.

    Args:
        from_header: the names are the first line of text, which may be a row.
    """
    twice = [name for name in columns.names if list(names).count(name) > 1]
    if twice:
        raise UserError(f"{display_name}: column {', '.join(map(repr, twice))} appears more than once; rename one")
    missing = [name for name in columns.names if name not in names]
    if missing:
        raise UserError(
            f"{display_name} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {shown(names)}{_hint(names)}; "
            f"name yours with --user, --item, --time (and --rating){f'; {_NO_HEADER}' if from_header else ''}"
        )
