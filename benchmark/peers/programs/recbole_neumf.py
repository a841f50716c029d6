from pathlib import Path

import numpy as np
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import NeuMF
from recbole.utils import get_trainer
from recbole.utils.case_study import full_sort_scores

rows = Path("train.csv").read_text().replace("user,item", "user_id:token\titem_id:token").replace(",", "\t")
Path("log").mkdir()
Path("log/log.inter").write_text(rows)
last_two = {"split": {"LS": "valid_and_test"}, "order": "RO"}  # it needs rows for validation and test
config = Config(NeuMF, "log", config_dict={"data_path": ".", "eval_args": last_two})
data = create_dataset(config)
train, valid, test = data_preparation(config, data)
model = NeuMF(config, train.dataset)
get_trainer(config["MODEL_TYPE"], "NeuMF")(config, model).fit(train, valid)
users = np.arange(1, data.user_num)
scores = full_sort_scores(users, model, test).numpy()
scores[data.inter_matrix("csr").toarray()[1:] > 0] = -np.inf
top = data.id2token("item_id", np.argsort(-scores, axis=1)[:, :10])
np.savetxt("top.csv", np.column_stack([data.id2token("user_id", users), top]), "%s", ",")
