"""Which members of an archive form the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preprocessing.sources.archives import RATINGS_FILES, TITLES_FILES
from preprocessing.sources.column_names import known_columns, recognise, shown
from preprocessing.sources.headers import columns_of
from preprocessing.sources.log import LogColumns, ReadOptions
from preprocessing.sources.movielens import movielens_log
from preprocessing.sources.unpack import SourceFile, Unpacked, listed
from workflows.common.errors import UserError
from workflows.common.progress import console

_PASS_ONE = "unpack it and pass the files you mean as --input"


@dataclass(frozen=True)
class _Member:
    """A member of an archive.

    Attributes:
        name: in the archive.
        columns: its column names; None if those of the log are not among them.
        note: its columns, or why it has none, for messages.
    """

    source: SourceFile
    name: str
    columns: frozenset[str] | None
    note: str


def log_members(
    content: Unpacked, columns: LogColumns | None, with_rating: bool, options: ReadOptions
) -> list[SourceFile]:
    """The members of an archive that have the columns of the log; prints which, and the names of the others.

    MovieLens' ratings file is the log if there is one. Otherwise several members are one log if all have the same
    columns. A file that is not an archive is returned as it is.

    Args:
        columns: the columns of the log; None to recognise them.

    Raises:
        UserError: no member has these columns, or several have and differ in others.
    """
    sources = [source for source in content.sources if source.path.stat().st_size] or content.sources[:1]
    unused = list(content.left_out)
    if len(sources) > 1:
        members = [_member(source, content, columns, with_rating, options) for source in sources]
        chosen = _ratings(members, columns) or [member for member in members if member.columns is not None]
        if len({member.columns for member in chosen}) != 1:
            raise _undecided(content, chosen or members, columns)
        sources = [member.source for member in chosen]
        titles = {TITLES_FILES.get(source.path.name) for source in sources}
        unused += [one.name for one in members if one not in chosen and one.source.path.name not in titles]
        if len(chosen) > 1:
            console.print(f"one log in {content.display_name}: {listed([member.name for member in chosen])}")
    if unused:
        console.print(f"left out of {content.display_name}: {listed(unused)}")
    return sources


def _ratings(members: list[_Member], columns: LogColumns | None) -> list[_Member]:
    """MovieLens' ratings file alone, if there is one and it has the columns that were named."""
    ratings = [member for member in members if member.source.path.name in RATINGS_FILES]
    return ratings if len(ratings) == 1 and (columns is None or ratings[0].columns is not None) else []


def _member(
    source: SourceFile, content: Unpacked, columns: LogColumns | None, with_rating: bool, options: ReadOptions
) -> _Member:
    name = source.display_name.removesuffix(f" in {content.display_name}")
    try:
        is_text = columns is None and options.names is None and source.head != b"PAR1"
        if is_text and movielens_log([source], with_rating, options) is not None:
            return _Member(source, name, frozenset(), "MovieLens")
        names = columns_of(source, options, lambda names: _are_columns(names, source, columns, with_rating, options))
    except UserError as err:
        return _Member(source, name, None, str(err).removeprefix(f"{source.display_name} "))
    try:
        wanted = columns or recognise(name, [*names, *source.keys], with_rating, options.times)
    except UserError:
        return _Member(source, name, None, shown(names))
    is_log = {*wanted.names} <= {*names, *source.keys}
    return _Member(source, name, frozenset(names) if is_log else None, shown(names))


def _are_columns(
    names: Sequence[str], source: SourceFile, columns: LogColumns | None, with_rating: bool, options: ReadOptions
) -> bool:
    found = {*names, *source.keys}
    return (
        known_columns([*found], with_rating, options.times) is not None
        if columns is None
        else {*columns.names} <= found
    )


def _undecided(content: Unpacked, members: list[_Member], columns: LogColumns | None) -> UserError:
    found = listed([f"{member.name} ({member.note})" for member in members])
    if members[0].columns is not None:
        return UserError(f"{content.display_name} holds files with different columns: {found}; {_PASS_ONE}")
    wanted = "columns that are known" if columns is None else f"the columns {', '.join(map(repr, columns.names))}"
    how = "name yours with --user, --item, --time (and --rating)" if columns is None else _PASS_ONE
    return UserError(f"{content.display_name}: none of its files has {wanted}: {found}; {how}")
