"""Narrow tables from wide ones."""

from __future__ import annotations

import numpy as np

from recbole_llm.encoders.base import TextRows
from recbole_llm.factors import Table, unit_rows


def narrow(rows: TextRows, dimensions: int, *, seed: int) -> Table:
    """Rows in fewer dimensions, whose products are near the wide rows' products.

    A truncated SVD, by random projections (Halko et al. 2011); it is fitted on these very rows, so
    rows of two calls do not share a space.

    Args:
        rows: (n, d), dense or sparse.
        dimensions: width that is wanted, ≥ 1.
        seed: of the projections.

    Returns:
        float32 (n, min(dimensions, n, d)): rows of length 1; zero rows stay zero.
    """
    from sklearn.utils.extmath import randomized_svd

    width = min(dimensions, *rows.shape)
    left, values, _ = randomized_svd(rows, n_components=width, random_state=seed)
    reduced = np.asarray(left * values, dtype=np.float32)
    # A zero row comes out as rounding noise, which scaling would blow up.
    reduced[_norms(rows) == 0] = 0
    return unit_rows(reduced)


def _norms(rows: TextRows) -> Table:
    squares = np.square(rows) if isinstance(rows, np.ndarray) else rows.multiply(rows)
    return np.sqrt(np.asarray(squares.sum(axis=1)).ravel())
