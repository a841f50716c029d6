"""A run as the start of a network for other users and items: each known id keeps its rows, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import train
from model.data.known_rows import match_rows
from model.distributed.process_group import ProcessGroup
from model.network.checkpoint import save_model, save_reference
from model.network.neumf import NeuMF, NeuMFConfig
from model.network.warm_start import TrainedRun, carried_over, carry_over, check_architecture, find_run
from model.run.arguments import parse_args, run_config
from model.run.network import initial_network
from preprocessing.fingerprint import encoding_hash
from preprocessing.spec.feature_columns import FeatureColumns, SideFeature
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError
from workflows.operators.saved import write_categories

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
Ids = Sequence[int] | Sequence[str] | None
SHAPE: dict[str, Any] = {"factors": 3, "layers": (8, 4)}
FLAGS = ["-f", "3", "--layers", "8", "4", "-k", "2", "-b", "64", "-l", "0.01", "-s", "5", "-e", "1", "--device", "cpu"]
FLAGS += ["--without", "curves", "tensorboard", "progress"]  # they take longer than training
OLD_USERS, NEW_USERS = ["u3", "u1", "ü 2", "7"], ["u1", "n1", "7", "u3", "n2", "n3"]
OLD_ITEMS, NEW_ITEMS = [40, 10, 30], [10, 20, 30, 40]


def random_network(n_users: int, n_items: int, seed: int, **change: Any) -> NeuMF:
    model = NeuMF(NeuMFConfig(n_users=n_users, n_items=n_items, **{**SHAPE, **change}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


@pytest.fixture
def prepare(write_folder: Callable[..., Path]) -> Callable[..., Path]:
    """`prepare(name, users, items)`: a folder with the given original ids, or their numbers for none."""

    def write(name: str, users: Ids, items: Ids, n_users: int = 0, n_items: int = 0) -> Path:
        n_users, n_items = len(users or ()) or n_users, len(items or ()) or n_items
        train = [(user, user % n_items, 1.0) for user in range(n_users)]
        test = [(user, (user + one) % n_items, float(one == 1)) for user in range(n_users) for one in (1, 2)]
        folder = write_folder([train], n_users, n_items, [test], 2, name=name)
        for column, ids in (("user", users), ("item", items)):
            if ids is not None:
                write_categories(folder, column, pd.Series(ids))
        if users is not None and items is not None:
            encoding = encoding_hash({"user": pa.array(users), "item": pa.array(items)})
            stats = {"fingerprint": {"encoding": encoding, "split": "0"}}
            (folder / "stats.json").write_text(json.dumps(stats))
        return folder

    return write


def write_run(data: Path, model: NeuMF, with_fingerprint: bool = True) -> Path:
    folder = data.parent / f"run-of-{data.name}"
    folder.mkdir()
    stats = json.loads((data / "stats.json").read_text()) if (data / "stats.json").exists() else {"fingerprint": None}
    about = {"data": str(data), "feature_spec_file": "feature_spec.yaml", "train": {}}
    save_model(folder, model, {**about, **(stats if with_fingerprint else {})})
    return folder


def opened(path: Path) -> TrainedRun:
    run = find_run(path)
    assert run is not None
    return run


def columns_of(data: Path, **sides: tuple[SideFeature, ...]) -> FeatureColumns:
    return replace(FeatureColumns.from_spec(read_feature_spec(data)), **sides)


def assert_rows(found: torch.Tensor, old: torch.Tensor, start: torch.Tensor, rows: Sequence[int]) -> None:
    """Each row is the given row of the old table, or for -1 its own initial one."""
    expected = torch.stack([old[row] if row >= 0 else start[place] for place, row in enumerate(rows)])
    assert torch.equal(found, expected)


def rows_by_id(new: Ids, old: Ids) -> list[int]:
    known = {str(one): place for place, one in enumerate(old or ())}
    return [known.get(str(one), -1) for one in new or ()]


@pytest.mark.parametrize(
    ("users", "items"),
    [
        ((OLD_USERS, NEW_USERS), (OLD_ITEMS, NEW_ITEMS)),  # permuted, some left out
        ((OLD_USERS, [*OLD_USERS, "n1"]), (OLD_ITEMS, [*OLD_ITEMS, 20, 50])),  # extended
        ((OLD_USERS, OLD_USERS[::-1]), (OLD_ITEMS, OLD_ITEMS[::-1])),  # of the same sizes
        (([7, 8, 9], ["8", "x", "7"]), (["5", "6", "x"], [6, 5])),  # integers and text
        ((OLD_USERS, ["n1", "n2"]), (OLD_ITEMS, OLD_ITEMS)),  # other users of the same items
    ],
)  # fmt: skip
@pytest.mark.parametrize("arch", ["gmf", "mlp", "neumf"])
@pytest.mark.parametrize("new_rows", ["random", "mean"])
def test_every_known_id_keeps_its_rows(
    prepare: Callable[..., Path], users: tuple[Ids, Ids], items: tuple[Ids, Ids], arch: str, new_rows: str
) -> None:
    (old_users, new_users), (old_items, new_items) = users, items
    data, old_data = prepare("new", new_users, new_items), prepare("old", old_users, old_items)
    trained = random_network(len(old_users or ()), len(old_items or ()), 1, arch=arch)
    run = opened(write_run(old_data, trained, with_fingerprint=arch != "gmf"))
    found = random_network(len(new_users or ()), len(new_items or ()), 2, arch=arch)
    start = {name: value.clone() for name, value in found.state_dict().items()}
    rows = match_rows(run, data, columns_of(data))
    carry_over(found, run, rows, new_rows)
    by_id = {"user": rows_by_id(new_users, old_users), "item": rows_by_id(new_items, old_items)}
    assert (rows.users.tolist(), rows.items.tolist()) == (by_id["user"], by_id["item"])
    for name, value in found.state_dict().items():
        old = trained.state_dict()[name]
        if "embed" not in name:
            assert torch.equal(value, old)
            continue
        other = old.double().mean(0).float().expand(start[name].shape) if new_rows == "mean" else start[name]
        assert_rows(value, old, other, by_id["user" if "user" in name else "item"])
    n_known = [sum(row >= 0 for row in one) for one in by_id.values()]
    assert f"carried over {n_known[0]} of {len(new_users or ())} users and {n_known[1]} of" in carried_over(run, rows)


def test_the_line_counts_what_is_known_new_and_gone(prepare: Callable[..., Path]) -> None:
    data, old = prepare("new", NEW_USERS, NEW_ITEMS), prepare("old", OLD_USERS, OLD_ITEMS)
    run = opened(write_run(old, random_network(4, 3, 1)) / "model.safetensors")
    assert carried_over(run, match_rows(run, data, columns_of(data))) == (
        f"carried over 3 of 6 users and 3 of 4 items from {run.folder}; 3 and 1 are new; 1 and 0 of the run are not in "
        "--data"
    )


@pytest.mark.parametrize("lost", ["gone", "prepared anew"])
def test_the_fingerprint_proves_that_ids_were_appended(prepare: Callable[..., Path], lost: str) -> None:
    old = prepare("old", OLD_USERS, OLD_ITEMS)
    run = opened(write_run(old, random_network(4, 3, 1)))
    shutil.rmtree(old)
    if lost == "prepared anew":
        prepare("old", NEW_USERS[:4], NEW_ITEMS[:3])
    extended = prepare("extended", [*OLD_USERS, "n1"], [*OLD_ITEMS, 20])
    rows = match_rows(run, extended, columns_of(extended))
    assert (rows.users.tolist(), rows.items.tolist()) == ([0, 1, 2, 3, -1], [0, 1, 2, -1])
    for name, users, items in (
        ("permuted", [*OLD_USERS[::-1], "n1"], OLD_ITEMS),
        ("fewer", OLD_USERS[:3], OLD_ITEMS),
        ("text", OLD_USERS, [str(item) for item in OLD_ITEMS]),
    ):
        data = prepare(name, users, items)
        with pytest.raises(
            UserError, match=f"{run.folder} are unknown.*(exist|anew).*does not begin with.*from scratch"
        ):
            match_rows(run, data, columns_of(data))


def test_without_categories_ids_are_their_own_numbers(
    prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old, data = prepare("old", None, None, 4, 3), prepare("new", None, None, 6, 2)
    run = opened(write_run(old, random_network(4, 3, 1)))
    expected = [0, 1, 2, 3, -1, -1], [0, 1]
    rows = match_rows(run, data, columns_of(data))
    assert (rows.users.tolist(), rows.items.tolist()) == expected
    shutil.rmtree(old)
    rows = match_rows(run, data, columns_of(data))
    assert (rows.users.tolist(), rows.items.tolist()) == expected
    assert f"{old} does not exist; {data} is taken to number users and items as it did" in capsys.readouterr().out
    text = prepare("text", ["a", "b"], None, 2, 3)
    with pytest.raises(UserError, match="does not exist"):
        match_rows(run, text, columns_of(text))


COLOURS = ["red", "blue", "green", "white"], ["blue", "new", "white", "red", "newer"]
KINDS = ["x", "y"], ["z", "x", "y"]


def with_side_features(prepare: Callable[..., Path], name: str, number: int) -> tuple[Path, dict[str, Any]]:
    data = prepare(name, (OLD_USERS, NEW_USERS)[number], (OLD_ITEMS, NEW_ITEMS)[number])
    write_categories(data, "colour", pd.Series(COLOURS[number]))
    write_categories(data, "kind", pd.Series(KINDS[number]))
    row_side = SideFeature("age"), SideFeature("colour", len(COLOURS[number]))
    item_side = SideFeature("kind", len(KINDS[number])), SideFeature("shelf", 4 + number)  # shelf: its own numbers
    return data, {"row_side": row_side, "item_side": item_side}


@pytest.mark.parametrize("new_rows", ["random", "mean"])
def test_side_features_are_carried_over_by_value(prepare: Callable[..., Path], new_rows: str) -> None:
    (old, old_sides), (data, sides) = (with_side_features(prepare, name, n) for n, name in enumerate(("old", "new")))
    trained, found = random_network(4, 3, 1, **old_sides), random_network(6, 4, 2, **sides)
    run = opened(write_run(old, trained))
    starts = [table.weight.detach().clone() for table in found.side_embed]
    carry_over(found, run, match_rows(run, data, columns_of(data, **sides)), new_rows)
    last = "unknown"  # the row of items without a value
    by_value = [
        rows_by_id(COLOURS[1], COLOURS[0]),
        rows_by_id([*KINDS[1], last], [*KINDS[0], last]),
        rows_by_id([*range(5), last], [*range(4), last]),
    ]
    for table, before, start, rows in zip(found.side_embed, trained.side_embed, starts, by_value, strict=True):
        other = before.weight.double().mean(0).float().expand(start.shape) if new_rows == "mean" else start
        assert_rows(table.weight, before.weight, other, rows)
    assert torch.equal(found.mlp[0].weight, trained.mlp[0].weight)
    shutil.rmtree(old)
    with pytest.raises(UserError, match="does not exist"):
        match_rows(run, data, columns_of(data, **sides))


def test_networks_that_differ_are_rejected_with_all_differences(prepare: Callable[..., Path]) -> None:
    data, sides = with_side_features(prepare, "old", 0)
    run = opened(write_run(data, random_network(4, 3, 1, **sides)))
    wider = {**sides, "row_side": (SideFeature("age"), SideFeature("colour", 8))}
    for change, told in (
        ({"layers": (8,), "factors": 5}, "--factors is 3 in the run, got 5; --layers is 8 4 in the run, got 8."),
        ({"arch": "mlp", "factors": 5}, "--arch is neumf in the run, got mlp."),
        ({"item_side": ()}, "of the item are kind (2 values), shelf (4 values), those of --data none."),
        (wider, "context are age (number), colour (4 values), those of --data age (number), colour (8 values)."),
    ):
        with pytest.raises(UserError) as error:
            check_architecture(random_network(9, 9, 2, **{**sides, **change}).config, run)
        assert told in str(error.value)
        assert f"--config {run.folder / 'config.yaml'}" in str(error.value)
    check_architecture(random_network(9, 9, 2, dropout=0.1, **sides).config, run)


def test_weights_that_are_not_of_their_config_are_rejected(prepare: Callable[..., Path]) -> None:
    data = prepare("old", OLD_USERS, OLD_ITEMS)
    folder = write_run(data, random_network(4, 3, 1))
    save_reference(folder, random_network(4, 4, 1))
    run = opened(folder / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth does not fit.*mf_item_embed.*not the weights of .*config\.json"):
        carry_over(random_network(4, 3, 2), run, match_rows(run, data, columns_of(data)), "random")


def positives(n_users: int, n_items: int, seed: int) -> list[list[int]]:
    """Items of each user, most of the user's own half of the items, in an order of their own."""
    rng = np.random.default_rng(seed)
    half = n_items // 2
    return [[int(item) + user % 2 * half for item in rng.permutation(half)[:8]] for user in range(n_users)]


