"""Steps: both implementations against autograd on equal samples and masks, and Adam against torch's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.compiled import train_loops
from model.compiled.step import CompiledStep, RowGradient
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training import torch_step
from model.training.config import TrainConfig
from model.training.step import Step
from model.training.torch_step import TorchStep, keep_mask
from preprocessing.spec.feature_columns import SideFeature

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 40, 30
KIND, AGE, GENRE = SideFeature("kind", 5), SideFeature("age"), SideFeature("genre", 4)


def network(layers: tuple[int, ...], dropout: float = 0.0, **side: Any) -> NeuMF:
    shape = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=6, layers=layers, dropout=dropout, **side)
    g = torch.Generator().manual_seed(1)
    model = NeuMF(shape, g)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4, generator=g)
    if model.config.item_side:
        model.set_item_tables([torch.randint(5, (N_ITEMS,), generator=g).int()])
    return model


def samples(n: int, group: int = 1, seed: int = 2, **side: Any) -> Batch:
    g = torch.Generator().manual_seed(seed)
    users = torch.randint(N_USERS, (n // group,), generator=g).repeat_interleave(group).int()
    columns = (torch.randint(5, (n,), generator=g).int(), torch.randn(n, generator=g)) if side.get("row_side") else ()
    labels = torch.randint(2, (n,), generator=g).float()
    return Batch(users, torch.randint(N_ITEMS, (n,), generator=g).int(), labels, columns, group)


def reference(model: NeuMF, batch: Batch, masks: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss and gradients of its mean by autograd; `masks` are multipliers of all hidden units, concatenated."""
    users, items = batch.users.long(), batch.items.long()
    side = [column.to(model.final.weight.dtype) if column.is_floating_point() else column for column in batch.side]
    if masks is None:
        logits = model.eval()(users, items, *side)
    else:
        hidden, at = torch.cat((model.mlp_user_embed(users), model.mlp_item_embed(items)), dim=1), 0
        for layer in model.mlp:
            hidden = torch.relu(layer(hidden)) * masks[:, at : at + layer.out_features]
            at += layer.out_features
        gmf = model.mf_user_embed(users) * model.mf_item_embed(items)
        logits = model.final(torch.cat((gmf, hidden), dim=1)).squeeze(1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype), reduction="sum")
    gradients = torch.autograd.grad(loss / len(batch), list(model.parameters()))
    return loss.detach(), dict(zip(dict(model.named_parameters()), gradients, strict=True))


def dense(model: NeuMF, gradients: dict[Tensor, Tensor | RowGradient]) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        gradient = gradients[parameter]
        if isinstance(gradient, RowGradient):
            whole = torch.zeros_like(parameter)
            whole[gradient.ids] = gradient.values
            gradient = whole
        found[name] = gradient
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        worst = float((found[name].detach() - value.detach()).abs().max() / value.detach().abs().max().clamp(min=1e-12))
        assert worst < tolerance, f"{name}: {worst}"


LAYERS = [(16, 8), (16, 12, 8), (256, 256, 128, 64), (10, 7, 5, 3), (70, 130, 65, 1)]


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.3])
@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_gradients_match_autograd(layers: tuple[int, ...], dropout: float, threads: int) -> None:
    model, batch = network(layers, dropout), samples(500, 5)
    torch.manual_seed(7)
    loss, gradients = CompiledStep(model, threads).gradients(batch, 1.0 / len(batch))
    torch.manual_seed(7)
    seed = int(torch.randint(-(2**62), 2**62, ()))
    keep, order = round((1.0 - dropout) * train_loops.KEEP_ALL), torch.argsort(batch.users, stable=True)
    masks = train_loops.dropout_masks(seed, 0, len(batch), np.array(layers[1:], dtype=np.int64), keep)
    factors = torch.from_numpy(masks).float() * (train_loops.KEEP_ALL / keep)
    expected_loss, expected = reference(model, batch.take(order), factors)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    assert_equal(dense(model, gradients), expected, 2e-5)


