"""Recency of every signal that has a history: rows that forget, and how fast is chosen."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import standardise
from recbole_llm.settings import RunOptions
from recbole_llm.signals import SIGNALS
from recbole_llm.signals.base import with_settings
from recbole_llm.testing.signals import ENCODER, check_newcomers, small_data
from recbole_llm.training_data import History, TrainingData, entries, with_entries
from recbole_llm.tuning import signal_search
from recbole_llm.tuning.recency import choose_decay
from recbole_llm.tuning.signal_search import search_signal

RUN = RunOptions(seed=7, progress=False)
METRIC = Metric("ndcg", 5)
# Its defaults shrink the rows of small data to nothing.
SMALL = {"als": {"factors": 8, "regularization": 1.0}}
FORGETFUL = [
    name
    for name, kind in SIGNALS.items()
    if "history_decay" in {field.name for field in dataclasses.fields(kind)}
]


def variant(name, **values):
    (signal,) = (
        SIGNALS[name](**{**SMALL.get(name, {}), **values}).variants(name, [ENCODER]).values()
    )
    return signal


def dense(rows):
    return rows if isinstance(rows, np.ndarray) else rows.toarray()


def tastes_that_change():
    """Users of one taste, and 40 whose last items are of the other one; so is what these want."""
    n_users, changed = 160, 120
    data = small_data(n_users=n_users)
    kind, now = np.arange(data.n_items) % 2, np.arange(n_users) % 2
    suits = now[:, None] == kind
    rng = np.random.default_rng(0)
    is_mixed = (np.arange(n_users) >= changed)[:, None]
    liked = rng.random((n_users, data.n_items)) < np.where(suits | is_mixed, 0.4, 0.02)
    liked[0], liked[:, 0] = False, False
    matrix = sp.csr_matrix(liked.astype(np.float32))
    users, items = entries(matrix)
    order = np.lexsort((rng.random(matrix.nnz), ~suits[users, items], users))
    age = np.empty(matrix.nnz, np.int32)
    age[order] = np.arange(matrix.nnz) - matrix.indptr[users[order]]
    data = dataclasses.replace(data, interactions=matrix, age=age)
    is_wanted = (age == 0) & (users >= changed)
    rest, wanted = with_entries(data, ~is_wanted), with_entries(data, is_wanted).interactions
    return rest, dataclasses.replace(Validation.of(rest.binary, wanted), is_later=True)


@pytest.mark.parametrize("name", FORGETFUL)
def test_rows_after_the_fit_are_folded_in_from_the_decayed_history(name):
    data = small_data()
    signal = variant(name, history_decay=0.5)
    factors = signal.fit(data, RUN)
    undecayed = with_settings(signal, {"history_decay": 1.0})
    alike = History(data.confidence, np.zeros_like(data.age))
    expected = undecayed.fold_in(
        factors,
        undecayed.sources(factors),
        dataclasses.replace(alike, weights=data.history.decayed(0.5)),
    )
    if name in ("item_item", "slim"):  # they sum what is liked, whatever it counts
        expected = dataclasses.replace(data.history, weights=data.binary).decayed(0.5)
    np.testing.assert_allclose(dense(factors.users), dense(expected), atol=1e-5)
    learned = undecayed.fit(data, RUN)
    np.testing.assert_array_equal(dense(factors.items), dense(learned.items))
    assert abs(dense(factors.users) - dense(learned.users)).max() > 1e-3


@pytest.mark.parametrize("name", FORGETFUL)
def test_without_an_order_a_decay_changes_nothing(name):
    data = dataclasses.replace(small_data(), age=None)
    if name == "next_item":  # left out altogether
        return
    forgetful, learned = (variant(name, history_decay=d).fit(data, RUN) for d in (0.5, None))
    np.testing.assert_array_equal(dense(forgetful.users), dense(learned.users))


@pytest.mark.parametrize("name", FORGETFUL)
def test_forgetful_rows_are_folded_in_alike_for_newcomers(name):
    check_newcomers(name, SIGNALS[name](history_decay=0.8))


@pytest.mark.parametrize("name", FORGETFUL)
def test_the_decay_that_validates_best_is_chosen_without_fitting_anew(name):
    data, validation = tastes_that_change()
    signal = variant(name)
    factors = signal.fit(data, RUN)
    chosen, forgetful = choose_decay(signal, factors, data, validation, METRIC, RUN)
    values = {}
    for decay in (1.0, 0.9, 0.8, 0.65, 0.5, 0.35):
        again = with_settings(signal, {"history_decay": decay}).fit(data, RUN)
        values[decay] = evaluate([standardise(again)], validation, METRIC)
        if decay == chosen.history_decay:
            np.testing.assert_allclose(dense(forgetful.users), dense(again.users), atol=1e-5)
    assert values[chosen.history_decay] == max(values.values())
    assert chosen.history_decay < 1
    assert forgetful.items is factors.items


def test_a_search_judges_settings_by_rows_that_forget():
    data, validation = tastes_that_change()
    signal = variant("als")

    def values(candidate):
        decays = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35)
        each = [with_settings(candidate, {"history_decay": decay}) for decay in decays]
        tables = [standardise(one.fit(data, RUN)) for one in each]
        return {d: evaluate([t], validation, METRIC) for d, t in zip(decays, tables, strict=True)}

    tried = [with_settings(signal, start) for start in signal.starts]
    first = values(tried[0])
    decay = max(first, key=first.__getitem__)
    assert decay < 1
    expected = [values(one)[decay] for one in tried]
    found = search_signal(
        "als", signal, data, validation, METRIC, RUN, n_trials=len(tried), fixed=()
    )
    assert found.value == pytest.approx(max(expected))
    assert found.signal == tried[int(np.argmax(expected))]
    assert found.signal.history_decay is None


def test_on_many_interactions_settings_are_compared_after_brief_fits(monkeypatch):
    data, validation = tastes_that_change()
    signal = variant("als", iterations=9)
    tried = [with_settings(signal, start) for start in signal.starts]
    monkeypatch.setattr(signal_search, "_MANY", data.interactions.nnz)
    validation = dataclasses.replace(validation, is_later=False)
    brief = [with_settings(one, {"iterations": 6}).fit(data, RUN) for one in tried]
    values = [evaluate([standardise(factors)], validation, METRIC) for factors in brief]
    found = search_signal(
        "als", signal, data, validation, METRIC, RUN, n_trials=len(tried), fixed=()
    )
    assert found.signal == tried[int(np.argmax(values))]
    assert found.signal.iterations == 9
    np.testing.assert_array_equal(found.factors.items, found.signal.fit(data, RUN).items)
    monkeypatch.setattr(signal_search, "_MANY", data.interactions.nnz + 1)
    in_full = search_signal(
        "als", signal, data, validation, METRIC, RUN, n_trials=len(tried), fixed=()
    )
    each = [evaluate([standardise(one.fit(data, RUN))], validation, METRIC) for one in tried]
    assert in_full.signal == tried[int(np.argmax(each))]


def test_nothing_is_chosen_where_recency_cannot_be_judged():
    data, validation = tastes_that_change()
    signal = variant("item_item")
    factors = signal.fit(data, RUN)
    for other in (None, dataclasses.replace(validation, is_later=False)):
        assert choose_decay(signal, factors, data, other, METRIC, RUN) == (signal, factors)
    unordered = TrainingData(data.interactions)
    assert choose_decay(signal, factors, unordered, validation, METRIC, RUN) == (signal, factors)
    given = with_settings(signal, {"history_decay": 0.9})
    assert choose_decay(given, factors, data, validation, METRIC, RUN) == (given, factors)


@pytest.mark.parametrize("name", FORGETFUL)
def test_a_history_of_fifty_thousand_events_is_folded_in(name):
    data = small_data()
    factors = variant(name).fit(data, RUN)
    n = 50_000
    liked = factors.extra.get("source", factors.items)
    rng = np.random.default_rng(0)
    history = History(
        sp.csr_matrix(np.ones((1, n), np.float32)), rng.permutation(n).astype(np.int32)
    )
    many = liked[rng.integers(1, data.n_items, n)]
    for decay in (0.9, 1.0):
        rows = variant(name, history_decay=decay).fold_in(factors, many, history)
        assert np.isfinite(dense(rows)).all()
        assert abs(rows).sum() > 0
