"""Completion: rows for what a signal never saw, by ridge regression from text and attributes.

The rows that a signal has learned are regressed on the features of their texts, by all encoders
at once, and on their attributes, each row weighted by how much data stands behind it. A cold
item's row is then what the regression says of it. Everything is matrix-free: sparse features are
never made dense.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llm.factors import Factors, Index, Mask, Rows, Table, batches

# What a sparse block's words count beside a dense block's vector in the squared length of a text's
# features, what attributes count beside the text, and the interactions at which a row is trusted
# half: all flat optima.
_WORDS_SHARE = 0.7
_ATTRIBUTES_SHARE = 0.35
_HALF_TRUST = 5.0
# Of the ridge from texts to items' biases.
BIAS_PENALTY = 10.0
_PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
_HELD_OUT = 0.2
# Random directions of the scores by which a penalty is chosen, the most rows that it is chosen by,
# and columns solved at a time.
_DIRECTIONS = 64
_CHOOSING_ROWS = 20_000
_COLUMNS = 64
_TOLERANCE = 1e-3
_MOST_STEPS = 300
_MOST_ENTRIES = 1000


@dataclass(frozen=True, eq=False)
class Features:
    """What all encoders say of the same texts, side by side, and what else is known.

    Attributes:
        blocks: one table of unit rows (n, d_b) per encoder, dense or CSR float32.
        described: bool (n,), rows that are not zero in every table.
        attributes: unit rows CSR float32 (n, d), zero where nothing is known; None without any.
    """

    blocks: tuple[Rows, ...]
    described: Mask
    attributes: sp.csr_matrix | None = None

    def __getitem__(self, rows: Index | Mask) -> Features:
        """The features of some rows, by number or mask."""
        attributes = None if self.attributes is None else self.attributes[rows]
        return Features(
            tuple(block[rows] for block in self.blocks), self.described[rows], attributes
        )

    @property
    def tables(self) -> tuple[Rows, ...]:
        """The blocks, and the attributes as one more."""
        return self.blocks if self.attributes is None else (*self.blocks, self.attributes)

    def usual(self, weights: Table) -> Table:
        """What a map of the attributes, float32 (d, k), gives the mean described row: (k,)."""
        assert self.attributes is not None
        mean = self.attributes[self.described].mean(axis=0)
        return np.asarray(mean @ weights, dtype=np.float32).ravel()

    def product(self, weights: Iterable[Table]) -> Table:
        """``Σ_b table_b @ weights_b`` of all tables, float32 (n, k)."""
        parts = (rows @ table for rows, table in zip(self.tables, weights, strict=True))
        return np.asarray(sum(parts), dtype=np.float32)


def features_of(
    embeddings: Mapping[str, Rows], attributes: sp.csr_matrix | None = None
) -> Features:
    """The features of items or users from their embeddings by all encoders, and their attributes.

    Args:
        embeddings: encoder's name -> unit rows (n, d), zero where there is no text.
        attributes: unit rows CSR (n, d), zero where nothing is known; needed without embeddings.
    """
    blocks = tuple(
        block if isinstance(block, np.ndarray) else block.tocsr() for block in embeddings.values()
    )
    tables = blocks if attributes is None else (*blocks, attributes)
    return Features(blocks, np.logical_or.reduce([is_told(rows) for rows in tables]), attributes)


def is_told(rows: Rows) -> Mask:
    """Which rows of features say anything, bool (n,)."""
    if isinstance(rows, np.ndarray):
        return np.asarray(rows.any(axis=1))
    return np.asarray(np.diff(rows.indptr) > 0)


@dataclass(frozen=True, eq=False)
class RidgeMap:
    """A linear map from features to a signal's rows; plain arrays, fit to be stored.

    Attributes:
        weights: float32 (d_b, k) for each table of the features.
        intercept: float32 (k,).
        penalty: of the ridge; 1 weighs as much as one row's whole text.
        basis: orthonormal rows, float32 (k, d), where the signal's rows were regressed in their
            projection onto k directions; None where k is their own width.
        usual: float32 (k,), what the attributes of the mean row give; None where none were read.
    """

    weights: tuple[Table, ...]
    intercept: Table
    penalty: float
    basis: Table | None = None
    usual: Table | None = None

    def apply(self, features: Features) -> Table:
        """Rows of what is described, float32 (n, k), zero elsewhere.

        Where attributes are missing, they are taken to be the mean row's. With a ``basis`` the rows
        are the coordinates along it: users score them by ``users @ basis.T``, and ``rows @ basis``
        are rows of the signal's own width.
        """
        rows = features.product(self.weights) + self.intercept
        if self.usual is not None and features.attributes is not None:
            rows[is_told(features.attributes)] -= self.usual
        rows[~features.described] = 0
        return rows


def trust(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What a learned row counts in a regression, 0..1: ``n / (n + 5)`` of n interactions.

    Unlike the number itself it does not let the few hits of a shop outvote all else.
    """
    return counts / (counts + _HALF_TRUST)


