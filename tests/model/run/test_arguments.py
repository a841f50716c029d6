"""Configuration files follow the same keys and rules as the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from model.run.arguments import FLAGS_NAME, is_flags, parse_args, run_config, write_flags
from workflows.common.errors import UserError


def written(folder: Path, content: Any) -> str:
    path = folder / "flags.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_a_configuration_sets_flags_and_the_command_line_overrides_them(tmp_path: Path) -> None:
    flags = {"batch_size": 64, "layers": [8, 4], "learning_rate": "1e-3", "eps": 1e-7, "amp": True, "data": "/d/e"}
    flags |= {"without": ["curves"], "seed": None, "precision": None, "gpus": 2}
    args = parse_args(["--config", written(tmp_path, flags), "-b", "32", "--layers", "16"])
    assert (args.batch_size, args.layers) == (32, [16])
    assert (args.learning_rate, args.eps, args.amp) == (0.001, 1e-7, True)
    assert (args.data, args.output) == (Path("/d/e"), Path("runs/e"))
    assert (args.without, args.seed, args.precision, args.gpus) == (["curves"], None, None, 2)
    assert args.epochs == 30


def test_a_written_configuration_repeats_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--data d -b 64 --layers 8 4 -t 0.5 --patience 3 --eval full --checkpoint_dir c"
    args = parse_args(flags.split())
    write_flags(tmp_path / FLAGS_NAME, vars(args), 77)
    assert is_flags(tmp_path / FLAGS_NAME)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = parse_args(["--config", str(tmp_path / FLAGS_NAME)])
    changed = {"config": tmp_path / FLAGS_NAME, "seed": 77, "data": tmp_path / "d", "checkpoint_dir": tmp_path / "c"}
    assert vars(again) == {**vars(args), **changed, "output": tmp_path / "runs" / "d"}


WRONG: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no flag": ({"batchsize": 64, "colour": 1}, ("batchsize: not a flag", "colour: not a flag")),
    "no number": ({"epochs": "many", "learning_rate": [1]}, ("epochs: ", "learning_rate: expected one value")),
    "part of a number": ({"epochs": 1.5}, ("epochs: ",)),
    "no choice": ({"loader": "disk"}, ("loader: expected one of merlin, memory, got 'disk'",)),
    "no share": ({"alpha": 1.5}, ("alpha: should be 0 to 1, got 1.5",)),
    "no member": (
        {"members": ["softmax", "bpr"]},
        ("members: expected one of softmax, bce-all, item-item, got 'bpr'",),
    ),
    "no list of members": ({"members": "softmax"}, ("members: expected a list, got 'softmax'",)),
    "no list": ({"layers": 64}, ("layers: expected a list, got 64",)),
    "no choice in a list": ({"without": ["log", "sound"]}, ("without: expected one of", "'sound'")),
    "no switch": ({"amp": "yes please"}, ("amp: expected true or false",)),
    "a switch for a number": ({"epochs": True}, ("epochs: expected one value, got True",)),
    "a long path": ({"data": "x" * 9_999}, ("data: expected at most 4,096 characters, got 'xxx",)),
    "nothing": ({"epochs": None}, ("epochs: expected a value",)),
    "not to be repeated": ({"resume": "r", "config": "c", "overwrite": True}, ("resume: not a flag", "overwrite: not")),
    "a list": ([1, 2], ("expected flags and their values",)),
    "empty": ("", ("expected flags and their values",)),
    "no YAML": ("{", ("is not a configuration",)),
    "an object": ("a: !!python/object/apply:os.system [ls]", ("is not a configuration",)),
    "deep": ("[" * 50_000, ("is not a configuration",)),
    "large": ("# " + "x" * (1 << 20), ("more than 1,048,576 bytes",)),
}


@pytest.mark.parametrize(("content", "told"), WRONG.values(), ids=WRONG.keys())
def test_an_invalid_configuration_is_refused_with_all_its_errors(
    tmp_path: Path, content: Any, told: tuple[str, ...]
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as error:
        parse_args(["--config", path])
    assert path in str(error.value)
    for text in told:
        assert text in str(error.value)


def test_flags_of_losses_over_all_items_are_kept(tmp_path: Path) -> None:
    flags = "--arch gmf --members softmax bce-all softmax item-item --schedule cosine --validation leave-one-out"
    flags += " --loss softmax --weight_decay 0.25 --recency 0.5 --pretrained a b --alpha 0.25"
    args = parse_args(flags.split())
    write_flags(tmp_path / FLAGS_NAME, vars(args), 1)
    again = parse_args(["--config", str(tmp_path / FLAGS_NAME)])
    assert again.pretrained == [Path("a").absolute(), Path("b").absolute()]
    for name in ("arch", "members", "schedule", "loss", "weight_decay", "recency", "alpha"):
        assert getattr(again, name) == getattr(args, name)
    assert again.members == ["softmax", "bce-all", "softmax", "item-item"]


def test_the_defaults_use_none_of_these_flags() -> None:
    args = parse_args([])
    assert (args.arch, args.loss, args.schedule, args.members, args.pretrained) == ("neumf", "bce", "constant", [], [])
    assert (args.weight_decay, args.recency) == (0.0, 0.0)


CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configurations_are_valid(path: Path) -> None:
    args = parse_args(["--config", str(path)])
    assert run_config(args).train.members == tuple(args.members)


def test_a_missing_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml is not a configuration"):
        parse_args(["--config", str(tmp_path / "none.yaml")])


def test_a_resumed_run_uses_its_own_flags_and_folder(tmp_path: Path) -> None:
    write_flags(tmp_path / FLAGS_NAME, vars(parse_args(["-b", "64", "-e", "9", "--data", str(tmp_path)])), 5)
    args = parse_args(["--resume", str(tmp_path), "-e", "12"])
    assert (args.batch_size, args.epochs, args.seed, args.output) == (64, 12, 5, tmp_path)


@pytest.mark.parametrize("more", [["--output", "other"], ["--config", "other.yaml"]])
def test_a_resumed_run_takes_no_other_config_or_output(tmp_path: Path, more: list[str]) -> None:
    write_flags(tmp_path / FLAGS_NAME, vars(parse_args([])), 5)
    with pytest.raises(UserError, match="--resume RUN continues"):
        parse_args(["--resume", str(tmp_path), *more])


def test_a_missing_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        parse_args(["--resume", str(tmp_path / "none")])
    with pytest.raises(UserError, match="is not a configuration"):
        parse_args(["--resume", str(tmp_path)])


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as error:
        run_config(parse_args(["-b", "0", "--beta1", "2", "--layers", "7", "--dropout", "1"]))
    for flag in ("--batch_size", "--beta1", "--layers", "--dropout"):
        assert flag in str(error.value)
    with pytest.raises(UserError) as error:
        run_config(parse_args(["--gpus", "0", "--arch", "mlp", "--pretrained", "a", "--mode", "test"]))
    for flag in ("--gpus", "--pretrained", "--mode test"):
        assert flag in str(error.value)
