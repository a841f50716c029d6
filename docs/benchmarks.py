"""Writes the generated parts of the pages from the results in docs/results/.

python docs/benchmarks.py            rewrites them
python docs/benchmarks.py DIR        takes the results, and their pictures, from what `python -m benchmark all` wrote
python docs/benchmarks.py DIR --log LOG  the same, as results of another log than the suite's
python docs/benchmarks.py --check    exits with 1 if a page differs from its results

A generated part stands between `<!-- NAME: generated -->` and `<!-- end -->` and shows docs/results/NAME.json; NAME is
that of a part of the suite, or PART-LOG.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.common.machine import machine_line
from benchmark.suite.parts import PARTS, markdown, read_part

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
PAGES = ("benchmarks.md", "quality.md", "peers.md")
_GENERATED = re.compile(r"(<!-- (\w+(?:-\w+)?): generated -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str, results: Path) -> str:
    """A page with its generated parts written anew."""

    def part(found: re.Match[str]) -> str:
        name, result = found[2], read_part(results, found[2])
        if not result:
            return f"{found[1]}Not measured with this version yet.\n{found[3]}"
        source = f"`{result['command']}`; {machine_line(result['machine'])}."
        picture = f"\n![The figures of {name}, drawn](results/{name}.png)\n"
        shown = picture if (results / f"{name}.png").exists() else ""
        return f"{found[1]}{source}\n\n{markdown(part_of(name), result).strip()}\n{shown}{found[3]}"

    return _GENERATED.sub(part, text)


def part_of(name: str) -> str:
    """The part of the suite that a result is of."""
    return name.partition("-")[0]


def take(folder: Path, log: str) -> None:
    """Copy a run's results and pictures, with the name of their log, if any."""
    RESULTS.mkdir(exist_ok=True)
    for name in PARTS:
        for path in (folder / name / f"{name}.json", *(folder / name).glob("*.png")):
            if path.exists():
                shutil.copy(path, RESULTS / f"{path.stem}{f'-{log}' if log else ''}{path.suffix}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the generated tables of the pages.")
    parser.add_argument("--check", action="store_true", help="only compare the pages with the results")
    parser.add_argument("results", nargs="?", type=Path, metavar="DIR", help="take the results of this folder first")
    parser.add_argument("--log", default="", help="name of their log, if it is not the suite's: letters and digits")
    args = parser.parse_args(argv)
    if args.log and not (args.results and args.log.isalnum()):
        parser.error(f"--log: expected letters and digits, and the folder of its results, got {args.log!r}")
    if args.results:
        take(args.results, args.log)
    stale = []
    for page in (DOCS / name for name in PAGES if (DOCS / name).exists()):
        text = page.read_text(encoding="utf-8")
        new = generated(text, RESULTS)
        if new != text:
            stale.append(page)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{page} {'is out of date; run python docs/benchmarks.py' if args.check else 'written'}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