@pytest.fixture
def days(write_folder: Callable[..., Path]) -> tuple[Path, Path]:
    """Folders of two days: the second has the ids of the first in another order, new ones, and a later interaction."""
    folders, (n_users, n_items) = [], (40, 24)
    history = positives(n_users + 4, n_items, 0)
    rng = np.random.default_rng(1)
    for day, (name, users) in enumerate((("yesterday", n_users), ("today", n_users + 4))):
        number = rng.permutation(users).tolist()
        items = rng.permutation(n_items).tolist()
        train, test = [], []
        for user in np.argsort(number).tolist():
            own = history[user][: 6 + day]
            train += [(number[user], items[item], 1.0) for item in own[:-1]]
            others = [item for item in range(n_items) if item not in history[user]]
            test += [(number[user], items[item], float(item == own[-1])) for item in (own[-1], *others)]
        folder = write_folder([train], users, n_items, [test], 1 + n_items - 8, name=name)
        write_categories(folder, "user", pd.Series([f"u{one}" for one in np.argsort(number)]))
        write_categories(folder, "item", pd.Series(np.argsort(items)))
        folders.append(folder)
    return folders[0], folders[1]


def trained(data: Path, name: str, *flags: str) -> Path:
    output = data.parent / name
    train.main(["--data", str(data), "--output", str(output), *FLAGS, *flags])
    return output


