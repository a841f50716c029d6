"""`log.json` in the line format of NVIDIA's DLLogger, which users of the reference parse."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from model.run.appended import AppendedFile
from workflows.common.files import to_json

_UNITS = {
    "train_throughput": "samples/s",
    "eval_throughput": "samples/s",
    "best_train_throughput": "samples/s",
    "mean_train_throughput": "samples/s",
    "best_eval_throughput": "samples/s",
    "mean_eval_throughput": "samples/s",
    "train_epoch_time": "s",
    "validation_epoch_time": "s",
    "time_to_target": "s",
    "time_to_best_model": "s",
}


class DLLogger:
    """Appends one line per record."""

    def __init__(self, path: Path, kept_bytes: int = 0) -> None:
        """
        Args:
            kept_bytes: bytes of an existing log to keep; the rest is truncated. A shorter log is started anew.
        """
        self._started = time.time()
        self._file = AppendedFile(path, kept_bytes)
        if not self._file.size:
            for metric, unit in _UNITS.items():
                self._write({"type": "METADATA", "metric": metric, "metadata": {"unit": unit}})

    @property
    def bytes(self) -> int:
        """Current length of the log."""
        return self._file.size

    def parameters(self, data: dict[str, Any]) -> None:
        """The arguments of the run."""
        self._write({"type": "LOG", "step": "PARAMETER", "data": data})

    def epoch(self, epoch: int, data: dict[str, Any]) -> None:
        """Metrics of one epoch, counted from 0."""
        self._write({"type": "LOG", "step": [epoch], "data": data})

    def summary(self, data: dict[str, Any]) -> None:
        """Metrics of the whole run."""
        self._write({"type": "LOG", "step": [], "data": data})

    def _write(self, record: dict[str, Any]) -> None:
        now = time.time()
        stamps = {
            "timestamp": f"{now:.6f}",
            "datetime": datetime.fromtimestamp(now).isoformat(sep=" "),
            "elapsedtime": f"{now - self._started:.6f}",
        }
        self._file.append(f"DLLL {to_json({**stamps, **record})}\n".encode())

    def close(self) -> None:
        self._file.close()
