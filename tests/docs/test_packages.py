"""The locked packages: hashes, licences, bills of materials."""

from __future__ import annotations

import json
import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
# torch of a CPU set-up comes from an index that may be named, and has a hash for each (SECURITY.md).
HASHED = sorted(path.stem for path in REQUIREMENTS.glob("*.txt") if path.stem != "torch")


def pins(lock: str) -> set[tuple[str, str]]:
    text = (REQUIREMENTS / f"{lock}.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import packages

    return packages


@pytest.mark.parametrize("lock", HASHED)
def test_every_locked_version_has_hashes(packages: Any, lock: str) -> None:
    locked = packages.read_lock(lock)
    assert {package.key for package in locked} == pins(lock)
    assert all(package.hashes for package in locked)
    text = (REQUIREMENTS / f"{lock}.txt").read_text(encoding="utf-8")
    assert sum(len(package.hashes) for package in locked) == text.count("--hash=sha256:")


def test_everything_that_is_named_in_a_list_is_locked() -> None:
    for path in REQUIREMENTS.glob("*.in"):
        lines = (re.sub(r"\s*(#|;).*", "", line).strip() for line in path.read_text(encoding="utf-8").splitlines())
        named = {re.split(r"[<>=]", line)[0].lower() for line in lines if line and not line.startswith("-")}
        assert named <= {name for name, _ in pins(path.stem)}, path.name


def test_torch_is_new_enough_for_files_of_others() -> None:
    for lock in ("torch", "torch-gpu"):
        (version,) = (version for name, version in pins(lock) if name == "torch")
        assert [int(part) for part in version.split(".")] >= [2, 10]


def test_the_page_has_the_licence_of_each_locked_package(packages: Any) -> None:
    text = packages.PAGE.read_text(encoding="utf-8")
    shown = packages.page_licences(text)
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\d\S*) \|", text, re.MULTILINE)
    locked = set.union(*(pins(path.stem) for path in REQUIREMENTS.glob("*.txt")))
    assert sorted(rows) == sorted(locked), "run `make licences`"
    installed = {(re.sub(r"[-_.]+", "-", one.name).lower(), one.version.partition("+")[0]) for one in distributions()}
    assert {key for key in installed & pins("cpu") if key not in shown} == set()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_bill_of_materials_lists_each_locked_package_once(
    packages: Any, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    packages.main(["--sbom", str(tmp_path / "sbom")])
    bill = json.loads((tmp_path / "sbom" / f"{kind}.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "1.6",
        "neumf-pipeline",
    )
    locks = {"cpu": ("cpu", "torch"), "gpu": ("gpu", "torch-gpu")}[kind]
    expected = set.union(*(pins(lock) for lock in (*locks, "merlin", "sample")))
    components = bill["components"]
    assert sorted((one["name"], one["version"]) for one in components) == sorted(expected)
    assert all(one["purl"] == one["bom-ref"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in components)
    assert [one["name"] for one in components if "hashes" not in one] == (["torch"] if kind == "cpu" else [])
    assert all(re.fullmatch("[0-9a-f]{64}", each["content"]) for one in components for each in one.get("hashes", ()))


def test_an_unknown_line_of_a_lock_is_not_passed_over(
    packages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "odd.txt").write_text("numpy>=2\n", encoding="utf-8")
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="numpy>=2"):
        packages.read_lock("odd")