def hits(run: Path) -> float:
    return float(json.loads((run / "metrics.json").read_text())["hr@2"])


@pytest.mark.parametrize("flags", ["-l 0.02 --new_rows mean", "--arch gmf --loss softmax -l 0.02"])
def test_a_warm_start_is_better_than_a_cold_one(
    days: tuple[Path, Path], flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    yesterday, today = days
    network = [flag for flag in flags.split() if flag not in ("--new_rows", "mean")]
    run = trained(yesterday, "run", *network, "-e", "15")
    warm = trained(today, "warm", *flags.split(), "--load_checkpoint_path", str(run))
    assert f"carried over 40 of 44 users and 24 of 24 items from {run}; 4 and 0 are new\n" in capsys.readouterr().out
    assert hits(warm) > hits(trained(today, "cold", *network)) + 0.1


def test_resuming_a_warm_start_does_not_need_the_run(days: tuple[Path, Path]) -> None:
    yesterday, today = days
    run = trained(yesterday, "run")
    whole = trained(today, "whole", "--load_checkpoint_path", str(run), "-e", "2")
    part = trained(today, "part", "--load_checkpoint_path", str(run))
    shutil.rmtree(run)
    train.main(["--resume", str(part), "-e", "2"])
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def loaded(data: Path, world: ProcessGroup, counts: torch.Tensor | None, *flags: str) -> NeuMF:
    """The network of a run before training."""
    config = run_config(parse_args(["--data", str(data), "--output", str(data.parent / "out"), *FLAGS, *flags]))
    columns = columns_of(data)
    return initial_network(config, config.network(columns), columns, (), world, counts)


@pytest.mark.parametrize("new_rows", ["random", "mean"])
@pytest.mark.parametrize("loss", ["softmax", "bce-all"])
def test_known_items_keep_their_bias_and_new_ones_start_from_popularity(
    prepare: Callable[..., Path], loss: str, new_rows: str
) -> None:
    old, data = prepare("old", OLD_USERS, OLD_ITEMS), prepare("new", NEW_USERS, NEW_ITEMS)
    counts, flags = torch.tensor([5, 9, 2, 7]), ["--arch", "gmf", "--loss", loss]
    cold = loaded(data, ProcessGroup(CPU), counts, *flags)
    before = loaded(old, ProcessGroup(CPU), counts[:3], *flags)
    with torch.no_grad():
        before.mf_item_embed.weight[:, -1] = torch.tensor([0.5, -3.0, 2.0])
    flags += ["--load_checkpoint_path", str(write_run(old, before)), "--new_rows", new_rows]
    warm, other = (loaded(data, ProcessGroup(CPU, rank, 2), counts, *flags) for rank in (0, 1))
    assert all(torch.equal(one, two) for one, two in zip(warm.parameters(), other.parameters(), strict=True))
    bias = warm.mf_item_embed.weight[:, -1].tolist()
    assert bias == [-3.0, cold.mf_item_embed.weight[1, -1].item(), 2.0, 0.5]
    assert (warm.mf_user_embed.weight[:, -1] == 1.0).all()
    factors = before.mf_item_embed.weight.mean(0) if new_rows == "mean" else cold.mf_item_embed.weight[1]
    torch.testing.assert_close(warm.mf_item_embed.weight[1, :-1], factors[:-1], rtol=1e-6, atol=0.0)


def test_mode_test_refuses_untrained_rows_and_finds_known_ones_by_id(
    days: tuple[Path, Path], prepare: Callable[..., Path]
) -> None:
    yesterday, today = days
    run = trained(yesterday, "run")
    with pytest.raises(UserError, match=r"--mode test: 4 of the 44 users and 0 of the 24 items of .* are unknown to"):
        trained(today, "tested", "--mode", "test", "--load_checkpoint_path", str(run))
    assert not (today.parent / "tested").exists()
    tested = trained(yesterday, "tested", "--mode", "test", "--load_checkpoint_path", str(run))
    assert hits(tested) == hits(run)


def test_runs_and_weights_that_cannot_start_a_network_are_rejected(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    old, other = prepare("old", OLD_USERS, OLD_ITEMS), prepare("other", ["x", "y"], [1, 2, 3])
    extended = prepare("extended", [*OLD_USERS, "n"], OLD_ITEMS)
    run = write_run(old, random_network(4, 3, 1))
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "model.safetensors", alone)
    for data, path, told in (
        (other, run, f"{other} has none of the users and items that {run} was trained on; train from scratch"),
        (extended, alone, r"expected \(5, 3\), got \(4, 3\).*or name a run, whose users and items are carried over"),
        (old, old, f"{old} is no trained run"),
        (old, tmp_path / "gone.pth", "not a readable checkpoint"),
    ):
        with pytest.raises(UserError, match=told):
            loaded(data, ProcessGroup(CPU), None, "--load_checkpoint_path", str(path))
    with pytest.raises(UserError, match="--new_rows mean goes with --load_checkpoint_path"):
        loaded(old, ProcessGroup(CPU), None, "--new_rows", "mean")