def test_compiled_masks_keep_the_configured_share_of_units() -> None:
    widths = np.array([256, 70], dtype=np.int64)
    for share in (0.5, 0.7, 0.05):
        masks = train_loops.dropout_masks(3, 0, 4000, widths, round(share * train_loops.KEEP_ALL))
        assert masks.mean() == pytest.approx(share, abs=5 * (share * (1 - share) / masks.size) ** 0.5)
        # No unit or pair of neighbours is kept more often than others.
        spread = (share * (1 - share) / 4000) ** 0.5
        assert abs(masks.mean(axis=0) - share).max() < 5 * spread
        both = (masks[:, 1:] & masks[:, :-1]).mean(axis=0)
        assert abs(both - share**2).max() < 5 * (share**2 * (1 - share**2) / 4000) ** 0.5
    assert not np.array_equal(*(train_loops.dropout_masks(seed, 0, 9, widths, 1 << 15) for seed in (3, 4)))


def test_masks_do_not_depend_on_threads() -> None:
    model, batch = network((16, 12, 8), 0.5), samples(700)
    found = []
    for threads in (1, 2, 5):
        torch.manual_seed(7)
        found.append(dense(model, CompiledStep(model, threads).gradients(batch, 1.0)[1]))
    assert_equal(found[1], found[0], 1e-5)
    assert_equal(found[2], found[0], 1e-5)


def test_bfloat16_products_stay_close() -> None:
    model, batch = network((16, 12, 8)), samples(500)
    _, exact = CompiledStep(model, 1).gradients(batch, 1.0 / 500)
    _, mixed = CompiledStep(model, 1, torch.bfloat16).gradients(batch, 1.0 / 500)
    for name, value in dense(model, exact).items():
        error = (dense(model, mixed)[name] - value).norm() / value.norm()
        assert error < 0.03, name


