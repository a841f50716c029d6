"""implicit: ALS and BPR."""

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix

_MODELS = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}


def fit(run):
    shape = (run.n_users, run.n_items)
    histories = csr_matrix((np.ones(len(run.users), np.float32), (run.users, run.items)), shape)
    run.loaded()
    model = _MODELS[run.model](random_state=run.seed, num_threads=run.threads, **run.settings)

    def scores(users):
        return model.user_factors[users] @ model.item_factors.T

    # BPR draws as many samples as there are interactions; ALS draws none.
    samples = histories.nnz if run.model == "bpr" else 0
    model.fit(histories, show_progress=False, callback=lambda *_: run.epoch(samples, scores))
    return scores
