"""Event files for TensorBoard."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from model.run.appended import AppendedFile


class Board:
    """One event file. tensorboardX's own writer has a thread, in which an error would be lost."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """
        Args:
            first_step: this and later steps are hidden in the folder's other files: an interrupted run wrote them.
        """
        name = f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.{socket.gethostname()}"
        self._file = AppendedFile(folder / name)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write the values of one step by name."""
        for name, value in values.items():
            self._write(Event(step=step, summary=scalar(name, value)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        header = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (header, content)]
        self._file.append(b"".join([header, checksums[0], content, checksums[1]]))

    def close(self) -> None:
        self._file.close()