def fit_ridge(
    features: Features, rows: Table, weights: NDArray[np.float64], *, penalty: float
) -> RidgeMap:
    """Weighted ridge regression of all columns of ``rows`` at once, with a free intercept.

    Minimises ``Σ_i w_i ‖row_i − b − x_i W‖² + λ‖W‖²`` over the rows of positive weight, with the
    weights at mean 1 and words and vectors on one scale. Solved in the dual by conjugate
    gradients, one product with the features and one with their transpose a step.

    Args:
        features: of n rows; those of which nothing is told are left out.
        rows: float32 (n, k), what is known.
        weights: float (n,), at least 0; 0 leaves a row out.
        penalty: λ > 0.
    """
    problem = _Problem.of(features, rows, weights)
    return problem.ridge_map(problem.solve(penalty), penalty)


def bias_map(features: Features | None, biases: Table, counts: Index) -> RidgeMap | None:
    """What features say of the items' biases; None where no known item has any.

    Args:
        features: of the items.
        biases: float32 (n_items,), of known items.
        counts: int64 (n_items,), what stands behind each; 0: it is not known.
    """
    if features is None or not (features.described & (counts > 0)).any():
        return None
    return fit_ridge(features, biases[:, None], trust(counts), penalty=BIAS_PENALTY)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The weighted, centred regression; ``design = diag(√w)·(X − mμᵀ)·diag(scale)``.

    ``m`` is 1 but where a row's attributes are missing: these are then zero, the mean.
    """

    features: Features
    transposed: tuple[Rows, ...]
    root_weights: Table
    told: tuple[Table, ...]
    mean_features: tuple[Table, ...]
    scales: tuple[np.float32, ...]
    mean_row: Table
    targets: Table

    @classmethod
    def of(cls, features: Features, rows: Table, weights: NDArray[np.float64]) -> _Problem:
        used = np.flatnonzero((weights > 0) & features.described)
        features, rows, weights = features[used], rows[used], weights[used]
        share = (weights / max(weights.sum(), 1e-12)).astype(np.float32)[:, None]
        root = np.sqrt(share * np.float32(len(used)))
        mean_row = (share.T @ rows).ravel()
        # By rows: a product with columns is three times as slow.
        transposed = tuple(
            b.T if isinstance(b, np.ndarray) else b.T.tocsr() for b in features.tables
        )
        told = [np.ones_like(share)] * len(features.blocks)
        shares = [share] * len(features.blocks)
        if features.attributes is not None:
            told.append(is_told(features.attributes)[:, None].astype(np.float32))
            of_told = share * told[-1]
            shares.append(of_told / max(of_told.sum(), np.float32(1e-12)))
        means = zip(transposed, shares, strict=True)
        return cls(
            features,
            transposed,
            root,
            tuple(told),
            tuple(np.asarray(rows @ share).ravel() for rows, share in means),
            _scales(features),
            mean_row,
            root * (rows - mean_row),
        )

    def solve(self, penalty: float, start: Table | None = None) -> Table:
        """The dual solution, float32 (n_used, k).

        Some columns at a time: a table of words of all columns does not stay in the cache.
        """
        solution = np.empty_like(self.targets)
        for columns in (slice(c, c + _COLUMNS) for c in range(0, self.targets.shape[1], _COLUMNS)):
            solution[:, columns] = conjugate_gradients(
                lambda dual: self.forward(self.backward(dual)) + np.float32(penalty) * dual,
                np.ascontiguousarray(self.targets[:, columns]),
                None if start is None else start[:, columns],
            )
        return solution

    def backward(self, dual: Table) -> tuple[Table, ...]:
        """``designᵀ @ dual``, by block."""
        weighted = self.root_weights * dual
        parts = zip(self.transposed, self.told, self.mean_features, self.scales, strict=True)
        return tuple(
            scale
            * (np.asarray(rows @ weighted, dtype=np.float32) - np.outer(mean, told.T @ weighted))
            for rows, told, mean, scale in parts
        )

    def forward(self, weights: tuple[Table, ...]) -> Table:
        """``design @ weights``."""
        scaled = [scale * table for scale, table in zip(self.scales, weights, strict=True)]
        centres = zip(self.told, self.mean_features, scaled, strict=True)
        shift = sum(told * (mean @ table) for told, mean, table in centres)
        return self.root_weights * (self.features.product(scaled) - shift)

    def ridge_map(self, dual: Table, penalty: float) -> RidgeMap:
        weights = tuple(
            scale * table for scale, table in zip(self.scales, self.backward(dual), strict=True)
        )
        centres = [mean @ table for mean, table in zip(self.mean_features, weights, strict=True)]
        usual = None if self.features.attributes is None else centres.pop()
        intercept = np.asarray(self.mean_row - sum(centres), dtype=np.float32)
        return RidgeMap(weights, intercept, penalty, usual=usual)


def _scales(features: Features) -> tuple[np.float32, ...]:
    """Square roots of the tables' shares, which are 1 in all."""
    sparse = np.array([sp.issparse(block) for block in features.blocks], dtype=bool)
    if sparse.all() or not sparse.any():
        shares = np.full(len(sparse), 1 / max(1, len(sparse)))
    else:
        shares = np.where(sparse, _WORDS_SHARE / sparse.sum(), (1 - _WORDS_SHARE) / (~sparse).sum())
    if features.attributes is not None:
        share = _ATTRIBUTES_SHARE if len(sparse) else 1.0
        shares = np.r_[(1 - share) * shares, share]
    return tuple(np.sqrt(shares).astype(np.float32))


