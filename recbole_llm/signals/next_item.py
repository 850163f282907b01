"""Next item: what follows what, counted, as one pair of tables.

A Markov chain over items as in Rendle et al., "Factorizing Personalized Markov Chains" (FPMC),
2010, without its personal part; unlike there the transitions are counted over a window, damped by
popularity and truncated by SVD in place of a trained factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from recbole_llm.factors import Factors, Rows
from recbole_llm.settings import RunOptions, setting
from recbole_llm.signals.base import SingleSignal, SkippedSignal, decay_setting, folded_in
from recbole_llm.training_data import History, TrainingData, entries

_SOURCE = "source"
# What came by the thousand at one moment (an import, a default date) says nothing of what follows
# it, and would cost its square.
_MOST_AT_ONCE = 500


@dataclass(frozen=True)
class NextItemSignal(SingleSignal):
    """Item rows: what an item comes after; user rows: the sum of what her items lead to."""

    window: int = setting(
        10, "Moments after an item within which others count as following it.", at_least=1
    )
    popularity_exponent: float = setting(
        0.3,
        "How far popularity is taken out of what follows what: 0 not, 1 wholly.",
        at_least=0.0,
        at_most=1.0,
    )
    rank: int = setting(512, "Width of the next-item tables by truncated SVD.", at_least=1)
    history_decay: float | None = decay_setting()

    completed: ClassVar[bool] = True

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Count what follows what, and truncate.

        Raises:
            SkippedSignal: there is no order, or nothing ever follows anything.
        """
        if data.age is None:
            raise SkippedSignal(
                "the interactions have no order (see `order_field`), so that `history_decay` of "
                "the other signals counts nothing either"
            )
        follows = transitions(data.interactions, data.age, window=self.window)
        if not follows.nnz:
            raise SkippedSignal("no item ever follows another one")
        damped = without_popularity(follows, exponent=self.popularity_exponent)
        rank = min(self.rank, data.n_items - 1)
        left, strength, right = randomized_svd(damped, rank, random_state=run.seed)
        source = (left * strength).astype(np.float32)
        known = np.asarray(follows.sum(axis=0)).ravel() > 0
        items = np.ascontiguousarray(right.T, np.float32)
        return folded_in(self, data, items, known, {_SOURCE: source})

    def sources(self, factors: Factors) -> Rows:
        """Where each item leads to."""
        return factors.extra[_SOURCE]

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Rows:
        """The sum of where the items of a history lead to."""
        return history.decayed(self.history_decay or 1.0) @ liked


def transitions(
    interactions: sp.csr_matrix, age: NDArray[np.int32], *, window: int
) -> sp.csr_matrix:
    """How often one item follows another in the same history: one step later counts 1, d 1/d.

    Items of one moment do not follow each other, and a step leads from moment to moment. Moments
    of more than 500 items are passed over.

    Args:
        interactions: CSR (n_users, n_items).
        age: int32 aligned with its entries, 0 for a user's last moment, without gaps.
        window: the most steps.

    Returns:
        CSR float32 (n_items, n_items), ``[a, b]``: b after a.
    """
    n_items = interactions.shape[1]
    users, items = entries(interactions)
    moments = np.zeros(interactions.shape[0], dtype=np.int64)
    np.maximum.at(moments, users, age + np.int64(1))
    # Moments of all users in a row, each user's from the first to the last.
    last = np.cumsum(moments) - 1
    moment = last[users] - age
    user_of = np.repeat(np.arange(len(moments)), moments)
    kept = np.bincount(moment, minlength=len(user_of))[moment] <= _MOST_AT_ONCE
    held = sp.csr_matrix(
        (np.ones(kept.sum(), dtype=np.float32), (moment[kept], items[kept])),
        shape=(len(user_of), n_items),
    )
    total = sp.csr_matrix((n_items, n_items), dtype=np.float32)
    for step in range(1, window + 1):
        before = np.flatnonzero(user_of[:-step] == user_of[step:])
        total = total + held[before].T @ held[before + step] * np.float32(1 / step)
    return total.tocsr()


def without_popularity(follows: sp.csr_matrix, *, exponent: float) -> sp.csr_matrix:
    """``follows[a, b] / (Σ_b follows[a, b] · Σ_a follows[a, b]) ** exponent``, CSR float32."""

    def damping(axis: int) -> sp.dia_matrix:
        total = np.asarray(follows.sum(axis=axis)).ravel()
        scale = np.zeros_like(total)
        scale[total > 0] = total[total > 0] ** -exponent
        return sp.diags(scale)

    return (damping(1) @ follows @ damping(0)).tocsr().astype(np.float32)
