"""RecBole: NeuMF and LightGCN."""

import logging

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed


def load(run):
    """Only reads a raw log and splits it as ours is: each user's last interaction is held out."""
    config = Config(
        model="NeuMF",
        dataset="log",
        config_dict={
            "data_path": run.log.rsplit("/", 2)[0], "seed": run.seed, "use_gpu": False,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "test_only"}, "mode": "uni100", "order": "TO", "group_by": "user"},
        },
    )  # fmt: skip
    init_seed(config["seed"], config["reproducibility"])
    data_preparation(config, create_dataset(config))
    run.loaded()


def fit(run):
    torch.set_num_threads(run.threads)
    logging.disable(logging.WARNING)
    if run.model == "load":
        return load(run)
    rows = np.stack([run.users, run.items], 1)
    parts = {"train": rows, "valid": rows[:1], "test": rows[:1]}  # RecBole asks for all three
    held = run.held_out is not None
    if held:
        owners = np.flatnonzero(run.held_out >= 0)
        parts["valid"] = np.stack([owners, run.held_out[owners]], 1)
    settings = {**run.settings}
    if "negatives" in settings:
        settings["train_neg_sample_args"] = {
            "distribution": "uniform", "sample_num": settings.pop("negatives"), "alpha": 1.0, "dynamic": False,
            "candidate_num": 0,
        }  # fmt: skip
    folder = run.folder / "split"
    folder.mkdir(exist_ok=True)
    for name, pairs in parts.items():  # its atomic files
        with (folder / f"split.{name}.inter").open("w") as file:
            file.write("user_id:token\titem_id:token\n")
            np.savetxt(file, pairs, fmt="%d", delimiter="\t")
    config = Config(
        model={"neumf": "NeuMF", "lightgcn": "LightGCN"}[run.model],
        dataset="split",
        config_dict={
            "data_path": str(run.folder), "benchmark_filename": ["train", "valid", "test"],
            "load_col": {"inter": ["user_id", "item_id"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "mode": "full", "order": "RO", "group_by": "none"},
            "seed": run.seed, "use_gpu": False, "show_progress": False, "checkpoint_dir": str(run.folder / "saved"),
            "reproducibility": True, **settings,
        },
    )  # fmt: skip
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    run.loaded()
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    known = np.unique(run.items)  # the others come last
    columns = dataset.token2id("item_id", known.astype(str))

    @torch.no_grad()
    def scores(users):
        model.eval()
        if run.model == "lightgcn":
            rows = Interaction({"user_id": torch.tensor(dataset.token2id("user_id", users.astype(str)))})
            found = model.full_sort_predict(rows).view(len(users), -1).numpy()[:, columns]
            model.restore_user_e = model.restore_item_e = None
        else:
            of_users = torch.tensor(dataset.token2id("user_id", users.astype(str))).repeat_interleave(len(columns))
            pairs = {"user_id": of_users, "item_id": torch.tensor(columns).repeat(len(users))}
            found = model.forward(*pairs.values()).view(len(users), -1).numpy()
        return run.place(found, known)

    per_row = 1 + config["train_neg_sample_args"]["sample_num"]
    train_epoch = trainer._train_epoch

    def watched(*args, **more):
        loss = train_epoch(*args, **more)
        run.epoch(len(rows) * per_row, scores)
        return loss

    trainer._train_epoch = watched
    best = []
    trainer.fit(
        train, valid if held else None, saved=False, verbose=False,
        callback_fn=lambda epoch, value: best.append((value, -epoch)),
    )  # fmt: skip
    if held and best:
        run.chosen["epochs"] = 1 - max(best)[1]
    return scores
