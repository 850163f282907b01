"""SLIM: every item as a sum of few others, none of which counts against it.

Source: Ning, Karypis, "SLIM: Sparse Linear Methods for Top-N Recommender Systems", 2011: an
elastic net without negative weights, here on chosen items alone (their fsSLIM) and by coordinate
descent for many items at once (Friedman, Hastie, Tibshirani, "Regularization Paths for Generalized
Linear Models via Coordinate Descent", 2010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_limits

from recbole_llm.factors import Factors, Rows, Table, batches
from recbole_llm.settings import RunOptions, Search, setting
from recbole_llm.signals.base import SingleSignal, by_recency, decay_setting
from recbole_llm.signals.item_item import check_memory, gram_matrix, had
from recbole_llm.training_data import History, TrainingData

_ROUNDS, _SWEEPS = 50, 5
_TOLERANCE = 1e-5
_BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class SLIMSignal(SingleSignal):
    """User rows are the sparse history, item rows the sparse columns of the item-item matrix."""

    l1: float = setting(
        0.5,
        "L1 penalty of SLIM's weights: of an item counts only what more than so many users have.",
        at_least=0.0,
        search=Search(0.02, 10.0, log=True),
    )
    l2: float = setting(
        50.0,
        "L2 penalty of SLIM's weights.",
        above=0.0,
        search=Search(3.0, 1000.0, log=True),
    )
    neighbours: int = setting(
        200, "How many others an item is made of at most: those that tell most alone.", at_least=1
    )
    memory_gb: float = setting(
        4.0, "Largest Gram matrix of the items; past it the signal is left out.", above=0.0
    )
    history_decay: float | None = decay_setting()

    completed: ClassVar[bool] = True
    # Sparse data want small penalties, short histories in a shop a large first one.
    starts: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"l1": 0.5, "l2": 50.0},
        {"l1": 1.5, "l2": 10.0},
        {"l1": 0.5, "l2": 200.0},
        {"l1": 0.05, "l2": 20.0},
        {"l1": 2.0, "l2": 200.0},
    )
    brief: ClassVar[Mapping[str, Any]] = {"neighbours": 50}

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Regress every item on its neighbours.

        Raises:
            SkippedSignal: the items' Gram matrix would pass ``memory_gb``.
        """
        check_memory(data.n_items, self.memory_gb, "slim_memory_gb")
        weights = slim_weights(
            gram_matrix(data.binary),
            l1=self.l1,
            l2=self.l2,
            neighbours=self.neighbours,
            device=run.device,
        )
        return by_recency(self, Factors.of(data.binary, weights, data.warm_items), data)

    def sources(self, factors: Factors) -> Rows:
        """Each item's own place."""
        return sp.identity(factors.n_items, dtype=np.float32, format="csr")

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Rows:
        """The sum of what is liked, whatever it counts, as in fitting."""
        return had(history, self.history_decay) @ liked


def slim_weights(
    gram: Table, *, l1: float, l2: float, neighbours: int, device: torch.device | str = "cpu"
) -> sp.csr_matrix:
    """SLIM's weights: ``scores = interactions @ weights.T``.

    For each item j: least ``½ wᵀGw − g_jᵀw + l1·Σw + ½ l2·wᵀw`` of w ≥ 0 over its neighbours, the
    ``neighbours`` items that alone would lower it most.

    Args:
        gram: G, float32 (n_items, n_items), how many users have both; its diagonal is how many have
            one. It is left as it is.
        l1: at least 0. Items that no more users have together are no neighbours.
        l2: above 0.
        neighbours: at least 1.
        device: where it is worked out.

    Returns:
        CSR float32 (n_items, n_items), row j the weights of item j's neighbours, diagonal 0.
    """
    n_items = len(gram)
    width = min(neighbours, n_items)
    pairs = torch.from_numpy(gram).to(device)
    counts = pairs.diagonal()
    found, columns = np.zeros((n_items, width), np.float32), np.zeros((n_items, width), np.int32)
    for items in batches(n_items, row_bytes=4 * width**2, memory_bytes=_BATCH_BYTES):
        together = pairs[items].clone()
        own = torch.arange(items.start, items.stop, device=device)
        together[torch.arange(len(own), device=device), own] = 0
        alone = (together - l1).clamp_(min=0).square_() / (counts + l2)
        gain, near = alone.topk(width, dim=1)
        # Most items have fewer than `neighbours`; all of a batch are as wide as its widest.
        near = near[:, : max(1, int((gain > 0).sum(dim=1).max()))]
        among, slope = pairs[near[:, :, None], near[:, None, :]], together.gather(1, near) - l1
        # The steps are small: threads would mostly wait for each other.
        with threadpool_limits(1):
            weights = _descend(among, slope, l2)
        found[items, : near.shape[1]] = weights.cpu().numpy()
        columns[items, : near.shape[1]] = near.cpu().numpy()
    ends = np.arange(0, found.size + 1, width)
    matrix = sp.csr_matrix((found.ravel(), columns.ravel(), ends), shape=gram.shape)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def _descend(gram: torch.Tensor, slope: torch.Tensor, l2: float) -> torch.Tensor:
    """The w ≥ 0 (b, k) of least ``½ wᵀGw − slopeᵀw + ½ l2·wᵀw`` for each of b problems.

    Sweeps over all places alternate with some over those alone that count so far, which are few.

    Args:
        gram: G, (b, k, k).
        slope: (b, k), overwritten.
        l2: above 0.
    """
    weights = torch.zeros_like(slope)
    for _ in range(_ROUNDS):
        if _sweep(gram, slope, weights, l2) < _TOLERANCE:
            break
        width = max(1, int((weights > 0).sum(dim=1).max()))
        before, places = weights.topk(width, dim=1)
        rows = gram.gather(1, places[:, :, None].expand(-1, -1, gram.shape[2]))
        among = rows.gather(2, places[:, None, :].expand(-1, width, -1))
        few, own_slope = before.clone(), slope.gather(1, places)
        for _ in range(_SWEEPS):
            if _sweep(among, own_slope, few, l2) < _TOLERANCE:
                break
        weights.scatter_(1, places, few)
        slope -= ((few - before)[:, None, :] @ rows)[:, 0]
    return weights


def _sweep(gram: torch.Tensor, slope: torch.Tensor, weights: torch.Tensor, l2: float) -> float:
    """Set each place to its best beside the others, in place, and give the largest step."""
    scale = gram.diagonal(dim1=1, dim2=2)
    largest = torch.zeros(len(slope), device=slope.device)
    for place in range(slope.shape[1]):
        own, size = weights[:, place], scale[:, place]
        step = ((slope[:, place] + size * own) / (size + l2)).clamp_(min=0) - own
        own += step
        slope.addcmul_(gram[:, place], step[:, None], value=-1)
        torch.maximum(largest, step.abs(), out=largest)
    return float(largest.max())
