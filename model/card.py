"""The model card of a run, `README.md`: data, network, training, metrics, and the commands that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflows.folders import replace_file
from workflows.pages import templates

CARD_NAME = "README.md"


def write_card(folder: Path, config: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Write the card; equal arguments give equal bytes, and nothing in it depends on time or speed.

    Args:
        config, metrics: what `config.json` and `metrics.json` hold.
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
    # A folder's name that is no UTF-8 is here as lone surrogates, which cannot be encoded as they are.
    replace_file(folder / CARD_NAME, page.encode("utf-8", "backslashreplace"))


def _code(text: str) -> str:
    """Text that others have chosen, as code that ends neither before it does nor the cell of a table."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