def conjugate_gradients(
    product: Callable[[Table], Table], targets: Table, start: Table | None = None
) -> Table:
    """Solves ``A X = targets`` for a symmetric positive definite A, every column by itself.

    Source: Hestenes, Stiefel, 1952. Stops where every column's residual is a thousandth of its
    target: far below what changes a ranking.

    Args:
        product: ``X -> A X`` for float32 (n, k).
        targets: float32 (n, k).
        start: a guess of the solution.
    """
    solution = np.zeros_like(targets) if start is None else start.copy()
    residual = targets if start is None else targets - product(solution)
    direction = residual.copy()
    length = _squares(residual)
    enough = _TOLERANCE**2 * _squares(targets)
    for _ in range(_MOST_STEPS):
        if (length <= enough).all():
            break
        image = product(direction)
        # A solved column stands still: its quotients would be rounding errors.
        step = np.where(length > enough, _quotient(length, _inner(direction, image)), 0)
        solution += step.astype(np.float32) * direction
        residual = residual - step.astype(np.float32) * image
        before, length = length, _squares(residual)
        direction = residual + _quotient(length, before).astype(np.float32) * direction
    return solution


def _inner(one: Table, other: Table) -> NDArray[np.float64]:
    return np.einsum("nk,nk->k", one, other, dtype=np.float64)


