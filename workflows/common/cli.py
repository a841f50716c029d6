"""The `--help` format shared by all commands."""

from __future__ import annotations

import argparse

from rich_argparse import ArgumentDefaultsRichHelpFormatter


class HelpFormatter(ArgumentDefaultsRichHelpFormatter):
    """Shows defaults where they exist; keeps group names as written."""

    group_name_formatter = str

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)
