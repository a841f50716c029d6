"""What `--resume` may change: nothing that alters what the metrics of the run's epochs mean."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.data.record import recorded_fingerprint
from model.network.checkpoint import CONFIG_NAME
from model.run.config import FLAGS_NAME, NOT_SAVED, plain
from preprocessing.fingerprint import read_fingerprint
from workflows.common.errors import UserError
from workflows.common.files import read_json

STAGES_NAME = "stages"
STAGES_DATA = f"{STAGES_NAME}/data.json"  # what an ensemble run keeps of its data until it has a config.json
_MAY_CHANGE = {
    "epochs", "patience", "threshold",
    "without", "log_path", "checkpoint_dir",
    "device", "gpus", "step", "cuda_graphs", "compile", "valid_batch_size",
}  # fmt: skip
_CHECKED_ELSEWHERE = {*NOT_SAVED, "data", "output", "mode"}


def check_resume(run: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a run may be resumed with these flags, before anything is read or written.

    Args:
        saved: the run's own flags by name.
        given: the same with those of the command line.

    Raises:
        UserError: a flag differs that may not change, or the data are not those of the run; lists all differences.
    """
    if not given["data"].is_dir():
        raise UserError(f"--resume {run}: {given['data']} does not exist; if the data has moved, name it with --data")
    may_change, why = _MAY_CHANGE, ""
    if saved["members"] or saved["schedule"] == "cosine":
        may_change = may_change - {"epochs"}
        why = ", which every member is trained for" if saved["members"] else ", which --schedule cosine is spread over"
    different, flags = [], []
    for name in saved:
        if name in may_change | _CHECKED_ELSEWHERE:
            continue
        old, new = (plain(flag, Path.resolve) for flag in (saved[name], given[name]))
        if old != new:
            different.append(f"--{name} {_text(new)} (the run has {_text(old)}{why if name == 'epochs' else ''})")
            flags.append(f"--{name}" if new is True else f"--{name} {_text(new)}")
    other_data = _other_data(run, saved["data"], given["data"])
    if other_data:
        different.append(other_data)
    if saved["data"].resolve() != given["data"].resolve():
        flags.append(f"--data {shlex.quote(str(given['data']))}")
    if different:
        anew = " ".join(["python train.py --config", shlex.quote(str(run / FLAGS_NAME)), "--output OTHER", *flags])
        raise UserError(
            f"--resume {run} continues that run, so what its metrics mean may not change: {'; '.join(different)}. "
            f"To start anew: {anew}"
        )


def _text(value: Any) -> str:
    """A flag's value as on the command line."""
    if value is None:
        return "''"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(shlex.quote(str(each)) for each in (value if isinstance(value, list) else [value])) or "''"


def _other_data(run: Path, saved: Path, given: Path) -> str | None:
    """How the given data are not those that the run was trained on; None if they are, as far as is known."""
    moved = saved.resolve() != given.resolve()
    known = next(
        filter(None, (recorded_fingerprint(read_json(run / name)) for name in (CONFIG_NAME, STAGES_DATA))), None
    )
    found = read_fingerprint(given)
    if (known is None and not moved) or (known is not None and known == found):
        return None
    where = f"--data {given} (the run has {saved})" if moved else f"{given}, prepared anew or replaced since,"
    if known is None or found is None:
        lacking = given if found is None else run
        return f"the data is not known to be what the run was trained on: {where} while {lacking} has no fingerprint"
    what = "encoding" if known.encoding != found.encoding else "split into train and test"
    return f"the data is not what the run was trained on: {where} differs in its {what}"
