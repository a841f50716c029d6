"""Microsoft's recommenders: NCF (NeuMF), on TensorFlow."""

import logging

import numpy as np
import pandas as pd
import tensorflow as tf
from recommenders.models.ncf.dataset import Dataset
from recommenders.models.ncf.ncf_singlenode import NCF

_PAIRS = 1 << 17


class WatchedDataset(Dataset):
    """Reports each epoch: the model asks for a new loader at the start of one."""

    def train_loader(self, *args, **more):
        yield from super().train_loader(*args, **more)
        self.report()


def fit(run):
    tf.config.threading.set_intra_op_parallelism_threads(run.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    logging.disable(logging.WARNING)
    settings = {**run.settings}
    negatives = settings.pop("n_neg", 4)
    path = run.folder / "train.csv"  # the loader reads a CSV file that is sorted by user
    table = pd.DataFrame({"userID": run.users, "itemID": run.items, "rating": 1.0})
    table.sort_values("userID", kind="stable").to_csv(path, index=False)
    data = WatchedDataset(train_file=str(path), n_neg=negatives, seed=run.seed)
    run.loaded()
    model = NCF(n_users=data.n_users, n_items=data.n_items, model_type="NeuMF", seed=run.seed, verbose=0, **settings)
    known = np.array(sorted(data.item2id))

    def scores(users):
        found = []
        for user in users.tolist():
            found.append(model.predict([user] * len(known), known.tolist(), is_list=True))
        return run.place(np.array(found, np.float32).reshape(len(users), -1), known)

    data.report = lambda: run.epoch(len(run.users) * (1 + negatives), scores)
    model.fit(data)
    return scores
