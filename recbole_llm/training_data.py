"""TrainingData: the plain arrays that signals see, free of the host's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llm.factors import Index, Mask, Rows


@dataclass(frozen=True, eq=False)
class History:
    """What some users had to do with: how much each item counts, and in which order they came.

    Attributes:
        weights: CSR float32 (n, m), > 0; an interaction of mean weight counts 1.
        age: int32, aligned with ``weights.data``: 0 for a user's last item, 1 for the one before,
            …; items of one moment share an age. None where there is no order.
        own_texts: encoder's name -> unit rows (n, d) of what the users say of themselves.
    """

    weights: sp.csr_matrix
    age: NDArray[np.int32] | None = None
    own_texts: Mapping[str, Rows] = field(default_factory=dict)

    def decayed(self, decay: float) -> sp.csr_matrix:
        """``weights · decay**age``, CSR float32 (n, m); without an order the weights themselves.

        Args:
            decay: in (0, 1], the factor from one moment of the history to the one before.
        """
        if decay == 1 or self.age is None:
            return self.weights
        matrix = self.weights.copy()
        matrix.data = (matrix.data * np.power(decay, self.age, dtype=np.float64)).astype(np.float32)
        # Below that numbers lose digits and speed, and weights have to be above 0.
        matrix.data[matrix.data < np.finfo(np.float32).tiny] = 0
        matrix.eliminate_zeros()
        return matrix

    def then(self, items: Sequence[int], weight: float = 1.0) -> History:
        """The histories of all users with some more items, the last one last.

        Args:
            items: item rows, each once.
            weight: what they count, or more where they counted more before.

        Returns:
            Histories without what counted nothing (weight 0).
        """
        n_users, n = self.weights.shape[0], len(items)
        counts = self.weights.data > 0
        users, before = (part[counts] for part in entries(self.weights))
        ages = np.zeros(len(users), np.int32) if self.age is None else self.age[counts]
        user = np.r_[users, np.repeat(np.arange(n_users), n)]
        item = np.r_[before, np.tile(np.asarray(items, dtype=np.int64), n_users)]
        age = np.r_[ages + n, np.tile(np.arange(n)[::-1], n_users)].astype(np.int32)
        added = np.full(n * n_users, weight)
        counted = np.r_[self.weights.data[counts], added].astype(np.float32)
        # An item that comes again is as old as it was last, which is the first in this order.
        order = np.lexsort((age, item, user))
        user, item, age, counted = user[order], item[order], age[order], counted[order]
        first = np.flatnonzero(np.diff(user * self.weights.shape[1] + item, prepend=-1))
        counted = np.maximum.reduceat(counted, first) if len(first) else counted
        ends = np.r_[0, np.cumsum(np.bincount(user[first], minlength=n_users))]
        weights = sp.csr_matrix((counted, item[first], ends), shape=self.weights.shape)
        return History(weights, age[first], self.own_texts)

    def __getitem__(self, key: Any) -> History:
        """Some users (``history[users]``), or some items of all (``history[:, items]``)."""
        matrix = self.weights
        users = key[0] if isinstance(key, tuple) else np.asarray(key)
        if isinstance(key, tuple):
            place = sp.csr_matrix(
                (np.arange(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape
            )[key]
            kept, columns, ends, shape = place.data, place.indices, place.indptr, place.shape
        else:  # that of one user of millions has to be quick
            start, end = matrix.indptr[users], matrix.indptr[users + 1]
            ends = np.r_[0, np.cumsum(end - start)]
            kept = np.arange(ends[-1]) + np.repeat(start - ends[:-1], end - start)
            columns, shape = matrix.indices[kept], (len(users), matrix.shape[1])
        return History(
            sp.csr_matrix((matrix.data[kept], columns, ends), shape=shape),
            None if self.age is None else self.age[kept],
            {name: rows[users] for name, rows in self.own_texts.items()},
        )


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The training part of a data set.

    Attributes:
        interactions: CSR float32 (n_users, n_items), the summed weights (> 0) of a user's
            interactions with an item; row and column 0 are RecBole's padding and empty.
        age: int32, aligned with ``interactions.data``: 0 for a user's last item, 1 for the one
            before, …; items of one moment share an age. None where the data have no order.
        item_texts: n_items texts, "" where an item has none.
        item_attributes: CSR float32 (n_items, d), unit rows of the items' categories and numbers,
            zero where nothing is known; None where no item has any.
        item_embeddings: encoder's name -> unit rows (n_items, d), zero where there is no text.
        user_embeddings: encoder's name -> unit rows (n_users, d) of the users' own text.
        item_variants: other texts of the items, n_items each, which a tower is trained on too.
        variant_embeddings: those of each of ``item_variants``, as ``item_embeddings``.
    """

    interactions: sp.csr_matrix
    age: NDArray[np.int32] | None = None
    item_texts: tuple[str, ...] = ()
    item_attributes: sp.csr_matrix | None = None
    item_embeddings: Mapping[str, Rows] = field(default_factory=dict)
    user_embeddings: Mapping[str, Rows] = field(default_factory=dict)
    item_variants: tuple[tuple[str, ...], ...] = ()
    variant_embeddings: tuple[Mapping[str, Rows], ...] = ()

    @property
    def n_users(self) -> int:
        """Number of user rows, padding included."""
        return int(self.interactions.shape[0])

    @property
    def n_items(self) -> int:
        """Number of item rows, padding included."""
        return int(self.interactions.shape[1])

    @cached_property
    def binary(self) -> sp.csr_matrix:
        """The interactions with every weight 1."""
        return with_ones(self.interactions)

    @cached_property
    def confidence(self) -> sp.csr_matrix:
        """The interactions with weights of mean 1, so that settings mean the same on all data."""
        scaled = self.interactions.copy()
        if scaled.nnz:
            scaled.data = scaled.data / scaled.data.mean(dtype=np.float64).astype(np.float32)
        return scaled

    @property
    def history(self) -> History:
        """What the users are folded in by."""
        return History(self.confidence, self.age, self.user_embeddings)

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """Number of users who interacted with each item, int64 (n_items,)."""
        return np.bincount(self.interactions.indices, minlength=self.n_items).astype(np.int64)

    @property
    def warm_items(self) -> Mask:
        """Items with a training interaction, bool (n_items,)."""
        return self.item_counts > 0


