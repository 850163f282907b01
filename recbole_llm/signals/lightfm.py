"""LightFM: factorisation by ranking loss, optionally of the items' features too.

Source: Kula, "Metadata Embeddings for User and Item Cold-start Recommendations", 2015.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from recbole_llm.factors import Factors, Rows, Table
from recbole_llm.settings import RunOptions, Search, setting
from recbole_llm.signals.base import (
    SingleSignal,
    SkippedSignal,
    Steps,
    by_recency,
    decay_setting,
    last,
)
from recbole_llm.training_data import History, TrainingData

_FOLD = "fold"
# Epochs between two looks at the tables.
_EPOCHS = 3


@dataclass(frozen=True)
class LightFMSignal(SingleSignal):
    """LightFM's tables; with item features, items never seen get their rows from them."""

    components: int = setting(
        64, "Width of the LightFM tables.", at_least=1, search=Search(16, 128, log=True)
    )
    epochs: int = setting(
        10, "Passes of LightFM over the interactions.", at_least=1, search=Search(3, 30, log=True)
    )
    learning_rate: float = setting(
        0.05, "LightFM's initial learning rate.", above=0.0, search=Search(0.01, 0.1, log=True)
    )
    loss: str = setting(
        "warp",
        "LightFM's loss.",
        choices=("warp", "bpr", "warp-kos", "logistic"),
        search=Search(choices=("warp", "bpr", "logistic")),
    )
    item_features: bool = setting(
        False,
        "Whether LightFM also learns from TF-IDF of the items' text and their attributes.",
        key="item_features",
    )
    item_identities: bool = setting(
        True,
        "Whether LightFM learns a row of each item's own beside those of its features.",
        key="item_identities",
    )
    history_decay: float | None = decay_setting()

    uses_text: ClassVar[bool] = True
    completed: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    @property
    def uses_attributes(self) -> bool:
        """Whether it learns from features."""
        return self.item_features

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Learn by stochastic gradient descent on one thread: two are not repeatable."""
        return last(self.fit_in_steps(data, run))

    def fit_in_steps(self, data: TrainingData, run: RunOptions) -> Steps:
        """A few epochs more with each step."""
        from lightfm import LightFM

        if not data.interactions.nnz:
            raise SkippedSignal("there is no training interaction")
        features = None
        if self.item_features:
            features = item_features(data, identities=self.item_identities)
            if not features.nnz:
                raise SkippedSignal("no item has a feature to learn from")
        model = LightFM(
            no_components=self.components,
            loss=self.loss,
            learning_rate=self.learning_rate,
            random_state=run.seed,
        )
        for done in range(0, self.epochs, _EPOCHS):
            model.fit_partial(
                data.binary.tocoo(),
                item_features=features,
                # warp-kos takes no weights.
                sample_weight=None if self.loss == "warp-kos" else data.confidence.tocoo(),
                epochs=min(_EPOCHS, self.epochs - done),
                num_threads=1,
                verbose=False,
            )
            yield lambda: self._tables(model, data, features)

    def _tables(self, model: Any, data: TrainingData, features: sp.csr_matrix | None) -> Factors:
        biases, items = model.get_item_representations(features)
        known = data.warm_items
        if features is not None:
            # An item never seen is known where it shares a feature with one that was.
            shared = np.asarray(features[known].astype(bool).sum(axis=0)).ravel() > 0
            known = known | (np.asarray(features @ shared.astype(np.float32)).ravel() > 0)
        users = np.hstack([model.user_embeddings, np.ones((data.n_users, 1), np.float32)]).astype(
            np.float32
        )
        # A user without history has LightFM's random start in place of a row.
        users[np.diff(data.interactions.indptr) == 0] = 0
        table = np.hstack([items, biases[:, None]]).astype(np.float32)
        extra = {_FOLD: history_map(data.confidence, table, users)}
        return by_recency(self, Factors.of(users, table, known, extra), data)

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Table:
        """What the history says of a trained user's row, and the items' biases."""
        weights = history.decayed(self.history_decay or 1.0)
        users = history_rows(weights, np.asarray(liked)[:, :-1]) @ factors.extra[_FOLD]
        told = (np.diff(weights.indptr) > 0)[:, None]
        return np.hstack([users, told]).astype(np.float32)


def history_rows(weights: sp.csr_matrix, items: Table) -> Table:
    """``Σ w v / √Σ w`` of each history, float32 (n_users, d); zero for an empty one.

    The root lets long histories speak louder against the items' biases, as training does.
    """
    total = np.asarray(weights.sum(axis=1)).ravel()
    scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
    return np.asarray(scale[:, None] * (weights @ items), dtype=np.float32)


def history_map(weights: sp.csr_matrix, items: Table, users: Table) -> Table:
    """The linear map from :func:`history_rows` to the users' rows, float32 (d, d).

    Ridge regression over the trained users. On ml-100k rows folded in by it rank held-out items
    as well as the trained ones do, and on sparse data better; implicit feedback's closed form
    needs a penalty for each data set, and the history's mean alone loses on dense ones.

    Args:
        weights: CSR (n_users, n_items), the histories.
        items: (n_items, d + 1), item rows and biases.
        users: (n_users, d + 1), trained rows and a constant.
    """
    rows = history_rows(weights, items[:, :-1]).astype(np.float64)
    gram = rows.T @ rows
    penalty = 1e-3 * np.trace(gram) / len(gram) + 1e-12
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), rows.T @ users[:, :-1]).astype(
        np.float32
    )


def item_features(data: TrainingData, *, identities: bool) -> sp.csr_matrix:
    """The items' identities where wanted, the TF-IDF of their texts, and their attributes.

    Returns:
        CSR float32 (n_items, n_features) with rows summing to 1, as LightFM advises.
    """
    own = sp.identity(data.n_items, dtype=np.float32, format="csr")
    blocks = [own if identities else sp.csr_matrix((data.n_items, 0), dtype=np.float32)]
    if any(data.item_texts):
        vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=True, dtype=np.float32)
        # Where no word occurs twice, scikit-learn raises "empty vocabulary": no feature then.
        with contextlib.suppress(ValueError):
            blocks.append(vectorizer.fit_transform(data.item_texts))
    if data.item_attributes is not None:
        blocks.append(data.item_attributes)
    return normalize(sp.hstack(blocks), norm="l1").tocsr().astype(np.float32)
