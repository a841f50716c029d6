"""The rows of `python -m benchmark peers`: each model's cost, and its metrics on the test series."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from benchmark.common.measure import measure
from benchmark.common.program import ROOT
from benchmark.peers.adapters.host import top_items
from benchmark.peers.curve import first_within, with_offset
from benchmark.peers.fit import Job, fit, load_scores
from benchmark.peers.install import error_of, python_of
from benchmark.peers.models import MODELS, OURS, Model, Settings, program_lines
from benchmark.peers.split import write_split
from benchmark.quality.data import Data
from benchmark.quality.rows import ROWS
from benchmark.quality.run import Done, run
from benchmark.quality.statistics import difference, estimate
from benchmark.quality_baselines import SCORES_NAME
from model.network.checkpoint import load_run
from model.scoring.scorer import Scorer
from workflows.common.errors import UserError
from workflows.common.files import read_json, write_json
from workflows.common.progress import console

# Rows of `benchmark.quality`; the recipe comes last, and the others are compared with it.
OWN = ("popularity", "ease", "recipe")
_COMMANDS = 3  # preprocessing, training, recommending; baselines cannot recommend
_SAMPLE = "MovieLens 100K (sample)"  # in stats.json
Values = dict[str, np.ndarray]
Scores = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Comparison:
    """All rows of the table: each model's figures, and its metrics on the test series by seed and user."""

    data: Data
    folder: Path
    output: Path
    own_runs: Path
    seeds: Sequence[int]
    trials: int
    limit_s: float

    @staticmethod
    def create(
        folder: Path, output: Path, own_runs: Path, seeds: Sequence[int], trials: int, limit_s: float
    ) -> Comparison:
        """
        Args:
            folder: prepared, with test series.
            output, own_runs: where the splits and the runs of peers, and those of ours, are kept.
            seeds: settings are tuned with the first.
        """
        data = Data.load(folder)
        for runs in (output / "runs", own_runs):
            runs.mkdir(parents=True, exist_ok=True)
        write_split(data.train, output / "train.npz")
        write_split(data.train, output / f"validation-{seeds[0]}.npz", data.validation_items(seeds[0]))
        return Comparison(data, folder, output, own_runs, seeds, trials, limit_s)

    def rows(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Ours, then the named models."""
        rows = [self.own(name) for name in OWN]
        recipe: Values = rows[-1]["values"]
        for name in names:
            rows += self.fitted(name, MODELS[name])
        for row in rows:
            values = row.pop("values", None)
            if values is not None:
                row["metrics"] = {metric: _estimates(found, recipe[metric]) for metric, found in values.items()}
        return rows

    def own(self, name: str) -> dict[str, Any]:
        """A row of `benchmark.quality`."""
        row, metrics, runs = ROWS[name], [], []
        for seed in self.seeds:
            used = seed if row.seeded else self.seeds[0]
            done = run(row.program, used, self.folder, self.own_runs / f"{name}-{used}")
            scores = _own_scores(row.kind, done.folder)
            metrics.append(self.data.ranks(scores).metrics())
            runs.append(self._own_figures(done, scores, row.kind))
        values = _stacked(metrics)
        found: dict[str, Any] = {
            "row": name, "peer": OURS, "kind": "ours", "what": row.what, "runs": runs, "values": values,
            "lines": _COMMANDS if row.kind == "recipe" else None, "settings": shlex.join(row.program),
        }  # fmt: skip
        last = {"wall_s": runs[0]["wall_s"], "cpu_s": runs[0]["cpu_s"], "hr": float(values["sampled hr@10"][0].mean())}
        found["curve"] = self._from_raw_log({"final": last["hr"], "points": [last], "within": last})
        _report(name, values)
        return found

    def _from_raw_log(self, curve: dict[str, Any]) -> dict[str, Any]:
        """The curve of a model of ours, with preprocessing before it."""
        return with_offset(curve, self.prepared["wall_s"], self.prepared["cpu_s"]) if self.prepared else curve

    @property
    def _loading(self) -> dict[str, float]:
        """The cost of loading for a model of ours: that of preprocessing."""
        return {f"load_{key}": value for key, value in (self.prepared or {}).items()}

    def _own_figures(self, done: Done, scores: Scores, kind: str) -> dict[str, Any]:
        split = np.load(self.output / "train.npz")
        before = time.time(), time.process_time()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with torch.inference_mode():
            top_items(
                lambda block: scores(torch.from_numpy(block)).numpy(), split["users"], split["items"],
                int(split["n_users"]),
            )  # fmt: skip
        torch.set_num_threads(threads)
        figures: dict[str, Any] = {
            "wall_s": done.wall_s, "cpu_s": done.cpu_s, "peak_rss_mib": done.peak_rss_mib, "commit": done.commit,
            "recommend_s": time.time() - before[0], "recommend_cpu_s": time.process_time() - before[1],
        }  # fmt: skip
        figures |= self._loading
        if kind != "baseline":
            facts = json.loads((done.folder / "metrics.json").read_text(encoding="utf-8"))
            # Per CPU second, as the peers': it is reported by the wall clock.
            figures["samples_per_s"] = facts["train_throughput"] * done.wall_s / done.cpu_s
        return figures

    @cached_property
    def prepared(self) -> dict[str, float] | None:
        """The cost of preparing the folder; None if it is not the sample that can be prepared again."""
        stats, facts = read_json(self.folder / "stats.json"), self.output / "runs" / "prepared.json"
        if stats.get("source") != _SAMPLE:
            return None
        if not facts.exists():
            with tempfile.TemporaryDirectory() as folder:
                usage = measure(
                    [sys.executable, "-m", "preprocessing", "--sample", "ml-100k", "--output", f"{folder}/data"],
                    cwd=ROOT,
                )
            write_json(facts, {"wall_s": usage.wall_s, "cpu_s": usage.cpu_s})
        return read_json(facts)

    def fitted(self, name: str, model: Model) -> list[dict[str, Any]]:
        """Two rows: the defaults, and the settings that did best on validation."""
        ours = model.peer == OURS
        python = Path(sys.executable) if ours else python_of(model.peer)
        lines = _COMMANDS if ours else program_lines(name)
        common = {"row": name, "peer": model.peer, "what": f"{model.peer}: {model.what}", "lines": lines}
        if python is None:
            return [{**common, "kind": "default", "error": error_of(model.peer)}]
        quality = self.data.validation(self.data.validation_items(self.seeds[0]))
        tried: list[dict[str, Any]] = []
        for settings in model.candidates(self.trials, self.seeds[0]):
            job = Job(str(model.adapter), model.name, str(self._split("validation")), settings, self.seeds[0],
                      limit_s=self.limit_s)  # fmt: skip
            folder = self.output / "runs" / f"{name}-trial-{len(tried)}"
            try:
                figures = fit(python, job, folder)
                hr, ndcg = quality(np.array(load_scores(folder / "scores.npy"), dtype=np.float64))
                own = {**settings, **figures["chosen"]}
                tried.append(
                    {"settings": own, "expected hr@10": hr, "expected ndcg@10": ndcg, "cpu_s": figures["cpu_s"]}
                )
                console.print(f"{name} {own}: expected HR@10 {hr:.4f}, NDCG@10 {ndcg:.4f}", markup=False)
            except UserError as error:
                tried.append({"settings": settings, "error": str(error)})
                console.print(f"{name} {settings}: {error}", markup=False)
        rows = [self._fitted({**common, "kind": "default"}, python, model, tried[:1])]
        if self.trials:
            rows.append(self._fitted({**common, "kind": "tuned"}, python, model, tried))
        return rows

    def _split(self, kind: str) -> Path:
        return self.output / (f"validation-{self.seeds[0]}.npz" if kind == "validation" else "train.npz")

    def _fitted(self, row: dict[str, Any], python: Path, model: Model, tried: list[dict[str, Any]]) -> dict[str, Any]:
        """Fit the best of the tried settings to all of train, with each seed."""
        row["tried"] = tried
        known = [each for each in tried if "error" not in each]
        if not known:
            return {**row, "error": tried[0]["error"]}
        best = max(known, key=lambda each: each["expected hr@10"] + each["expected ndcg@10"])
        settings: Settings = best["settings"]
        kind = "default" if best is known[0] and known[0] is tried[0] else row["kind"]  # the same fit: made once
        metrics, runs, curve = [], [], None
        for seed in self.seeds:
            job = Job(str(model.adapter), model.name, str(self._split("train")), settings, seed,
                      limit_s=self.limit_s, curve=seed == self.seeds[0])  # fmt: skip
            folder = self.output / "runs" / f"{row['row']}-{kind}-{seed}"
            try:
                figures = fit(python, job, folder)
            except UserError as error:
                return {**row, "settings": settings, "error": str(error)}
            metrics.append(self._metrics(folder / "scores.npy"))
            curve = curve or self._curve(folder, figures, metrics[0])
            runs.append({**figures, "epochs": len(figures["epochs"])})  # the curve has their times
        if model.peer == OURS:
            own = ({key: value for key, value in each.items() if not key.startswith("load_")} for each in runs)
            runs = [{**each, **self._loading} for each in own]
            curve = curve and self._from_raw_log(curve)
        values = _stacked(metrics)
        _report(f"{row['row']} {row['kind']}", values)
        return {**row, "settings": settings, "runs": runs, "values": values, "curve": curve}

    def _metrics(self, path: Path) -> Values:
        scores = torch.from_numpy(np.array(load_scores(path)))
        return self.data.ranks(lambda users: scores[users]).metrics()

    def _curve(self, folder: Path, figures: dict[str, Any], metrics: Values) -> dict[str, Any]:
        """HR@10 on test by seconds of training, for the picture only; nothing is chosen by it."""
        final, points = float(metrics["sampled hr@10"].mean()), []
        for number, epoch in enumerate(figures["epochs"], 1):
            path = folder / f"epoch-{number}.npy"
            if path.exists():
                points.append({**epoch, "epoch": number, "hr": float(self._metrics(path)["sampled hr@10"].mean())})
        last = {"wall_s": figures["total_s"], "cpu_s": figures["total_cpu_s"], "hr": final}
        return {"final": final, "points": [*points, last], "within": first_within([*points, last], final)}


def _own_scores(kind: str, folder: Path) -> Scores:
    if kind == "baseline":
        scores = safetensors.torch.load_file(folder / SCORES_NAME)["scores"]
        return lambda users: scores[users]
    return Scorer(load_run(folder, torch.device("cpu")).model).all_items


def _estimates(found: np.ndarray, recipe: np.ndarray) -> dict[str, Any]:
    return {
        **asdict(estimate(found)),
        "over_recipe": asdict(difference(found, recipe)),
        "runs": found.mean(1).tolist(),
    }


def _stacked(metrics: list[Values]) -> Values:
    """By seed and user, [seeds, users]."""
    return {metric: np.stack([each[metric] for each in metrics]) for metric in metrics[0]}


def _report(name: str, values: Values) -> None:
    figures = (f"{metric} {found.mean():.4f}" for metric, found in values.items() if metric.startswith("sampled"))
    console.print(f"{name}: {', '.join(figures)}", markup=False)
