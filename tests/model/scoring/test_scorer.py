"""Scores from cached projections against the network's forward pass."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.compiled import scorer as compiled_scorer
from model.compiled.folding import fold
from model.network.neumf import NeuMF, NeuMFConfig
from model.scoring import torch_scorer
from model.scoring.scorer import Scorer
from preprocessing.spec.feature_columns import SideFeature

KIND, AGE, GENRE, PRICE = SideFeature("kind", 5), SideFeature("age"), SideFeature("genre", 4), SideFeature("price")
SIDES = {
    "none": {},
    "row": {"row_side": (KIND, AGE)},
    "item": {"item_side": (PRICE, GENRE)},
    "both": {"row_side": (AGE, KIND), "item_side": (GENRE, PRICE)},
}
SHAPES = [(2,), (6, 5), (8, 64, 16), (4, 130, 70, 3), (256, 256, 128, 64)]


def network(layers: tuple[int, ...], side: str = "none", seed: int = 0, arch: str = "neumf") -> NeuMF:
    """A network whose weights give logits of about 1 and leave some units inactive."""
    g = torch.Generator().manual_seed(seed)
    shape = NeuMFConfig(n_users=13, n_items=37, factors=5, layers=layers, dropout=0.5, arch=arch, **SIDES[side])
    model = NeuMF(shape, g)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, max(1, parameter.shape[-1]) ** -0.5, generator=g)
    model.set_item_tables([values_of(feature, 37, g) for feature in model.config.item_side])
    return model


def values_of(feature: SideFeature, n: int, g: torch.Generator) -> Tensor:
    if feature.cardinality is None:
        return torch.randn(n, generator=g)
    return torch.randint(feature.cardinality, (n,), generator=g, dtype=torch.int32)


def pairs(model: NeuMF, n: int, seed: int = 1) -> list[Tensor]:
    """Users, items and side features of rows; users come in runs, as in series."""
    g = torch.Generator().manual_seed(seed)
    users = torch.randint(model.config.n_users, (n,), generator=g, dtype=torch.int32)
    users[n // 3 :] = users[n // 3 :].sort().values
    items = torch.randint(model.config.n_items, (n,), generator=g, dtype=torch.int32)
    return [users, items, *(values_of(feature, n, g) for feature in model.config.row_side)]


@torch.no_grad()
def plain(model: NeuMF, columns: list[Tensor]) -> Tensor:
    """The network's forward pass in float64."""
    exact = copy.deepcopy(model).double().eval()
    return exact(*(column.double() if column.is_floating_point() else column for column in columns))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def scorers(model: NeuMF) -> list[Scorer]:
    """Both kinds, the faster one first."""
    return [Scorer(model), Scorer(model, compiled=False)]


