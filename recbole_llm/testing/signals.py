"""The contract of a signal, for every entry of the table and for others' own."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from recbole_llm.factors import Factors, unit_rows
from recbole_llm.settings import RunOptions
from recbole_llm.signals import Signal
from recbole_llm.training_data import TrainingData

ENCODER = "rows"


def small_data(seed: int = 0, n_users: int = 40, n_items: int = 30) -> TrainingData:
    """Two tastes, their texts, one cold item, one item without text, one user without history."""
    rng = np.random.default_rng(seed)
    taste = np.arange(n_items) % 2
    liked = rng.random((n_users, n_items)) < np.where(
        (np.arange(n_users)[:, None] % 2) == taste, 0.5, 0.05
    )
    liked[0], liked[:, 0], liked[:, -1], liked[-1] = False, False, False, False
    rows = unit_rows((np.eye(2)[taste] + 0.1 * rng.normal(size=(n_items, 2))).astype(np.float32))
    rows[[0, 1]] = 0
    return TrainingData(
        interactions=sp.csr_matrix(liked.astype(np.float32)),
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


def _check_padding(factors: Factors) -> None:
    for rows in (factors.users, factors.items):
        assert abs(rows[0]).sum() == 0
