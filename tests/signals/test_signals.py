"""Every registered signal keeps the contract."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from sklearn.linear_model import ElasticNet

from recbole_llm.factors import Factors
from recbole_llm.settings import RunOptions
from recbole_llm.signals import SIGNALS, SkippedSignal, register, slim
from recbole_llm.signals.als import ALSSignal, solve_users
from recbole_llm.signals.item_item import ItemItemSignal, gram_matrix, ridge_item_item
from recbole_llm.signals.slim import slim_weights
from recbole_llm.testing.signals import (
    ENCODER,
    check_newcomers,
    check_order_does_not_matter,
    check_signal,
    small_data,
)
from recbole_llm.training_data import History

RUN = RunOptions(progress=False)


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_keeps_the_contract(name):
    check_signal(name, SIGNALS[name]())


@pytest.mark.parametrize("name", SIGNALS)
def test_the_order_of_users_and_items_does_not_matter(name):
    check_order_does_not_matter(name, SIGNALS[name]())


@pytest.mark.parametrize("name", SIGNALS)
def test_newcomers_are_folded_in(name):
    check_newcomers(name, SIGNALS[name]())


@pytest.mark.parametrize("name", ["text_intent", "text_map"])
def test_a_signal_of_texts_alone_describes_every_item_by_its_row(name):
    data = small_data()
    for signal in SIGNALS[name]().variants(name, [ENCODER]).values():
        factors = signal.fit(data, RUN)
        described = signal.describe(factors, data.item_embeddings)
        np.testing.assert_allclose(described, factors.items, atol=1e-5)


def test_newcomers_are_folded_into_a_truncated_item_item_table():
    check_newcomers("item_item", ItemItemSignal(rank=20))


@pytest.mark.parametrize(("alpha", "regularization"), [(1.0, 5.0), (0.5, 0.1), (8.0, 20.0)])
def test_als_folds_in_as_implicit_recalculates_a_user(alpha, regularization):
    data = small_data()
    weights = data.interactions.copy()
    weights.data = np.random.default_rng(0).uniform(0.5, 3, weights.nnz).astype(np.float32)
    data = dataclasses.replace(data, interactions=weights)
    signal = ALSSignal(factors=6, alpha=alpha, regularization=regularization)
    factors = signal.fit(data, RUN)
    model = AlternatingLeastSquares(
        factors=6, alpha=alpha, regularization=regularization, use_gpu=False
    )
    model.item_factors, model.user_factors = factors.items, factors.users
    expected = model.recalculate_user(np.arange(data.n_users), data.confidence)
    found = signal.fold_in(factors, factors.items, data.history)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 1e-4, 20.0])
@pytest.mark.parametrize("n_liked", [0, 1, 5, 6, 30])
def test_als_folds_in_histories_of_any_length_as_its_formula_says(penalty, n_liked):
    rng = np.random.default_rng(n_liked)
    items, c = rng.standard_normal((40, 6)), rng.uniform(0.1, 4, n_liked)
    liked = rng.permutation(40)[:n_liked]
    rows = items[liked]
    history = sp.csr_matrix((c, (np.ones(n_liked, int), liked)), shape=(2, 40))
    system = items.T @ items + penalty * np.eye(6) + (rows.T * (c - 1)) @ rows
    found = solve_users(items.T @ items, items, history, penalty=penalty)
    np.testing.assert_allclose(found, [np.zeros(6), np.linalg.solve(system, c @ rows)], rtol=1e-5)


def test_als_without_a_penalty_folds_in_few_items():
    factors = Factors.of(
        np.zeros((2, 3), np.float32), np.eye(4, 3, -1, np.float32), np.array([0, 1, 1, 0], bool)
    )
    history = History(sp.csr_matrix(np.array([[0, 1, 0, 0]], np.float32)))
    row = ALSSignal(regularization=0.0).fold_in(factors, factors.items, history)
    np.testing.assert_allclose(row, [[1, 0, 0]], atol=1e-5)


def test_lightfm_with_features_keeps_the_contract_and_knows_a_cold_item():
    signal = dataclasses.replace(SIGNALS["lightfm"](), item_features=True)
    check_signal("lightfm", signal)
    assert signal.fit(small_data(), RUN).known[-1]


def test_item_item_equals_its_formula():
    data = small_data()
    x = data.binary.toarray().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 3.0 * np.eye(x.shape[1]))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(
        ridge_item_item(data.binary, regularization=3.0), expected, atol=1e-5
    )


def test_item_item_reads_the_texts_of_warm_items_as_its_formula_says():
    data = small_data()
    x = data.binary.toarray().astype(np.float64)
    rows = data.item_embeddings[ENCODER].astype(np.float64)
    warm = data.warm_items
    assert rows[~warm].any()
    alike = 2.0 * (rows @ rows.T) * warm * warm[:, None]
    inverse = np.linalg.inv(x.T @ x + alike + 3.0 * np.eye(len(rows)))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    signal = ItemItemSignal(regularization=3.0, text_weight=2.0, encoders=(ENCODER,))
    factors = signal.fit(data, RUN)
    np.testing.assert_allclose(factors.items.T, expected * warm, atol=1e-5)
    np.testing.assert_array_equal(factors.known, warm)


def test_item_item_without_texts_or_weight_for_them_is_ease():
    data = small_data()
    ease = ItemItemSignal().fit(dataclasses.replace(data, item_embeddings={}), RUN)
    (silent,) = ItemItemSignal(text_weight=0.0).variants("item_item", [ENCODER]).values()
    assert not silent.uses_embeddings
    assert not silent.encoders
    np.testing.assert_array_equal(silent.fit(data, RUN).items, ease.items)
    (reading,) = ItemItemSignal().variants("item_item", [ENCODER]).values()
    assert abs(reading.fit(data, RUN).items - ease.items).max() > 1e-3


def test_item_item_of_nearly_full_rank_scores_as_the_full_one():
    data, users = small_data(), np.arange(40)
    full = ItemItemSignal(regularization=3.0).fit(data, RUN).scores(users)
    truncated = ItemItemSignal(regularization=3.0, rank=28).fit(data, RUN).scores(users)
    np.testing.assert_allclose(truncated, full, atol=0.02)


@pytest.mark.parametrize(("l1", "l2"), [(1e-3, 5.0), (0.5, 2.0), (2.0, 1.0), (1e3, 1.0)])
def test_slim_finds_scikit_learns_elastic_net_without_negative_weights(l1, l2):
    history = small_data().binary.toarray().astype(np.float64)
    n_users, n_items = history.shape
    found = slim_weights(
        gram_matrix(small_data().binary), l1=l1, l2=l2, neighbours=n_items
    ).toarray()
    net = ElasticNet(
        alpha=(l1 + l2) / n_users,
        l1_ratio=l1 / (l1 + l2),
        fit_intercept=False,
        positive=True,
        tol=1e-8,
        max_iter=10_000,
    )
    for item in range(1, n_items):
        others = history.copy()
        others[:, item] = 0
        expected = net.fit(others, history[:, item]).coef_
        np.testing.assert_allclose(found[item], expected, atol=1e-4)
    assert (found >= 0).all()
    assert found.any() == (l1 < 1e3)


def test_slims_neighbours_are_those_that_tell_most_alone():
    gram = gram_matrix(small_data().binary)
    found = slim_weights(gram, l1=0.5, l2=2.0, neighbours=4)
    assert np.diff(found.indptr).max() == 4
    for item in range(1, len(gram)):
        gain = np.maximum(gram[item] - 0.5, 0) ** 2 / (gram.diagonal() + 2.0)
        gain[item] = 0
        chosen = found.indices[found.indptr[item] : found.indptr[item + 1]]
        assert gain[chosen].min(initial=np.inf) >= np.sort(gain)[-4]


def test_slim_in_batches_is_slim_at_once(monkeypatch):
    gram = gram_matrix(small_data().binary)
    whole = slim_weights(gram, l1=0.5, l2=2.0, neighbours=6)
    monkeypatch.setattr(slim, "_BATCH_BYTES", 4 * 6**2 * 3)
    parts = slim_weights(gram, l1=0.5, l2=2.0, neighbours=6)
    np.testing.assert_allclose(parts.toarray(), whole.toarray(), atol=1e-4)


@pytest.mark.parametrize("name", ["item_item", "slim"])
def test_a_signal_past_its_memory_is_left_out_by_name(name):
    with pytest.raises(SkippedSignal, match=f"{name}_memory_gb"):
        SIGNALS[name](memory_gb=1e-9).fit(small_data(), RUN)


def test_als_user_rows_follow_a_permutation_of_the_users():
    data = small_data()
    order = np.r_[0, np.random.default_rng(1).permutation(np.arange(1, 40))]
    permuted = dataclasses.replace(data, interactions=data.interactions[order])
    rows, moved = SIGNALS["als"]().fit(data, RUN), SIGNALS["als"]().fit(permuted, RUN)
    np.testing.assert_allclose(moved.users, rows.users[order], atol=1e-4)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="als"):
        register("als", SIGNALS["als"])