@pytest.mark.parametrize("layers", [(16, 12, 8), (16, 8), (16,)], ids=str)
@pytest.mark.parametrize("row_side", [(), (KIND, AGE)], ids=["", "row"])
@pytest.mark.parametrize("item_side", [(), (GENRE,)], ids=["", "item"])
@pytest.mark.parametrize(("group", "chunk"), [(1, None), (5, None), (5, 12), (1, 7)])
def test_torch_gradients_match_autograd(
    layers: tuple[int, ...], row_side: tuple[SideFeature, ...], item_side: tuple[SideFeature, ...],
    group: int, chunk: int | None,
) -> None:  # fmt: skip
    model = network(layers, row_side=row_side, item_side=item_side).double()
    batch = samples(55, group, row_side=row_side)
    batch = Batch(*batch.columns[:3], tuple(c.double() if c.is_floating_point() else c for c in batch.side), group)
    expected_loss, expected = reference(model, batch)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = TorchStep(model, chunk).gradients(batch, 1.0 / len(batch))
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-9)
    assert_equal({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected, 1e-9)


@pytest.mark.parametrize("layers", [(16, 12, 8), (16, 8)], ids=str)
def test_compiled_loops_train_a_plain_mlp(layers: tuple[int, ...]) -> None:
    model, batch = network(layers, arch="mlp"), samples(500, 5)
    loss, gradients = CompiledStep(model, 1).gradients(batch, 1.0 / len(batch))
    expected_loss, expected = reference(model, batch)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    trained = {name for name, parameter in model.named_parameters() if parameter.numel()}
    assert trained == {name for name in expected if not name.startswith("mf_")}
    found = dense(model, gradients)
    assert_equal({name: found[name] for name in trained}, {name: expected[name] for name in trained}, 2e-5)


@pytest.mark.parametrize("arch", ["gmf", "mlp"])
@pytest.mark.parametrize(("group", "chunk"), [(1, None), (5, 12)])
def test_torch_trains_a_single_branch(arch: str, group: int, chunk: int | None) -> None:
    model, batch = network((16, 12, 8), arch=arch).double(), samples(55, group)
    expected_loss, expected = reference(model, batch)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = TorchStep(model, chunk).gradients(batch, 1.0 / len(batch))
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("share", [0.5, 0.65, 0.1])
def test_torch_masks_keep_the_configured_share(share: float) -> None:
    torch.manual_seed(3)
    mask = keep_mask((3000, 77), share, torch.empty(0)).double()
    spread = (share * (1 - share)) ** 0.5
    assert float(mask.mean()) == pytest.approx(share, abs=5 * spread / mask.numel() ** 0.5)
    assert float((mask.mean(dim=0) - share).abs().max()) < 5 * spread / 3000**0.5
    neighbours = (mask[:, 1:] * mask[:, :-1]).mean()
    assert float(neighbours) == pytest.approx(share**2, abs=0.005)


@pytest.mark.parametrize("fused", [False, True])
def test_torch_gradients_under_dropout_match_autograd(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    model, batch = network((16, 12, 8), 0.3), samples(55, 5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if fused:  # a CPU has the operator too
        monkeypatch.setattr(torch_step, "fused_dropout", lambda device: True)
    torch.manual_seed(3)
    loss = TorchStep(model).gradients(batch, 1.0 / len(batch))
    torch.manual_seed(3)
    ones = [torch.ones(len(batch), width) for width in (12, 8)]
    masks = [torch.native_dropout(x, 0.3, True)[0] if fused else keep_mask(x.shape, 0.7, x) / 0.7 for x in ones]
    expected_loss, expected = reference(model, batch, torch.cat(masks, dim=1))
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    assert_equal({name: parameter.grad for name, parameter in model.named_parameters()}, expected, 2e-5)


@pytest.mark.parametrize(("device", "operator"), [("cpu", "random_"), ("meta", "native_dropout")])
def test_the_device_of_the_tensors_decides_who_draws_masks(device: str, operator: str) -> None:
    model, batch = network((16, 12, 8), 0.3).to(device), samples(55, 5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = Batch(*(column.to(device) for column in batch.columns), (), batch.group_size)
    with Watched() as watched:
        TorchStep(model).gradients(batch, 1.0)
    assert watched.seen & {"random_", "native_dropout"} == {operator}


@pytest.mark.parametrize("kernels_used", [True, False])
def test_ten_steps_match_torchs_adam(kernels_used: bool) -> None:
    model = network((16, 12, 8))
    plain = copy.deepcopy(model)
    # A larger epsilon keeps Adam from amplifying rounding errors of tiny gradients into full steps.
    config = TrainConfig(batch_size=60, eps=1e-3)
    step = Step(model, config, ProcessGroup(CPU), compiled=kernels_used)
    optimizer = torch.optim.Adam(plain.parameters(), lr=config.learning_rate, betas=(0.25, 0.5), eps=1e-3)
    for number in range(10):
        batch = samples(60, 5, seed=number)
        expected, gradients = reference(plain, batch)
        for name, parameter in plain.named_parameters():
            parameter.grad = gradients[name]
        optimizer.step()
        assert float(step(batch, len(batch))) == pytest.approx(float(expected), rel=1e-4)
    assert_equal(dict(model.named_parameters()), dict(plain.named_parameters()), 1e-4)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert int(step.optimizer.state[parameter]["step"]) == 10
        ours, theirs = step.optimizer.state[parameter]["exp_avg_sq"], optimizer.state[other]["exp_avg_sq"]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-9)


WAITS = {"item", "_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "is_nonzero", "equal"}


class Watched(torch.utils._python_dispatch.TorchDispatchMode):
    """Rejects operators that synchronise with a device or have data-dependent shapes; counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.seen.add(name)
        assert name not in WAITS, f"{name} synchronises with the device"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert all(index is None or index.dtype is not torch.bool for index in args[1]), "a boolean mask"
        if name in ("_to_copy", "copy_"):
            devices = {value.device for value in args if isinstance(value, Tensor)}
            assert (kwargs or {}).get("device") in (None, *devices), "a copy to another device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("row_side", [(), (KIND, AGE)], ids=["", "row"])
def test_the_torch_step_never_synchronises_with_the_device(precision: str, row_side: tuple[SideFeature, ...]) -> None:
    model = network((16, 12, 8), 0.5, row_side=row_side)
    config = TrainConfig(batch_size=60, precision=precision)
    step = Step(model, config, ProcessGroup(CPU), compiled=False)
    batch = samples(60, 5, row_side=row_side)
    step(batch, len(batch))  # the optimiser initialises its state in the first step
    with Watched() as watched:
        step(batch, len(batch))
    assert {"index_select", "index_add_", "random_", "_fused_adam_"} <= watched.seen


def test_synchronisation_is_detected() -> None:
    for waiting in (
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
    ):
        with pytest.raises(AssertionError), Watched():
            waiting(torch.randn(5))
