"""Cornac: NeuMF (its PyTorch backend), EASE, BPR and WMF."""

import numpy as np
import torch
from cornac.data import Dataset
from cornac.models import BPR, EASE, NeuMF


class WatchedNeuMF(NeuMF):
    """Reports each epoch, by the method that Cornac calls for early stopping."""

    def monitor_value(self, train_set, val_set):
        self.report()
        return None


def fit(run):
    torch.set_num_threads(run.threads)
    rows = zip(run.users.tolist(), run.items.tolist(), np.ones(len(run.users)).tolist(), strict=True)
    data = Dataset.from_uir(rows, seed=run.seed)
    run.loaded()
    if run.model == "neumf":
        model = WatchedNeuMF(
            backend="pytorch",
            seed=run.seed,
            verbose=False,
            early_stopping={"min_delta": 0.0, "patience": 1},
            **run.settings,
        )
        model.report = lambda: run.epoch(data.num_ratings * (1 + model.num_neg), scores)
    elif run.model == "ease":
        model = EASE(seed=run.seed, verbose=False, **run.settings)
    else:
        model = BPR(seed=run.seed, num_threads=run.threads, verbose=False, **run.settings)
    known = np.array([int(item) for item in data.item_ids])

    def scores(users):
        return run.place(np.stack([np.ravel(model.score(data.uid_map[user])) for user in users.tolist()]), known)

    model.fit(data)
    if run.model == "bpr":
        run.samples = data.num_ratings * model.max_iter
    return scores
