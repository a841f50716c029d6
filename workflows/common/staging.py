"""Outputs that are either complete or absent: built beside their place, synced, and put there in one step.

Everything under construction lies in a folder `.NAME.XXXXXXXX.neumf.partial`, its stage. The stage has a file that its
process keeps locked, so that any later command can tell what a dead process left and remove it. Neither the folder nor
the output is locked: NFS knows a folder's lock on one machine only, and a library may replace the output's file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from workflows.common.errors import UserError

_PARTIAL, _OLD, _LOCK = ".neumf.partial", ".neumf.old", ".neumf.lock"
_LEFT = re.compile(r"\..+\.[a-z0-9_]{8}\.neumf\.(partial|old)", re.DOTALL)
_MAX_NAME = 200  # bytes of an output's name within the name of its stage, which may have 255
_SYNC_THREADS = 16  # many small files are then flushed together
# NumPy, safetensors and torch give no number.
_TOO_LITTLE_SPACE = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD


def check_file(path: Path, overwrite: bool) -> None:
    """Raises UserError if a file must not be written: it exists and `overwrite` is off, or it is a folder."""
    check_parents(path)
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; name another --output, or add --overwrite to replace it")


def check_parents(path: Path) -> None:
    """Raises UserError if a path lies in a file."""
    for parent in path.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{path} cannot be written: {parent} is a file; name another --output")


@contextmanager
def staged_file(path: Path, overwrite: bool, size: int | None = None) -> Iterator[Path]:
    """Write a file next to its destination and rename it when complete; an error leaves nothing behind.

    Args:
        size: bytes that will be written, if known; an error then says so.

    Yields:
        The path to write to. `path` itself changes only after the block succeeds.

    Raises:
        UserError: the file must not be written, or could not be: the disk is full, a limit is reached.
    """
    check_file(path, overwrite)
    with written(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        stage, lock = _locked(path)
        partial = stage / path.name
        try:
            yield partial
            partial.chmod(0o666 & ~umask())  # some libraries create private files
            sync(partial)
            check_file(path, overwrite)  # another process may have written it meanwhile
            partial.replace(path)
        finally:
            _remove(stage, lock)
        sync(path.parent)


@contextmanager
def written(path: Path, size: int | None = None) -> Iterator[None]:
    """Name the output in an error of the operating system, which otherwise names a temporary file or none.

    Args:
        size: bytes that will be written, if known.

    Raises:
        UserError: the output could not be written, with the reason and the space that is left.
    """
    try:
        yield
    except OSError as err:
        name = err.filename if isinstance(err.filename, (str, bytes)) else ""  # it may be a descriptor's number
        is_staged = any(_LEFT.fullmatch(part) for part in Path(os.fsdecode(name)).parts)
        if not (err.errno in _TOO_LITTLE_SPACE or is_staged):
            raise
        output, space = published(path), ""
        if err.errno in _TOO_LITTLE_SPACE:
            place = next(folder for folder in output.absolute().parents if folder.is_dir())
            needed = "" if size is None else f"{size / 2**20:,.1f} MiB are needed, "
            free = f"{shutil.disk_usage(place).free / 2**20:,.1f} MiB are free in {place}"
            space = f" ({needed}{free}); free some space or"
        raise UserError(
            f"{output} could not be written: {err.strerror or err}{space or ';'} name another place, and run this again"
        ) from None


def published(path: Path) -> Path:
    """Where a path in a stage will be, for messages; other paths are as they are."""
    return Path(*(part for part in path.parts if not _LEFT.fullmatch(part)))


class StagedFolder:
    """A folder that is built next to its destination until it is published.

    Attributes:
        folder: the folder to write into, absolute; once published, its place.
    """

    def __init__(self, path: Path) -> None:
        """Remove what dead processes left beside `path`, and create the empty folder."""
        self.path = path.absolute()
        self._new_parents = [parent for parent in self.path.parents if not parent.exists()]
        with written(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.path.parent)
            self._stage, self._lock = _locked(self.path)
            self.folder, self.is_published = self._stage / self.path.name, False
            try:
                self.folder.mkdir()
            except BaseException:
                self.close()
                raise

    def publish(self) -> None:
        """Sync the folder and put it in its place, in one step where the system can exchange two folders.

        The folder that was there is removed afterwards.
        """
        with written(self.path):
            _sync_tree(self.folder)
            if not self.path.is_dir():
                self.folder.rename(self.path)
            elif not _exchanged(self.folder, self.path):
                self._replace()
            self.is_published = True
            sync(self.path.parent)
        _remove(self._stage, self._lock)  # with the old folder, after an exchange
        self.folder = self.path

    def _replace(self) -> None:
        """Two renames. If the process is killed between them, the next command puts the old folder back."""
        hidden, lock = _locked(self.path, _OLD)
        try:
            old = hidden / self.path.name
            self.path.rename(old)
            try:
                self.folder.rename(self.path)
            except BaseException:
                old.rename(self.path)
                raise
        except BaseException:
            os.close(lock)
            raise
        _remove(hidden, lock)

    def close(self) -> None:
        """Remove the folder unless it was published."""
        if not self.is_published:
            _remove(self._stage, self._lock)
            for parent in self._new_parents:
                with suppress(OSError):  # in use by another process by now
                    parent.rmdir()


def sweep(parent: Path) -> None:
    """Remove what dead processes left in a folder; an output that was on its way out goes back to its place."""
    try:
        found = [entry for entry in parent.iterdir() if _LEFT.fullmatch(entry.name)]
    except OSError:  # a folder that may be written but not listed
        return
    for left in found:
        with suppress(OSError):
            try:
                lock = os.open(left / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                left.rmdir()  # empty: its process died before it made the lock, or will make another stage
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.name.endswith(_OLD):
                    for old in left.iterdir():
                        if old.name != _LOCK and not (parent / old.name).exists():
                            old.rename(parent / old.name)
            except BaseException:
                os.close(lock)
                raise
            _remove(left, lock)


def _remove(stage: Path, lock: int) -> None:
    """Remove a stage, its lock last, so that the next command removes what an interrupted removal leaves.

    The lock is closed before the folder goes: a network file system keeps an open file in it under another name.
    """
    try:
        with suppress(OSError):
            for entry in stage.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != _LOCK:
                    entry.unlink(missing_ok=True)
            (stage / _LOCK).unlink(missing_ok=True)
    finally:
        os.close(lock)
    with suppress(OSError):
        stage.rmdir()


def _locked(path: Path, suffix: str = _PARTIAL) -> tuple[Path, int]:
    """Create an output's stage, which no other process sweeps: (its path, the descriptor that locks it until closed).

    It is named before it is made, so that a signal at any moment leaves nothing behind.
    """
    while True:
        name = os.fsdecode(os.fsencode(path.name)[:_MAX_NAME])
        stage = path.with_name(f".{name}.{secrets.token_hex(4)}{suffix}")
        try:
            stage.mkdir()
            lock = os.open(stage / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # some network file systems have no locks; then nothing is swept either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (stage / _LOCK).exists():
                return stage, lock
            os.close(lock)  # swept by another process before it was locked
        except FileExistsError:
            continue
        except BaseException as err:
            shutil.rmtree(stage, ignore_errors=True)
            if not isinstance(err, FileNotFoundError) or not path.parent.is_dir():
                raise


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two folders in one step (renameat2); False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or an old C library
        return False
    return renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    with ThreadPoolExecutor(_SYNC_THREADS) as threads:
        list(threads.map(sync, [folder, *folder.rglob("*")]))


def umask() -> int:
    """The umask of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
