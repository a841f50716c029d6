"""Draws docs/architecture.svg from the imports, and prints the sizes of the packages.

python docs/architecture.py            redraws the picture and prints the counts
python docs/architecture.py --check    exits with 1 if imports between rooms differ from those of the picture

A room is a folder of a package, or a file directly in it. `benchmark` is one room. Imports inside functions and under
`TYPE_CHECKING` count.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import grimp
import networkx as nx
from architecture_svg import PACKAGES, ROOT, Edge, condensed, draw

PICTURE = ROOT / "docs" / "architecture.svg"
COMMANDS = ("model.recommend", "model.export", "model.serve")


def module_imports() -> set[Edge]:
    """(importing, imported) for all modules of the four packages."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {(module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module)}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "benchmark" else ".".join(parts[:2])


def room_imports(imports: Iterable[Edge]) -> set[Edge]:
    """Imports between rooms; those of a package's own `__init__`, which prepares the process, are in none."""
    found = {(room(one), room(other)) for one, other in imports if room(one) != room(other)}
    return {(one, other) for one, other in found if "." in one or one == "benchmark"}


def drawn_imports(picture: str) -> set[Edge]:
    """The imports that a picture was drawn from: its `desc` lists them all."""
    return set(re.findall(r"^([\w.]+) imports ([\w.]+)$", picture, re.MULTILINE))


def import_levels(imports: Iterable[Edge]) -> int:
    """Modules in the longest chain of imports; modules that import each other are one level."""
    return int(nx.dag_longest_path_length(condensed(imports))) + 1


def loaded_modules(command: str, *argv: str) -> list[str]:
    """Modules of the four packages in `sys.modules` after `python -m command …` in a fresh process."""
    code = (
        "import contextlib, io, json, runpy, sys\n"
        "command = sys.argv.pop(1)\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    runpy.run_module(command, run_name='__main__', alter_sys=True)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, *argv], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in json.loads(done.stdout.splitlines()[-1]) if name.split(".")[0] in PACKAGES]


def print_counts(imports: set[Edge]) -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    print("package         folders  files  lines  longest file")
    for package in PACKAGES:
        own = [path for path in files if path.is_relative_to(ROOT / package)]
        longest = max(own, key=lambda path: lines[path])
        print(
            f"{package:15} {len({path.parent for path in own}):7} {len(own):6} {sum(lines[path] for path in own):6}  "
            f"{longest.relative_to(ROOT)} ({lines[longest]})"
        )
    print("files per folder, the largest first:")
    for folder, number in Counter(path.parent.relative_to(ROOT).as_posix() for path in files).most_common():
        print(f"  {number:3} {folder}")
    own_imports = {(one, other) for one, other in imports if one.startswith("model.") and other.startswith("model.")}
    print(f"import levels in model/: {import_levels(own_imports)}")
    print("modules loaded by --help, besides the command's own:")
    for command in COMMANDS:
        loaded = loaded_modules(command, "--help")
        of_model = [name for name in loaded if name.split(".")[0] == "model"]
        print(f"  {command:16} {len(of_model):3} of model, {len(loaded):3} of all four packages")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the rooms and their imports, and print counts.")
    parser.add_argument("--check", action="store_true", help="only compare the picture with the imports")
    args = parser.parse_args(argv)
    imports = module_imports()
    rooms = room_imports(imports)
    if args.check:
        drawn = drawn_imports(PICTURE.read_text(encoding="utf-8"))
        for text, edges in (("not in the picture", rooms - drawn), ("only in the picture", drawn - rooms)):
            for one, other in sorted(edges):
                print(f"{text}: {one} imports {other}")
        if rooms != drawn:
            print("docs/architecture.svg is out of date; run python docs/architecture.py")
        return int(rooms != drawn)
    PICTURE.write_text(draw(rooms), encoding="utf-8")
    print_counts(imports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
