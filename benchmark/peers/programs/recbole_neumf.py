from pathlib import Path

import numpy as np
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import NeuMF
from recbole.utils import get_trainer
from recbole.utils.case_study import full_sort_topk

rows = Path("train.csv").read_text().replace("user,item", "user_id:token\titem_id:token").replace(",", "\t")
Path("log").mkdir()
Path("log/log.inter").write_text(rows)
columns = {"inter": ["user_id", "item_id"]}
config = Config(NeuMF, "log", config_dict={"data_path": ".", "load_col": columns})
data = create_dataset(config)
train, valid, test = data_preparation(config, data)
model = NeuMF(config, train.dataset)
get_trainer(config["MODEL_TYPE"], "NeuMF")(config, model).fit(train, valid)
_, top = full_sort_topk(np.arange(1, data.user_num), model, test, k=10)
np.savetxt("top.csv", data.id2token("item_id", top.numpy()), "%s", ",")
