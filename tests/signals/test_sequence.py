"""The trained sequence signal."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm.factors import unit_rows
from recbole_llm.settings import RunOptions
from recbole_llm.signals import SkippedSignal
from recbole_llm.signals.sequence import SequenceSignal
from recbole_llm.testing.signals import ENCODER, check_newcomers, small_data
from recbole_llm.training_data import History, TrainingData, interaction_matrix

RUN = RunOptions(seed=3, progress=False)
QUICK = SequenceSignal(dimensions=16, epochs=12, learning_rate=0.01, batch_size=160)


def circle(n_users=80, n_items=21, n_steps=6, n_cold=3):
    """Users who go around a circle of items, every other one backwards; the last items are cold.

    A text says where on the circle an item is; a cold item's, that it is where item 1 is.
    """
    rng = np.random.default_rng(0)
    starts = rng.integers(n_items, size=n_users)
    users = np.repeat(np.arange(1, n_users + 1), n_steps)
    steps = np.tile(np.arange(n_steps), n_users)
    items = (starts[users - 1] + steps * np.where(users % 2, 1, -1)) % n_items + 1
    shape = (n_users + 1, n_items + n_cold + 1)
    ones = np.ones(len(users), dtype=np.float32)
    interactions, age = interaction_matrix(users, items, ones, shape, steps.astype(np.float64))
    angle = 2 * np.pi * np.r_[np.arange(n_items + 1), np.ones(n_cold)] / n_items
    rows = np.c_[np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]
    rows[0] = 0
    embeddings = {"dense": unit_rows(rows.astype(np.float32))}
    return TrainingData(interactions, age, item_embeddings=embeddings)


def fitted(data, signal=QUICK, encoders=("dense",)):
    (signal,) = signal.variants("sequence", encoders).values()
    return signal, signal.fit(data, RUN)


def next_of(signal, factors, items, n_items=25):
    """The rank of each item after a history, 0 for the best."""
    place = np.array(items)
    weights = sp.csr_matrix(
        (np.ones(len(items), np.float32), (0 * place, place)), shape=(1, n_items)
    )
    age = np.arange(len(items), dtype=np.int32)[::-1][np.argsort(place)]
    row = signal.fold_in(factors, factors.items, History(weights, age))
    return (-(row @ factors.items.T)[0]).argsort().argsort()


@pytest.mark.parametrize("encoders", [("dense",), ()])
def test_what_comes_next_depends_on_the_order(encoders):
    data = circle(n_cold=0)
    if not encoders:
        data = dataclasses.replace(data, item_embeddings={})
    signal, factors = fitted(data, encoders=encoders)
    onwards = next_of(signal, factors, [4, 5, 6], 22)
    backwards = next_of(signal, factors, [6, 5, 4], 22)
    assert onwards[7] < onwards[3]
    assert backwards[3] < backwards[7]


def test_a_user_row_is_her_history_folded_in():
    data = circle()
    signal, factors = fitted(data)
    rows = signal.fold_in(factors, factors.items, data.history)
    np.testing.assert_array_equal(rows, factors.users)


def test_cold_items_stand_where_their_text_says():
    signal, factors = fitted(circle())
    assert factors.known[22:].all()
    ranks = next_of(signal, factors, [20, 21])
    assert ranks[22:].max() < 8
    described = signal.describe(factors, {"dense": circle().item_embeddings["dense"]})
    np.testing.assert_allclose(described[22:], factors.items[22:], atol=1e-5)


def test_it_is_trained_with_candidates_that_are_drawn():
    signal, factors = fitted(circle(), dataclasses.replace(QUICK, candidates=8))
    assert next_of(signal, factors, [4, 5, 6])[7] < 3


def test_without_texts_no_item_is_described_and_cold_ones_are_unknown():
    data = dataclasses.replace(small_data(), item_embeddings={})
    signal, factors = fitted(data, encoders=(ENCODER,))
    assert signal.describe(factors, small_data().item_embeddings) is None
    assert (factors.known == data.warm_items).all()


def test_one_network_reads_all_encoders():
    (signal,) = SequenceSignal().variants("sequence", ["bert", "lexical"]).values()
    assert signal.encoders == ("bert", "lexical")


def test_newcomers_of_a_network_of_one_place():
    check_newcomers("sequence", dataclasses.replace(QUICK, max_history=1))


def test_without_an_order_it_is_left_out():
    data = dataclasses.replace(small_data(), age=None)
    with pytest.raises(SkippedSignal, match="no order"):
        fitted(data, encoders=(ENCODER,))


def test_with_too_few_steps_it_is_left_out():
    with pytest.raises(SkippedSignal, match="15 steps"):
        fitted(circle(n_users=3))


def test_all_events_of_one_moment_and_users_of_one_item_are_fine():
    data = small_data()
    data = dataclasses.replace(data, age=np.zeros_like(data.age))
    _, factors = fitted(data, encoders=(ENCODER,))
    assert np.isfinite(factors.users).all()
