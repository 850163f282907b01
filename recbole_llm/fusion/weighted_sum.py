"""One weight per signal, for all users and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from recbole_llm.factors import Factors, concatenate
from recbole_llm.settings import Search


class WeightedSum:
    """``Σ w_k z_k`` over the signals' z-scores; only the weights' ratios matter."""

    def space(self, labels: Sequence[str]) -> Mapping[str, Search]:
        """A weight in 0..1 for each signal."""
        return {label: Search(0.0, 1.0) for label in labels}

    def starts(self, labels: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """Equal weights, then each signal alone: tuning ends no worse than the best of these."""
        equal = {label: 1.0 for label in labels}
        alone = [{other: float(other == label) for other in labels} for label in labels]
        return [equal, *alone]

    def combine(self, parameters: Mapping[str, float], scores: torch.Tensor) -> torch.Tensor:
        """The weighted sum over the first dimension."""
        weights = torch.tensor(list(parameters.values()), dtype=scores.dtype, device=scores.device)
        n_signals, n_users, n = scores.shape
        return (weights @ scores.view(n_signals, -1)).view(n_users, n)

    def fuse(
        self, parameters: Mapping[str, float], factors: Sequence[Factors]
    ) -> tuple[Factors, ...]:
        """Weighted concatenation; all weights zero mean equal ones."""
        return concatenate(factors, list(self.weights(parameters).values()))

    def weights(self, parameters: Mapping[str, float]) -> Mapping[str, float]:
        """The weights as shares; equal ones where all are zero."""
        total = sum(parameters.values())
        if total == 0:
            return {label: 1.0 / len(parameters) for label in parameters}
        return {label: weight / total for label, weight in parameters.items()}
