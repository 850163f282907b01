"""Users without history: how much of their score is popularity.

Of such a user the signals know a typical row at most, or what a ridge makes of her own text. How
far that is better than what all others take is one number, chosen on the validation part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from scipy.stats import sem

from recbole_llm.evaluation import Metric, Scores, metric_of_users
from recbole_llm.factors import Factors, Mask, scale_rows
from recbole_llm.fusion.base import Situation, Weights
from recbole_llm.scoring import GainedScorer, Scorer
from recbole_llm.settings import RunOptions

POPULARITY = "popularity"
# What popularity counts at least where new users need it: what has no weight has no place among
# the tables.
LEAST_WEIGHT = 1e-3
_SHARES = tuple(np.linspace(0.0, 1.0, 11))
_MOST_USERS = 4000


def popularity_share(
    situation: Situation, weights: Weights, metric: Metric, run: RunOptions
) -> float:
    """The share of popularity in a new user's score that ranks the warm items best.

    All of it, unless another is better by more than its standard error (Breiman et al.,
    "Classification and Regression Trees", 1984): new users are few.

    Args:
        situation: with the validation part as what is wanted.
        weights: label -> what a warm item's z-score is multiplied by.
        metric: the objective.
        run: device, seed.

    Returns:
        0..1; 0 where fewer than two new users want anything, or popularity is not among the
        signals.
    """
    judged = situation.judged("new_user")
    if POPULARITY not in situation.factors or not judged or len(judged[0].validation.users) < 2:
        return 0.0
    validation = judged[0].validation.sample(_MOST_USERS, seed=run.seed)
    # The level, which is chosen later, says how cold items stand beside warm ones.
    validation = dataclasses.replace(validation, candidates=~situation.cold)
    signals = list(situation.factors.values())
    gains = [
        np.full(signals[0].n_items, weights[label], dtype=np.float32) for label in situation.factors
    ]
    fused = GainedScorer(signals, gains, run.device)
    popular = Scorer([situation.factors[POPULARITY]], run.device)
    values = [
        metric_of_users(_Leaning(fused, popular, share), validation, metric) for share in _SHARES
    ]
    best = max(range(len(_SHARES)), key=lambda number: values[number].mean())
    lead = values[best] - values[-1]
    return float(_SHARES[best]) if lead.mean() > sem(lead) else 1.0


def lean_on_popularity(
    factors: Mapping[str, Factors], new: Mask, share: float, weight: float
) -> dict[str, Factors]:
    """The signals with new users' rows of which popularity is a share, once they are weighed.

    Args:
        factors: label -> standardised signal, popularity among them.
        new: bool (n_users,), whose rows change.
        share: 0..1.
        weight: of popularity, above 0.
    """
    kept = np.where(new, 1 - share, 1.0)
    more = np.where(new, 1 - share + share / weight, 1.0)
    return {
        label: _scaled(signal, more if label == POPULARITY else kept)
        for label, signal in factors.items()
    }


def _scaled(signal: Factors, scale: np.ndarray) -> Factors:
    offset = (signal.offset * scale).astype(np.float32)
    return dataclasses.replace(signal, users=scale_rows(signal.users, scale), offset=offset)


class _Leaning:
    """Scores of which popularity is a share."""

    def __init__(self, fused: Scores, popular: Scores, share: float) -> None:
        self.device, self.n_items = fused.device, fused.n_items
        self._fused, self._popular, self._share = fused, popular, share

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        fused, popular = self._fused.scores(users), self._popular.scores(users)
        return torch.lerp(fused, popular, self._share)
