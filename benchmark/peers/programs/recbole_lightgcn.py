from pathlib import Path

import numpy as np
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils.case_study import full_sort_topk

rows = Path("train.csv").read_text().replace("user,item", "user_id:token\titem_id:token").replace(",", "\t")
Path("log").mkdir()
Path("log/log.inter").write_text(rows)
columns = {"inter": ["user_id", "item_id"]}
run_recbole("LightGCN", "log", config_dict={"data_path": ".", "load_col": columns, "checkpoint_dir": "saved"})
config, model, data, _, _, test = load_data_and_model(str(next(Path("saved").glob("*.pth"))))
_, top = full_sort_topk(np.arange(1, data.user_num), model, test, k=10)
np.savetxt("top.csv", data.id2token("item_id", top.numpy()), "%s", ",")
