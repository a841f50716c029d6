"""Find the user, item, time and rating columns of a file, by well-known names or as named by flags."""

from __future__ import annotations

from collections.abc import Sequence

from preprocessing.sources.log import LogColumns
from workflows.common.errors import UserError

# Column names that need no --user, --item, --time: those of MovieLens and of the reference's data sets.
_KNOWN_COLUMNS = (
    LogColumns(user="user_id", item="item_id", time="timestamp", rating="rating"),
    LogColumns(user="userId", item="movieId", time="timestamp", rating="rating"),
    LogColumns(user="user", item="item", time="time", rating="rating"),
)


def recognise(display_name: str, names: Sequence[str], with_rating: bool) -> LogColumns:
    """The columns of a log with well-known column names.

    Raises:
        UserError: no known set of names matches.
    """
    for known in _KNOWN_COLUMNS:
        columns = known if with_rating else known.without_rating()
        if set(columns.names) <= set(names):
            return columns
    wanted = "user, item, time and rating" if with_rating else "user, item and time"
    raise UserError(
        f"{display_name}: which columns hold {wanted}? Name them with --user, --item, --time (and --rating); "
        f"its columns are {', '.join(map(repr, names))}; if that is the first row of text without a header, "
        "name all columns in order with --columns"
    )


def require_columns(display_name: str, names: Sequence[str], columns: LogColumns) -> None:
    """Raises UserError if a column of the log is missing from a file or appears twice."""
    twice = [name for name in columns.names if list(names).count(name) > 1]
    if twice:
        raise UserError(f"{display_name}: column {', '.join(map(repr, twice))} appears more than once; rename one")
    missing = [name for name in columns.names if name not in names]
    if missing:
        raise UserError(
            f"{display_name} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {', '.join(map(repr, names))}; "
            "name yours with --user, --item, --time (and --rating)"
        )
