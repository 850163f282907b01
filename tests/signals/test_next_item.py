"""Next item: what follows what, against plain loops."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.settings import RunOptions
from recbole_llm.signals.base import SkippedSignal
from recbole_llm.signals.next_item import NextItemSignal, transitions, without_popularity
from recbole_llm.testing.signals import check_newcomers, small_data
from recbole_llm.training_data import TrainingData, interaction_matrix

RUN = RunOptions(progress=False)
N_USERS, N_ITEMS = 4, 7
EVENTS = st.lists(
    st.tuples(st.integers(1, N_USERS - 1), st.integers(1, N_ITEMS - 1), st.integers(0, 5)),
    min_size=1,
    max_size=25,
)


def data_of(events):
    users, items, times = (np.array(column) for column in zip(*events, strict=True))
    ones = np.ones(len(events), np.float32)
    return TrainingData(
        *interaction_matrix(users, items, ones, (N_USERS, N_ITEMS), times.astype(np.float64))
    )


@settings(deadline=None)
@given(EVENTS, st.integers(1, 4))
def test_transitions_equal_a_loop_over_pairs_of_moments(events, window):
    data = data_of(events)
    expected = np.zeros((N_ITEMS, N_ITEMS))
    for user in range(N_USERS):
        latest = {}
        for _, item, time in sorted(e for e in events if e[0] == user):
            latest[item] = max(time, latest.get(item, time))
        moments = sorted(set(latest.values()))
        for a, time in latest.items():
            for b, other in latest.items():
                steps = moments.index(other) - moments.index(time)
                if 1 <= steps <= window:
                    expected[a, b] += 1 / steps
    if data.age is None:
        assert not expected.any()
        return
    found = transitions(data.interactions, data.age, window=window)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)


def test_popularity_is_divided_out():
    follows = sp.csr_matrix(np.array([[0, 4, 0], [9, 0, 0], [0, 12, 0]], np.float32))
    np.testing.assert_allclose(
        without_popularity(follows, exponent=0.5).toarray(),
        [[0, 4 / np.sqrt(4 * 16), 0], [9 / np.sqrt(9 * 9), 0, 0], [0, 12 / np.sqrt(12 * 16), 0]],
    )


def test_scores_are_the_decayed_sum_of_what_the_items_lead_to():
    data = small_data()
    signal = NextItemSignal(window=2, history_decay=0.5)
    leads_to = without_popularity(
        transitions(data.interactions, data.age, window=2), exponent=signal.popularity_exponent
    ).toarray()
    expected = np.zeros((data.n_users, data.n_items))
    for user in range(data.n_users):
        row = slice(*data.interactions.indptr[user : user + 2])
        for item, age in zip(data.interactions.indices[row], data.age[row], strict=True):
            expected[user] += 0.5**age * leads_to[item]
    scores = signal.fit(data, RUN).scores(np.arange(data.n_users))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_newcomers_are_folded_in_by_their_order():
    check_newcomers("next_item", NextItemSignal(history_decay=0.5))


@pytest.mark.parametrize(
    ("age", "said"), [(None, "have no order"), (np.zeros(9, np.int32), "no item ever follows")]
)
def test_without_an_order_it_is_left_out(age, said):
    one_each = sp.csr_matrix(
        (np.ones(9, np.float32), (np.arange(1, 10), np.arange(1, 10))), shape=(10, 10)
    )
    with pytest.raises(SkippedSignal, match=said):
        NextItemSignal().fit(TrainingData(one_each, age), RUN)


def test_a_moment_of_thousands_of_items_is_passed_over():
    n = 3000
    weights = sp.csr_matrix(np.r_[0, np.ones(n)].astype(np.float32)[None, :])
    age = np.ones(n, np.int32)
    age[:3] = 0, 2, 3
    follows = transitions(weights, age, window=3)
    assert follows.nnz == 3
    assert follows[3, 2] == 1
    assert follows[2, 1] == 0.5
    assert follows[3, 1] == pytest.approx(1 / 3)
