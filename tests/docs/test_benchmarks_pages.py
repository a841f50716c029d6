"""The generated tables of the pages are those of docs/results/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmark.suite.page import write_suite
from benchmark.suite.parts import PARTS, measured, read_part

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
COMMITTED = sorted(path.stem for path in RESULTS.glob("*.json"))
_MOST_BYTES = 200_000


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    import benchmarks

    return benchmarks


def test_the_pages_show_the_results_of_today(benchmarks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(["--check"]) == 0, capsys.readouterr().out


def test_every_committed_result_is_on_a_page(benchmarks: Any) -> None:
    text = "".join((DOCS / name).read_text() for name in benchmarks.PAGES if (DOCS / name).exists())
    assert COMMITTED
    assert set(re.findall(r"<!-- ([\w-]+): generated -->", text)) >= set(COMMITTED)


def test_a_changed_result_changes_its_page(benchmarks: Any, tmp_path: Path) -> None:
    result = json.loads((RESULTS / "loader.json").read_text())
    result["results"]["merlin"]["samples_per_s"] = 987_600_000.0
    (tmp_path / "loader.json").write_text(json.dumps(result))
    text = "before\n<!-- loader: generated -->\nold\n<!-- end -->\nafter\n"
    new = benchmarks.generated(text, tmp_path)
    assert "| batches, streamed | 987.6 |" in new
    assert new.startswith("before\n<!-- loader: generated -->\n`python -m benchmark loader")
    assert new.endswith("<!-- end -->\nafter\n")
    assert "old" not in new
    assert benchmarks.generated(new, tmp_path) == new
    assert "\nNot measured with this version yet.\n" in benchmarks.generated(new, tmp_path / "empty")


def test_results_are_taken_from_a_run(benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(benchmarks, "PAGES", ())
    (tmp_path / "all" / "loader").mkdir(parents=True)
    for name in ("loader.json", "loader.png", "else.json"):
        (tmp_path / "all" / "loader" / name).write_text(name)
    assert benchmarks.main([str(tmp_path / "all")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "results").iterdir()} == {
        name: name for name in ("loader.json", "loader.png")
    }
    assert benchmarks.main([str(tmp_path / "all"), "--log", "log"]) == 0
    assert (tmp_path / "results" / "loader-log.json").read_text() == "loader.json"
    with pytest.raises(SystemExit):
        benchmarks.main([str(tmp_path / "all"), "--log", "a log"])


@pytest.mark.parametrize("name", COMMITTED)
def test_results_are_small_and_name_their_commit_but_no_folder_of_a_machine(benchmarks: Any, name: str) -> None:
    path, part = RESULTS / f"{name}.json", benchmarks.part_of(name)
    assert path.stat().st_size < _MOST_BYTES
    result = json.loads(path.read_text())
    assert re.fullmatch(r"[0-9a-f]{12}", result["machine"]["commit"])
    assert result["command"].startswith(f"python -m benchmark {part} ")
    assert not re.search(r'"/|/tmp|/home|/root', path.read_text())
    figures = measured(part, result)
    assert len({each.what for each in figures}) == len(figures)
    assert all(each.values for each in figures)


def test_the_page_of_all_shows_every_part(tmp_path: Path) -> None:
    of_parts = [name for name in COMMITTED if name in PARTS]
    machine = read_part(RESULTS, of_parts[0])["machine"]
    for name in of_parts:
        (tmp_path / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    runs = {name: {"status": "done", "reason": "", "seconds": 1.0} for name in ("data", *PARTS)}
    write_suite(tmp_path, {"machine": machine, "command": "c", "preset": "full", "parts": runs})
    page = (tmp_path / "index.html").read_text()
    assert page.count("<table>") >= len(of_parts)
    for name in of_parts:
        assert f'<section id="{name}">' in page
