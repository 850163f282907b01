"""Recommending from saved tables: no RecBole, no data set, no pickle."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from recbole_llm.errors import DataError, DataWarning, SettingsError, did_you_mean
from recbole_llm.factors import Index, Mask, Table, batches
from recbole_llm.saved_tables import SavedTables, read_tables
from recbole_llm.scoring import Scorer, find_device
from recbole_llm.slices import seeded_rank, top_items
from recbole_llm.training_data import entries

# Scores of a batch, and what ranking them takes beside.
_BATCH_BYTES = 1 << 28
# Users whose scores say how alike items are: enough for two digits of a correlation.
_SAMPLED_USERS = 4096


class Recommender:
    """A fitted model, ready to recommend.

    Attributes:
        tables: what it was made of; ``tables.facts`` says where they came from.
    """

    def __init__(self, tables: SavedTables, *, device: str = "auto") -> None:
        self.tables = tables
        self._device = find_device(device)
        self._scorer = Scorer(tables.blocks, self._device)
        # Ties are broken as in the run's own sliced metrics.
        self._order = seeded_rank(len(tables.item_ids), tables.facts["seed"]).to(self._device)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Recommender:
        """Load a checkpoint.

        Args:
            path: RecBole's ``.pth`` file, of which only the ``.tables`` folder beside it is read,
                or that folder.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            DataError: there are no tables, or they are damaged or of another version.
            SettingsError: the device is not there.
        """
        return cls(read_tables(Path(path)), device=device)

    def recommend(
        self,
        users: object,
        k: int = 10,
        *,
        exclude_known: bool = True,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] | None = None,
    ) -> pd.DataFrame:
        """The best items of some users.

        Args:
            users: a user's id, or several, as in the data set's files; numbers will do.
            k: most items of a user.
            exclude_known: leave out what a user had to do with in the training part.
            only: the ids of the only items to rank; None: all.
            exclude: ids of items to leave out.

        Returns:
            A long table ``user_id, item_id, score, rank``: users in the order given, each once,
            and her best item first at rank 1. A user has fewer rows where no more items are left.

        Raises:
            DataError: a user is unknown, or no item of ``only`` is known.
            SettingsError: ``k`` is below 1.
        """
        rows = np.array([self._user_row(user) for user in _as_ids(users)], dtype=np.int64)
        allowed = self._allowed(only, exclude)
        parts = list(self._ranked(rows, k, allowed, exclude_known))
        return pd.concat(parts, ignore_index=True) if parts else _frame([], [], [], [])

    def recommend_all(
        self,
        k: int = 10,
        *,
        exclude_known: bool = True,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """As :meth:`recommend` for every user, in tables of some thousand users each."""
        allowed = self._allowed(only, exclude)
        users = np.arange(1, len(self.tables.user_ids), dtype=np.int64)
        return self._ranked(users, k, allowed, exclude_known)

    def similar_items(self, item: object, k: int = 10) -> pd.DataFrame:
        """The items that suit the same users.

        The likeness of two items is the correlation of their scores over the users (at most 4096,
        drawn by the run's seed). It is the cosine of their fused rows as the users weigh them,
        less what all users share; so it needs no rows, and is the same for dense and sparse
        blocks.

        Args:
            item: an item's id.
            k: most items.

        Returns:
            A table ``item_id, score, rank``, the most alike first; scores are from -1 to 1.

        Raises:
            DataError: the item is unknown, or nothing is known of it.
            SettingsError: ``k`` is below 1.
        """
        row = _row(self._item_rows, str(item), "item")
        likeness = self._correlations(row)
        if not likeness[row]:
            raise DataError(f"nothing is known of item `{item}`: the model scores it alike for all")
        likeness[[0, row]] = -np.inf
        best = self._best(torch.from_numpy(likeness[None, :]).to(self._device), k)[0]
        best = best[best >= 0]
        return pd.DataFrame(
            {
                "item_id": self._item_ids[best],
                "score": likeness[best],
                "rank": np.arange(1, len(best) + 1),
            }
        )

    def titles(self, items: Iterable[object]) -> list[str]:
        """The items' titles, "" where one has none.

        Raises:
            DataError: an item is unknown.
        """
        rows = (_row(self._item_rows, str(item), "item") for item in items)
        return [self.tables.item_titles[row] for row in rows]

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.tables.user_ids) if row}

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.tables.item_ids) if row}

    @cached_property
    def _item_ids(self) -> np.ndarray:
        return np.array(self.tables.item_ids, dtype=object)

    @cached_property
    def _user_ids(self) -> np.ndarray:
        return np.array(self.tables.user_ids, dtype=object)

    def _user_row(self, user: str) -> int:
        row = _row(self._user_rows, user, "user")
        if not self.tables.user_counts[row]:
            warnings.warn(
                f"user `{user}` has no interaction in the training part; the ranking is made "
                "without any",
                DataWarning,
            )
        return row

    def _allowed(
        self, only: Iterable[object] | None, exclude: Iterable[object] | None
    ) -> Mask | None:
        """Which items may be ranked, bool (n_items,); None: all."""
        if only is None and exclude is None:
            return None
        allowed = np.full(len(self.tables.item_ids), only is None)
        if only is not None:
            allowed[self._listed(_as_ids(only), "only")] = True
            if not allowed.any():
                raise DataError("`only` holds no known item, so that nothing can be recommended")
        if exclude is not None:
            allowed[self._listed(_as_ids(exclude), "exclude")] = False
        return allowed

    def _listed(self, items: Sequence[str], option: str) -> list[int]:
        unknown = [item for item in items if item not in self._item_rows]
        if unknown:
            warnings.warn(
                f"`{option}`: {len(unknown):,} of {len(items):,} items are unknown, the first is "
                f"`{unknown[0]}`{_near(unknown[0], self._item_rows)}",
                DataWarning,
            )
        return [self._item_rows[item] for item in items if item in self._item_rows]

    def _ranked(
        self, users: Index, k: int, allowed: Mask | None, exclude_known: bool
    ) -> Iterator[pd.DataFrame]:
        _check_k(k)
        banned = None if allowed is None else torch.from_numpy(~allowed).to(self._device)
        row_bytes = 24 * len(self.tables.item_ids)
        for rows in batches(len(users), row_bytes=row_bytes, memory_bytes=_BATCH_BYTES):
            part = users[rows]
            scores = self._scorer.scores(torch.from_numpy(part).to(self._device))
            scores[:, 0] = -math.inf
            if banned is not None:
                scores[:, banned] = -math.inf
            if exclude_known:
                pairs = entries(self.tables.known[part])
                scores[tuple(torch.from_numpy(p).to(self._device) for p in pairs)] = -math.inf
            best = self._best(scores, k)
            found = best >= 0
            user, place = np.nonzero(found)
            item = best[found]
            values = scores.cpu().numpy()[user, item]
            yield _frame(self._user_ids[part[user]], self._item_ids[item], values, place + 1)

    def _best(self, scores: torch.Tensor, k: int) -> Index:
        _check_k(k)
        return top_items(scores, self._order, min(k, scores.shape[1])).cpu().numpy()

    def _correlations(self, item: int) -> Table:
        """Of an item's scores with every item's, float32 (n_items,); 0 for constant ones."""
        n_users = len(self.tables.user_ids) - 1
        rng = np.random.default_rng(self.tables.facts["seed"])
        users = 1 + rng.permutation(n_users)[:_SAMPLED_USERS]
        n_items = len(self.tables.item_ids)
        total, squares, products = (np.zeros(n_items) for _ in range(3))
        for rows in batches(len(users), row_bytes=24 * n_items, memory_bytes=_BATCH_BYTES):
            part = torch.from_numpy(users[rows]).to(self._device)
            scores = self._scorer.scores(part).cpu().numpy().astype(np.float64)
            total += scores.sum(axis=0)
            squares += np.einsum("ui,ui->i", scores, scores)
            products += scores[:, item] @ scores
        mean = total / len(users)
        variance = squares / len(users) - mean**2
        covariance = products / len(users) - mean * mean[item]
        # What rounding leaves of a constant is no spread.
        spread = np.where(variance > 1e-10 * (1 + mean**2), np.sqrt(np.abs(variance)), np.inf)
        return (covariance / (spread * spread[item])).astype(np.float32)


def _as_ids(given: object) -> list[str]:
    """Ids as words, each once; a single one is not taken for its letters."""
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    return list(dict.fromkeys(map(str, several)))


def _row(rows: dict[str, int], identifier: str, kind: str) -> int:
    if identifier not in rows:
        raise DataError(
            f"{kind} `{identifier}` is unknown: the model has been trained on "
            f"{len(rows):,} {kind}s without it{_near(identifier, rows)}"
        )
    return rows[identifier]


def _near(identifier: str, known: Iterable[str]) -> str:
    """A suggestion among ids that differ by a letter or two: of millions not all are compared."""
    length = len(identifier)
    start = identifier[:1]
    alike = (i for i in known if abs(len(i) - length) <= 2 and i[:1] == start)
    return did_you_mean(identifier, alike)


def _check_k(k: int) -> None:
    if k < 1:
        raise SettingsError(f"`k` must be at least 1, got {k}")


def _frame(users: object, items: object, scores: object, ranks: object) -> pd.DataFrame:
    return pd.DataFrame({"user_id": users, "item_id": items, "score": scores, "rank": ranks})
