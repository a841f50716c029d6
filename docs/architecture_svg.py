"""The rooms and their imports as SVG: a small layered graph drawing, independent of plotting libraries' versions.

Each room is in a row above everything it imports; `model` and `preprocessing` stand side by side on `workflows`.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("workflows", "preprocessing", "model", "benchmark")
Edge = tuple[str, str]

WIDTH, HEIGHT, GAP, BEND, LANE = 216, 54, 18, 34, 14  # of a box, between boxes, between rows, for a passing arrow
BETWEEN, MARGIN = 64, 26  # between the packages, around everything
COLOURS = {"workflows": "#7a6a9b", "preprocessing": "#3d7d5a", "model": "#2f6690", "benchmark": "#8a6d3b"}
RED = "#c0392b"


def condensed(imports: Iterable[Edge]) -> nx.DiGraph:
    """The acyclic graph of the strongly connected components; each node has its `members`."""
    return nx.condensation(nx.DiGraph(sorted(imports)))


@dataclass(eq=False)
class Node:
    """A room's box, or (without a name) the place where an arrow passes through a row."""

    package: str
    row: int
    name: str = ""
    x: float = 0.0  # centre
    y: float = 0.0  # upper edge
    above: list[Node] = field(default_factory=list)
    below: list[Node] = field(default_factory=list)

    @property
    def width(self) -> int:
        return WIDTH if self.name else LANE

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def neighbours(self) -> list[Node]:
        return self.above + self.below


def rows_of(imports: set[Edge]) -> dict[str, int]:
    """Row of each room, counted from the bottom; rooms that import each other share one."""
    graph = condensed(imports)
    rows: dict[str, int] = {}
    for package in (("workflows",), ("preprocessing", "model")):
        base = 1 + max(rows.values(), default=-1)
        for component in reversed(list(nx.topological_sort(graph))):
            members = graph.nodes[component]["members"]
            if min(members).split(".")[0] in package:
                below = [rows[name] for other in graph[component] for name in graph.nodes[other]["members"]]
                rows |= dict.fromkeys(sorted(members), max(base, 1 + max(below, default=-1)))
    return rows


def drawn_edges(imports: set[Edge]) -> tuple[list[Edge], list[Edge]]:
    """(arrows that no other arrows imply, pairs of rooms that import each other)."""
    graph = condensed(imports)
    reduced = nx.transitive_reduction(graph)
    members = {node: graph.nodes[node]["members"] for node in graph}
    down = [
        min((one, other) for one in members[a] for other in members[b] if (one, other) in imports)
        for a, b in reduced.edges
    ]
    mutual = [(one, other) for one, other in imports if one < other and (other, one) in imports]
    return sorted(down), sorted(mutual)


def place(imports: set[Edge]) -> tuple[dict[str, Node], list[list[Node]]]:
    """The boxes by room, and each arrow as the nodes it passes through, from top to bottom."""
    boxes = {name: Node(name.split(".")[0], row, name) for name, row in rows_of(imports).items()}
    ground = min(node.row for node in boxes.values() if node.package != "workflows")
    arrows = []
    for one, other in drawn_edges(imports)[0]:
        start, end = boxes[one], boxes[other]
        through = [
            Node(start.package if row >= ground else "workflows", row) for row in range(start.row - 1, end.row, -1)
        ]
        arrows.append([start, *through, end])
        for upper, lower in pairwise(arrows[-1]):
            upper.below.append(lower)
            lower.above.append(upper)
    nodes = [*boxes.values(), *(node for arrow in arrows for node in arrow[1:-1])]
    rows = [[node for node in nodes if node.row == row] for row in range(max(node.row for node in nodes) + 1)]
    bounds, left = {}, float(MARGIN)
    for package in ("model", "preprocessing"):
        widths = [sum(node.width + GAP for node in row if node.package == package) - GAP for row in rows]
        bounds[package] = (left, left + max(widths))
        left += max(widths) + BETWEEN
    bounds["workflows"] = (float(MARGIN), left - BETWEEN)
    for node in nodes:
        node.x = sum(bounds[node.package]) / 2
        node.y = MARGIN + 114 + (len(rows) - 1 - node.row) * (HEIGHT + BEND) + (0 if node.row >= ground else 36)
    for sweep in range(120):
        for row in rows if sweep % 2 else reversed(rows):
            # First order each row by its neighbours on one side, then pull it towards both.
            for node in row:
                near = (node.neighbours if sweep > 19 else node.below if sweep % 2 else node.above) or node.neighbours
                node.x = sum(other.x for other in near) / len(near) if near else node.x
            for package in bounds:
                spread([node for node in row if node.package == package], *bounds[package])
    return boxes, arrows


def spread(row: list[Node], low: float, high: float) -> None:
    """Move nodes as little as possible (least squares) so that they keep their order and do not overlap."""
    row.sort(key=lambda node: node.x)
    offsets = [sum(node.width + GAP for node in row[:index]) + node.width / 2 for index, node in enumerate(row)]
    pools: list[list[float]] = []
    for node, offset in zip(row, offsets, strict=True):  # pool adjacent violators
        pools.append([node.x - offset])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    starts = [sum(pool) / len(pool) for pool in pools for _ in pool]
    room_left = high - (offsets[-1] + row[-1].width / 2) if row else 0.0
    for node, offset, start in zip(row, offsets, starts, strict=True):
        node.x = min(max(start, low), room_left) + offset


