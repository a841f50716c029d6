"""Errors in the content of a feature spec, beyond the types of its values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from workflows.common.errors import bounded

ONE_FEATURE = ("user_ch", "item_ch", "label_ch")  # channels of exactly one feature
_LISTED = 50


def reported(error: Any) -> str:
    """Format a pydantic error: path in the file, expected value, actual value."""
    where = ".".join(map(str, error["loc"])) or "file"
    message = error["msg"].removeprefix("Value error, ")
    where, message = bounded(where, 120), bounded(message, 120)
    return f"{where}: {message}" + ("" if error["type"] == "missing" else f", got {error['input']!r:.60}")


def listed(wrong: Sequence[str]) -> list[str]:
    """Problems, few and short enough to read."""
    more = [f"and {len(wrong) - _LISTED:,} more"] if len(wrong) > _LISTED else []
    return [bounded(one, 300) for one in wrong[:_LISTED]] + more


def wrong_names(content: Any) -> list[str]:
    """Missing channels and mappings, and undeclared or repeated features; tolerates any other error in the file."""

    def part(name: str) -> dict[Any, Any]:
        value = content.get(name) if isinstance(content, dict) else None
        return value if isinstance(value, dict) else {}

    def names(value: Any) -> list[str]:
        return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []

    channels, sources = part("channel_spec"), part("source_spec")
    wrong = [
        f"channel_spec.{channel}: expected exactly one feature, got {names(channels.get(channel)) or 'none'}"
        for channel in ONE_FEATURE
        if (channel in channels or channel == "label_ch") and len(names(channels.get(channel))) != 1
    ]
    if not sources.get("train"):
        wrong.append(
            f"source_spec.train: expected at least one chunk, got none; mappings: {', '.join(map(str, sources))}"
        )
    used = [(f"channel_spec.{channel}", names(value)) for channel, value in channels.items()]
    for where, features in used:
        wrong += [f"{where}: feature {name!r} appears twice" for name in _repeated(features)]
    for mapping, chunks in sources.items():
        in_mapping: list[tuple[str, list[str]]] = [
            (f"source_spec.{mapping}.{index}.features", names(chunk.get("features")) if isinstance(chunk, dict) else [])
            for index, chunk in enumerate(chunks if isinstance(chunks, list) else [])
        ]
        seen: set[str] = set()
        for where, features in in_mapping:
            repeated = [name for name in features if name in seen] + _repeated(features)
            wrong += [f"{where}: feature {name!r} appears twice in this mapping" for name in dict.fromkeys(repeated)]
            seen.update(features)
        used += in_mapping
    declared = part("feature_spec")
    unknown = [f"{where}: feature {n!r} is not in feature_spec" for where, ns in used for n in ns if n not in declared]
    return unknown + wrong


def _repeated(names: list[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]
