"""Metrics for warm and cold items and users side by side, from batches of scores.

All slices are read off three rankings of a batch: of all items, of the warm and of the cold ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recbole_llm.evaluation import Hits, Metric, PerUser
from recbole_llm.factors import Index, Mask
from recbole_llm.slices import SLICES, Kind, seeded_rank, top_items


@dataclass(frozen=True, eq=False)
class Ranking:
    """What was recommended to the evaluated users, and what of it they wanted.

    Attributes:
        items: int64 (n_users, k), the top of all items, the best first; -1: no item is left.
        hits: kind of candidates -> bool (n_users, k), whether the item at each rank is wanted.
        n_positives: kind of items -> int64 (n_users,), how many are wanted.
        user_counts: int64 (n_users,), training interactions of each user.
        warm: bool (n_items,), items with a training interaction; row 0 is padding.
    """

    items: Index
    hits: Mapping[Kind, Hits]
    n_positives: Mapping[Kind, Index]
    user_counts: Index
    warm: Mask

    def users(self, name: str) -> Mask:
        """Which of the users belong to a slice of :data:`~recbole_llm.slices.SLICES`."""
        part = SLICES[name]
        return part.has_user(self.user_counts) & (self.n_positives[part.positives] > 0)

    def per_user(self, name: str, metric: Metric) -> PerUser:
        """A metric of each user of a slice, float64; its ``k`` is at most that of the ranking."""
        part = SLICES[name]
        hits = self.hits[part.candidates]
        if part.positives != part.candidates:
            # Padding's -1 reads the last item, which is no hit there.
            hits = hits & (self.warm[self.items] == (part.positives == "warm"))
        users = self.users(name)
        return metric.per_user(hits[users, : metric.k], self.n_positives[part.positives][users])

    def coverage(self, k: int) -> float:
        """The share of all items that are in anyone's top k."""
        top = self.items[:, :k]
        return len(np.unique(top[top >= 0])) / (len(self.warm) - 1)

    def cold_count(self, k: int) -> float:
        """The number of cold items in a user's top k, on average."""
        top = self.items[:, :k]
        return float(((top >= 0) & ~self.warm[top]).sum(axis=1).mean())


