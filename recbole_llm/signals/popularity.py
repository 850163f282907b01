"""Popularity: the same for everybody, and all that is known of a user without history."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recbole_llm.factors import Factors, Rows, Table
from recbole_llm.settings import RunOptions
from recbole_llm.signals.base import SingleSignal
from recbole_llm.training_data import History, TrainingData


@dataclass(frozen=True)
class PopularitySignal(SingleSignal):
    """The logarithm of the number of users who interacted with an item."""

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Count; the logarithm keeps a few bestsellers from outshouting all other signals."""
        users = np.ones((data.n_users, 1), dtype=np.float32)
        users[0] = 0
        items = np.log1p(data.item_counts).astype(np.float32)[:, None]
        return Factors.of(users, items, data.warm_items)

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Table:
        """The same row for everybody."""
        return np.ones((history.weights.shape[0], 1), dtype=np.float32)
