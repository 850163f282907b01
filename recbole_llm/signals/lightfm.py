"""LightFM: factorisation by ranking loss, optionally of the items' features too.

Source: Kula, "Metadata Embeddings for User and Item Cold-start Recommendations", 2015.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import OneHotEncoder, normalize

from recbole_llm.factors import Factors
from recbole_llm.settings import RunOptions, setting
from recbole_llm.signals.base import SingleSignal, SkippedSignal
from recbole_llm.training_data import TrainingData


@dataclass(frozen=True)
class LightFMSignal(SingleSignal):
    """LightFM's tables; with item features, items never seen get their rows from them."""

    components: int = setting(64, "Width of the LightFM tables.", at_least=1)
    epochs: int = setting(10, "Passes of LightFM over the interactions.", at_least=1)
    learning_rate: float = setting(0.05, "LightFM's initial learning rate.", above=0.0)
    loss: str = setting("warp", "LightFM's loss.", choices=("warp", "bpr", "warp-kos", "logistic"))
    item_features: bool = setting(
        False,
        "Whether LightFM also learns from TF-IDF of the items' text and their categorical fields.",
        key="item_features",
    )

    uses_text: ClassVar[bool] = True
    completed: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Learn by stochastic gradient descent on one thread: two are not repeatable."""
        from lightfm import LightFM

        if not data.interactions.nnz:
            raise SkippedSignal("there is no training interaction")
        features = item_features(data) if self.item_features else None
        model = LightFM(
            no_components=self.components,
            loss=self.loss,
            learning_rate=self.learning_rate,
            random_state=run.seed,
        )
        model.fit(
            data.binary.tocoo(),
            item_features=features,
            # warp-kos takes no weights.
            sample_weight=None if self.loss == "warp-kos" else data.confidence.tocoo(),
            epochs=self.epochs,
            num_threads=1,
            verbose=False,
        )
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
        return Factors.of(users, np.hstack([items, biases[:, None]]).astype(np.float32), known)


def item_features(data: TrainingData) -> sp.csr_matrix:
    """The items' identities, the TF-IDF of their texts, and their categories.

    Returns:
        CSR float32 (n_items, n_features) with rows summing to 1, as LightFM advises.
    """
    blocks = [sp.identity(data.n_items, dtype=np.float32, format="csr")]
    if any(data.item_texts):
        vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=True, dtype=np.float32)
        # Where no word occurs twice, scikit-learn raises "empty vocabulary": no feature then.
        with contextlib.suppress(ValueError):
            blocks.append(vectorizer.fit_transform(data.item_texts))
    for values in data.item_categories.values():
        column = np.asarray(values, dtype=object)[:, None]
        encoder = OneHotEncoder(categories=[sorted(set(values) - {""})], handle_unknown="ignore")
        blocks.append(encoder.fit_transform(column).astype(np.float32))
    return normalize(sp.hstack(blocks), norm="l1").tocsr().astype(np.float32)
