"""Histories keep what each item counts and its age together."""

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm.training_data import History, TrainingData, without_items


def random_history(n_users=5, n_items=7):
    rng = np.random.default_rng(1)
    weights = sp.random(n_users, n_items, 0.5, "csr", np.float32, random_state=rng)
    own = rng.normal(size=(n_users, 3)).astype(np.float32)
    return History(weights, rng.integers(0, 6, weights.nnz).astype(np.int32), {"bert": own})


def triples(history):
    pairs = history.weights.tocoo()
    return sorted(
        zip(pairs.row.tolist(), pairs.col.tolist(), pairs.data.tolist(), history.age, strict=True)
    )


def test_a_part_of_a_history_keeps_weights_ages_and_own_texts_aligned():
    history, users, items = random_history(), np.array([3, 0]), np.array([6, 1, 2])
    where_user, where_item = {3: 0, 0: 1}, {6: 0, 1: 1, 2: 2}
    expected = [(u, i, w, a) for u, i, w, a in triples(history)]
    assert triples(history[users]) == sorted(
        (where_user[u], i, w, a) for u, i, w, a in expected if u in where_user
    )
    assert triples(history[:, items]) == sorted(
        (u, where_item[i], w, a) for u, i, w, a in expected if i in where_item
    )
    np.testing.assert_array_equal(
        history[users].own_texts["bert"], history.own_texts["bert"][users]
    )
    assert history[:, items].own_texts["bert"].shape == (5, 3)


@pytest.mark.parametrize("decay", [0.35, 0.9, 1.0])
def test_decay_equals_a_loop_over_the_entries(decay):
    history = random_history()
    before = history.weights.copy()
    expected = np.zeros((5, 7))
    for user, item, weight, age in triples(history):
        expected[user, item] = weight * decay**age
    np.testing.assert_allclose(history.decayed(decay).toarray(), expected, rtol=1e-6)
    assert (history.weights != before).nnz == 0


def test_what_is_too_long_ago_to_count_is_left_out_and_no_order_decays_nothing():
    weights = sp.csr_matrix(np.ones((1, 3), np.float32))
    decayed = History(weights, np.array([0, 1, 50_000], np.int32)).decayed(0.5)
    np.testing.assert_array_equal(decayed.toarray(), [[1, 0.5, 0]])
    assert decayed.nnz == 2
    assert History(weights).decayed(0.5) is weights


@pytest.mark.parametrize("has_order", [True, False])
def test_more_items_come_last_and_the_rest_grows_older(has_order):
    history = random_history()
    history.weights.data[::4] = 0
    if not has_order:
        history = History(history.weights)
    expected = {}
    ages = history.age if has_order else np.zeros(history.weights.nnz, np.int32)
    pairs = history.weights.tocoo()
    for user, item, weight, age in zip(pairs.row, pairs.col, pairs.data, ages, strict=True):
        if weight > 0:
            expected[user, item] = (weight, age + 3)
    for user in range(5):
        for age, item in enumerate([4, 1, 6]):  # the last one first
            weight, _ = expected.get((user, item), (0, 0))
            expected[user, item] = (max(weight, 1), age)
    then = history.then([6, 1, 4])
    assert triples(then) == sorted((u, i, w, a) for (u, i), (w, a) in expected.items())
    assert then.weights.has_sorted_indices
    assert then.own_texts is history.own_texts


def test_nothing_more_keeps_what_counts():
    empty = History(sp.csr_matrix((2, 3), dtype=np.float32))
    assert empty.then([]).weights.nnz == 0
    np.testing.assert_array_equal(empty.then([2]).weights.toarray(), [[0, 0, 1], [0, 0, 1]])


def test_before_someone_had_an_item_the_one_before_was_her_last():
    weights = sp.csr_matrix(np.array([[0, 1, 1, 1, 1], [0, 1, 0, 0, 1]], np.float32))
    data = TrainingData(weights, np.array([0, 1, 1, 2, 1, 0], np.int32))
    rest = without_items(data, np.array([False, True, False, False, False]))
    np.testing.assert_array_equal(rest.age, [0, 0, 1, 0])
    np.testing.assert_array_equal(rest.interactions.indices, [2, 3, 4, 4])
