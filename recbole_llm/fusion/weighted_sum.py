"""One weight per signal, for all users and items."""

from __future__ import annotations

from recbole_llm.factors import concatenate
from recbole_llm.fusion.base import Evidence, Fused


class WeightedSum:
    """``Σ w_k z_k`` over the signals' z-scores."""

    def fit(self, evidence: Evidence, cold_exposure: str) -> Fused:
        """Tune the weights on all of the validation part; the exposure has no say."""
        factors = evidence.now.factors
        weights = evidence.tune(evidence.now.judged())
        shares = [weights.get(label, 1 / len(factors)) for label in factors]
        return Fused(
            concatenate(list(factors.values()), shares), dict(zip(factors, shares, strict=True))
        )
