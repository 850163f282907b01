"""Scoring on a device: fused tables in, a fresh batch of scores out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from recbole_llm.errors import SettingsError
from recbole_llm.factors import Factors, Table, products
from recbole_llm.training_data import entries

#: Takes any score below all others: they are sums of z-scores over the items, and the largest that
#: one of n can have is sqrt(n).
LOWER = 1e5


def entries_on(device: torch.device, matrix: sp.csr_matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every stored entry of a CSR matrix, in its order, on a device."""
    rows, columns = (torch.from_numpy(part).to(device) for part in entries(matrix))
    return rows, columns


def lower(scores: torch.Tensor, had: sp.csr_matrix) -> None:
    """Lower the scores of what each user has had, in place.

    Args:
        scores: (n, n_items).
        had: CSR (n, n_items), the entries that are lowered, each once.
    """
    scores[entries_on(scores.device, had)] -= LOWER


def find_device(name: str) -> torch.device:
    """A device by its name, or with ``auto`` the fastest that is there.

    Raises:
        SettingsError: it is no device, or this machine does not have it.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.partition(":")[0]
    if kind not in available:
        raise SettingsError(f"`device` must be auto, cpu, cuda or mps, got {name!r}")
    if not available[kind]:
        raise SettingsError(f"`device` is {name}, which this machine does not have; use auto")
    return torch.device(name)


class Scorer:
    """The sum of blocks of :class:`Factors`, as batched matrix products on a device.

    Dense tables live on the device. Sparse user rows stay on the CPU: there SciPy multiplies
    them; on another device a batch of them is made dense and multiplied there, since not every
    device has sparse products (and none a faster one for whole rows).
    """

    def __init__(self, blocks: Sequence[Factors], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.n_items = blocks[0].n_items
        self._blocks = [_Block(block, self.device) for block in blocks]

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        """Scores of some users for all items: a new float32 tensor (len(users), n_items)."""
        first, *others = self._blocks
        total = first.scores(users)
        for block in others:
            total += block.scores(users)
        return total

    def pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of user-item pairs, a new float32 tensor (len(users),)."""
        first, *others = self._blocks
        total = first.pairs(users, items)
        for block in others:
            total += block.pairs(users, items)
        return total


class GainedScorer:
    """The sum of signals' scores, each times an item's gain."""

    def __init__(self, factors: Sequence[Factors], gains: Sequence[Table], device: str) -> None:
        used = [(f, gain) for f, gain in zip(factors, gains, strict=True) if gain.any()]
        self.device = torch.device(device)
        self.n_items = factors[0].n_items
        self._parts = [(Scorer([f], device), torch.from_numpy(g).to(device)) for f, g in used]

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        """Scores of some users for all items: a new float32 tensor (len(users), n_items)."""
        total = torch.zeros(len(users), self.n_items, device=self.device)
        for scorer, gain in self._parts:
            total.addcmul_(scorer.scores(users), gain[None, :])
        return total


class _Block:
    def __init__(self, block: Factors, device: torch.device) -> None:
        self.device = device
        self.offset = torch.from_numpy(block.offset).to(device)
        self.known = torch.from_numpy(block.known.astype(np.float32)).to(device)
        self.users: Any = block.users
        self.items: Any = block.items
        if not block.is_sparse:
            self.users = torch.from_numpy(block.users).to(device)
            self.items = torch.from_numpy(block.items).to(device)
        elif device.type != "cpu" and isinstance(block.items, np.ndarray):
            self.items = torch.from_numpy(block.items).to(device)

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        rows = self._user_rows(users)
        if isinstance(rows, torch.Tensor):
            scores = rows @ self.items.T
        else:
            scores = torch.from_numpy(products(rows, self.items)).to(self.device)
        return scores.addcmul_(self.offset[users, None], self.known[None, :])

    def pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        rows = self._user_rows(users)
        if isinstance(rows, torch.Tensor):
            products = (rows * self.items[items]).sum(dim=1)
        else:
            others = self.items[items.cpu().numpy()]
            sums = np.asarray(rows.multiply(others).sum(axis=1), dtype=np.float32).ravel()
            products = torch.from_numpy(sums).to(self.device)
        return products + self.offset[users] * self.known[items]

    def _user_rows(self, users: torch.Tensor) -> Any:
        """Rows in the kind that the item table multiplies with."""
        if isinstance(self.users, torch.Tensor):
            return self.users[users]
        rows = self.users[users.cpu().numpy()]
        if isinstance(self.items, torch.Tensor):
            return torch.from_numpy(rows.toarray()).to(self.device)
        return rows
