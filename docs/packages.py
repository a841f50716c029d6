"""Lists the locked packages: docs/licences.md, and software bills of materials (CycloneDX, JSON).

python docs/packages.py [FOLDER …]      rewrites docs/licences.md from the packages that are installed here, and in
                                        these site-packages folders; keeps what it says of other packages
python docs/packages.py --sbom FOLDER   writes cpu.cdx.json and gpu.cdx.json there
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
PRODUCT = ("merlin", "sample")
USES = {
    "CPU": ("cpu", "torch", *PRODUCT),
    "GPU": ("gpu", "torch-gpu", *PRODUCT),
    "set-up": ("build", "uv"),
    "tests, lint": ("dev",),
    "audit": ("audit",),
}
UNKNOWN = "not known"
_INTRO = """# Licences of the locked packages

As each package's metadata states it. `make licences` rewrites this page, and a test compares it with the locked
versions. Packages for set-up, tests, lint and audits are no part of a product made from this project.

| package | version | licence | used for |
|---|---|---|---|
"""
_ROW = re.compile(r"^\| (\S+) \| (\S+) \| (.+) \| (.+) \|$", re.MULTILINE)
_LOCKED = re.compile(r"^([\w.-]+)==([^\s;\\]+)(?: ; (.+?))?(?: \\)?$")
_HASH = re.compile(r"^    --hash=sha256:([0-9a-f]{64})(?: \\)?$")


@dataclass(frozen=True)
class Locked:
    """A line of a locked file: a package's version, where it applies, and the hashes of its files."""

    name: str
    version: str
    marker: str | None
    hashes: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.version


def read_lock(name: str) -> list[Locked]:
    """The packages of requirements/NAME.txt."""
    packages: list[tuple[str, str, str | None, list[str]]] = []
    for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if found := _LOCKED.match(line):
            packages.append((found[1], found[2], found[3], []))
        elif found := _HASH.match(line):
            packages[-1][3].append(found[1])
        elif not line.lstrip().startswith("#"):
            raise ValueError(f"requirements/{name}.txt: {line!r}")
    return [Locked(name, version, marker, tuple(hashes)) for name, version, marker, hashes in packages]


def licence_of(package: Distribution) -> str:
    """What the metadata states: an SPDX expression, else classifiers, else a short text."""
    meta = package.metadata
    if expression := meta.get("License-Expression"):
        return expression
    parts = [line.split(" :: ") for line in meta.get_all("Classifier") or () if line.startswith("License ::")]
    if stated := [one[-1] for one in parts if one[-1] != "OSI Approved"]:
        return ", ".join(stated)
    text = (meta.get("License") or "").strip().split("\n")[0]
    return text if 0 < len(text) <= 80 else UNKNOWN


def installed_licences(folders: Iterable[str]) -> dict[tuple[str, str], str]:
    """Licences by normalised name and version, without local part, of the packages in these site-packages folders."""
    return {
        (re.sub(r"[-_.]+", "-", package.name).lower(), package.version.partition("+")[0]): licence_of(package)
        for package in distributions(path=list(folders))
    }


def page(licences: Mapping[tuple[str, str], str]) -> str:
    """docs/licences.md for the locked packages."""
    uses: dict[tuple[str, str], list[str]] = {}
    for use, locks in USES.items():
        for key in {package.key for lock in locks for package in read_lock(lock)}:
            uses.setdefault(key, []).append(use)
    rows = [
        f"| {name} | {version} | {licences.get((name, version), UNKNOWN)} | {', '.join(uses[name, version])} |\n"
        for name, version in sorted(uses)
    ]
    return _INTRO + "".join(rows)


def page_licences(text: str) -> dict[tuple[str, str], str]:
    return {(name, version): licence for name, version, licence, _ in _ROW.findall(text) if licence != UNKNOWN}


def sbom(locks: Iterable[str], licences: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """A CycloneDX bill of materials of the packages of some locked files, for all platforms that they cover."""
    merged: dict[tuple[str, str], Locked] = {}
    for package in (package for lock in locks for package in read_lock(lock)):
        if package.key not in merged or package.hashes:
            merged[package.key] = package
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _project()},
        "components": [_component(merged[key], licences.get(key)) for key in sorted(merged)],
    }


def _project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name, version, licence = (
        re.search(rf'^{field} = "(.+)"$', text, re.MULTILINE)[1]  # type: ignore[index]
        for field in ("name", "version", "license")
    )
    return {
        "type": "application",
        "bom-ref": name,
        "name": name,
        "version": version,
        "licenses": [{"license": {"id": licence}}],
    }


def _component(package: Locked, licence: str | None) -> dict[str, Any]:
    purl = f"pkg:pypi/{package.name}@{package.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
    }
    if package.hashes:  # of the files for each platform and version of Python
        component["hashes"] = [{"alg": "SHA-256", "content": one} for one in package.hashes]
    if licence:
        component["licenses"] = [{"license": {"name": licence}}]
    if package.marker:
        component["properties"] = [{"name": "python:marker", "value": package.marker}]
    return component


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="further site-packages folders")
    parser.add_argument("--sbom", type=Path, metavar="FOLDER", help="write the bills of materials instead")
    args = parser.parse_args(argv)
    known = page_licences(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    licences = known | installed_licences([*args.folders, *sys.path])
    if args.sbom is None:
        PAGE.write_text(page(licences), encoding="utf-8")
        return
    args.sbom.mkdir(parents=True, exist_ok=True)
    for use in ("CPU", "GPU"):
        path = args.sbom / f"{use.lower()}.cdx.json"
        path.write_text(json.dumps(sbom(USES[use], licences), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
