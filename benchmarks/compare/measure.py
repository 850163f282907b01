"""What is measured of a fitted model: one evaluator over scores for all of them.

Seen items are masked, and equal scores are told apart by a seeded order of the items.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from recbole_llm.cold_metrics import Ranking, RankingCollector
from recbole_llm.evaluation import Metric
from recbole_llm.host.cold_evaluation import training_counts
from recbole_llm.slices import SLICES, seeded_rank, top_items

CUTOFFS = (10, 20)
METRICS = ("recall", "ndcg", "mrr", "hit")
NDCG = Metric("ndcg", 10)
# Training interactions of an item: 0, 1 to 3, and so on.
EDGES = (0, 1, 4, 11, 31, 101)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A part of the data as a model ranks it.

    Attributes:
        users: int64, RecBole's numbers, in the order of ``ranking``.
        ranking: the top 20 of each.
        wanted: int64, ``row * n_items + item`` of what is to be found.
        item_counts: training interactions of each item.
        seconds: of scoring, masking and taking the best ten of all users.
    """

    users: np.ndarray
    ranking: Ranking
    wanted: np.ndarray
    item_counts: np.ndarray
    seconds: float

    def metrics(self) -> dict[str, float]:
        """`all_ndcg@10` and so on; of other slices recall and NDCG at 10."""
        found = {}
        for part in SLICES:
            if self.ranking.users(part).any():
                wide = part == "all"
                for name in METRICS if wide else ("recall", "ndcg"):
                    for k in CUTOFFS if wide else CUTOFFS[:1]:
                        metric = Metric(name, k)
                        found[f"{part}_{metric}"] = float(
                            self.ranking.per_user(part, metric).mean()
                        )
        for k in CUTOFFS:
            found |= spread_of(self.ranking.items[:, :k], self.item_counts, k)
        return found

    def per_user(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """The users of a slice, ascending, and their NDCG@10."""
        users = self.users[self.ranking.users(part)]
        order = np.argsort(users)
        return users[order], self.ranking.per_user(part, NDCG)[order]

    def by_warmth(self) -> list[float | None]:
        """NDCG@10 of the wanted items of each bucket of `EDGES`, among all items."""
        bucket = np.searchsorted(EDGES, self.item_counts, side="right") - 1
        n_items = len(self.item_counts)
        rows, items = np.divmod(self.wanted, n_items)
        top = self.ranking.items[:, : NDCG.k]
        values: list[float | None] = []
        for b in range(len(EDGES)):
            mine = bucket[items] == b
            n_wanted = np.bincount(rows[mine], minlength=len(self.users))
            asked = n_wanted > 0
            hits = self.ranking.hits["all"][:, : NDCG.k] & (bucket[top] == b)
            found = NDCG.per_user(hits[asked], n_wanted[asked])
            values.append(float(found.mean()) if len(found) else None)
        return values


def evaluation(model: Any, loader: Any, train: Any, seed: int) -> Evaluation:
    """Rank a part of the data by a model's `full_sort_predict`."""
    user_counts, item_counts = training_counts(train)
    rows = loader._dataset.inter_feat
    n_items = len(item_counts)
    collector = RankingCollector(
        user_counts, item_counts > 0, rows[train.iid_field].numpy(), k=max(CUTOFFS), seed=seed
    )
    rank = seeded_rank(n_items, seed)
    users, wanted, seconds, done = [], [], 0.0, 0
    with torch.no_grad():
        for interaction, history, positive_rows, positive_items in loader:
            start = perf_counter()
            scores = model.full_sort_predict(interaction.to(model.device))
            scores = torch.as_tensor(scores).view(-1, n_items).float().cpu()
            scores[:, 0] = -np.inf
            if history is not None:
                scores[history] = -np.inf
            top_items(scores, rank, NDCG.k)
            seconds += perf_counter() - start
            asked = interaction[train.uid_field].cpu()
            collector.add(scores, asked, positive_rows, positive_items)
            users.append(asked.numpy())
            wanted.append((positive_rows.numpy() + done) * n_items + positive_items.numpy())
            done += len(asked)
    return Evaluation(
        np.concatenate(users),
        collector.ranking(),
        np.unique(np.concatenate(wanted)),
        item_counts,
        seconds,
    )


def spread_of(top: np.ndarray, item_counts: np.ndarray, k: int) -> dict[str, float]:
    """RecBole's ItemCoverage, GiniIndex and AveragePopularity of users' lists.

    Args:
        top: int64 (n_users, k); -1: no item is left.
        item_counts: training interactions of each item, row 0 is padding.
        k: for the names.
    """
    listed = top[top >= 0]
    n_items = len(item_counts) - 1
    shown = np.sort(np.bincount(listed, minlength=n_items + 1)[1:])
    place = np.arange(1, n_items + 1)
    gini = float(((2 * place - n_items - 1) * shown).sum() / (n_items * max(1, len(listed))))
    return {
        f"coverage@{k}": float((shown > 0).mean()),
        f"gini@{k}": gini,
        f"popularity@{k}": float(item_counts[listed].mean()) if len(listed) else 0.0,
    }


def peak_memory_mb() -> float:
    """The most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss would count what the process held that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def n_bytes(value: Any) -> int:
    """Bytes of all arrays in a value: tensors, NumPy's and SciPy's, within anything."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if sp.issparse(value):
        parts = ("data", "indices", "indptr", "row", "col")
        arrays = [getattr(value, part, None) for part in parts]
        if all(a is None or a.dtype != object for a in arrays):
            return sum(a.nbytes for a in arrays if a is not None)
        return 12 * value.nnz  # lists of lists
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(n_bytes(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return sum(map(n_bytes, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return sum(map(n_bytes, value)) if len(value) < 10_000 else 0
    return 0
