"""Whole runs on small folders: validation, full ranking, resuming, outputs, several processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

import train
from model.network.checkpoint import load_run
from model.run.run_writer import RunWriter
from model.training.resume_state import LAST_NAME
from model.training.trainer import Training
from workflows.common.errors import UserError, run_command

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 20, 30
FLAGS = ["-b", "64", "-f", "4", "--layers", "8", "4", "-l", "0.01", "-k", "3", "--device", "cpu", "-s", "1"]
PLAIN = ["--without", "curves", "tensorboard", "progress"]  # what most tests do not look at takes longer than training
MEASURED = {"train_throughput", "eval_throughput", "time_to_best_model", "peak_rss_mib"}


def rows_of_users() -> tuple[list[list[tuple[int, int, float]]], list[tuple[int, int, float]]]:
    """Train positives in three parts of different lengths, and a series of 6 test items per user."""
    rng = np.random.default_rng(0)
    parts: list[list[tuple[int, int, float]]] = [[], [], []]
    series = []
    for user in range(N_USERS):
        items = [int(item) for item in rng.permutation(N_ITEMS)]
        own = 3 + user % 9
        parts[0 if user < 12 else 1 + user % 2] += [(user, item, 1.0) for item in items[:own]]
        series += [(user, item, float(place == 0)) for place, item in enumerate(items[own : own + 6])]
    return parts, series


@pytest.fixture
def data(write_folder: Callable[..., Path]) -> Path:
    parts, series = rows_of_users()
    return write_folder(parts, N_USERS, N_ITEMS, [series], 6)


def trained(data: Path, name: str, *flags: str) -> Path:
    output = data.parent / name
    train.main(["--data", str(data), "--output", str(output), *FLAGS, *flags])
    return output


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def repeatable(run: Path) -> dict[str, Any]:
    return {name: value for name, value in metrics_of(run).items() if name not in MEASURED}


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line.removeprefix("DLLL ")) for line in (run / "log.json").read_text().splitlines()]
    return [line for line in lines if line["type"] == "LOG"]


def samples_of(run: Path) -> list[float]:
    epochs = [line["data"] for line in log_of(run) if isinstance(line["step"], list) and line["step"]]
    return [epoch["train_throughput"] * epoch["train_epoch_time"] for epoch in epochs]


def fails(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as error:
        run_command(lambda: train.main(flags))
    assert error.value.code == 2
    return capsys.readouterr().err


N_TRAIN = sum(len(part) for part in rows_of_users()[0])


@pytest.mark.parametrize("loader", ["merlin", "memory"])
def test_the_epoch_is_chosen_on_interactions_held_out_of_train(data: Path, loader: str) -> None:
    run = trained(data, "run", "-e", "4", "--validation", "leave-one-out", "--loader", loader, *PLAIN)
    metrics, (_, *epochs, summary) = metrics_of(run), [line["data"] for line in log_of(run)]
    assert metrics["selected_on"] == "validation"
    hits = [epoch["validation_hr@3"] for epoch in epochs]
    assert metrics["best_epoch"] == hits.index(max(hits))
    assert metrics["validation_hr@3"] == max(hits) == summary["best_accuracy"]
    assert not any("hr@3" in epoch for epoch in epochs)  # test is not evaluated
    assert samples_of(run) == pytest.approx([5 * (N_TRAIN - N_USERS)] * 4)
    tested = data.parent / "tested"
    places = ["--data", str(data), "--output", str(tested), "--load_checkpoint_path", str(run / "model.safetensors")]
    train.main([*places, *FLAGS, "--mode", "test"])
    for name in ("hr@3", "ndcg@3", "mrr", "coverage@3", "popularity_hr@3"):
        assert metrics_of(tested)[name] == metrics[name]
    assert (summary["hr@3"], summary["mrr"]) == (metrics["hr@3"], metrics["mrr"])


def test_validation_works_without_test_rows(data: Path) -> None:
    spec = yaml.safe_load((data / "feature_spec.yaml").read_text())
    del spec["source_spec"]["test"]
    (data / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    metrics = metrics_of(trained(data, "run", "-e", "2", "--validation", "leave-one-out", *PLAIN))
    assert metrics["selected_on"] == "validation"
    assert metrics["hr@3"] is None
    assert 0 < metrics["validation_hr@3"] <= 1


def test_full_ranking_excludes_seen_items(data: Path) -> None:
    run = trained(data, "run", "-e", "2", "--eval", "full", *PLAIN)
    parts, series = rows_of_users()
    seen: dict[int, set[int]] = {}
    for user, item, _ in sum(parts, []):  # noqa: RUF017
        seen.setdefault(user, set()).add(item)
    model = load_run(run, CPU).model
    hits = []
    for user, positive, label in series:
        if label:
            scores = model(torch.full((N_ITEMS,), user), torch.arange(N_ITEMS)).tolist()
            others = set(range(N_ITEMS)) - seen[user] - {positive}
            hits.append(sum(scores[item] >= scores[positive] for item in others) < 3)
    assert metrics_of(run)["hr@3"] == pytest.approx(np.mean(hits))


def test_full_ranking_needs_no_test_negatives(write_folder: Callable[..., Path]) -> None:
    parts, series = rows_of_users()
    whole = write_folder(parts, N_USERS, N_ITEMS, [series], 6, name="whole")
    alone = write_folder(parts, N_USERS, N_ITEMS, [series[::6]], 1, name="alone")
    first, second = (
        trained(folder, f"{folder.name}-run", "-e", "1", "--eval", "full", *PLAIN) for folder in (whole, alone)
    )
    assert repeatable(first) == repeatable(second)
    trained(alone, "long", "-e", "1", "--eval", "full", "-k", "25", *PLAIN)  # longer than any series


@pytest.mark.parametrize("kind", ["popularity", "exact", "uniform"])
def test_training_works_with_each_kind_of_negatives(data: Path, kind: str) -> None:
    run = trained(data, "run", "-e", "1", "--negatives", kind, "-n", "7", *PLAIN)
    assert samples_of(run) == pytest.approx([8 * N_TRAIN])


def interrupted_after(epochs: int) -> Callable[..., None]:
    """A `RunWriter.epoch` that is interrupted after `epochs` epochs, as by `kill -9`: nothing more is written."""
    keep = RunWriter.epoch

    def write(self: RunWriter, training: Training, states: Sequence[torch.Tensor]) -> None:
        if len(training.history.epochs) > epochs:
            raise KeyboardInterrupt
        keep(self, training, states)

    return write


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--validation", "leave-one-out", "--loader", "memory"],
        ["--precision", "fp16"],
        ["--patience", "1"],
        ["--schedule", "cosine", "--arch", "mlp"],
        ["--arch", "gmf", "--loss", "softmax", "--weight_decay", "0.1", "--recency", "0.5", "--schedule", "cosine"],
    ],
    ids=["plain", "validation", "scaled gradients", "patience", "schedule", "softmax"],
)
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_result(
    data: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], epochs: int
) -> None:
    whole = trained(data, "whole", "-e", "5", *flags, *PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "epoch", interrupted_after(epochs))
        with suppress(KeyboardInterrupt):  # patience may end it earlier
            trained(data, "run", "-e", "5", *flags, *PLAIN)
    run = data.parent / "run"
    torch.manual_seed(99)  # other draws from the global generator must not matter
    train.main(["--resume", str(run)])
    assert repeatable(run) == repeatable(whole)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [line["step"] for line in log_of(run)] == [line["step"] for line in log_of(whole)]
    losses = [[line["data"].get("train_loss") for line in log_of(folder)] for folder in (run, whole)]
    assert losses[0] == losses[1]


def test_a_run_killed_before_its_first_epoch_resumes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(data, "whole", "-e", "2", *PLAIN)
    run = data.parent / "run"
    run.mkdir()
    flags = yaml.safe_load((whole / "config.yaml").read_text())
    header = (whole / "config.yaml").read_text().splitlines()[0]
    (run / "config.yaml").write_text(f"{header}\n{yaml.safe_dump({**flags, 'output': str(run)})}")
    train.main(["--resume", str(run)])
    assert repeatable(run) == repeatable(whole)


def test_a_finished_run_resumes_with_more_epochs(data: Path) -> None:
    whole, run = trained(data, "whole", "-e", "5", *PLAIN), trained(data, "run", "-e", "2", *PLAIN)
    train.main(["--resume", str(run)])
    assert metrics_of(run)["epochs"] == 2
    train.main(["--resume", str(run), "-e", "5"])
    assert repeatable(run) == repeatable(whole)


def test_a_run_that_cannot_be_resumed_is_rejected(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(data, "run", "-e", "1")
    before = (run / LAST_NAME).read_bytes()
    (data.parent / "empty").mkdir()
    assert "is not a configuration" in fails(capsys, "--resume", str(data.parent / "empty"))
    for broken in (b"", before[:1000], before.replace(b"history", b"histery", 1)):
        (run / LAST_NAME).write_bytes(broken)
        assert "no state of a run that could be resumed" in fails(capsys, "--resume", str(run))
    (run / LAST_NAME).write_bytes(before)
    train.main(["--resume", str(run), "-e", "2"])
    assert metrics_of(run)["epochs"] == 2


def test_a_saved_configuration_repeats_the_run(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = trained(data, "run", "-e", "2", "--validation", "leave-one-out", "--negatives", "uniform", "-s", "5")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train.main(["--config", str(run / "config.yaml"), "--output", "again"])
    assert repeatable(tmp_path / "elsewhere" / "again") == repeatable(run)
    for name in ("model.safetensors", "README.md"):
        assert (tmp_path / "elsewhere/again" / name).read_bytes() == (run / name).read_bytes()


def events_of(folder: Path) -> list[tuple[str, int, float]]:
    """Parse TensorBoard's records: length, checksum, event, checksum, repeated."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            assert int.from_bytes(content[8:12], "little") == masked_crc32c(content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return found


