"""Check a prepared folder, its spec and its data, in bounded memory; all problems are reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.check.rules import check_rules
from preprocessing.spec.feature_spec import FeatureSpec, read_feature_spec
from preprocessing.spec.features import FeatureRoles
from preprocessing.spec.findings import Finding, error, note
from preprocessing.spec.ranges import ValueRanges
from preprocessing.spec.reader import BLOCK_ROWS, locate, text_features
from preprocessing.spec.values import Kind, Wrong, iter_values, kinds_of, text_of
from preprocessing.transcode.feature_workflow import is_file_name
from workflows.common.errors import UserError
from workflows.common.progress import console
from workflows.operators.saved import read_categories

_MUCH_LARGER = 2  # times the ids found


def print_check(folder: Path, spec_name: str) -> bool:
    """Print all findings and a summary line; return whether there are no errors."""
    findings = check_folder(folder, spec_name)
    for finding in findings:
        console.print(str(finding))
    counts = Counter(finding.severity for finding in findings)
    console.print(f"{folder}: {counts['error']:,} errors, {counts['note']:,} notes")
    return not counts["error"]


def check_folder(folder: Path, spec_name: str) -> list[Finding]:
    """All errors and notes about a folder; docs/feature-spec.md lists the checks.

    If any values are unusable, the checks that depend on them (series, leaks, ...) are skipped.
    """
    try:
        spec = read_feature_spec(folder, spec_name)
        unreadable = _unreadable(folder, spec)
        if unreadable:
            return unreadable
        kinds = kinds_of(folder, spec)
    except UserError as err:
        return [error(str(folder / spec_name), str(err))]
    survey = ValueRanges(kinds)
    findings = [finding for mapping in spec.source_spec for finding in _values(folder, spec, mapping, kinds, survey)]
    usable = not findings  # all findings so far are errors
    findings += _cardinalities(spec, survey)
    resolved = spec.with_cardinalities({name: max(1, n) for name, n in survey.found.items()})
    for name in spec.categorical():
        findings += _categories(folder, resolved, name, survey.found.get(name))
    if not usable:
        return findings
    try:
        findings += check_rules(folder, resolved, FeatureRoles.from_spec(resolved), kinds)
    except UserError as err:
        # Before transcoding, text has no cardinality, so the roles may still be ambiguous.
        findings.append(Finding("note" if text_of(kinds) else "error", str(folder / spec_name), str(err)))
    return findings


def _unreadable(folder: Path, spec: FeatureSpec) -> list[Finding]:
    """Chunks whose files cannot be opened."""
    findings = []
    for mapping, chunks in spec.source_spec.items():
        for index, chunk in enumerate(chunks):
            try:
                text_features(folder, spec.model_copy(update={"source_spec": {mapping: [chunk]}}), chunk.features)
            except UserError as err:
                findings.append(error(f"source_spec.{mapping}.{index}", str(err)))
    return findings


def _values(
    folder: Path, spec: FeatureSpec, mapping: str, kinds: Mapping[str, Kind], survey: ValueRanges
) -> list[Finding]:
    """Check the files, chunk lengths and values of a mapping."""
    kinds = {name: kind for name, kind in kinds.items() if mapping == "train" or name in spec.features(mapping)}
    declared = {name: size for name in kinds if isinstance(size := spec.feature_spec[name].cardinality, int)}
    faults: dict[tuple[str, str], Wrong] = {}
    rows: Counter[tuple[str, str]] = Counter()
    n_rows = 0
    try:
        for block in iter_values(folder, spec, mapping, kinds, BLOCK_ROWS, declared):
            survey.add(mapping, block)
            n_rows += block.rows
            for wrong in block.wrong:
                faults.setdefault((wrong.feature, wrong.expected), wrong)
                rows[wrong.feature, wrong.expected] += wrong.rows
    except UserError as err:
        return [error(f"source_spec.{mapping}", str(err))]
    if not n_rows:
        return [error(f"source_spec.{mapping}", "has no rows (expected at least one)")]
    where = {key: locate(folder, spec, mapping, w.feature, w.first, text_of(kinds)) for key, w in faults.items()}
    return [
        error(where[key], f"feature {w.feature!r} in {rows[key]:,} rows (expected {w.expected}, found {w.value})")
        for key, w in faults.items()
    ]


def _cardinalities(spec: FeatureSpec, survey: ValueRanges) -> list[Finding]:
    sizes = {name: spec.feature_spec[name].cardinality for name in survey.found}
    return [
        note(f"feature_spec.{name}.cardinality", f"is much larger than the largest id + 1 ({size:,}, found {found:,})")
        for name, found in survey.found.items()
        if isinstance(size := sizes[name], int) and size > _MUCH_LARGER * found
    ]


def _categories(folder: Path, spec: FeatureSpec, name: str, found: int | None) -> list[Finding]:
    """Check the table of a feature's original values, if there is one."""
    path = folder / "categories" / f"{name}.parquet"
    cardinality = spec.feature_spec[name].cardinality
    if not is_file_name(name) or not path.is_file() or not isinstance(cardinality, int):
        return []
    try:
        rows = pq.read_metadata(path).num_rows
        if rows > cardinality or rows < (found or 0):
            return [error(str(path), f"should have a row for each id (expected {cardinality:,}, found {rows:,})")]
        repeated = rows - read_categories(folder, name).nunique(dropna=False)
    except (UserError, OSError, pa.ArrowException, TypeError, UnicodeDecodeError) as err:
        return [error(str(path), f"is not a table of ids ({err})")]
    findings = [error(str(path), f"{repeated:,} original values are duplicates")] if repeated else []
    if rows < cardinality:
        findings.append(
            note(str(path), f"not every id has an original value (expected {cardinality:,}, found {rows:,})")
        )
    return findings
