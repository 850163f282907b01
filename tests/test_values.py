"""Clicks and ratings of signals and biases, against naive references."""

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm.errors import SettingsError
from recbole_llm.training_data import History
from recbole_llm.values import (
    DAMPING,
    Expectation,
    Labelled,
    PairFeatures,
    Prediction,
    ValueScale,
    ValueTask,
    best_penalty,
    damped_biases,
    fit_regression,
    held_out_values,
)

SCALE = ValueScale(mean=3.5, spread=1.1, low=1.0, high=5.0)


def rows(n=400, k=3, seed=0):
    rng = np.random.default_rng(seed)
    z_scores = rng.normal(size=(n, k)).astype(np.float32)
    return (z_scores, *rng.normal(scale=0.4, size=(2, n)))


def test_biases_equal_a_naive_sweep():
    users, items = np.array([1, 1, 2, 2, 3]), np.array([1, 2, 1, 3, 3])
    values = np.array([1.0, -0.5, 0.7, 0.2, -1.4])
    of_users, of_items = np.zeros(5), np.zeros(4)
    for _ in range(10):
        for item in range(4):
            rest = [values[n] - of_users[users[n]] for n in range(5) if items[n] == item]
            of_items[item] = sum(rest) / (len(rest) + DAMPING)
        for user in range(5):
            rest = [values[n] - of_items[items[n]] for n in range(5) if users[n] == user]
            of_users[user] = sum(rest) / (len(rest) + DAMPING)
    found = damped_biases(users, items, values, (5, 4))
    np.testing.assert_allclose(found[0], of_users)
    np.testing.assert_allclose(found[1], of_items)
    assert not found[0][4]


def test_ratings_are_the_ridge_of_what_the_biases_leave():
    z_scores, user_bias, item_bias = columns = rows()
    rng = np.random.default_rng(1)
    values = 3.3 + 0.5 * z_scores[:, 0] - 0.2 * z_scores[:, 2] + user_bias + 0.8 * item_bias
    values += rng.normal(scale=0.3, size=len(values))
    design = np.c_[z_scores, user_bias, item_bias, np.ones(len(values))]
    rest = (values - SCALE.mean) / SCALE.spread - user_bias - item_bias
    penalty = np.diag([1.0] * 5 + [0.0])
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ rest)
    expected = SCALE.mean + SCALE.spread * (user_bias + item_bias + design @ weights)
    found = fit_regression(PairFeatures(*columns), values, SCALE, is_clicks=False, penalty=1)
    np.testing.assert_allclose(found.score(PairFeatures(*columns)), expected, atol=1e-6)


def test_ratings_without_evidence_are_mean_and_biases():
    z_scores, user_bias, item_bias = (part[:1] for part in rows())
    values = SCALE.mean + SCALE.spread * (user_bias + item_bias)
    pairs = PairFeatures(z_scores, user_bias, item_bias)
    found = fit_regression(pairs, values, SCALE, is_clicks=False, penalty=1)
    assert found.gains == pytest.approx(0, abs=1e-9)
    assert (found.of_user, found.of_item) == pytest.approx((SCALE.spread, SCALE.spread))


def test_clicks_find_the_weights_that_made_them():
    z_scores, user_bias, item_bias = columns = rows(n=40_000)
    logits = 0.3 + 1.2 * z_scores[:, 0] - 0.7 * z_scores[:, 1] + 2 * user_bias + item_bias
    clicks = np.random.default_rng(2).random(len(logits)) < 1 / (1 + np.exp(-logits))
    found = fit_regression(
        PairFeatures(*columns), clicks.astype(float), SCALE, is_clicks=True, penalty=1
    )
    assert found.gains == pytest.approx([1.2, -0.7, 0], abs=0.06)
    assert (found.intercept, found.of_user, found.of_item) == pytest.approx((0.3, 2, 1), abs=0.1)


@pytest.mark.parametrize("is_clicks", [False, True])
def test_a_held_out_row_does_not_see_its_own_value(is_clicks):
    columns = rows(n=50)
    values = (np.random.default_rng(3).random(50) < 0.5).astype(float)
    scale = ValueScale(0.5, 0.5, 0.0, 1.0)
    options = {"scale": scale, "is_clicks": is_clicks, "penalty": 1, "seed": 7}
    before = held_out_values(PairFeatures(*columns), values, **options)
    values[4] = 1 - values[4]
    after = held_out_values(PairFeatures(*columns), values, **options)
    assert before[4] == after[4]
    assert (before != after).any()


