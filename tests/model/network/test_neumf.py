"""The network against the paper's formula in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from model.network.neumf import NeuMF, NeuMFConfig, side_width
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError


def small(dropout: float = 0.5, layers: tuple[int, ...] = (6, 5, 3)) -> NeuMFConfig:
    return NeuMFConfig(n_users=7, n_items=9, factors=4, layers=layers, dropout=dropout)


def network(config: NeuMFConfig, seed: int = 0) -> NeuMF:
    return NeuMF(config, torch.Generator().manual_seed(seed))


def test_parameters_have_the_names_and_shapes_of_the_reference() -> None:
    shapes = {name: tuple(value.shape) for name, value in network(small()).state_dict().items()}
    assert shapes == {
        "mf_user_embed.weight": (7, 4),
        "mf_item_embed.weight": (9, 4),
        "mlp_user_embed.weight": (7, 3),
        "mlp_item_embed.weight": (9, 3),
        "mlp.0.weight": (5, 6),
        "mlp.0.bias": (5,),
        "mlp.1.weight": (3, 5),
        "mlp.1.bias": (3,),
        "final.weight": (1, 7),
        "final.bias": (1,),
    }


def test_default_shape_matches_the_reference() -> None:
    config = NeuMFConfig(n_users=1, n_items=1)
    assert (config.factors, config.layers, config.dropout) == (64, (256, 256, 128, 64), 0.5)


def numpy_logits(model: NeuMF, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    gmf = w["mf_user_embed.weight"][users] * w["mf_item_embed.weight"][items]
    hidden = np.hstack([w["mlp_user_embed.weight"][users], w["mlp_item_embed.weight"][items]])
    for i in range(len(model.config.layers) - 1):
        hidden = np.maximum(hidden @ w[f"mlp.{i}.weight"].T + w[f"mlp.{i}.bias"], 0.0)
    return np.hstack([gmf, hidden]) @ w["final.weight"][0] + w["final.bias"][0]


@pytest.mark.parametrize("layers", [(6, 5, 3), (2,), (8, 4), (4, 4, 4, 4, 1)])
def test_forward_matches_the_formula(layers: tuple[int, ...]) -> None:
    model = network(small(layers=layers)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(parameter.numel()))
    users, items = (grid.ravel() for grid in np.mgrid[0:7, 0:9])
    logits = model(torch.from_numpy(users), torch.from_numpy(items))
    assert logits.shape == (63,)
    np.testing.assert_allclose(logits.detach().numpy(), numpy_logits(model, users, items), rtol=1e-5, atol=1e-5)
    same = model(torch.from_numpy(users).int(), torch.from_numpy(items).int())
    torch.testing.assert_close(same, logits, rtol=0.0, atol=0.0)


def whole(arch: str) -> NeuMF:
    return network(NeuMFConfig(n_users=7, n_items=9, factors=4, layers=(6, 5, 3), dropout=0.5, arch=arch))


@pytest.mark.parametrize(("arch", "own"), [("gmf", slice(0, 4)), ("mlp", slice(4, 7))])
def test_a_single_branch_equals_the_network_without_the_other(arch: str, own: slice) -> None:
    both, alone = whole("neumf").eval(), whole(arch).eval()
    weights = both.state_dict()
    weights["final.weight"] = weights["final.weight"][:, own]
    own_weights = alone.state_dict()
    trained = {name for name, value in own_weights.items() if value.numel()}
    assert trained == {name for name in weights if not name.startswith("mlp" if arch == "gmf" else "mf_")}
    alone.load_state_dict(own_weights | {name: weights[name] for name in trained})
    with torch.no_grad():
        kept = both.final.weight[:, own].clone()
        both.final.weight.zero_()
        both.final.weight[:, own] = kept
    users, items = torch.cartesian_prod(torch.arange(7), torch.arange(9)).T
    torch.testing.assert_close(alone(users, items), both(users, items))


def test_an_omitted_branch_needs_no_width() -> None:
    plain = NeuMFConfig(n_users=2, n_items=2, factors=3, layers=(4, 2))
    assert plain.arch == "neumf"
    gmf = NeuMFConfig(n_users=2, n_items=2, factors=3, layers=(7,), arch="gmf")
    assert (gmf.factors, gmf.layers) == (3, (0,))
    mlp = NeuMFConfig(n_users=2, n_items=2, factors=-1, layers=(4, 2), arch="mlp")
    assert (mlp.factors, mlp.layers) == (0, (4, 2))


def test_dropout_applies_only_in_training() -> None:
    users, items = torch.arange(7), torch.arange(7)
    model = network(small())
    torch.manual_seed(0)
    model.eval()
    torch.testing.assert_close(model(users, items), model(users, items), rtol=0.0, atol=0.0)
    model.train()
    assert any((model(users, items) != model(users, items)).any() for _ in range(5))
    without = network(small(dropout=0.0)).train()
    torch.testing.assert_close(without(users, items), without.eval()(users, items), rtol=0.0, atol=0.0)


def test_dropout_preserves_the_expected_value_of_the_last_hidden_layer() -> None:
    # One hidden layer feeds a linear head, so the mean over many masks equals the value without dropout.
    model = network(NeuMFConfig(n_users=1, n_items=1, factors=1, layers=(64, 64), dropout=0.5))
    ids = torch.zeros(20_000, dtype=torch.int64)
    with torch.no_grad():
        torch.manual_seed(0)
        many = model.train()(ids, ids)
        mean, error = many.mean(), many.std() / math.sqrt(len(ids))
        assert abs(mean - model.eval()(ids[:1], ids[:1])[0]) < 5 * error


def test_initial_weights_follow_the_distributions_of_the_reference() -> None:
    model = network(NeuMFConfig(n_users=3000, n_items=2000, factors=48, layers=(256, 200, 120)))
    weights = model.state_dict()
    for name in ("mf_user_embed", "mf_item_embed", "mlp_user_embed", "mlp_item_embed"):
        values = weights[f"{name}.weight"]
        error = 0.01 / math.sqrt(values.numel())
        assert abs(values.mean().item()) < 5 * error
        assert values.std().item() == pytest.approx(0.01, rel=0.02)
        assert values.abs().max().item() > 0.03  # the tail of a normal distribution, not the bound of a uniform one
    uniform = {
        "mlp.0.weight": math.sqrt(6 / (256 + 200)),
        "mlp.1.weight": math.sqrt(6 / (200 + 120)),
        "final.weight": math.sqrt(3 / (48 + 120)),
        "mlp.0.bias": 1 / math.sqrt(256),
        "mlp.1.bias": 1 / math.sqrt(200),
        "final.bias": 1 / math.sqrt(168),
    }
    for name, limit in uniform.items():
        values = weights[name]
        assert values.abs().max().item() <= limit * (1 + 1e-6)
        if values.numel() > 1000:
            assert values.abs().max().item() > 0.99 * limit
            assert values.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03)


def test_only_the_generator_determines_the_weights() -> None:
    torch.manual_seed(1)
    first = network(small(), seed=5).state_dict()
    torch.manual_seed(2)
    second, other = network(small(), seed=5).state_dict(), network(small(), seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": (7, 4)}, "even"),
        ({"layers": ()}, "--layers"),
        ({"layers": (8, 0)}, "--layers"),
        ({"layers": (8, -4)}, "--layers"),
        ({"factors": 0}, "--factors"),
        ({"dropout": 1.0}, "--dropout"),
        ({"dropout": -0.1}, "--dropout"),
        ({"dropout": math.nan}, "--dropout"),
        ({"n_users": 0}, "users"),
        ({"n_items": 0}, "items"),
        ({"arch": "svd"}, "--arch should be one of gmf, mlp, neumf"),
        ({"arch": "gmf", "factors": 0}, "--factors"),
        ({"arch": "mlp", "layers": ()}, "--layers"),
        ({"arch": "mlp", "layers": (0,)}, "--layers"),
        ({"arch": "gmf", "row_side": (SideFeature("age"),)}, "--arch gmf has no MLP for side features"),
        ({"arch": "gmf", "item_side": (SideFeature("kind", 3),)}, "--arch gmf has no MLP for side features"),
    ],
)
def test_invalid_shapes_are_rejected(change: dict[str, Any], said: str) -> None:
    valid: dict[str, Any] = {"n_users": 2, "n_items": 2, "factors": 2, "layers": (4, 2), "dropout": 0.5}
    with pytest.raises(UserError, match=said):
        NeuMFConfig(**{**valid, **change})


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(UserError) as error:
        NeuMFConfig(n_users=1, n_items=1, factors=0, layers=(3,), dropout=2.0)
    assert all(flag in str(error.value) for flag in ("--factors", "--layers", "--dropout"))


ROW_SIDE = (SideFeature("gender", 2), SideFeature("age"), SideFeature("type", 40))
ITEM_SIDE = (SideFeature("kind.of[item]", 3), SideFeature("price"))
KINDS, PRICES = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3]), torch.linspace(-1, 1, 9)  # item 8 is unknown


def with_side(layers: tuple[int, ...] = (6, 5, 3), dropout: float = 0.0) -> NeuMF:
    shape = NeuMFConfig(
        n_users=7, n_items=9, factors=4, layers=layers, dropout=dropout, row_side=ROW_SIDE, item_side=ITEM_SIDE
    )
    model = network(shape)
    model.set_item_tables((KINDS, PRICES))
    return model


def rows(count: int = 50) -> tuple[torch.Tensor, ...]:
    """Users, items and side features of rows."""
    g = torch.Generator().manual_seed(4)
    ids = [torch.randint(high, (count,), generator=g, dtype=torch.int32) for high in (7, 9, 2, 40)]
    return ids[0], ids[1], ids[2], torch.randn(count, generator=g), ids[3]


@pytest.mark.parametrize(("cardinality", "width"), [(None, 1), (1, 1), (2, 2), (3, 2), (40, 6), (10**6, 20)])
def test_a_side_feature_gets_one_input_per_bit(cardinality: int | None, width: int) -> None:
    assert side_width(SideFeature("x", cardinality)) == width


def test_side_features_widen_only_the_first_layer() -> None:
    plain, wide = network(small()).state_dict(), with_side().state_dict()
    extra = 2 + 1 + 6 + 2 + 1
    added = {name: tuple(value.shape) for name, value in wide.items() if name not in plain}
    assert added == {
        "side_embed.0.weight": (2, 2),
        "side_embed.1.weight": (40, 6),
        "side_embed.2.weight": (4, 2),  # one more than the number of kinds, for unknown items
        "item_side_0": (9,),
        "item_side_1": (9,),
    }
    widened = {name for name, value in plain.items() if wide[name].shape != value.shape}
    assert widened == {"mlp.0.weight"}
    assert wide["mlp.0.weight"].shape == (5, 6 + extra)


@pytest.mark.parametrize("layers", [(6, 5, 3), (4,)])
def test_with_zero_weights_on_side_features_the_network_equals_the_plain_one(layers: tuple[int, ...]) -> None:
    wide, plain = with_side(layers).eval(), network(small(layers=layers), seed=1).eval()
    weights = {name: value for name, value in wide.state_dict().items() if name in plain.state_dict()}
    first, before = ("mlp.0.weight", 0) if len(layers) > 1 else ("final.weight", 4)
    used = before + layers[0]
    assert weights[first].shape[1] == used + 12
    plain.load_state_dict({**weights, first: weights[first][:, :used]})
    users, items, *side = rows()
    assert not torch.allclose(wide(users, items, *side), plain(users, items), atol=1e-4)
    with torch.no_grad():
        dict(wide.named_parameters())[first][:, used:] = 0.0
    torch.testing.assert_close(wide(users, items, *side), plain(users, items), rtol=0.0, atol=1e-6)


def test_side_features_follow_the_ids_in_config_order() -> None:
    model = with_side().eval()
    users, items, *side = rows()
    w = model.state_dict()
    tables = [w[f"side_embed.{number}.weight"] for number in range(3)]
    ids = w["mlp_user_embed.weight"][users], w["mlp_item_embed.weight"][items]
    of_row = tables[0][side[0]], side[1][:, None], tables[1][side[2]]
    of_item = tables[2][KINDS[items]], PRICES[items][:, None]
    hidden = torch.cat((*ids, *of_row, *of_item), dim=1)
    for number in range(2):
        hidden = torch.relu(hidden @ w[f"mlp.{number}.weight"].T + w[f"mlp.{number}.bias"])
    gmf = w["mf_user_embed.weight"][users] * w["mf_item_embed.weight"][items]
    expected = torch.cat((gmf, hidden), dim=1) @ w["final.weight"][0] + w["final.bias"]
    torch.testing.assert_close(model(users, items, *side), expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_side_embeddings_of_the_categories_in_the_batch() -> None:
    model = with_side((4,))  # no hidden layer, so that no unit is inactive
    users, items, *side = rows(20)
    model(users, items, *side).sum().backward()
    for embedding, met in zip(model.side_embed, (side[0], side[2], KINDS[items]), strict=True):
        touched = embedding.weight.grad.abs().sum(dim=1) > 0
        assert set(touched.nonzero().flatten().tolist()) == set(met.tolist())
    assert not any(name.startswith("item_side") for name, _ in model.named_parameters())


def test_id_embeddings_are_initialised_as_without_side_features() -> None:
    plain, wide = network(small()).state_dict(), with_side().state_dict()
    for name in ("mf_user_embed", "mf_item_embed", "mlp_user_embed", "mlp_item_embed"):
        assert torch.equal(plain[f"{name}.weight"], wide[f"{name}.weight"])
