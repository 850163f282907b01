"""Ranking metrics on tables: RecBole's definitions, without RecBole.

The metrics are those of RecBole's full ranking with a user's known items masked; a test holds
each against RecBole's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from recbole_llm.errors import SettingsError, did_you_mean
from recbole_llm.factors import Factors, Index, Mask, batches
from recbole_llm.scoring import Scorer, entries_on
from recbole_llm.slices import SLICES
from recbole_llm.training_data import entries

Hits: TypeAlias = NDArray[np.bool_]
PerUser: TypeAlias = NDArray[np.float64]
#: Of more validation users a sample is looked at: ranking all items for all users grows by the
#: square of the data, and the standard error of so many users' mean is below .004.
JUDGED_USERS = 10_000


def _ndcg(hits: Hits, n_positives: Index) -> PerUser:
    k = hits.shape[1]
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(n_positives, k) - 1]
    return (hits * discount).sum(axis=1) / ideal


def _recall(hits: Hits, n_positives: Index) -> PerUser:
    return hits.sum(axis=1) / n_positives


def _precision(hits: Hits, n_positives: Index) -> PerUser:
    return hits.mean(axis=1)


def _hit(hits: Hits, n_positives: Index) -> PerUser:
    return hits.any(axis=1).astype(np.float64)


def _mrr(hits: Hits, n_positives: Index) -> PerUser:
    return np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1.0), 0.0)


def _map(hits: Hits, n_positives: Index) -> PerUser:
    k = hits.shape[1]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    return (precision * hits).sum(axis=1) / np.minimum(n_positives, k)


_METRICS: dict[str, Callable[[Hits, Index], PerUser]] = {
    "ndcg": _ndcg,
    "recall": _recall,
    "precision": _precision,
    "hit": _hit,
    "mrr": _mrr,
    "map": _map,
}
METRIC_NAMES = tuple(_METRICS)


@dataclass(frozen=True)
class Metric:
    """A top-k ranking metric, such as ``NDCG@10``; higher is better.

    Attributes:
        name: one of :data:`METRIC_NAMES`.
        k: the cut-off.
        slice_name: of :data:`~recbole_llm.slices.SLICES`, as in ``cold_NDCG@10``; "" for RecBole's
            own metric, on all items.
    """

    name: str
    k: int
    slice_name: str = ""

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Read RecBole's way of writing a metric.

        Raises:
            SettingsError: it is no top-k metric that can be tuned on.
        """
        name, _, cutoff = text.lower().partition("@")
        slice_name, _, name = name.rpartition("_")
        known = name in _METRICS and slice_name in ("", *SLICES)
        if not known or not cutoff.isdigit() or int(cutoff) < 1:
            raise SettingsError(
                f"`valid_metric` must be one of {', '.join(_METRICS)} with a cut-off such as "
                f"NDCG@10 for this model, which tunes on it; got {text!r}"
                + did_you_mean(name, _METRICS)
            )
        return cls(name, int(cutoff), slice_name)

    def __str__(self) -> str:
        return f"{self.slice_name}_{self.name}@{self.k}".removeprefix("_")

    def per_user(self, hits: Hits, n_positives: Index) -> PerUser:
        """The metric of each user.

        Args:
            hits: bool (n_users, at most k), whether the item at each rank is a positive.
            n_positives: int64 (n_users,), each at least 1.

        Returns:
            float64 (n_users,) in 0..1.
        """
        missing = self.k - hits.shape[1]
        return _METRICS[self.name](np.pad(hits, ((0, 0), (0, max(0, missing)))), n_positives)