class RankingCollector:
    """Collects a :class:`Ranking`, batch by batch; the work stays on the scores' device.

    Args:
        user_counts: int64 (n_users,), training interactions of each user of the data set.
        warm: bool (n_items,), items with a training interaction; row 0 is padding.
        part_items: int64, items that occur in the evaluated part.
        k: the longest cut-off.
        seed: of the order that breaks ties.
        device: of the scores.
        n_waiting: scores that are kept until they are ranked together. RecBole's batches may be
            of one user, and then ranking three times costs more than scoring.
    """

    def __init__(
        self,
        user_counts: Index,
        warm: Mask,
        part_items: Index,
        *,
        k: int,
        seed: int,
        device: torch.device | str = "cpu",
        n_waiting: int = 1 << 22,
    ) -> None:
        self.user_counts = user_counts
        self.warm = warm
        self.k = k
        self.device = torch.device(device)
        self.cold_items = np.unique(part_items[~warm[part_items]])
        self._rank = seeded_rank(len(warm), seed).to(device)
        self._is_warm = torch.from_numpy(warm).to(device)
        self._warm_items = torch.from_numpy(np.flatnonzero(warm)).to(device)
        self._cold_items = torch.from_numpy(self.cold_items).to(device)
        self._n_waiting = n_waiting
        self._waiting: list[tuple[torch.Tensor, ...]] = []
        self._waiting_rows = 0
        self._ranked: list[tuple[torch.Tensor, ...]] = []

    def add(
        self,
        scores: torch.Tensor,
        users: torch.Tensor,
        positive_rows: torch.Tensor,
        positive_items: torch.Tensor,
    ) -> None:
        """Add a batch.

        Args:
            scores: float (n_rows, n_items), known items at -inf; left as they are.
            users: int64 (n_rows,).
            positive_rows: int64, the row of each item that is wanted.
            positive_items: int64, that item, not masked in its row.
        """
        rows = positive_rows + self._waiting_rows
        self._waiting_rows += len(scores)
        full = self._waiting_rows * scores.shape[1] >= self._n_waiting
        # What waits is a copy, since the model may write its next scores into the same tensor.
        waiting = (scores if full else scores.clone(), users, rows, positive_items)
        self._waiting.append(tuple(part.to(self.device) for part in waiting))
        if full:
            self._rank_waiting()

    def _rank_waiting(self) -> None:
        columns = list(zip(*self._waiting, strict=True))
        scores, users, rows, items = (
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in columns
        )
        self._waiting, self._waiting_rows = [], 0
        n_rows, n_items = scores.shape
        wanted = torch.unique(rows * n_items + items)
        wanted_rows = wanted // n_items
        is_warm = self._is_warm[wanted % n_items]
        n_all = torch.bincount(wanted_rows, minlength=n_rows)
        n_warm = torch.bincount(wanted_rows[is_warm], minlength=n_rows)
        top, warm = self._top_and_warm(scores)
        cold = self._top_of(scores, self._cold_items)
        hits = [_among(wanted, best, n_items) for best in (top, warm, cold)]
        self._ranked.append((users, top, *hits, n_all, n_warm))

    def _top_and_warm(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The top of all items and of the warm ones, each int64 (n_rows, k)."""
        # Nearly always the best warm items are among somewhat more of the best of all.
        best = top_items(scores, self._rank, 2 * self.k)
        is_warm = self._is_warm[best] & (best >= 0)
        warm_first = torch.sort(~is_warm, dim=1, stable=True).indices[:, : self.k]
        warm = best.gather(1, warm_first).masked_fill(~is_warm.gather(1, warm_first), -1)
        short = ((warm[:, -1] < 0) & (best[:, -1] >= 0)).nonzero().squeeze(1)
        if len(short):
            warm[short] = self._top_of(scores[short], self._warm_items)
        return best[:, : self.k], warm

    def _top_of(self, scores: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        best = top_items(scores.index_select(1, candidates), self._rank[candidates], self.k)
        return torch.where(best < 0, -1, candidates[best]) if len(candidates) else best

    def ranking(self) -> Ranking:
        """All batches so far."""
        if self._waiting:
            self._rank_waiting()
        users, items, on_all, on_warm, on_cold, n_all, n_warm = (
            torch.cat(parts).cpu().numpy() for parts in zip(*self._ranked, strict=True)
        )
        return Ranking(
            items,
            {"all": on_all, "warm": on_warm, "cold": on_cold},
            {"all": n_all, "warm": n_warm, "cold": n_all - n_warm},
            self.user_counts[users],
            self.warm,
        )


def _among(wanted: torch.Tensor, items: torch.Tensor, n_items: int) -> torch.Tensor:
    """Whether items (n_rows, k) are among the sorted, wanted ``row * n_items + item``."""
    asked = torch.arange(len(items), device=items.device)[:, None] * n_items + items
    place = torch.searchsorted(wanted, asked).clamp_(max=len(wanted) - 1)
    return (wanted[place] == asked) & (items >= 0)


def side_by_side(
    results: Mapping[str, float], users: Mapping[str, int], metrics: Sequence[str], k: int
) -> list[str]:
    """The slices as lines of a table, for the log.

    Args:
        results: ``cold_ndcg@10`` -> value, and so on.
        users: slice -> number of its users; one without any has no line.
        metrics: the columns.
        k: the cut-off.

    Returns:
        A head, a line for each slice, and the coverage.
    """
    rows = [["cold_eval", "users", *(f"{name}@{k}" for name in metrics)]]
    for part, count in users.items():
        if count:
            values = [results[f"{part}_{name}@{k}"] for name in metrics]
            rows.append([part, f"{count:,}", *(f"{value:.4f}" for value in values)])
    lines = [f"{row[0]:<13}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    return [
        *lines,
        f"coverage@{k} {results[f'coverage@{k}']:.4f} of all items; "
        f"cold items in a user's top {k}: {results[f'cold_count@{k}']:.2f}",
    ]
