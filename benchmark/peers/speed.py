"""Speed on a large synthetic log: preparing or loading it, and training NeuMF with equal settings."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmark.common.measure import Usage, measure
from benchmark.common.program import ROOT
from benchmark.peers.fit import Job, OverLimitError, fit
from benchmark.peers.install import error_of, python_of
from benchmark.peers.models import ADAPTERS, MODELS, batch_settings
from benchmark.peers.split import write_split
from benchmark.training.variants import NEGATIVES
from model.data.dataset import open_train
from preprocessing.spec.feature_spec import read_feature_spec
from preprocessing.synthetic.log import Shape, write_log
from workflows.common.errors import UserError
from workflows.common.progress import console

_SEED, _THREADS, _BATCH, _STEPS = 1, 2, 65_536, 300
_SHARES = (100, 10, 1)  # of the users and interactions, tried in turn until a peer would take too long
_PROJECTED = 2.0  # of the limit: a share that would take longer, in proportion to the one before, is not tried
_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_LOADERS = ("recbole",)
_FIGURES = ("per_s", "per_cpu_s")


def compare_speed(shape: Shape, peers: Sequence[str], limit_s: float, cache: Path | None) -> dict[str, Any]:
    """Ours at the full shape; each peer at the largest share of it that it manages within `limit_s`."""
    kept = nullcontext(str(cache)) if cache else tempfile.TemporaryDirectory(prefix="neumf-peers-")
    with kept as name:
        folder = Path(name).resolve()
        data = _Data(shape, folder)
        load = [_own_loading(data)]
        train = [_own_training(data)]
        for peer in peers:
            if peer in _LOADERS:
                load.append(_largest(data, limit_s, f"{peer} loading", peer, _loading))
        for row, model in MODELS.items():
            if model.peer in peers and model.speed is not None:
                train.append(_largest(data, limit_s, row, model.peer, _training(row)))
    for own, *others in (load, train):
        for other in others:
            for name in _FIGURES:
                if name in other:
                    other[f"ours_over_{name}"] = own[name] / other[name]
    return {"shape": asdict(shape), "threads": _THREADS, "batch_size": _BATCH, "results": [*load, *train]}


class _Data:
    """The log at each share: as CSV, in RecBole's format, prepared, and its split; each made on first use."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self._shape, self._folder = shape, folder
        self.prepared_by: dict[int, Usage] = {}

    def shape(self, share: int) -> Shape:
        whole = self._shape
        return Shape(max(1, whole.users // share), whole.items, max(1, whole.rows // share))

    def log(self, share: int) -> Path:
        path = self._folder / f"{self.shape(share)}.csv"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            write_log(self.shape(share), part, _SEED)
            part.rename(path)
        return path

    def atomic_file(self, share: int) -> Path:
        """The same rows as RecBole reads them: tabs, and types in the header."""
        folder = self._folder / f"{self.shape(share)}-recbole" / "log"
        path = folder / "log.inter"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with self.log(share).open(encoding="utf-8") as source, path.open("w", encoding="utf-8") as target:
                next(source)
                target.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
                while text := source.read(1 << 24):
                    target.write(text.replace(",", "\t"))
        return path

    def prepared(self, share: int) -> Path:
        folder = self._folder / f"{self.shape(share)}-prepared"
        if share not in self.prepared_by:
            flags = [f"--{kind}={name}" for kind, name in zip(("user", "item"), _COLUMNS, strict=False)]
            command = [sys.executable, "-m", "preprocessing", "--input", str(self.log(share)), *flags,
                       "--time=timestamp", "--output", str(folder), "--device", "cpu", "--overwrite"]  # fmt: skip
            self.prepared_by[share] = measure(command, cwd=ROOT)
        return folder

    def split(self, share: int) -> Path:
        path = self._folder / f"{self.shape(share)}.npz"
        if not path.exists():
            folder = self.prepared(share)
            write_split(open_train(folder, read_feature_spec(folder), torch.device("cpu")), path)
        return path


def _own_loading(data: _Data) -> dict[str, Any]:
    data.log(1).read_bytes()  # into the page cache
    data.prepared(1)
    rows, usage = data.shape(1).rows, data.prepared_by[1]
    return _row("raw log to split, rows", "ours", rows, rows / usage.wall_s, rows / usage.cpu_s, _costs(usage))


def _costs(usage: Usage) -> dict[str, float]:
    return {"wall_s": usage.wall_s, "cpu_s": usage.cpu_s, "peak_rss_mib": usage.peak_rss_bytes / 2**20}


def _own_training(data: _Data) -> dict[str, Any]:
    epoch = (data.shape(1).rows - data.shape(1).users) * (1 + NEGATIVES) // _BATCH  # whole batches
    steps = max(1, min(_STEPS, epoch - 1))
    command = [sys.executable, "-m", "benchmark.training.run", "--variant", "compiled", "--data", str(data.prepared(1)),
               "--batch_size", str(_BATCH), "--steps", str(steps), "--threads", str(_THREADS)]  # fmt: skip
    figures = json.loads(measure(command, cwd=ROOT).output.splitlines()[-1])
    per_s, per_cpu_s = figures["samples_per_s"], figures["samples_per_cpu_s"]
    return _row("NeuMF, samples", "ours", data.shape(1).rows, per_s, per_cpu_s, figures)


def _loading(data: _Data, share: int, python: Path, limit_s: float) -> dict[str, Any]:
    job = Job(str(ADAPTERS / "recbole.py"), "load", str(data.split(share)), {}, _SEED, _THREADS, limit_s, scores=False,
              log=str(data.atomic_file(share)))  # fmt: skip
    figures = fit(python, job, data.atomic_file(share).parents[1] / "run")
    rows = data.shape(share).rows
    # From the start of the process, as ours.
    return _row("raw log to split, rows", "recbole", rows, rows / figures["wall_s"], rows / figures["cpu_s"], figures)


def _training(row: str) -> Callable[[_Data, int, Path, float], dict[str, Any]]:
    model = MODELS[row]
    assert model.speed is not None
    settings = {**model.speed, **batch_settings(model.peer, _BATCH)}

    def train(data: _Data, share: int, python: Path, limit_s: float) -> dict[str, Any]:
        split = data.split(share)
        job = Job(str(model.adapter), model.name, str(split), settings, _SEED, _THREADS, limit_s, scores=False)
        figures = fit(python, job, split.with_name(f"{split.stem}-{row}"))
        samples = figures["samples"]
        per_s, per_cpu_s = samples / figures["train_s"], samples / figures["train_cpu_s"]
        return _row("NeuMF, samples", row, data.shape(share).rows, per_s, per_cpu_s, figures)

    return train


def _row(what: str, row: str, rows: int, per_s: float, per_cpu_s: float, run: dict[str, Any]) -> dict[str, Any]:
    speed = f"{per_s:,.0f}/s, {per_cpu_s:,.0f} per CPU second"
    console.print(f"{what}, {row}, {rows:,} interactions: {speed}", markup=False)
    return {"what": what, "row": row, "rows": rows, "per_s": per_s, "per_cpu_s": per_cpu_s, "run": run}


def _largest(
    data: _Data, limit_s: float, what: str, peer: str, measured: Callable[[_Data, int, Path, float], dict[str, Any]]
) -> dict[str, Any]:
    """The figures at the largest share that the peer manages within the limit, and why it is not a larger one."""
    python = python_of(peer)
    failed = {"what": what, "row": peer, "rows": data.shape(_SHARES[0]).rows}
    if python is None:
        return {**failed, "error": error_of(peer)}
    found: dict[str, Any] = {}
    for share in _SHARES:
        rows = data.shape(share).rows
        try:
            projected_s = found["run"]["wall_s"] * rows / found["rows"] if found else 0.0
            if projected_s > _PROJECTED * limit_s:
                raise OverLimitError(f"would take about {projected_s:.0f} s")
            found = {**measured(data, share, python, limit_s), "larger": None}
        except UserError as error:
            console.print(f"{what}, {peer}, {rows:,} interactions: {error}", markup=False)
            known = found or {**failed, "error": f"{error}, with {rows:,} interactions"}
            return {**known, "larger": {"rows": rows, "error": str(error)}}
    return found
