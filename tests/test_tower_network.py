"""The two towers against naive loops."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recbole_llm.completion import features_of
from recbole_llm.sequence_network import product
from recbole_llm.testing.signals import ENCODER, small_data
from recbole_llm.tower_network import (
    Tower,
    TowerShape,
    UserTower,
    cropped,
    in_batch_softmax,
    last_moments,
    without,
)
from recbole_llm.training_data import History, entries


def history(seed=0, n_users=9, n_items=14):
    rng = np.random.default_rng(seed)
    liked = rng.random((n_users, n_items)) < 0.4
    liked[0] = False
    weights = sp.csr_matrix(liked * rng.uniform(0.5, 3, liked.shape).astype(np.float32))
    return History(weights.astype(np.float32), rng.integers(0, 6, weights.nnz).astype(np.int32))


def moved(shape):
    """A user tower away from where it starts."""
    torch.manual_seed(0)
    tower = UserTower(shape)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter))
    return tower


def naive_user(tower, rows, part, user):
    row = slice(*part.weights.indptr[user : user + 2])
    total, norm = np.zeros(rows.shape[1]), 0.0
    for item, weight, age in zip(
        part.weights.indices[row], part.weights.data[row], part.age[row], strict=True
    ):
        if age < tower.longest:
            share = weight
            if not tower.is_mean:
                query, behaviour = tower.query.detach().numpy(), tower.behaviour.item()
                share = weight**behaviour * np.exp(rows[item] @ query + tower.places[age].item())
            total, norm = total + share * rows[item], norm + share
    return total / norm / np.linalg.norm(total / norm) if norm else total


@pytest.mark.parametrize("kind", ["attention", "mean"])
@pytest.mark.parametrize("longest", [4, 50])
def test_a_users_row_is_the_attention_over_her_last_moments(kind, longest):
    shape = TowerShape(dimensions=5, user_tower=kind, max_history=longest)
    tower, part = moved(shape), history()
    rows = np.random.default_rng(1).normal(size=(14, 5)).astype(np.float32)
    found = tower(torch.from_numpy(rows), part).detach().numpy()
    expected = [naive_user(tower, rows, part, user) for user in range(9)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_crop_is_as_old_as_its_last_moment():
    whole = history()
    part = cropped(whole, np.random.default_rng(3))
    ages = dict(zip(zip(*entries(whole.weights), strict=True), whole.age, strict=True))
    users, items = entries(part.weights)
    assert len(items) < whole.weights.nnz
    for user in np.unique(users):
        mine = items[users == user]
        before = np.array([ages[user, item] for item in mine])
        np.testing.assert_array_equal(part.age[users == user], before - before.min())
        np.testing.assert_array_equal(
            part.weights[user, mine].toarray(), whole.weights[user, mine].toarray()
        )


def test_training_reads_the_drawn_texts_and_the_tables_their_own():
    data = small_data()
    plain = features_of(data.item_embeddings)
    other = np.roll(plain.blocks[0], 5, axis=1)
    other[2:] = other[2:][::-1]
    stacked = features_of({ENCODER: np.concatenate([plain.blocks[0], other])})
    shape = TowerShape(dimensions=8, identities=False, identity_dropout=1.0)
    tower = Tower(plain, data.history, None, shape, variants=stacked)
    every, drawn = np.arange(data.n_items), []
    for number in range(2):
        tower.train()
        tower.start_epoch(np.random.default_rng([7, number]))
        drawn.append(tower.items.chosen)
        read = np.where(drawn[-1][:, None] == 1, other, plain.blocks[0])
        expected = tower.text_rows(features_of({ENCODER: read}))
        torch.testing.assert_close(tower.items(every)[2:], expected[2:])
    assert set(drawn[0]) == {0, 1}
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_allclose(
        tower.item_table()[2:], tower.text_rows(plain)[2:].detach().numpy(), atol=1e-6
    )


def test_attention_starts_as_the_mean():
    rows = torch.randn(14, 5)
    attention, mean = (
        UserTower(TowerShape(dimensions=5, user_tower=kind))(rows, history())
        for kind in ("attention", "mean")
    )
    torch.testing.assert_close(attention, mean)


def test_what_a_user_says_of_herself_counts_beside_her_history():
    tower = UserTower(TowerShape(dimensions=5, user_text_weight=2.0))
    said = torch.nn.functional.normalize(torch.randn(9, 5), dim=1)
    found = tower(torch.randn(14, 5), history(), said)
    torch.testing.assert_close(found[0], said[0])


def test_without_leaves_one_item_out_of_each_history():
    part = history()
    items = np.arange(9) % 14
    expected = part.weights.toarray()
    expected[np.arange(9), items] = 0
    np.testing.assert_array_equal(without(part, items).weights.toarray(), expected)


def test_the_last_moments_without_an_order_are_all():
    part = History(history().weights)
    assert last_moments(part, 1) is part


def test_in_batch_softmax_equals_the_naive_one():
    rng = np.random.default_rng(0)
    users, rows = rng.normal(size=(2, 7, 3))
    items, correction = np.array([3, 1, 3, 0, 2, 1, 4]), rng.normal(size=5)
    losses = []
    for own in range(7):
        others = [own, *(j for j in range(7) if items[j] != items[own])]
        logits = [users[own] @ rows[j] - correction[items[j]] for j in others]
        losses.append(np.log(np.sum(np.exp(logits))) - logits[0])
    found = in_batch_softmax(*map(torch.from_numpy, (users, rows, items, correction)))
    assert found.item() == pytest.approx(np.mean(losses))


def test_the_sparse_gradient_of_words_equals_the_dense_one():
    words = sp.random(6, 11, 0.3, format="csr", dtype=np.float32, random_state=0)
    weights = torch.randn(11, 4, requires_grad=True)
    gradients = []
    for sparse in (False, True):
        weights.grad = None
        product(words, weights, sparse=sparse).square().sum().backward()
        gradients.append(weights.grad.to_dense())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_a_cold_item_stands_where_its_text_says_before_and_after_a_step(loss):
    data = small_data()
    shape = TowerShape(dimensions=8, loss=loss)
    tower = Tower(features_of(data.item_embeddings), data.history, None, shape)
    tower.start_epoch(np.random.default_rng(0))
    users, items = tower.examples()
    tower.loss(users, items).backward()
    assert tower.items.maps[0].grad.abs().sum() > 0
    cold = np.flatnonzero(~data.warm_items & tower.items.features.described)
    assert not tower.items.own.grad.to_dense()[cold].any()
    with torch.no_grad():
        expected = tower.text_rows(tower.items.features)[cold].numpy()
    np.testing.assert_allclose(tower.item_table()[cold], expected, atol=1e-6)


def test_negatives_are_items_that_the_user_does_not_know():
    data = small_data()
    tower = Tower(
        features_of({ENCODER: data.item_embeddings[ENCODER]}),
        data.history,
        None,
        TowerShape(loss="bpr"),
    )
    users, _ = tower.examples()
    drawn = tower._negatives(users)
    assert data.warm_items[drawn].all()
    assert (np.asarray(data.interactions[users, drawn]).ravel() > 0).mean() < 0.05
