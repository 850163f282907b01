"""Item-item: a ridge regression of every item on all others, by who has them and what they say.

Sources: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (EASE), 2019; Jeunen, Van
Balen, Goethals, "Closed-Form Models for Collaborative Filtering with Side-Information" (CEASE),
2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack
from sklearn.utils.extmath import randomized_svd

from recbole_llm.errors import FitError
from recbole_llm.factors import Factors, Rows, Table, batches, scale_rows
from recbole_llm.settings import RunOptions, Search, Words, setting
from recbole_llm.signals.base import (
    SingleSignal,
    SkippedSignal,
    by_recency,
    decay_setting,
    with_settings,
)
from recbole_llm.training_data import History, TrainingData, with_ones

_SOURCE = "source"


@dataclass(frozen=True)
class ItemItemSignal(SingleSignal):
    """CEASE: user rows are the sparse history, item rows the columns of the item-item matrix.

    Without texts it is EASE.
    """

    regularization: float = setting(
        250.0,
        "L2 penalty of the item-item ridge.",
        above=0.0,
        search=Search(10.0, 2000.0, log=True, in_runs=False),
    )
    text_weight: float = setting(
        6.0,
        "What two items of the same text count in the item-item ridge: as much as so many users "
        "who have both; 0: it reads no texts.",
        at_least=0.0,
        search=Search(1.0, 30.0, log=True, in_runs=False),
    )
    rank: int = setting(
        0, "Width of the item-item tables by truncated SVD; 0: the full matrix.", at_least=0
    )
    memory_gb: float = setting(
        4.0, "Largest item-item matrix; past it the signal is left out.", above=0.0
    )
    history_decay: float | None = decay_setting()
    encoders: Words = ()

    completed: ClassVar[bool] = True

    @property
    def uses_text(self) -> bool:
        """Whether texts count."""
        return self.text_weight > 0

    @property
    def uses_embeddings(self) -> bool:
        """Whether texts count."""
        return self.uses_text

    def variants(self, name: str, encoders: Sequence[str]) -> dict[str, ItemItemSignal]:
        """Itself, with all encoders."""
        return {name: with_settings(self, {"encoders": tuple(encoders) if self.uses_text else ()})}

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Invert the items' Gram matrix.

        Raises:
            SkippedSignal: the matrix would pass ``memory_gb``.
        """
        check_memory(data.n_items, self.memory_gb, "item_item_memory_gb")
        similarity = ridge_item_item(
            data.binary, self._texts(data), regularization=self.regularization
        )
        if not 0 < self.rank < data.n_items - 1:
            return by_recency(self, Factors.of(data.binary, similarity.T, data.warm_items), data)
        left, strength, right = randomized_svd(similarity, self.rank, random_state=run.seed)
        source = (left * strength).astype(np.float32)
        items = np.ascontiguousarray(right.T, np.float32)
        factors = Factors.of(data.binary @ source, items, data.warm_items, {_SOURCE: source})
        return by_recency(self, factors, data)

    def _texts(self, data: TrainingData) -> list[Rows]:
        """The warm items' texts by each encoder; all together count as ``text_weight`` says."""
        encoders = self.encoders if data.item_embeddings else ()
        share = np.sqrt(self.text_weight / max(1, len(encoders)))
        return [
            scale_rows(data.item_embeddings[name], share * data.warm_items) for name in encoders
        ]

    def sources(self, factors: Factors) -> Rows:
        """The rows of the truncated matrix; of the full one each item's own place."""
        if _SOURCE in factors.extra:
            return factors.extra[_SOURCE]
        return sp.identity(factors.n_items, dtype=np.float32, format="csr")

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Rows:
        """The sum of what is liked, whatever it counts, as in fitting."""
        return had(history, self.history_decay) @ liked


def check_memory(n_items: int, most_gb: float, key: str) -> None:
    """Refuse items whose matrix would be too large.

    Raises:
        SkippedSignal: float32 (n_items, n_items) would pass ``most_gb``, which ``key`` sets.
    """
    needed = 4 * n_items**2 / 2**30
    if needed > most_gb:
        raise SkippedSignal(
            f"its matrix would take {needed:.1f} GB, more than `{key}`: {most_gb:g}"
        )


def had(history: History, decay: float | None) -> sp.csr_matrix:
    """What is in a history, whatever it counts, but for how long ago it was."""
    return replace(history, weights=with_ones(history.weights)).decayed(decay or 1.0)


def ridge_item_item(
    interactions: sp.csr_matrix, texts: Sequence[Rows] = (), *, regularization: float
) -> Table:
    """EASE's matrix B, float32 (n_items, n_items): ``scores = interactions @ B``; CEASE's by texts.

    ``P = (XᵀX + Σ TTᵀ + λI)⁻¹``, ``B_ij = −P_ij / P_jj``, diagonal 0. One array in all: the Gram
    matrix is built, inverted by Cholesky and scaled in place, in float32.

    Args:
        interactions: CSR float32 (n_users, n_items), ones.
        texts: tables T of the items' texts, float32 (n_items, d), scaled as they shall count.
        regularization: λ > 0.

    Raises:
        FitError: the penalty is too small for float32.
    """
    gram = gram_matrix(interactions, texts)
    gram[np.diag_indices(len(gram))] += np.float32(regularization)
    # The transposed view is in LAPACK's column order, so that it is overwritten, not copied; its
    # lower triangle is the array's upper one.
    factor, failed = lapack.spotrf(gram.T, lower=1, clean=0, overwrite_a=1)
    inverse, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise FitError(
            "the item-item matrix cannot be inverted; raise `item_item_regularization`, "
            f"which is {regularization:g}"
        )
    assert np.shares_memory(inverse, gram)
    _mirror(gram)
    scale = -1.0 / gram.diagonal()
    gram *= scale
    np.fill_diagonal(gram, 0.0)
    return gram


def gram_matrix(interactions: sp.csr_matrix, texts: Sequence[Rows] = ()) -> Table:
    """``XᵀX + Σ TTᵀ``, float32 (n_items, n_items).

    Args:
        interactions: X, CSR float32 (n_users, n_items).
        texts: tables T, float32 (n_items, d).
    """
    n_items = interactions.shape[1]
    gram = np.zeros((n_items, n_items), dtype=np.float32)
    pairs = [(interactions.T.tocsr(), interactions)]
    pairs += [(rows, rows.T if isinstance(rows, np.ndarray) else rows.T.tocsr()) for rows in texts]
    # A dense row block at a time: the sparse product of a busy shop is larger than the array.
    for rows in batches(n_items, row_bytes=16 * n_items, memory_bytes=1 << 28):
        for own, others in pairs:
            product = own[rows] @ others
            gram[rows] += product if isinstance(product, np.ndarray) else product.toarray()
    return gram


def _mirror(matrix: Table, block: int = 2048) -> None:
    """Copy the upper triangle onto the lower one, in blocks that stay in the cache."""
    size = len(matrix)
    for start in range(0, size, block):
        stop = min(start + block, size)
        square = matrix[start:stop, start:stop]
        square[:] = np.triu(square) + np.triu(square, 1).T
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
