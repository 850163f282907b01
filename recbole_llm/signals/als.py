"""ALS: implicit-feedback matrix factorisation, from the `implicit` library.

Source: Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", 2008.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from recbole_llm.errors import FitError
from recbole_llm.factors import Factors, Rows, Table
from recbole_llm.settings import RunOptions, Search, setting
from recbole_llm.signals.base import SingleSignal, Steps, by_recency, decay_setting, last
from recbole_llm.training_data import History, TrainingData

# Sweeps between two looks at the tables.
_SWEEPS = 3
# Of the gram's mean eigenvalue: below it the short way of folding in would cancel digits.
_SAFE_PENALTY = 1e-6


@dataclass(frozen=True)
class ALSSignal(SingleSignal):
    """Matrix factorisation of weighted interactions; knows nothing of cold items and users."""

    factors: int = setting(
        64, "Width of the ALS tables.", at_least=1, search=Search(32, 256, log=True)
    )
    regularization: float = setting(
        20.0, "L2 penalty of ALS.", at_least=0.0, search=Search(0.1, 100.0, log=True)
    )
    alpha: float = setting(
        2.0,
        "Confidence of an interaction of mean weight; a missing one has 1.",
        above=0.0,
        search=Search(0.5, 50.0, log=True),
    )
    iterations: int = setting(
        15, "Alternating sweeps of ALS.", at_least=1, search=Search(5, 30, in_runs=False)
    )
    history_decay: float | None = decay_setting()

    completed: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    # After six sweeps settings stand in nearly the order that they end in; after four they do not.
    brief: ClassVar[Mapping[str, Any]] = {"iterations": 6}
    # Dense films want a strong penalty, sparse shops a high confidence; the penalty and the
    # confidence trade off along the line between them.
    starts: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"factors": 64, "regularization": 20.0, "alpha": 2.0},
        {"factors": 128, "regularization": 1.0, "alpha": 20.0},
        {"factors": 128, "regularization": 20.0, "alpha": 2.0},
        {"factors": 192, "regularization": 27.0, "alpha": 28.0},
        {"factors": 128, "regularization": 27.0, "alpha": 3.75},
        {"factors": 64, "regularization": 5.0, "alpha": 5.0},
    )

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Factorise the interactions; items without one are unknown."""
        return last(self.fit_in_steps(data, run))

    def fit_in_steps(self, data: TrainingData, run: RunOptions) -> Steps:
        """A few sweeps more with each step: implicit goes on from where it stands."""
        from implicit.als import AlternatingLeastSquares

        # implicit runs its own threads over the rows; a threaded BLAS below them only gets in the
        # way, and makes the sums depend on the number of cores.
        single = threadpool_limits.wrap(1, user_api="blas")
        model = single(AlternatingLeastSquares)(
            factors=self.factors,
            regularization=self.regularization,
            alpha=self.alpha,
            random_state=run.seed,
            num_threads=run.n_threads or 0,
            use_gpu=False,
        )
        for done in range(0, self.iterations, _SWEEPS):
            model.iterations = min(_SWEEPS, self.iterations - done)
            single(model.fit)(data.confidence, show_progress=False)
            yield lambda: self._tables(model, data)

    def _tables(self, model: Any, data: TrainingData) -> Factors:
        users, items = model.user_factors, model.item_factors
        if not (abs(users).max() < float("inf") and abs(items).max() < float("inf")):
            raise FitError(f"ALS gave no finite tables with {self}; raise `als_regularization`")
        users[0] = 0
        return by_recency(self, Factors.of(users, items, data.warm_items), data)

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Table:
        """The users' half of a sweep, solved exactly."""
        items = np.asarray(factors.items[factors.known], dtype=np.float64)
        return solve_users(
            items.T @ items,
            np.asarray(liked, dtype=np.float64),
            history.decayed(self.history_decay or 1.0) * self.alpha,
            penalty=self.regularization,
        )


def solve_users(
    gram: NDArray[np.float64],
    liked: NDArray[np.float64],
    confidence: sp.csr_matrix,
    *,
    penalty: float,
) -> Table:
    """``(YᵀY + λI + Σ (c − 1) y yᵀ)⁻¹ Σ c y`` for each user, over the items y of her history.

    Source: Hu et al. 2008, eq. 4, with c as `implicit` takes it: the confidence itself, where the
    paper has ``1 + α r``.

    Args:
        gram: (d, d), ``YᵀY`` over all items.
        liked: (m, d), item rows.
        confidence: CSR (n_users, m), c > 0 of each entry.
        penalty: λ.

    Returns:
        float32 (n_users, d), zero for a user without an entry.
    """
    users = np.zeros((confidence.shape[0], gram.shape[0]), dtype=np.float32)
    # Without a penalty a few items leave directions open: the least one closes them.
    least = 1e-9 * np.trace(gram) / len(gram) + 1e-12
    missing = gram + (penalty + least) * np.eye(len(gram))
    # A short history takes a system of its own size: (A + YᵀDY)⁻¹Yᵀ = A⁻¹Yᵀ(I + D Y A⁻¹Yᵀ)⁻¹.
    counts = np.diff(confidence.indptr)
    is_short = (counts < len(gram)) & (penalty > _SAFE_PENALTY * np.trace(gram) / len(gram))
    factor = cho_factor(missing) if is_short.any() else None
    for user in np.flatnonzero(counts):
        entries = slice(*confidence.indptr[user : user + 2])
        rows, c = liked[confidence.indices[entries]], confidence.data[entries].astype(np.float64)
        if is_short[user]:
            solved = cho_solve(factor, rows.T, check_finite=False)
            system = np.eye(len(c)) + (c - 1)[:, None] * (rows @ solved)
            users[user] = solved @ np.linalg.solve(system, c)
        else:
            users[user] = np.linalg.solve(missing + (rows.T * (c - 1)) @ rows, c @ rows)
    return users
