"""Transcode a folder with a feature spec from any chunk type to Parquet, or to tensors for NVIDIA's own scripts.

Rows keep their order. They are read once, in blocks, checked and spilled to disk; an NVTabular workflow over the
spilled parts then encodes text and normalises numbers while the new folder is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import feather

from preprocessing.config import STATS_NAME
from preprocessing.fingerprint import FINGERPRINT, read_fingerprint
from preprocessing.spec.consistency import find_series, whole_rows
from preprocessing.spec.feature_spec import FeatureSpec, read_feature_spec
from preprocessing.spec.features import FeatureRoles
from preprocessing.spec.ranges import ValueRanges
from preprocessing.spec.reader import BLOCK_ROWS, locate
from preprocessing.spec.values import Block, Kind, iter_values, kinds_of, text_of
from preprocessing.transcode.feature_workflow import FeatureWorkflow, Part, is_file_name, part_schema, save_categories
from preprocessing.transcode.writers import Target, parquet_spec, tensor_spec, write_parquet, write_tensors
from workflows.cluster import ThreadCluster
from workflows.common.errors import UserError
from workflows.common.files import read_json, write_json
from workflows.common.progress import Stage, console, stage
from workflows.device.frames import FrameDevice
from workflows.operators.saved import read_categories

Emit = Literal["parquet", "torch_tensor"]
_WRITERS = {"parquet": (write_parquet, parquet_spec), "torch_tensor": (write_tensors, tensor_spec)}
_RESERVED = ("categories", "workflow", STATS_NAME)
_SPARSE = 16  # if fewer than 1 in _SPARSE ids is used …
_MANY_IDS = 1_000_000  # … and there are more ids than this, the embedding tables are mostly wasted


def is_transcoded_folder(folder: Path) -> bool:
    """Whether a folder was written by `transcode`."""
    return "transcoded_from" in read_json(folder / STATS_NAME)


def transcode(
    source: Path,
    spec_name: str,
    output: Path,
    out_spec_name: str,
    emit: Emit,
    device: FrameDevice,
    cluster: ThreadCluster,
) -> dict[str, Any]:
    """Write a complete folder in the chosen format.

    Args:
        source, spec_name: the folder to read and the name of its spec.
        output: an empty staging folder, which the caller renames into place.
        out_spec_name: name of the spec to write.
        emit: chunk type to write.
    Returns:
        The content of `stats.json`.

    Raises:
        UserError: the spec or the data is invalid; names feature, file and row.
    """
    spec = read_feature_spec(source, spec_name)
    _check_names(spec, out_spec_name)
    # Fail before reading any rows if the spec cannot have roles; the actual roles need all cardinalities.
    FeatureRoles.from_spec(spec.with_cardinalities(dict.fromkeys(spec.categorical(), 1)))
    kinds = kinds_of(source, spec)
    scratch = output / ".spill"
    scratch.mkdir()
    survey = ValueRanges(kinds)
    with stage("read", None, "rows") as running:
        parts = {name: _spill(source, spec, name, kinds, survey, scratch, running) for name in spec.source_spec}

    workflow = FeatureWorkflow(kinds, survey.ranges, device)
    workflow.fit(parts["train"], list(chain.from_iterable(parts.values())))
    found = survey.found | {name: len(values) for name, values in workflow.encoder.categories.items()}
    _check_cardinalities(spec, found, survey)
    spec = spec.with_cardinalities(found)
    roles = FeatureRoles.from_spec(spec)
    spec = _with_series(source, spec, roles, parts.get("test", []))
    workflow.save(output)
    _keep_categories(source, output, kinds)

    write, describe = _WRITERS[emit]
    rows = {mapping: [part.rows for part in mapping_parts] for mapping, mapping_parts in parts.items()}
    with stage("write", sum(map(sum, rows.values())), "rows") as running:
        target = Target(output, kinds, roles, device, cluster, running.advance)
        chunks = {name: write(target, name, workflow.transform(parts[name]), rows[name]) for name in parts}
    shutil.rmtree(scratch)
    describe(spec, target, chunks).write(output, out_spec_name)
    stats = {
        "transcoded_from": source.resolve().name,
        "emit": emit,
        "rows": {mapping: sum(sizes) for mapping, sizes in rows.items()},
        "cardinalities": {name: {"cardinality": spec.cardinality(name), "found": found[name]} for name in found},
        "encoded": list(workflow.encoder.categories),
        "normalized": workflow.moments,
        "left_out": [name for name in spec.feature_spec if name not in kinds],
    }
    fingerprint = read_fingerprint(source)
    if fingerprint is not None:  # the rows are the same, and so are the ids
        stats[FINGERPRINT] = asdict(fingerprint)
    write_json(output / STATS_NAME, stats)
    return stats


def _with_series(source: Path, spec: FeatureSpec, roles: FeatureRoles, test: list[Part]) -> FeatureSpec:
    """The spec with the test series length filled in from the data if undeclared; NVIDIA's scripts need it.

    Raises:
        UserError: the test rows contradict the declared length.
    """
    if not test:
        return spec

    def read(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        for part in test:
            table = feather.read_table(part.path, columns=list(names), memory_map=True)
            yield {name: table.column(name).to_numpy() for name in names}

    declared = spec.metadata.test_samples_per_series
    series = find_series(read, declared, roles.user, roles.label)
    if series.error:
        raise UserError(f"{source}: {series.error}")
    if series.note:
        console.print(series.note)
    if series.length == declared:
        return spec
    metadata = spec.metadata.model_copy(update={"test_samples_per_series": series.length})
    return spec.model_copy(update={"metadata": metadata})


def _check_names(spec: FeatureSpec, out_spec_name: str) -> None:
    """Raises UserError if the spec or a mapping has a name that is unusable for its file or folder."""
    taken = out_spec_name in (*_RESERVED, *spec.source_spec) or out_spec_name.endswith(".pt")  # tensor files
    if taken or not is_file_name(out_spec_name):
        raise UserError(
            f"--feature_spec_out {out_spec_name!r}: expected a file name that nothing else in the folder has, like "
            "feature_spec.yaml"
        )
    wrong = [name for name in spec.source_spec if not is_file_name(name) or name in _RESERVED or name.startswith(".")]
    if wrong:
        raise UserError(
            f"source_spec: {', '.join(map(repr, wrong))} cannot be the name of a folder; rename the mapping"
        )


def _spill(
    source: Path,
    spec: FeatureSpec,
    mapping: str,
    kinds: Mapping[str, Kind],
    survey: ValueRanges,
    scratch: Path,
    running: Stage,
) -> list[Part]:
    """Read and check a mapping, and write its parts as Arrow files.

    Parts never split a test series, nor a user of train if the spec declares `time_ordered`.
    """
    series = spec.metadata.test_samples_per_series if mapping == "test" else None
    block_rows = max(series, BLOCK_ROWS // series * series) if series else BLOCK_ROWS

    def tables() -> Iterator[pa.Table]:
        for block in iter_values(source, spec, mapping, kinds, block_rows):
            _refuse(source, spec, mapping, kinds, block)
            survey.add(mapping, block)
            table = pa.table(block.columns)
            running.advance(table.num_rows)
            yield table

    whole_users = mapping == "train" and spec.metadata.time_ordered
    parts: list[Part] = []
    for table in _cut_between(tables(), spec.channel("user_ch")) if whole_users else tables():
        if table.num_rows:
            path = scratch / f"{mapping}-{len(parts):05d}.arrow"
            feather.write_feather(table.cast(part_schema(kinds)), path, compression="uncompressed")
            parts.append(Part(path, table.num_rows))
    if not parts:
        raise UserError(f"source_spec.{mapping} of {source} has no rows; expected at least one")
    return parts


def _cut_between(tables: Iterator[pa.Table], user: str) -> Iterator[pa.Table]:
    """Re-chunk the rows so that cuts fall only between users."""
    held: list[pa.Table] = []
    for table in tables:
        joined = pa.concat_tables([*held, table])
        cut = whole_rows(joined.column(user).to_numpy())
        yield joined.slice(0, cut)
        held = [joined.slice(cut)]
    yield from held


def _refuse(source: Path, spec: FeatureSpec, mapping: str, kinds: Mapping[str, Kind], block: Block) -> None:
    """Raises one UserError for all unusable values of a block."""
    where = partial(locate, source, spec, mapping, text=text_of(kinds))
    wrong = [
        f"{where(w.feature, w.first)}: feature {w.feature!r} holds {w.value}, expected {w.expected}"
        + (f"; so do {w.rows - 1:,} of the rows after it" if w.rows > 1 else "")
        for w in block.wrong
    ]
    if wrong:
        raise UserError("\n  ".join([*wrong, "fix or remove those rows"]))


def _keep_categories(source: Path, output: Path, kinds: Mapping[str, Kind]) -> None:
    """Copy the source's tables of original id values."""
    for name, kind in kinds.items():
        if kind == "id" and is_file_name(name) and (source / "categories" / f"{name}.parquet").is_file():
            save_categories(output, name, read_categories(source, name))


def _check_cardinalities(spec: FeatureSpec, found: Mapping[str, int], survey: ValueRanges) -> None:
    """Raises UserError if a declared cardinality is too small; warns if most ids are unused."""
    small = {
        name: n for name, n in found.items() if isinstance(d := spec.feature_spec[name].cardinality, int) and d < n
    }
    if small:
        reported = [f"{name}: declared {spec.cardinality(name):,}, found {n:,}" for name, n in small.items()]
        raise UserError(
            "a cardinality in the feature spec is smaller than the largest id + 1: "
            + "; ".join(reported)
            + ". Correct it, or set it to auto to have it computed"
        )
    for name in survey.found:
        used = survey.distinct(name)
        if found[name] > max(_MANY_IDS, _SPARSE * used):
            console.print(
                f"warning: feature {name!r} uses {used:,} of {found[name]:,} ids, and each takes a row of the "
                "embedding table; renumber them from 0 to save that memory"
            )
