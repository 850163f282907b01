"""Fusion rules: how the signals' scores are put together, and what of that is tuned.

Adding a rule is one new file and one line in :data:`FUSIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from recbole_llm.factors import Factors
from recbole_llm.fusion.weighted_sum import WeightedSum
from recbole_llm.settings import Search

__all__ = ["FUSIONS", "Fusion"]


class Fusion(Protocol):
    """A rule over standardised signals, with a few parameters to be tuned."""

    def space(self, labels: Sequence[str]) -> Mapping[str, Search]:
        """The parameters and their ranges."""
        ...

    def starts(self, labels: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """Parameters to try first; the first of them is the rule untuned."""
        ...

    def combine(self, parameters: Mapping[str, float], scores: torch.Tensor) -> torch.Tensor:
        """Fused scores (n_users, n) of the signals' scores (n_signals, n_users, n)."""
        ...

    def fuse(
        self, parameters: Mapping[str, float], factors: Sequence[Factors]
    ) -> tuple[Factors, ...]:
        """The same on tables: blocks whose scores add up to the fused ones."""
        ...

    def weights(self, parameters: Mapping[str, float]) -> Mapping[str, float]:
        """Each signal's share, summing to 1, for the log and the record."""
        ...


FUSIONS: dict[str, Fusion] = {"weighted_sum": WeightedSum()}