def test_tensorboard_has_the_metrics_of_each_epoch(data: Path) -> None:
    run = trained(data, "run", "-e", "2")
    events = events_of(run / "tensorboard")
    for line in log_of(run)[1:-1]:
        for name, value in line["data"].items():
            assert [
                found for tag, step, found in events if (tag, [step]) == (name.replace("@", "_"), line["step"])
            ] == [pytest.approx(value, rel=1e-6)]


@pytest.mark.parametrize("left_out", ["log", "tensorboard", "curves", "progress"])
def test_each_output_can_be_disabled(data: Path, capsys: pytest.CaptureFixture[str], left_out: str) -> None:
    run = trained(data, "run", "-e", "1", "--without", left_out)
    files = {"log": "log.json", "tensorboard": "tensorboard", "curves": "curves.png"}
    there = {path.name for path in run.iterdir()}
    assert {name for output, name in files.items() if output != left_out} <= there
    assert files.get(left_out) not in there
    assert ("epoch 0:" in capsys.readouterr().out) == (left_out != "progress")
    train.main(["--resume", str(run), "-e", "2"])
    assert metrics_of(run)["epochs"] == 2


def test_all_outputs_can_be_disabled(data: Path) -> None:
    run = trained(data, "run", "-e", "1", *["--without", "progress", "log", "tensorboard", "curves"])
    assert {path.name for path in run.iterdir()} == {
        "README.md", "config.json", "config.yaml", "last", "metrics.json", "model.safetensors",
    }  # fmt: skip


