"""What a run records of its data in `config.json`: the folder's fingerprint, and the users it was trained on."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.fingerprint import FINGERPRINT, Fingerprint, read_fingerprint
from workflows.common.errors import UserError

TRAINED_USERS, ALL = "trained_users", "all"


def data_record(fingerprint: Fingerprint | None, trained: np.ndarray) -> dict[str, Any]:
    """
    Args:
        trained: which users have a train positive, bool [n_users].
    """
    return {FINGERPRINT: asdict(fingerprint) if fingerprint is not None else None, TRAINED_USERS: encode_users(trained)}


def recorded_fingerprint(record: Mapping[str, Any]) -> Fingerprint | None:
    """The fingerprint of the folder a run was trained on; None if it, or the run, is older than fingerprints."""
    found = record.get(FINGERPRINT)
    try:
        return Fingerprint(**found) if isinstance(found, dict) else None
    except TypeError:
        return None


def check_encoding(record: Mapping[str, Any], run: Path, folder: Path) -> str:
    """Check that a folder's encoded ids are those that a run was trained on, as far as both have a fingerprint.

    Args:
        record: the content of the run's `config.json`.
    Returns:
        A note for the user if the folder has other interactions; else an empty text.

    Raises:
        UserError: the encoding differs.
    """
    known, found = recorded_fingerprint(record), read_fingerprint(folder)
    if known is None or found is None or known == found:
        return ""
    if known.encoding != found.encoding:
        raise UserError(
            f"{folder} was prepared anew from another log since {run} was trained, or is another folder (the encoding "
            "differs), so its ids mean other users and items; train again, or name the folder with --data"
        )
    return f"note: the interactions in {folder} are not those that {run} was trained on (the split differs)"


def encode_users(trained: np.ndarray) -> str:
    """A set of users as text: "all", or base64 of zlib of one bit per user, the first user in the highest bit.

    Args:
        trained: bool [n_users].
    """
    return ALL if trained.all() else base64.b64encode(zlib.compress(np.packbits(trained).tobytes(), 9)).decode()


def decode_users(text: str, n_users: int) -> np.ndarray:
    """Inverse of `encode_users`: bool [n_users].

    Raises:
        ValueError: the text is not a set of `n_users` users.
    """
    if text == ALL:
        return np.ones(n_users, dtype=bool)
    n_bytes = -(-n_users // 8)
    try:
        # Bounded: a corrupt text may expand to any size.
        bits = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), n_bytes + 1)
    except (zlib.error, TypeError) as err:
        raise ValueError(str(err)) from None
    if len(bits) != n_bytes:
        raise ValueError(f"expected {n_bytes:,} bytes for {n_users:,} users, got {len(bits):,}")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=n_users).astype(bool)