@given(st.sampled_from(SHAPES), st.sampled_from(sorted(SIDES)), st.integers(0, 90), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_scores_match_the_network(layers: tuple[int, ...], side: str, n: int, seed: int) -> None:
    model = network(layers, side, seed).train()  # dropout must be ignored
    columns = pairs(model, n, seed)
    for scorer in scorers(model):
        found = scorer(*columns)
        assert found.shape == (n,)
        assert_close(found, plain(model, columns))


@given(st.sampled_from(SHAPES), st.sampled_from(sorted(SIDES)), st.integers(0, 19), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_scores_of_all_items_match_the_network(layers: tuple[int, ...], side: str, n: int, seed: int) -> None:
    model = network(layers, side, seed)
    users, _, *row_side = pairs(model, n, seed)
    for scorer, items in product(scorers(model), (None, torch.tensor([3, 36, 3]), torch.arange(0))):
        ids = torch.arange(37) if items is None else items
        found = scorer.all_items(users, *row_side, items=items)
        each = [column.repeat_interleave(len(ids)) for column in (users, *row_side)]
        assert found.shape == (n, len(ids))
        assert_close(found, plain(model, [each[0], ids.repeat(n), *each[1:]]).view(n, len(ids)))


@pytest.mark.parametrize("arch", ["gmf", "mlp"])
def test_single_branch_networks_are_scored_correctly(arch: str) -> None:
    model = network((8, 64, 16), arch=arch)
    columns, everything = pairs(model, 90), torch.cartesian_prod(torch.arange(13), torch.arange(37))
    for scorer in scorers(model):
        assert_close(scorer(*columns), plain(model, columns))
        assert_close(scorer.all_items(torch.arange(13)), plain(model, list(everything.T)).view(13, 37))


@pytest.mark.parametrize("side", sorted(SIDES))
@pytest.mark.parametrize("size", [1, 7, 32])
@pytest.mark.parametrize("held", [False, True])
def test_chunks_and_threads_do_not_change_scores(
    side: str, size: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network((8, 64, 16), side)
    columns = pairs(model, 90)
    users, _, *row_side = columns
    some = torch.tensor([3, 36, 3])
    whole = [(scorer(*columns), scorer.all_items(users, *row_side)) for scorer in scorers(model)]
    monkeypatch.setattr(torch_scorer, "_CHUNK_SAMPLES", 8 * size)
    monkeypatch.setattr(torch_scorer, "_TILE_USERS", min(size, 8))
    monkeypatch.setattr(compiled_scorer, "_PAIRS", size)
    monkeypatch.setattr(compiled_scorer, "_TILE_ROWS", size)
    monkeypatch.setattr(compiled_scorer, "_ROWS", max(1, size // 8))
    monkeypatch.setattr(compiled_scorer, "_SHARED_PAIRS", 3)
    monkeypatch.setattr(compiled_scorer, "_TABLE_BYTES", 1 << 30 if held else 0)
    monkeypatch.setattr(compiled_scorer, "_BLOCK_ITEMS", size)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for scorer, (of_pairs, of_all) in zip(scorers(model), whole, strict=True):
        assert_close(scorer(*columns), of_pairs.double())
        assert_close(scorer.all_items(users, *row_side), of_all.double())
        assert_close(scorer.all_items(users, *row_side, items=some), of_all[:, some].double())


def test_mostly_positive_units_are_folded() -> None:
    model = network((8, 64, 64, 16))
    with torch.no_grad():
        for layer in model.mlp:
            layer.weight.abs_()
            layer.bias.fill_(20.0)  # large enough to make all units positive
    folded = fold(model)
    inputs = torch.cat((model.mlp_user_embed.weight[:9], model.mlp_item_embed.weight[:9]), dim=1)
    units = inputs @ folded.entry.T + folded.bias
    assert (units[:, :128] < 0).all()
    assert (units[:, 128:] > 0).all()
    columns = pairs(model, 50)
    expected = plain(model, columns)
    torch.testing.assert_close(Scorer(model)(*columns).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp_user_embed", "mlp_item_embed", "mf_user_embed", "mlp.0", "mlp.1", "final"])
def test_nan_weights_give_nan_scores(name: str) -> None:
    model = network((8, 64, 16))
    with torch.no_grad():
        model.get_submodule(name).weight[0] = torch.nan
    columns = pairs(model, 90)
    broken = plain(model, columns).isnan()
    assert broken.any()
    for scorer in scorers(model):
        found = scorer(*columns)
        assert found[broken].isnan().all()
        assert not found.isnan().all() or broken.all() or name == "mlp.0"


@pytest.mark.parametrize(("user", "item"), [(13, 0), (-1, 0), (0, 37), (0, -1)])
def test_out_of_range_ids_are_rejected(user: int, item: int) -> None:
    for scorer in scorers(network((8, 64, 16))):
        with pytest.raises(IndexError):
            scorer(torch.tensor([0, user]), torch.tensor([0, item]))
        with pytest.raises(IndexError):
            scorer.all_items(torch.tensor([user]), items=torch.tensor([item]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_have_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    model = network((8, 64, 16)).to(dtype)
    columns = pairs(model, 30)
    found = Scorer(model)(*columns)
    assert found.dtype is dtype
    tolerance = 1e-12 if dtype is torch.float64 else 0.1
    torch.testing.assert_close(found.double(), plain(model, columns), rtol=tolerance, atol=tolerance)


def test_a_scorer_tracks_no_gradients_and_changes_no_weights() -> None:
    model = network((6, 5), "both")
    before = copy.deepcopy(model.state_dict())
    columns = pairs(model, 30)
    scorer = Scorer(model)
    assert not scorer(*columns).requires_grad
    assert not scorer.all_items(columns[0], *columns[2:]).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