@dataclass(frozen=True, eq=False)
class Validation:
    """The users to rank for, what they know already, and what they should get.

    Attributes:
        users: int64, the users with a positive, ascending.
        known: CSR (n_users, n_items), interactions that are not ranked. As in RecBole, one that
            is known and wanted at once (a repeated purchase) is ranked.
        positives: CSR (n_users, n_items), interactions to be found.
        candidates: bool (n_items,), the items that are ranked; None for all.
        is_later: whether the positives came after what their users know: then recency can be
            judged by them.
    """

    users: Index
    known: sp.csr_matrix
    positives: sp.csr_matrix
    candidates: Mask | None = None
    is_later: bool = False

    @classmethod
    def of(
        cls, known: sp.csr_matrix, positives: sp.csr_matrix, slice_name: str = ""
    ) -> Validation | None:
        """A validation over all users with a positive; None where there is none.

        Args:
            known: the training interactions, each once.
            positives: those of the validation part.
            slice_name: of a :class:`Metric`; where no user is left in the slice, None.
        """
        hidden = (known - known.multiply(positives.astype(bool))).tocsr()
        hidden.eliminate_zeros()
        candidates = None
        if slice_name:
            positives, candidates = _sliced(known, positives, slice_name)
        users = np.flatnonzero(np.diff(positives.indptr)).astype(np.int64)
        return cls(users, hidden, positives, candidates) if len(users) else None

    @property
    def n_positives(self) -> Index:
        """Number of positives of each of ``users``, int64."""
        return np.diff(self.positives.indptr)[self.users].astype(np.int64)

    def sample(self, n_users: int, *, seed: int) -> Validation:
        """At most ``n_users`` of the users, drawn without replacement."""
        if n_users >= len(self.users):
            return self
        drawn = np.random.default_rng(seed).choice(self.users, n_users, replace=False)
        return dataclasses.replace(self, users=np.sort(drawn))


def _sliced(
    known: sp.csr_matrix, positives: sp.csr_matrix, slice_name: str
) -> tuple[sp.csr_matrix, Mask]:
    """The positives of a slice, CSR like ``positives``, and its candidates."""
    chosen = SLICES[slice_name]
    warm = np.diff(known.tocsc().indptr) > 0
    in_part = np.diff(positives.tocsc().indptr) > 0
    kinds = {"all": np.ones_like(warm), "warm": warm, "cold": ~warm & in_part}
    rows, items = entries(positives)
    kept = kinds[chosen.positives][items] & chosen.has_user(np.diff(known.indptr))[rows]
    sliced = sp.csr_matrix((positives.data[kept], (rows[kept], items[kept])), shape=positives.shape)
    return sliced, kinds[chosen.candidates]


class Scores(Protocol):
    """What gives scores of users for all items, such as a Scorer."""

    device: torch.device
    n_items: int

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        """A new float32 tensor (len(users), n_items)."""
        ...


def masked_scores(
    scorer: Scores, validation: Validation, *, memory_bytes: int = 1 << 27
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Batches of (slice of ``validation.users``, their scores with known items at -inf)."""
    for part in batches(
        len(validation.users), row_bytes=4 * scorer.n_items, memory_bytes=memory_bytes
    ):
        users = validation.users[part]
        scores = scorer.scores(torch.from_numpy(users).to(scorer.device))
        scores[entries_on(scorer.device, validation.known[users])] = -np.inf
        scores[:, 0] = -np.inf
        if validation.candidates is not None:
            scores[:, torch.from_numpy(~validation.candidates)] = -np.inf
        yield part, scores


def evaluate(
    blocks: Sequence[Factors], validation: Validation, metric: Metric, device: str = "cpu"
) -> float:
    """The mean of a metric over the validation users, by full ranking in batches."""
    return float(evaluate_users(blocks, validation, metric, device).mean())


def evaluate_users(
    blocks: Sequence[Factors], validation: Validation, metric: Metric, device: str = "cpu"
) -> NDArray[np.float64]:
    """A metric of each of the validation users, float64 (len(validation.users),)."""
    return metric_of_users(Scorer(blocks, device), validation, metric)


def metric_of_users(scorer: Scores, validation: Validation, metric: Metric) -> NDArray[np.float64]:
    """:func:`evaluate_users` by whatever gives scores."""
    values = np.empty(len(validation.users))
    for part, scores in masked_scores(scorer, validation):
        k = min(metric.k, scorer.n_items)
        top = torch.topk(scores, k, dim=1).indices.cpu().numpy()
        hits = is_positive(validation.positives, validation.users[part], top)
        values[part] = metric.per_user(hits, validation.n_positives[part])
    return values


def is_positive(positives: sp.csr_matrix, users: Index, items: Index) -> Hits:
    """Whether each of ``items`` (len(users), k) is stored in its user's row, bool of that shape."""
    n_items = np.int64(positives.shape[1])
    rows, columns = entries(positives[users])
    asked = np.arange(len(users), dtype=np.int64)[:, None] * n_items + items
    return np.isin(asked, rows * n_items + columns)
