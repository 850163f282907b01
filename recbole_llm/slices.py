"""Which users, positives and candidates a sliced metric looks at, and an order without ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from recbole_llm.factors import Index, Mask

Kind: TypeAlias = Literal["all", "warm", "cold"]


@dataclass(frozen=True)
class Slice:
    """A part of an evaluation.

    A cold item has no training interaction. As candidates, ``cold`` means those of the cold items
    that occur in the evaluated part.

    Attributes:
        positives: the kind of items that are to be found; users without any are skipped.
        candidates: the kind of items that are ranked.
        fewest: training interactions that a user has at least.
        most: and at most.
    """

    positives: Kind = "all"
    candidates: Kind = "all"
    fewest: int = 0
    most: float = math.inf

    def has_user(self, counts: Index) -> Mask:
        """Whether users of so many training interactions belong to it."""
        return (self.fewest <= counts) & (counts <= self.most)


SLICES: dict[str, Slice] = {
    "all": Slice(),
    "warm": Slice("warm", "warm"),
    "warm_in_all": Slice("warm"),
    "cold": Slice("cold", "cold"),
    "cold_in_all": Slice("cold"),
    "new_user": Slice(most=0),
    "few_user": Slice(fewest=1, most=5),
    "known_user": Slice(fewest=6),
}


def seeded_rank(n_items: int, seed: int) -> torch.Tensor:
    """Each item's place in a random order, by which ties are broken: int32 (n_items,)."""
    order = np.random.default_rng(seed).permutation(n_items)
    return torch.from_numpy(order.astype(np.int32))


def top_items(scores: torch.Tensor, rank: torch.Tensor, k: int) -> torch.Tensor:
    """Each row's best items, and of equally good ones those of lower rank.

    Args:
        scores: float (n_rows, n_items); an item at -inf or NaN is never among the best.
        rank: int32 (n_items,) below the largest int32, all different.
        k: at least 1.

    Returns:
        int64 (n_rows, k), the best first; -1 where a row has no more items.
    """
    n_items = scores.shape[1]
    # One more than asked for tells whether others are as good as the last.
    values, items = torch.topk(scores, min(k + 1, n_items), dim=1)
    if values.isnan().any():  # topk ranks NaN first, so that any shows up here
        return top_items(scores.masked_fill(scores.isnan(), -math.inf), rank, k)
    if n_items > k:
        tied = (values[:, k] == values[:, k - 1]) & (values[:, k] > -math.inf)
        values, items = values[:, :k], items[:, :k]
        rows = tied.nonzero().squeeze(1)
        if len(rows):
            items = items.index_copy(
                0, rows, _settle_last(scores[rows], values[rows], items[rows], rank)
            )
    by_rank = torch.argsort(rank[items], dim=1)
    values, items = values.gather(1, by_rank), items.gather(1, by_rank)
    by_value = torch.sort(values, dim=1, descending=True, stable=True).indices
    items = items.gather(1, by_value)
    items = items.masked_fill(values.gather(1, by_value) == -math.inf, -1)
    return torch.nn.functional.pad(items, (0, k - items.shape[1]), value=-1)


def _settle_last(
    scores: torch.Tensor, values: torch.Tensor, items: torch.Tensor, rank: torch.Tensor
) -> torch.Tensor:
    """The top items, where those as good as the last are taken by rank from the whole row."""
    k = values.shape[1]
    last = values[:, -1:]
    ranks = torch.where(scores == last, rank, torch.iinfo(rank.dtype).max)
    tied = torch.topk(ranks, k, dim=1, largest=False).indices
    place = torch.arange(k, device=scores.device) - (values > last).sum(dim=1, keepdim=True)
    return torch.where(place < 0, items, tied.gather(1, place.clamp(min=0)))
