"""The model card of a run, `README.md`: data, network, training, metrics, and the commands that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflows.common.files import replace_file
from workflows.common.render import templates

CARD_NAME = "README.md"


def write_card(folder: Path, config: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Write the card; equal arguments give identical bytes, independent of time and speed.

    Args:
        config, metrics: contents of `config.json` and `metrics.json`.
    """
    environment = templates(Path(__file__).parent, html=False)
    environment.filters["code"] = _code
    page = environment.get_template("card.md.j2").render(
        config=config,
        metrics=metrics,
        network=config["model"],
        train=config["train"],
        side=[feature["name"] for side in ("row_side", "item_side") for feature in config["model"][side]],
    )
    # A folder name that is not UTF-8 arrives as lone surrogates, which UTF-8 cannot encode.
    replace_file(folder / CARD_NAME, page.encode("utf-8", "backslashreplace"))


def _code(text: str) -> str:
    """Untrusted text as inline code that closes neither its own code span nor a table cell."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
