"""LensKit: ALS for implicit feedback, FlexMF with BPR's and with the logistic loss."""

import numpy as np
import pandas as pd
import torch
from lenskit.als import ImplicitMFScorer
from lenskit.data import ItemList, RecQuery, from_interactions_df
from lenskit.flexmf import FlexMFImplicitScorer
from lenskit.training import TrainingOptions


def fit(run):
    torch.set_num_threads(run.threads)
    data = from_interactions_df(pd.DataFrame({"user_id": run.users, "item_id": run.items}))
    run.loaded()
    if run.model == "als":
        model = ImplicitMFScorer(**run.settings)
    else:
        model = FlexMFImplicitScorer(**run.settings)
    items = ItemList(item_ids=np.arange(run.n_items))

    def scores(users):
        found = np.stack([model(RecQuery(user_id=user), items).scores() for user in users.tolist()])
        return np.where(np.isnan(found), np.nanmin(found, axis=1, keepdims=True) - 1.0, found)

    # What `model.train(data, options)` does, with a look after each epoch.
    trainer = model.create_trainer(data, TrainingOptions(rng=run.seed, device="cpu"))
    samples = 0 if run.model == "als" else len(run.users) * (1 + model.config.negative_count)
    for _ in range(model.config.epochs):
        trainer.train_epoch()
        run.epoch(samples, scores)
    trainer.finalize()
    return scores