def without_items(data: TrainingData, items: Mask) -> TrainingData:
    """The data as they were before anyone interacted with some items, bool (n_items,)."""
    return with_entries(data, ~items[data.interactions.indices])


def with_entries(data: TrainingData, kept: Mask) -> TrainingData:
    """The data as if some of the entries were all, bool (nnz,); ages are counted anew."""
    matrix = data.interactions
    before = np.r_[0, np.cumsum(kept)]
    interactions = sp.csr_matrix(
        (matrix.data[kept], matrix.indices[kept], before[matrix.indptr]), shape=matrix.shape
    )
    age = None if data.age is None else data.age[kept]
    if age is not None:
        age = _age(entries(interactions)[0], -age.astype(np.float64))
    return replace(data, interactions=interactions, age=age)


def with_ones(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """A CSR matrix with every stored entry 1; its indices are shared, not copied."""
    ones = np.ones_like(matrix.data)
    return sp.csr_matrix((ones, matrix.indices, matrix.indptr), shape=matrix.shape)


def entries(matrix: sp.csr_matrix) -> tuple[Index, Index]:
    """Row and column of every stored entry of a CSR matrix, in its order."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.int64)


def interaction_matrix(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    weights: NDArray[np.float32],
    shape: tuple[int, int],
    times: NDArray[np.float64] | None = None,
) -> tuple[sp.csr_matrix, NDArray[np.int32] | None]:
    """Events as a weighted matrix, and how long ago each of its entries last happened.

    Args:
        users: user row of each event.
        items: item row of each event.
        weights: what each event counts, >= 0; events of weight 0 are left out.
        shape: (n_users, n_items).
        times: when each event happened, any unit; None where unknown.

    Returns:
        The summed weights as CSR float32 with sorted indices, and the entries' ages as in
        :class:`TrainingData`; None without times, and where all of each user are the same.
    """
    kept = weights > 0
    users, items, weights = users[kept], items[kept], weights[kept]
    matrix = sp.csr_matrix((weights.astype(np.float32), (users, items)), shape=shape)
    matrix.sum_duplicates()
    if times is None:
        return matrix, None
    rows, _ = entries(matrix)
    latest = _latest(users, items, times[kept], matrix, rows)
    age = _age(rows, latest)
    return matrix, age if age.any() else None


def _latest(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    times: NDArray[np.float64],
    matrix: sp.csr_matrix,
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The latest time of each stored entry of the matrix."""
    n_items = matrix.shape[1]
    entry_keys = rows * n_items + matrix.indices
    place = np.searchsorted(entry_keys, users * n_items + items)
    latest = np.full(matrix.nnz, -np.inf)
    np.maximum.at(latest, place, times)
    return latest


def _age(rows: NDArray[np.int64], latest: NDArray[np.float64]) -> NDArray[np.int32]:
    """For each entry the number of distinct later moments in its row."""
    order = np.lexsort((-latest, rows))
    row, time = rows[order], latest[order]
    new_row = np.r_[True, row[1:] != row[:-1]][: len(row)]
    new_moment = new_row | np.r_[True, time[1:] != time[:-1]][: len(row)]
    moment = np.cumsum(new_moment) - 1
    first = np.maximum.accumulate(np.where(new_row, moment, 0))
    age = np.empty(len(row), dtype=np.int32)
    age[order] = moment - first
    return age
