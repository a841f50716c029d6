"""Ours: plain NeuMF as `train.py` trains it, from the files of a prepared folder."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from model.distributed.process_group import RankInfo, init_process_group
from model.network.checkpoint import load_run
from model.run import session
from model.run.arguments import parse_args, run_config
from model.scoring.scorer import Scorer

_NEGATIVES = 100
_COLUMNS = ("user", "item", "label")


def write_folder(run, path):
    """Train rows; the validation items, if any, as test series."""
    path.mkdir()
    parts = {"train": (run.users, run.items, np.ones(len(run.users), np.float32))}
    if run.held_out is not None:
        rng, series = np.random.default_rng(run.seed), []
        order = np.argsort(run.users, kind="stable")
        histories = np.split(run.items[order], np.searchsorted(run.users[order], np.arange(1, run.n_users)))
        owners = np.flatnonzero(run.held_out >= 0)
        drawn = min(_NEGATIVES, run.n_items - 1 - max(map(len, histories)))
        for user in owners:
            others = np.setdiff1d(np.arange(run.n_items), [*histories[user], run.held_out[user]])
            series.append([run.held_out[user], *rng.choice(others, drawn, replace=False)])
        length = 1 + drawn
        labels = np.tile(np.eye(1, length, dtype=np.float32)[0], len(owners))
        parts["test"] = (np.repeat(owners, length).astype(np.int32), np.array(series, np.int32).ravel(), labels)
    for name, columns in parts.items():
        pq.write_table(pa.table(dict(zip(_COLUMNS, columns, strict=True))), path / f"{name}.parquet")
    spec = {
        "feature_spec": {"user": {"cardinality": run.n_users}, "item": {"cardinality": run.n_items}, "label": {}},
        "channel_spec": {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        "source_spec": {
            name: [{"type": "parquet", "features": list(_COLUMNS), "files": [f"{name}.parquet"]}] for name in parts
        },
        "metadata": {"test_samples_per_series": length} if "test" in parts else {},
    }
    (path / "feature_spec.yaml").write_text(yaml.safe_dump(spec))


def fit(run):
    write_folder(run, run.folder / "data")
    run.loaded()
    flags = []
    for name, value in run.settings.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]

    class WatchedTraining(session.Training):
        """Reports each epoch."""

        def fit(self, loader, evaluation, config, on_epoch, progress):
            def watched(training):
                on_epoch(training)
                samples = training.history.epochs[-1].train_samples
                run.epoch(samples, lambda users: scorer(training.model)(users))

            history = super().fit(loader, evaluation, config, watched, progress)
            if run.held_out is not None:
                run.chosen["epochs"] = history.best + 1
            return history

    session.Training = WatchedTraining  # type: ignore[misc]
    data, output, device = run.folder / "data", run.folder / "run", torch.device("cpu")
    where = ["--data", str(data), "--output", str(output), "--seed", str(run.seed), "--device", "cpu"]
    config = run_config(parse_args([*where, "--without", "progress", "curves", "tensorboard", *flags]))
    with init_process_group(RankInfo(), device) as world:
        session.run(config, world)
    return scorer(load_run(output, device).model)


def scorer(model):
    with torch.inference_mode():
        found = Scorer(model)

    def scores(users):
        with torch.inference_mode():
            return found.all_items(torch.from_numpy(users)).numpy()

    return scores