def _squares(rows: Table) -> NDArray[np.float64]:
    return _inner(rows, rows)


def _quotient(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def choose_penalty(
    features: Features,
    rows: Table,
    weights: NDArray[np.float64],
    others: Table,
    *,
    seed: int,
) -> float:
    """The penalty whose held-out rows score nearest to the learned ones.

    A fifth of the rows is held out (of many, of a sample: the penalty is what noise is beside what
    texts tell, whatever their number); the error is the weighted square of the scores' differences
    over all of ``others``, seen in a few random directions: a ridge is linear in what it predicts,
    and costs by the column (Johnson, Lindenstrauss, "Extensions of Lipschitz Mappings into a
    Hilbert Space", 1984).

    Args:
        features: of n texts.
        rows: float32 (n, k), what is known.
        weights: float (n,), 0 leaves a row out.
        others: float32 (m, k), the rows that are multiplied with: users, where these are items.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    used = rng.permutation(np.flatnonzero((weights > 0) & features.described))[:_CHOOSING_ROWS]
    held, kept = np.split(used, [round(_HELD_OUT * len(used))])
    if not len(held) or not len(kept):
        return 10.0
    rest = np.zeros_like(weights)
    rest[kept] = weights[kept]
    scores = rows @ (others.T @ rng.standard_normal((len(others), _DIRECTIONS), dtype=np.float32))
    problem = _Problem.of(features, scores, rest)
    asked, learned, counts = features[held], scores[held], weights[held]
    best, least, dual = _PENALTIES[0], np.inf, None
    for penalty in _PENALTIES:
        dual = problem.solve(penalty, dual)
        wrong = problem.ridge_map(dual, penalty).apply(asked) - learned
        error = float(counts @ np.einsum("nk,nk->n", wrong, wrong))
        # One valley, and the small penalties beyond it take the longest.
        if error >= least:
            break
        best, least = penalty, error
    return best


def completion_map(
    factors: Factors,
    features: Features,
    counts: NDArray[np.int64],
    *,
    seed: int,
    rank: int = 256,
    penalty: float | None = None,
) -> RidgeMap | None:
    """The map from items' features to a signal's item rows.

    A wide table (above all the full-rank item-item signal's) is regressed in its projection onto
    ``rank`` directions, which a ridge's smooth rows do not notice.

    Args:
        factors: a signal.
        features: of all items.
        counts: int (n_items,), interactions of each item.
        seed: of the projection and of what is held out to choose the penalty.
        rank: width of that projection.
        penalty: None: chosen by :func:`choose_penalty`.

    Returns:
        None where there is nothing to learn from: no known item is described.
    """
    weights = np.where(factors.known & features.described, trust(counts), 0.0)
    if not weights.any():
        return None
    is_wide = factors.is_sparse or factors.items.shape[1] > rank
    basis = _row_basis(factors.items, rank, seed) if is_wide else None
    users, rows = _along(factors, basis)
    if penalty is None:
        penalty = choose_penalty(features, rows, weights, users, seed=seed)
    fitted = fit_ridge(features, rows, weights, penalty=penalty)
    return dataclasses.replace(fitted, basis=basis)


def _row_basis(rows: Table, rank: int, seed: int) -> Table:
    """Orthonormal directions, float32 (rank, d), that hold most of the rows' square.

    Source: Halko, Martinsson, Tropp, "Finding Structure with Randomness", 2011.
    """
    width = min(rank, *rows.shape)
    test = np.random.default_rng(seed).standard_normal((rows.shape[1], width), dtype=np.float32)
    columns, _ = np.linalg.qr(rows @ test)
    basis, _ = np.linalg.qr(rows.T @ columns)
    return np.ascontiguousarray(basis.T, dtype=np.float32)


def _along(factors: Factors, basis: Table | None) -> tuple[Table, Table]:
    """User and item rows, dense, along a basis."""
    if basis is None:
        return factors.users, factors.items
    return np.asarray(factors.users @ basis.T), factors.items @ basis.T


def complete(factors: Factors, ridge: RidgeMap, features: Features) -> Factors:
    """A signal that knows every item that is described: the unknown ones' rows come from the map.

    For standardised factors: ``known`` then covers the completed rows, so that they are scored
    with the same offset and on the same scale as the learned ones. A table as wide as there are
    items is filled in place, since it can fill the memory; a narrow one is copied. Rows of a sparse
    one are cut to their largest entries.

    Args:
        factors: the signal.
        ridge: its :func:`completion_map`.
        features: of all items.
    """
    missing = np.flatnonzero(~factors.known & features.described)
    if not len(missing):
        return factors
    rows = ridge.apply(features[missing])
    wide = batches(len(missing), row_bytes=4 * factors.items.shape[1], memory_bytes=1 << 28)
    items = factors.items if factors.is_sparse else factors.items.copy()
    if ridge.basis is None:
        items[missing] = rows
    elif sp.issparse(items):
        added = [_largest(rows[part] @ ridge.basis) for part in wide]
        items = _with_sparse_rows(items, missing, sp.vstack(added, format="csr"))
    else:
        for part in wide:
            items[missing[part]] = rows[part] @ ridge.basis
    known = factors.known.copy()
    known[missing] = True
    return dataclasses.replace(factors, items=items, known=known)


def complete_users(
    factors: Factors,
    counts: NDArray[np.int64],
    features: Features | None = None,
    *,
    seed: int,
) -> Factors:
    """A signal with a row for every user, before :func:`~recbole_llm.factors.standardise`.

    A user without history gets the row that a ridge finds in her own text, and without a text the
    weighted mean of the known users' rows. Sparse rows always get the mean, cut to its largest
    entries; a ridge's rows would not be sparse.

    Args:
        factors: the signal.
        counts: int (n_users,), interactions of each user.
        features: of all users' own texts, None without any.
        seed: of what is held out to choose the penalty.
    """
    weights = trust(counts)
    missing = np.flatnonzero(weights == 0)
    missing = missing[missing > 0]
    if not len(missing) or not weights.any():
        return factors
    mean = np.asarray(factors.users.T @ (weights / weights.sum())).ravel().astype(np.float32)
    if factors.is_sparse:
        added = _largest(mean[None])[np.zeros(len(missing), dtype=np.int64)]
        return dataclasses.replace(factors, users=_with_sparse_rows(factors.users, missing, added))
    users = factors.users.copy()
    users[missing] = mean
    if features is not None and (features.described & (weights > 0)).any():
        rows, others = factors.users, factors.items
        penalty = choose_penalty(features, rows, weights, others, seed=seed)
        ridge = fit_ridge(features, rows, weights, penalty=penalty)
        told = missing[features.described[missing]]
        users[told] = ridge.apply(features[told])
    return dataclasses.replace(factors, users=users)


def _largest(rows: Table) -> sp.csr_matrix:
    """Each row's entries of the largest size, CSR."""
    width = min(_MOST_ENTRIES, rows.shape[1])
    order = np.argsort(-np.abs(rows), axis=1, kind="stable")
    columns = np.sort(order[:, :width], axis=1)
    ends = np.arange(0, columns.size + 1, width)
    found = np.take_along_axis(rows, columns, axis=1)
    largest = sp.csr_matrix((found.ravel(), columns.ravel(), ends), shape=rows.shape)
    largest.eliminate_zeros()
    return largest


def _with_sparse_rows(rows: sp.csr_matrix, places: Index, added: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix with a row more at each of some empty places."""
    ones = np.ones(len(places), dtype=np.float32)
    place = sp.csr_matrix(
        (ones, (places, np.arange(len(places)))), shape=(rows.shape[0], len(places))
    )
    return (rows + place @ added).tocsr().astype(np.float32)
