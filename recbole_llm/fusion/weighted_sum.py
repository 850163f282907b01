"""One weight per signal, for all users and items."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recbole_llm.factors import Factors, gated
from recbole_llm.fusion.base import Evidence, Fused, Weights


class WeightedSum:
    """``Σ w_k z_k`` over the signals' z-scores."""

    def fit(self, evidence: Evidence, cold_exposure: str) -> Fused:
        """Tune the weights on all of the validation part; the exposure has no say."""
        return sum_of(evidence.now.factors, evidence.tuned())


def sum_of(factors: Mapping[str, Factors], weights: Weights) -> Fused:
    """One weight for each signal's scores, the same for all items."""
    signals = list(factors.values())
    gains = [np.full(signals[0].n_items, weights[label], dtype=np.float32) for label in factors]
    return Fused(gated(signals, gains, np.zeros_like(gains[0])), weights)
