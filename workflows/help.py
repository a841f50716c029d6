"""How every command of the project shows its `--help`."""

from __future__ import annotations

import argparse

from rich_argparse import ArgumentDefaultsRichHelpFormatter


class HelpFormatter(ArgumentDefaultsRichHelpFormatter):
    """Defaults are shown where there is one; group names stay as they are written."""

    group_name_formatter = str

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)
