"""A file that grows during a run, and can be followed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

from workflows.common.errors import UserError
from workflows.common.staging import written


class AppendedFile:
    """Nothing is buffered: an error arrives where the record is written, and closing cannot fail."""

    def __init__(self, path: Path, kept_bytes: int = 0) -> None:
        """
        Args:
            kept_bytes: bytes of an existing file to keep; the rest is truncated. A shorter file is started anew.

        Raises:
            UserError: the file cannot be written, or is a folder, pipe or device.
        """
        self._path = path
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # a pipe would block, a device cannot be truncated
                raise UserError(f"{path} exists and is not a file, so no log can be written there; name another place")
            goes_on = 0 < kept_bytes <= (path.stat().st_size if path.exists() else 0)
            self._file = path.open("r+b" if goes_on else "wb", buffering=0)
            self._file.truncate(kept_bytes if goes_on else 0)
            self._file.seek(0, os.SEEK_END)

    @property
    def size(self) -> int:
        """Current length in bytes."""
        return self._file.tell()

    def append(self, record: bytes) -> None:
        """Raises UserError if the record could not be written."""
        left = memoryview(record)
        with written(self._path):
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]

    def close(self) -> None:
        self._file.close()
