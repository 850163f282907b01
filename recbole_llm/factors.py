"""Factors: the pair of vector tables that every signal ends up as, and the algebra on them.

A signal's score of user ``u`` and item ``i`` is ``users[u] · items[i]``. Putting signals on one
scale, adding them and ranking by them are then closed forms on tables: the matrix of all scores
is never built. Row 0 of every table is RecBole's padding and is zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Table: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Index: TypeAlias = NDArray[np.int64]
Rows: TypeAlias = Table | sp.csr_matrix
# Sparse rows that are multiplied at once.
_ROWS = 16


@dataclass(frozen=True, eq=False)
class Factors:
    """A signal as a pair of tables: ``score(u, i) = users[u]·items[i] + offset[u]·known[i]``.

    Attributes:
        users: float32 (n_users, d), or CSR of that shape where the rows are sparse (the history
            itself, for a full-rank item-item signal; its words, for an intent in words).
        items: float32 (n_items, d), or CSR where the users are; rows that the signal knows
            nothing of are zero.
        known: bool (n_items,), which item rows the signal has learned. Row 0 is False.
        offset: float32 (n_users,), added to a user's scores of the known items. It is what makes
            an unknown item's zero stand for "the user's mean score" after :func:`standardise`.
        extra: what the signal keeps beside its tables to give rows to newcomers.
    """

    users: Rows
    items: Rows
    known: Mask
    offset: Table
    extra: Mapping[str, Rows] = field(default_factory=dict)

    @classmethod
    def of(
        cls, users: Rows, items: Rows, known: Mask, extra: Mapping[str, Rows] | None = None
    ) -> Factors:
        """Factors as a signal learns them: no offset, unknown rows and padding set to zero.

        A dense ``items`` is zeroed in place: an item-item table can fill the memory.
        """
        known = known.copy()
        known[0] = False
        if sp.issparse(items):
            items = scale_rows(items, known.astype(np.float32))
        elif items[~known].any():
            items[~known] = 0
        return cls(users, items, known, np.zeros(users.shape[0], dtype=np.float32), extra or {})

    @property
    def n_users(self) -> int:
        """Number of user rows, padding included."""
        return int(self.users.shape[0])

    @property
    def n_items(self) -> int:
        """Number of item rows, padding included."""
        return int(self.items.shape[0])

    @property
    def is_sparse(self) -> bool:
        """Whether the user rows are sparse."""
        return sp.issparse(self.users)

    def scores(self, users: Index) -> Table:
        """Scores of some users for all items, float32 (len(users), n_items).

        The reference on the CPU; :class:`recbole_llm.scoring.Scorer` is the same on a device.
        """
        scores = self.products(users)
        scores += self.offset[users, None] * self.known
        return scores

    def products(self, users: Index | slice) -> Table:
        """The inner products alone, without the offset, float32 (rows, n_items)."""
        return products(self.users[users], self.items)


def products(rows: Rows, items: Rows) -> Table:
    """``rows @ items.T`` of rows of one kind, or sparse ones and dense items: float32 (n, n_items).

    Sparse by sparse, a few rows at a time are made dense: they stay in the cache, and each item's
    terms are read one after the other. As a sparse product it takes several times as long.
    """
    if isinstance(rows, np.ndarray) or isinstance(items, np.ndarray):
        return np.asarray(rows @ items.T, dtype=np.float32)
    found = np.empty((rows.shape[0], items.shape[0]), dtype=np.float32)
    for part in (slice(start, start + _ROWS) for start in range(0, len(found), _ROWS)):
        found[part] = (items @ np.ascontiguousarray(rows[part].toarray().T)).T
    return found


def batches(n_rows: int, *, row_bytes: int, memory_bytes: int) -> Iterator[slice]:
    """Slices over ``n_rows`` rows so that a batch's rows fit into ``memory_bytes``."""
    step = max(1, memory_bytes // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def score_moments(
    factors: Factors, *, memory_bytes: int = 1 << 28
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of every user's scores over the known items, each float64 (n_users,).

    Dense tables: ``users[u]·mean(V)`` and ``users[u]ᵀ cov(V) users[u]``. Sparse user rows would
    need an items² covariance, so their scores are made in batches within ``memory_bytes``; so are
    those of fewer users than a row is wide, a newcomer's say, to whom it costs more than they.
    """
    if not factors.known.any():
        return np.zeros(factors.n_users), np.zeros(factors.n_users)
    if factors.is_sparse or factors.n_users < factors.users.shape[1]:
        return _moments_by_batches(factors, memory_bytes)
    known_items = factors.items[factors.known].astype(np.float64)
    mean_item = known_items.mean(axis=0)
    centred = known_items - mean_item
    covariance = centred.T @ centred / len(centred)
    mean = factors.users @ mean_item
    variance = np.empty(factors.n_users)
    for rows in batches(factors.n_users, row_bytes=16 * len(mean_item), memory_bytes=memory_bytes):
        part = factors.users[rows].astype(np.float64)
        variance[rows] = np.einsum("ud,ud->u", part @ covariance, part)
    return mean + factors.offset, np.maximum(variance, 0.0)


def _moments_by_batches(
    factors: Factors, memory_bytes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = np.empty(factors.n_users)
    variance = np.empty(factors.n_users)
    n_known = int(factors.known.sum())
    for rows in batches(factors.n_users, row_bytes=8 * factors.n_items, memory_bytes=memory_bytes):
        # So that sums over all items are sums over the known.
        scores = factors.products(rows) * factors.known
        mean[rows] = scores.sum(axis=1, dtype=np.float64) / n_known
        squares = np.einsum("ui,ui->u", scores, scores, dtype=np.float64) / n_known
        variance[rows] = squares - mean[rows] ** 2
    return mean + factors.offset, np.maximum(variance, 0.0)


def standardise(factors: Factors) -> Factors:
    """Per-user z-scores of a signal, again as tables: ``[U/σ, −μ/σ]·[V, 1]``.

    Mean and standard deviation run over the known items. An unknown item scores 0, the user's
    mean; a user whose scores are all equal (no history) gets a zero row and says nothing.
    """
    mean, variance = score_moments(factors)
    # A spread of rounding errors is none: relative to the mean's square for float32 tables.
    spread = variance > 1e-12 + 1e-10 * mean**2
    scale = np.zeros(factors.n_users)
    scale[spread] = 1.0 / np.sqrt(variance[spread])
    scale[0] = 0.0
    offset = ((factors.offset - mean) * scale).astype(np.float32)
    return dataclasses.replace(factors, users=scale_rows(factors.users, scale), offset=offset)


def scale_rows(rows: Rows, scale: NDArray[np.floating]) -> Rows:
    """Every row of a table times a number of its own, float32."""
    if sp.issparse(rows):
        return (sp.diags(scale) @ rows).tocsr().astype(np.float32)
    return (rows * scale[:, None]).astype(np.float32)


def gated(
    factors: Sequence[Factors], gains: Sequence[Table], constant: Table
) -> tuple[Factors, ...]:
    """The weighted sum of signals with weights that may differ by item, as tables.

    Args:
        factors: the signals, of the same users and items.
        gains: float32 (n_items,) for each, what its score of an item is multiplied by; a signal
            of gains zero is left out.
        constant: float32 (n_items,), added to an item's score; 0 for padding.

    Returns:
        Blocks whose scores add up to the sum, without offset: all dense signals as one pair of
        tables, and each signal with sparse user rows on its own; laid out by
        :func:`fused_users` and :func:`fused_items`. A dense item table of sparse user rows, which
        can fill the memory, is scaled in place.
    """
    used = [(f, gain) for f, gain in zip(factors, gains, strict=True) if gain.any()]
    kept = [f for f, _ in used]
    users = fused_users(kept, factors[0].n_users)
    items = fused_items(kept, [gain for _, gain in used], constant)
    # The first block holds what is known of all, the others what is known of one signal each.
    known = [
        np.logical_or.reduce([f.known for f in factors]),
        *(f.known for f in kept if f.is_sparse),
    ]
    none = np.zeros(factors[0].n_users, dtype=np.float32)
    return tuple(Factors(u, i, k, none) for u, i, k in zip(users, items, known, strict=True))


def fused_users(factors: Sequence[Factors], n_users: int) -> tuple[Rows, ...]:
    """The user rows of fused blocks: ``[1, offset_k, U_k, …]``, and sparse ``U_k`` apart.

    Args:
        factors: the signals that are fused; row 0 of their users is padding.
        n_users: how many rows, padding included.
    """
    column = np.ones((n_users, 1), dtype=np.float32)
    column[0] = 0
    dense: list[Rows] = [column]
    apart: list[Rows] = []
    for f in factors:
        dense.append(f.offset[:, None])
        (apart if f.is_sparse else dense).append(f.users)
    return (np.hstack(dense).astype(np.float32), *apart)


def fused_items(
    factors: Sequence[Factors], gains: Sequence[Table], constant: Table
) -> tuple[Rows, ...]:
    """The item rows of fused blocks: ``[constant, known·gain_k, V_k·gain_k, …]``.

    Those of signals with sparse users stand apart; a dense table of them is scaled in place.

    Args:
        factors: the signals that are fused.
        gains: float32 (n_items,) for each.
        constant: float32 (n_items,).
    """
    dense: list[Rows] = [constant[:, None]]
    apart: list[Rows] = []
    for f, gain in zip(factors, gains, strict=True):
        dense.append((f.known * gain)[:, None])
        if not f.is_sparse:
            dense.append(f.items * gain[:, None])
        elif sp.issparse(f.items):
            apart.append((sp.diags(gain) @ f.items).tocsr().astype(np.float32))
        else:
            rows = f.items
            rows *= gain[:, None]
            apart.append(rows)
    return (np.hstack(dense).astype(np.float32), *apart)


def stack_rows(parts: Sequence[Rows]) -> Rows:
    """Tables of one kind and width below each other."""
    if any(sp.issparse(part) for part in parts):
        return sp.vstack(parts, format="csr", dtype=np.float32)
    if parts[0].flags.f_contiguous:  # kept, so that no product copies a wide table once more
        parts = [np.asfortranarray(part) for part in parts]
    return np.concatenate(parts).astype(np.float32, copy=False)


def unit_rows(rows: Table) -> Table:
    """Rows scaled to length 1; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