@pytest.mark.parametrize("is_clicks", [False, True])
def test_signals_that_say_nothing_are_not_believed(is_clicks):
    """Of few rows, so that a small penalty learns the noise by heart."""
    rng = np.random.default_rng(5)
    noise = PairFeatures(rng.normal(size=(80, 20)), np.zeros(80), np.zeros(80))
    values = (rng.random(80) < 0.5).astype(float)
    scale = ValueScale(0.5, 0.5, 0.0, 1.0)
    penalty, held_out = best_penalty(noise, values, scale, is_clicks=is_clicks, seed=0)
    options = {"is_clicks": is_clicks, "penalty": penalty}
    assert penalty >= 100
    np.testing.assert_array_equal(
        held_out, held_out_values(noise, values, scale, seed=0, **options)
    )
    assert abs(fit_regression(noise, values, scale, **options).gains).max() < 0.1


@pytest.mark.parametrize("is_clicks", [False, True])
def test_signals_that_tell_all_are_believed(is_clicks):
    told = PairFeatures(
        np.random.default_rng(6).normal(size=(400, 1)), np.zeros(400), np.zeros(400)
    )
    values = (told.z_scores[:, 0] > 0).astype(float)
    penalty, _ = best_penalty(
        told, values, ValueScale(0.5, 0.5, 0.0, 1.0), is_clicks=is_clicks, seed=0
    )
    assert penalty <= 10


@pytest.mark.parametrize("is_clicks", [False, True])
def test_a_prediction_is_the_score_with_the_users_term_on_the_scale(is_clicks):
    terms = np.array([0.0, 3.0, -2.0])
    scores, users = np.array([0.5, 9.0, -4.0, 0.1], np.float32), np.array([1, 1, 2, 2])
    found = Prediction(is_clicks, terms, SCALE).values(scores, users)
    for value, score, user in zip(found, scores, users, strict=True):
        total = score + terms[user]
        expected = 1 / (1 + np.exp(-total)) if is_clicks else min(5.0, max(1.0, total))
        assert value == pytest.approx(expected, rel=1e-5)


def test_without_validation_rows_the_task_says_what_it_needs():
    none = np.zeros(0, np.int64)
    known = Labelled(np.array([1]), np.array([1]), np.array([3.0]))
    for valid in (None, Labelled(none, none, none.astype(float))):
        with pytest.raises(SettingsError, match="`task: ratings` is fitted on validation rows"):
            ValueTask.of("ratings", known, valid, (2, 2))


def test_sides_are_what_goes_beyond_the_biases_of_users_and_items():
    weights = np.array([[0, 0, 0, 0], [5, 1, 0, 2], [0, 3, 3, 4]], np.float32) / 3  # 1 in the mean
    history = History(sp.csr_matrix(weights), np.array([2, 1, 0, 0, 2, 1], np.int32))
    expectation = Expectation.of(history)
    spread = weights[weights > 0].std()
    assert expectation.spread == pytest.approx(spread)
    assert expectation.like == pytest.approx(min(5 / 3, 1 + 2 * spread))
    reactions = np.zeros(weights.shape)
    for user in (1, 2):
        items = np.flatnonzero(weights[user])
        rest = (weights[user, items] - 1) / spread - expectation.item_biases[items]
        reactions[user, items] = rest - rest.sum() / (len(items) + DAMPING)
    for name, sign in (("liked", 1), ("disliked", -1)):
        expected = np.maximum(sign * reactions, 0)
        part = expectation.side(history, name)
        np.testing.assert_allclose(
            part.weights.toarray(), expected / expected[expected > 0].mean(), rtol=1e-5
        )
        for user in (1, 2):
            ages = part.age[slice(*part.weights.indptr[user : user + 2])]
            assert sorted(ages) == list(range(len(ages)))


def test_equal_weights_have_no_sides():
    history = History(sp.csr_matrix(np.ones((3, 4), np.float32) * np.float32(0.9999999)))
    assert not Expectation.of(history).sizes
