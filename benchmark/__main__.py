"""`python -m benchmark NAME`: run one of the measurements."""

from __future__ import annotations

import argparse

from benchmark import demo
from workflows.errors import run_command

_COMMANDS = {"demo": (demo.main, "MovieLens-100K from log to recommendations, with a table of results")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark", allow_abbrev=False)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, (_, explanation) in _COMMANDS.items():
        commands.add_parser(name, help=explanation)
    _COMMANDS[parser.parse_args().name][0]()


if __name__ == "__main__":
    run_command(main)