def test_the_curves_of_a_validated_run_are_drawn(data: Path) -> None:
    run = trained(data, "run", "-e", "2", "--validation", "leave-one-out")
    with Image.open(run / "curves.png") as image:
        image.load()
        assert image.width > 2 * image.height  # loss, HR and NDCG


def test_mode_test_writes_only_metrics_and_the_log(data: Path) -> None:
    run = trained(data, "run", "-e", "1", "--checkpoint_dir", str(data.parent / "checkpoints"))
    tested = data.parent / "tested"
    checkpoint = data.parent / "checkpoints" / "model.pth"
    flags = f"--data {data} --output {tested} --mode test --load_checkpoint_path {checkpoint}"
    train.main([*flags.split(), *FLAGS])
    assert {path.name for path in tested.iterdir()} == {"log.json", "metrics.json"}
    shutil.rmtree(tested)
    train.main([*flags.split(), *FLAGS, "--without", "log"])
    assert {path.name for path in tested.iterdir()} == {"metrics.json"}
    assert metrics_of(tested)["hr@3"] == metrics_of(run)["hr@3"]


def test_more_processes_than_samples_per_batch_are_rejected(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.distributed.process_group import ProcessGroup
    from model.run.arguments import parse_args, run_config
    from model.run.session import run

    class Many(ProcessGroup):
        def broadcast_int(self, number: int) -> int:
            return number

    config = run_config(parse_args(["--data", str(data), "--output", str(data.parent / "run"), *FLAGS, "-b", "3"]))
    with pytest.raises(UserError, match="--batch_size should be at least 4, the number of processes, got 3"):
        run(config, Many(CPU, 0, 4))


@pytest.mark.parametrize(("fast_bfloat16", "precision"), [(False, "fp32"), (True, "bf16")])
def test_a_run_reports_the_precision_that_amp_became(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fast_bfloat16: bool, precision: str
) -> None:
    monkeypatch.setattr("workflows.device.torch_device.multiplies_bfloat16", lambda _: fast_bfloat16)
    run = trained(data, "run", "-e", "1", "--amp")
    assert metrics_of(run)["precision"] == precision
    lines = [json.loads(line.removeprefix("DLLL ")) for line in (run / "log.json").read_text().splitlines()]
    assert next(line for line in lines if line.get("step") == "PARAMETER")["data"]["precision"] == precision
    assert f"| precision | {precision} |" in (run / "README.md").read_text()
    assert f"samples/s in {precision}" in capsys.readouterr().out


def test_a_compiled_network_trains_the_same(data: Path) -> None:
    flags = ["-e", "1", "--dropout", "0", *PLAIN]  # they would draw different masks
    plain, compiled = trained(data, "plain", *flags), trained(data, "compiled", *flags, "--compile")
    losses = [metrics_of(run)["train_loss"] for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def hits_of(run: Path) -> list[float]:
    return [line["data"]["hr@3"] for line in log_of(run) if "hr@3" in line["data"] and "train_loss" in line["data"]]


@pytest.mark.parametrize("loader", ["merlin", "memory"])
@pytest.mark.parametrize("loss", ["softmax", "bce-all"])
def test_all_items_losses_train_a_gmf(data: Path, loss: str, loader: str) -> None:
    flags = ["-e", "3", "--arch", "gmf", "--loss", loss, "--loader", loader, "-l", "0.05", *PLAIN]
    run, again = trained(data, "run", *flags), trained(data, "again", *flags)
    assert (run / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert samples_of(run) == pytest.approx([N_TRAIN] * 3)  # positives
    losses = [line["data"]["train_loss"] for line in log_of(run) if "train_loss" in line["data"]]
    assert losses == sorted(losses, reverse=True)
    assert metrics_of(run)["hr@3"] == max(hits_of(run))
    model = load_run(run, CPU).model
    assert model.config.layers == (0,)
    assert (model.mf_user_embed.weight[:, -1] == 1.0).all()
    assert (model.final.weight == 1.0).all()
    trained(data, "more", *flags, "--load_checkpoint_path", str(run / "model.safetensors"))
    more = [line["data"]["train_loss"] for line in log_of(data.parent / "more") if "train_loss" in line["data"]]
    assert more[0] < losses[0]


def test_each_variant_of_the_softmax_trains(data: Path) -> None:
    flags = ["-e", "2", "--arch", "gmf", "--loss", "softmax", "-l", "0.05", *PLAIN]
    runs = {"plain": trained(data, "plain", *flags)}
    for name, more in {
        "decay": ["--weight_decay", "5"], "recency": ["--recency", "1"], "cosine": ["--schedule", "cosine"],
        "bf16": ["--precision", "bf16"], "validation": ["--validation", "leave-one-out"], "seed": ["-s", "7"],
    }.items():  # fmt: skip
        runs[name] = trained(data, name, *flags, *more)
    assert len({(run / "model.safetensors").read_bytes() for run in runs.values()}) == len(runs)
    assert samples_of(runs["validation"]) == pytest.approx([N_TRAIN - N_USERS] * 2)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--loss softmax", "--loss softmax needs --arch gmf with --factors 2 or more.*got --arch neumf --factors 4"),
        ("--loss bce-all --arch mlp", "--loss bce-all needs --arch gmf"),
        ("--loss softmax --arch gmf -f 1", "got --arch gmf --factors 1"),
        ("--loss softmax --arch gmf --negatives popularity -n 3", "--negatives does.*--negative_samples does nothing"),
        ("--arch gmf --recency 0.5", "--recency goes with --loss softmax or bce-all"),
        ("--arch gmf --loss softmax --load_checkpoint_path {gmf}", "its last factor is not an item bias"),
    ],
)
def test_invalid_flags_of_all_items_losses_are_rejected(data: Path, flags: str, told: str) -> None:
    gmf = trained(data, "gmf", "--arch", "gmf", "-e", "1") / "model.safetensors" if "{gmf}" in flags else None
    with pytest.raises(UserError, match=told):
        trained(data, "run", *flags.format(gmf=gmf).split())
    assert not (data.parent / "run").exists()


def test_rows_without_time_order_or_positives_are_rejected(write_folder: Callable[..., Path]) -> None:
    parts, series = rows_of_users()
    softmax = ["--arch", "gmf", "--loss", "softmax"]
    unordered = write_folder(parts, N_USERS, N_ITEMS, [series], 6, time_ordered=False, name="unordered")
    with pytest.raises(UserError, match=r"--recency 0\.5: .* not ordered by time"):
        trained(unordered, "run", *softmax, "--recency", "0.5")
    zeros = [[(user, item, 0.0) for user, item, _ in part] for part in parts]
    nothing = write_folder(zeros, N_USERS, N_ITEMS, [series], 6, name="nothing")
    with pytest.raises(UserError, match="have label 0, so there is nothing to learn"):
        trained(nothing, "run", *softmax)
    assert not (unordered.parent / "run").exists()
