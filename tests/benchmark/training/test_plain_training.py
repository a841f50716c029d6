"""Plain training is mathematically equivalent to the product's network, and its epochs match the reference's."""

from __future__ import annotations

import torch
from torch import nn

from benchmark.training.plain_training import PlainNeuMF, PlainStep, Samples, prepare_epoch
from model.network.neumf import NeuMF, NeuMFConfig

_NAMES = {
    "gmf_users.weight": "mf_user_embed.weight",
    "gmf_items.weight": "mf_item_embed.weight",
    "mlp_users.weight": "mlp_user_embed.weight",
    "mlp_items.weight": "mlp_item_embed.weight",
    "hidden.0.weight": "mlp.0.weight",
    "hidden.0.bias": "mlp.0.bias",
    "hidden.3.weight": "mlp.1.weight",
    "hidden.3.bias": "mlp.1.bias",
    "head.weight": "final.weight",
    "head.bias": "final.bias",
}


def _samples(n: int = 200) -> Samples:
    return Samples(torch.randint(0, 30, (n,)), torch.randint(0, 40, (n,)), torch.randint(0, 2, (n,)).float())


def test_loss_and_gradients_match_the_products_network() -> None:
    torch.manual_seed(1)
    plain = PlainNeuMF(30, 40, factors=4, layers=(16, 8, 4), dropout=0.0)
    ours = NeuMF(NeuMFConfig(n_users=30, n_items=40, factors=4, layers=(16, 8, 4), dropout=0.0))
    ours.load_state_dict({_NAMES[name]: value for name, value in plain.state_dict().items()})
    batch = _samples()
    expected = nn.functional.binary_cross_entropy_with_logits(ours(batch.users, batch.items), batch.labels)
    expected.backward()
    loss = PlainStep(plain).gradients(batch)
    torch.testing.assert_close(loss, expected.detach())
    wanted = dict(ours.named_parameters())
    assert len(wanted) == len(_NAMES)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[_NAMES[name]].grad)


def test_accumulated_pieces_give_the_gradient_of_the_batch() -> None:
    torch.manual_seed(2)
    batch = _samples()
    network = PlainNeuMF(30, 40, factors=4, layers=(16, 8), dropout=0.0)
    whole_loss = PlainStep(network).gradients(batch)
    whole = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    loss = PlainStep(network, piece=64).gradients(batch)  # 200 samples: the last piece is smaller
    torch.testing.assert_close(loss, whole_loss)
    for parameter, expected in zip(network.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_dropout_is_one_half_and_a_step_changes_all_weights() -> None:
    torch.manual_seed(3)
    network = PlainNeuMF(30, 40)
    assert [layer.p for layer in network.hidden if isinstance(layer, nn.Dropout)] == [0.5] * 3
    before = [parameter.detach().clone() for parameter in network.parameters()]
    PlainStep(network)(_samples())
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_an_epoch_has_each_positive_once_with_four_negatives() -> None:
    torch.manual_seed(4)
    users, items = torch.arange(1000) // 10, torch.arange(1000)
    epoch = prepare_epoch(users, items, 1000, 4)
    assert len(epoch) == 5000
    positive = epoch.labels == 1
    found = sorted(zip(epoch.users[positive].tolist(), epoch.items[positive].tolist(), strict=True))
    assert found == list(zip(users.tolist(), items.tolist(), strict=True))
    assert epoch.users[~positive].bincount().tolist() == [40] * 100
    assert 0 <= int(epoch.items.min()) <= int(epoch.items.max()) < 1000
    # In random order: the first fifth has about its share of positives.
    assert 120 < int(positive[:1000].sum()) < 280
