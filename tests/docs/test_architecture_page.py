"""docs/architecture.md and its picture agree with the code."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "architecture.py"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import architecture

    return architecture


def test_the_picture_has_the_imports_of_today() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_that_the_picture_lacks_is_reported(
    architecture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = architecture.PICTURE.read_text(encoding="utf-8")
    stale = drawn.replace("model.data imports model.network\n", "model.network imports model.data\n")
    monkeypatch.setattr(architecture, "PICTURE", tmp_path / "stale.svg")
    architecture.PICTURE.write_text(stale, encoding="utf-8")
    assert architecture.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "not in the picture: model.data imports model.network" in said
    assert "only in the picture: model.network imports model.data" in said


def test_a_picture_shows_each_room_once_and_lists_all_imports(architecture: Any) -> None:
    imports = architecture.drawn_imports(architecture.PICTURE.read_text(encoding="utf-8"))
    picture = architecture.draw(imports)
    assert architecture.drawn_imports(picture) == imports
    texts = [element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    rooms = {name for edge in imports for name in edge} - {"benchmark"}
    titles = sorted(name.split(".")[1] + ("" if (ROOT / name.replace(".", "/")).is_dir() else ".py") for name in rooms)
    assert sorted(text for text in texts if text in titles) == titles


def test_rooms_are_above_what_they_import_and_implied_arrows_are_left_out(architecture: Any) -> None:
    from architecture_svg import drawn_edges, place

    chain = {("model.a", "preprocessing.b"), ("preprocessing.b", "workflows.c"), ("model.a", "workflows.c")}
    pair = {("workflows.d", "workflows.e"), ("workflows.e", "workflows.d"), ("workflows.d", "workflows.c")}
    assert drawn_edges(chain | pair) == (
        [("model.a", "preprocessing.b"), ("preprocessing.b", "workflows.c"), ("workflows.d", "workflows.c")],
        [("workflows.d", "workflows.e")],
    )
    boxes, _ = place(chain | pair)
    assert {name: box.row for name, box in boxes.items()} == {
        "workflows.c": 0, "workflows.d": 1, "workflows.e": 1, "preprocessing.b": 2, "model.a": 3
    }  # fmt: skip


def test_boxes_in_a_row_do_not_overlap(architecture: Any) -> None:
    from architecture_svg import place

    boxes, _ = place({edge for edge in architecture.drawn_imports(architecture.PICTURE.read_text()) if "." in edge[0]})
    for one in boxes.values():
        for other in boxes.values():
            assert one is other or one.row != other.row or abs(one.x - other.x) > one.width


def test_import_levels_are_the_longest_chain(architecture: Any) -> None:
    chain = {("a", "b"), ("b", "c"), ("a", "c")}
    assert architecture.import_levels(chain) == 3
    assert architecture.import_levels(chain | {("c", "d"), ("d", "c")}) == 3  # c and d are one level


def files_named(text: str) -> set[str]:
    return {name for name in re.findall(r"`([\w./-]+)`", text) if "/" in name or name.endswith((".py", ".toml"))}


def test_files_named_on_the_page_exist() -> None:
    named = files_named(PAGE)
    assert {"train.py", "pyproject.toml", "model/", "workflows/sampling/config.py"} <= named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_functions_named_on_the_page_are_in_their_files() -> None:
    named = re.findall(r"`([\w./]+\.py)` `(\w+)`", PAGE)
    assert len(named) >= 10
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, path


def test_the_way_from_log_to_loss_has_ten_lines() -> None:
    lines = re.findall(r"^(\d+)\. `[\w./]+` `\w+` .*\.$", PAGE, re.MULTILINE)
    assert lines == [str(number) for number in range(1, 11)]


def test_each_change_in_the_table_names_a_test_and_a_page() -> None:
    rows = [line.split("|")[2:5] for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    for file, test, page in rows:
        assert files_named(file)
        assert all(name.startswith("tests/") for name in files_named(test))
        assert files_named(test)
        assert files_named(page) or page.strip().startswith("this page")


def test_the_layers_on_the_page_are_those_of_the_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    text = " ".join(PAGE.split())
    for one in layers:
        assert " > ".join(f"`{layer}`" for layer in one) in text


# Modules of model/ that an inference command may load, besides its own `__main__`: raise a number only on purpose.
BUDGETS = {"model.recommend": 27, "model.export": 11, "model.serve": 35}


@pytest.mark.parametrize("command", BUDGETS)
def test_inference_loads_no_training(architecture: Any, command: str) -> None:
    loaded = architecture.loaded_modules(command, "--help")
    of_model = [name for name in loaded if name.split(".")[0] == "model"]
    assert "model.network.checkpoint" in of_model
    assert not [name for name in of_model if name.split(".")[1:2] in (["training"], ["run"], ["ensemble"])]
    assert len(of_model) <= BUDGETS[command], of_model


def test_export_as_a_library_loads_no_training() -> None:
    code = "import json, sys, model.export.__main__ as main; print(json.dumps([main.__name__, *sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = [name for name in json.loads(done.stdout)[1:] if name.split(".")[0] == "model"]
    assert not [name for name in loaded if name.split(".")[1:2] in (["training"], ["run"], ["ensemble"])]
    assert len(loaded) <= BUDGETS["model.export"] + 1, loaded  # its `__main__`
