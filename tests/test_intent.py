"""Histories, their order and the intent read from them, against plain loops."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import normalize

from recbole_llm.factors import unit_rows
from recbole_llm.intent import user_intent
from recbole_llm.training_data import History, interaction_matrix

N_USERS, N_ITEMS = 4, 5
EVENTS = st.lists(
    st.tuples(
        st.integers(1, N_USERS - 1),
        st.integers(1, N_ITEMS - 1),
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        st.integers(0, 4),
    ),
    max_size=25,
)


def matrix_of(events):
    users, items, weights, times = (
        np.array([event[part] for event in events], dtype=kind)
        for part, kind in enumerate((np.int64, np.int64, np.float32, np.float64))
    )
    return interaction_matrix(users, items, weights, (N_USERS, N_ITEMS), times)


def naive_ages(events):
    """(user, item) -> how many distinct later moments the user has, and the summed weight."""
    latest, weights = {}, {}
    for user, item, weight, time in events:
        if weight > 0:
            latest[user, item] = max(time, latest.get((user, item), time))
            weights[user, item] = weights.get((user, item), 0) + weight
    ages = {
        pair: len(
            {other for (user, _), other in latest.items() if user == pair[0] and other > time}
        )
        for pair, time in latest.items()
    }
    return ages, weights


@settings(deadline=None)
@given(EVENTS)
def test_interactions_equal_a_loop_over_the_events(events):
    matrix, age = matrix_of(events)
    ages, weights = naive_ages(events)
    pairs = matrix.tocoo()
    keys = list(zip(pairs.row.tolist(), pairs.col.tolist(), strict=True))
    assert dict(zip(keys, pairs.data.tolist(), strict=True)) == pytest.approx(weights)
    if not any(ages.values()):
        assert age is None, "one moment of each user is no order"
    else:
        assert dict(zip(keys, age.tolist(), strict=True)) == ages


@settings(deadline=None)
@given(EVENTS, st.sampled_from([0.5, 0.9, 1.0]), st.sampled_from([0.0, 0.3]), st.booleans())
def test_intent_equals_a_loop_over_each_history(events, decay, own_weight, sparse):
    rng = np.random.default_rng(len(events))
    embeddings = unit_rows(rng.normal(size=(N_ITEMS, 3)).astype(np.float32))
    embeddings[[0, 2]] = 0  # padding, and an item without text
    own = unit_rows(rng.normal(size=(N_USERS, 3)).astype(np.float32))
    own[0] = 0
    matrix, age = matrix_of(events)
    ages, weights = naive_ages(events)
    expected = own.astype(np.float64) * own_weight
    for user in range(N_USERS):
        history = {
            item: w * decay ** ages[u, item] for (u, item), w in weights.items() if u == user
        }
        for item, weight in history.items():
            expected[user] += weight / sum(history.values()) * embeddings[item]
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = np.divide(expected, lengths, out=np.zeros_like(expected), where=lengths > 1e-6)
    found = user_intent(
        normalize(History(matrix, age).decayed(decay), norm="l1"),
        sp.csr_matrix(embeddings) if sparse else embeddings,
        user_embeddings=sp.csr_matrix(own) if sparse else own,
        user_text_weight=own_weight,
    )
    found = found.toarray() if sp.issparse(found) else found
    clear = (lengths > 1e-3) | (lengths == 0)
    np.testing.assert_allclose(found * clear, expected * clear, atol=1e-4)