def draw(imports: set[Edge]) -> str:
    """The picture as SVG. Its `desc` has all imports between rooms; the arrows are those that no others imply."""
    product = {edge for edge in imports if "benchmark" not in edge}
    boxes, arrows = place(product)
    mutual = [(boxes[one], boxes[other]) for one, other in drawn_edges(product)[1]]
    nodes = {node for arrow in arrows for node in arrow} | set(boxes.values())
    right = max(node.x + node.width / 2 for node in nodes) + MARGIN
    bottom = max(node.y for node in nodes) + HEIGHT + MARGIN
    parts = _areas(nodes, right)
    notes = [
        "A box is a folder or a file, and an arrow an import. Each box is above everything that it imports.",
        "An arrow is left out if others imply it: nearly every box imports common, for example.",
        "Commands: train.py (run); python -m model.recommend, model.export, model.serve, preprocessing, benchmark.",
        *(["A red arrow joins two boxes that import each other."] if mutual else []),
    ]
    legend = min(node.left for node in nodes if node.package == "preprocessing")
    parts += [_text(legend, MARGIN + 110 + 20 * index, line, 13, "#333") for index, line in enumerate(notes)]
    parts += [_arrow(arrow) for arrow in arrows]
    parts += [_double_arrow(one, other) for one, other in mutual]
    parts += [part for node in boxes.values() for part in _box(node)]
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" fill="{colour}" stroke="none"/></marker>'
        for name, colour in {**COLOURS, "mutual": RED}.items()
    )
    listed = "\n".join(f"{one} imports {other}" for one, other in sorted(imports))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {bottom:.0f}" font-family="sans-serif">\n'
        f"<title>The rooms of the four packages and their imports</title>\n<desc>\n{listed}\n</desc>\n"
        f'<defs>{markers}</defs>\n<rect width="100%" height="100%" fill="#fff"/>\n'
        '<g fill="none" stroke-width="1.4">\n' + "\n".join(parts) + "\n</g>\n</svg>\n"
    )


def _areas(nodes: set[Node], right: float) -> list[str]:
    """A coloured area for each package."""
    parts = []
    for package in PACKAGES[:3]:
        own = [node for node in nodes if node.package == package]
        begin, end = min(node.left for node in own) - 12, max(2 * node.x - node.left for node in own) + 12
        if package == "workflows":  # the ground that everything stands on
            begin, end = MARGIN - 12, right - MARGIN + 12
        parts += _area(package, begin, min(node.y for node in own) - 30, end, max(node.y for node in own) + HEIGHT + 10)
    parts += _area("benchmark", MARGIN - 12, MARGIN - 12, right - MARGIN + 12, MARGIN + 56)
    rooms = sorted(path.parent.name for path in (ROOT / "benchmark").glob("*/__init__.py"))
    lines = [
        f"Measures the product: {', '.join(rooms)}.",
        "It may import every room, and no room imports it; its arrows are left out.",
    ]
    return parts + [_text(MARGIN, MARGIN + 26 + 17 * index, line, 12, "#333") for index, line in enumerate(lines)]


def _arrow(arrow: list[Node]) -> str:
    path = ""
    for upper, lower in pairwise(arrow):
        x, y = _port(upper, upper.below, lower), upper.y + HEIGHT
        to_x, to_y = _port(lower, lower.above, upper), lower.y - (4 if lower.name else 0)
        path += f"{'L' if path else 'M'}{x:.1f},{y:.1f} "
        path += f"C{x:.1f},{(y + to_y) / 2:.1f} {to_x:.1f},{(y + to_y) / 2:.1f} {to_x:.1f},{to_y:.1f} "
    package = arrow[0].package
    return f'<path d="{path.strip()}" stroke="{COLOURS[package]}" marker-end="url(#{package})"/>'


def _port(node: Node, others: list[Node], other: Node) -> float:
    """x at which an arrow touches a node: arrows are spread over the edge of a box, in the order of their ends."""
    order = sorted(others, key=lambda one: one.x)
    return node.x + (order.index(other) - (len(order) - 1) / 2) * min(26, (WIDTH - 40) / len(order))


def _double_arrow(one: Node, other: Node) -> str:
    left, right = sorted((one, other), key=lambda node: node.x)
    path = f"M{left.x + WIDTH / 2 + 4:.1f},{left.y + HEIGHT / 2:.1f} H{right.left - 4:.1f}"
    return f'<path d="{path}" stroke="{RED}" marker-start="url(#mutual)" marker-end="url(#mutual)"/>'


def _box(node: Node) -> list[str]:
    x, y, colour = node.left, node.y, COLOURS[node.package]
    title, lines = described(node.name)
    return [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff" stroke="{colour}"/>',
        _text(x + 9, y + 17, title, 13, colour, bold=True),
        *(_text(x + 9, y + 32 + 14 * index, line, 11, "#333") for index, line in enumerate(lines)),
    ]


def described(name: str) -> tuple[str, list[str]]:
    """(title, up to two lines of text) of a room, from its docstring."""
    path = ROOT / name.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].replace("`", "")
    for marks in ("[;]", "[:;]", "[:;,]"):  # leave out the details of a long one
        if len(textwrap.wrap(text, 34)) > 2:
            text = re.split(marks, text)[0].removesuffix(".") + "."
    lines = textwrap.wrap(text, 34, max_lines=2, placeholder=" …")
    return name.split(".")[1] + ("" if path.name == "__init__.py" else ".py"), lines


def _area(package: str, x: float, y: float, right: float, bottom: float) -> list[str]:
    colour = COLOURS[package]
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{bottom - y:.1f}" rx="10"'
    return [
        f'<rect {shape} fill="{colour}" fill-opacity="0.09"/>',
        _text(x + 12, y + 20, package, 15, colour, bold=True),
    ]


def _text(x: float, y: float, text: str, size: int, colour: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{weight}>{escape(text)}</text>'
