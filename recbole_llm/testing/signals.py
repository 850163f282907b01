"""The contract of a signal, for every entry of the table and for others' own."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from recbole_llm.factors import Factors, Index, Rows, Table, unit_rows
from recbole_llm.settings import RunOptions
from recbole_llm.signals import Signal
from recbole_llm.training_data import History, TrainingData, entries, with_entries

ENCODER = "rows"


def small_data(seed: int = 0, n_users: int = 40, n_items: int = 30) -> TrainingData:
    """Two tastes, their texts, an order, a cold item, one without text, a user without history."""
    rng = np.random.default_rng(seed)
    taste = np.arange(n_items) % 2
    liked = rng.random((n_users, n_items)) < np.where(
        (np.arange(n_users)[:, None] % 2) == taste, 0.5, 0.05
    )
    liked[0], liked[:, 0], liked[:, -1], liked[-1] = False, False, False, False
    rows = unit_rows((np.eye(2)[taste] + 0.1 * rng.normal(size=(n_items, 2))).astype(np.float32))
    rows[[0, 1]] = 0
    interactions = sp.csr_matrix(liked.astype(np.float32))
    ages = [rng.permutation(count) for count in np.diff(interactions.indptr)]
    return TrainingData(
        interactions=interactions,
        age=np.concatenate(ages).astype(np.int32),
        item_texts=("", "", *(f"taste {t} of item {i}" for i, t in enumerate(taste[2:]))),
        item_embeddings={ENCODER: rows},
    )


def check_signal(name: str, signal: Signal) -> None:
    """All that a signal promises, as assertions.

    Shapes, padding, finite values, unknown rows of zero, repeatable with one seed, and inputs
    left as they were.
    """
    data, run = small_data(), RunOptions(seed=7, progress=False)
    before = data.interactions.copy()
    for variant in signal.variants(name, [ENCODER]).values():
        factors = variant.fit(data, run)
        again = variant.fit(data, run)
        users = np.arange(data.n_users)
        scores = factors.scores(users)
        assert scores.shape == (data.n_users, data.n_items)
        assert np.isfinite(scores).all()
        assert not scores[0].any()
        assert not factors.known[0]
        assert not scores[:, ~factors.known].any()
        np.testing.assert_array_equal(scores, again.scores(users))
        assert factors.users.dtype == factors.items.dtype == np.float32
        assert dataclasses.is_dataclass(variant)
        _check_padding(factors)
    assert (before != data.interactions).nnz == 0


def check_order_does_not_matter(name: str, signal: Signal) -> None:
    """Permuted users and items give permuted scores.

    Exactly, but for rounding, where nothing is random; else the quality over three orders differs
    from that over three seeds by less than the seeds differ.
    """
    data = small_data(n_users=200, n_items=60)
    train, held_out = _hold_out(data)
    for variant in signal.variants(name, [ENCODER]).values():
        if variant.seeded:
            runs = [RunOptions(seed=seed, progress=False) for seed in range(3)]
            by_seed = [_found(variant.fit(train, run), held_out) for run in runs]
            by_order = []
            for number in range(3):
                users, items = _orders(data, number)
                factors = variant.fit(permuted(train, users, items), runs[0])
                by_order.append(_found(factors, held_out[users][:, items]))
            moved = abs(np.mean(by_order) - np.mean(by_seed))
            assert moved <= np.ptp(by_seed), f"{by_order} by order, {by_seed} by seed"
        else:
            users, items = _orders(data, 0)
            every = np.arange(data.n_users)
            run = RunOptions(progress=False)
            expected = variant.fit(train, run).scores(every)[users][:, items]
            scores = variant.fit(permuted(train, users, items), run).scores(every)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def check_newcomers(name: str, signal: Signal) -> None:
    """Users folded in by their histories are ranked for as trained ones are.

    Rows of the users' kind and width, the same alone as in a batch, alike for all who have no
    history; held-out items are found as by the trained rows, give or take two hundredths; and a
    signal that reads texts describes cold items by the rows that they have.
    """
    data = small_data(n_users=200, n_items=60)
    train, held_out = _hold_out(data)
    run = RunOptions(seed=7, progress=False)
    for variant in signal.variants(name, [ENCODER]).values():
        factors = variant.fit(train, run)
        items, history = factors.items.copy(), train.history
        liked = variant.sources(factors)
        rows = variant.fold_in(factors, liked, history)
        assert rows.shape == factors.users.shape
        assert sp.issparse(rows) == factors.is_sparse
        assert rows.dtype == np.float32
        dense = _dense(rows)
        for user in (0, 3, data.n_users - 1):
            alone = _dense(variant.fold_in(factors, liked, history[[user]]))
            np.testing.assert_allclose(alone[0], dense[user], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(dense[0], dense[-1])
        folded_in = _found(dataclasses.replace(factors, users=rows), held_out)
        assert folded_in >= _found(factors, held_out) - 0.02
        described = variant.describe(factors, data.item_embeddings)
        if described is not None:
            assert described.shape == factors.items.shape
            cold = ~train.warm_items
            np.testing.assert_allclose(
                _dense(described[cold]), _dense(factors.items[cold]), atol=1e-5
            )
        assert abs(factors.items - items).max() == 0, "folding in changed the items"


def _dense(rows: Rows) -> Table:
    return rows if isinstance(rows, np.ndarray) else rows.toarray()


def permuted(data: TrainingData, users: Index, items: Index) -> TrainingData:
    """The same data with users and items in another order; attributes are not kept."""
    history = History(data.interactions, data.age)[users][:, items]
    return TrainingData(
        interactions=history.weights,
        age=history.age,
        item_texts=tuple(data.item_texts[item] for item in items),
        item_embeddings={name: rows[items] for name, rows in data.item_embeddings.items()},
    )


def _orders(data: TrainingData, seed: int) -> tuple[Index, Index]:
    rng = np.random.default_rng(seed)
    sizes = (data.n_users, data.n_items)
    users, items = (np.r_[0, 1 + rng.permutation(size - 1)] for size in sizes)
    return users, items


def _hold_out(data: TrainingData) -> tuple[TrainingData, sp.csr_matrix]:
    """The data without every tenth interaction, and those interactions."""
    is_held = np.arange(data.interactions.nnz) % 10 == 0
    return with_entries(data, ~is_held), with_entries(data, is_held).interactions


def _found(factors: Factors, held_out: sp.csr_matrix) -> float:
    """Mean percentile of the held-out interactions among all items, 1 for the top."""
    scores = factors.scores(np.arange(factors.n_users))[:, 1:]
    ranks = scores.argsort(axis=1).argsort(axis=1) / (scores.shape[1] - 1)
    users, items = entries(held_out)
    return float(ranks[users, items - 1].mean())


def _check_padding(factors: Factors) -> None:
    for rows in (factors.users, factors.items):
        assert abs(rows[0]).sum() == 0
