"""Users without history: whether they are served by the signals or by popularity.

Of such a user the signals know a typical row at most, or what a ridge makes of her own text, which
can be better or worse than what all others take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.stats import sem

from recbole_llm.evaluation import Metric, evaluate_users, metric_of_users
from recbole_llm.factors import Factors, Mask, scale_rows
from recbole_llm.fusion.base import Situation, Weights
from recbole_llm.scoring import GainedScorer
from recbole_llm.settings import RunOptions

POPULARITY = "popularity"
# What popularity weighs at least where new users need it: what has no weight has no place among
# the tables.
LEAST_WEIGHT = 1e-3
_MOST_USERS = 4000


def are_served_by_popularity(
    situation: Situation, weights: Weights, metric: Metric, run: RunOptions
) -> bool:
    """Whether new users' warm items are ranked best by popularity.

    They are, unless the signals are better by more than the standard error of their lead (Breiman
    et al., "Classification and Regression Trees", 1984): new users are few.

    Args:
        situation: with the validation part as what is wanted.
        weights: label -> what a warm item's z-score is multiplied by.
        metric: the objective.
        run: device, seed.

    Returns:
        False too where fewer than two new users want anything, or popularity is no signal.
    """
    judged = situation.judged("new_user")
    if POPULARITY not in situation.factors or not judged or len(judged[0].validation.users) < 2:
        return False
    validation = judged[0].validation.sample(_MOST_USERS, seed=run.seed)
    # The level, which is chosen later, says how cold items stand beside warm ones.
    validation = dataclasses.replace(validation, candidates=~situation.cold)
    signals = list(situation.factors.values())
    gains = [
        np.full(signals[0].n_items, weights[label], dtype=np.float32) for label in situation.factors
    ]
    fused = GainedScorer(signals, gains, run.device)
    popular = [situation.factors[POPULARITY]]
    lead = metric_of_users(fused, validation, metric)
    lead -= evaluate_users(popular, validation, metric, run.device)
    return bool(lead.mean() <= sem(lead))


def served_by_popularity(
    factors: Mapping[str, Factors], new: Mask, weight: float
) -> dict[str, Factors]:
    """The signals with new users' rows that are popularity alone, as z-scores once it is weighed.

    Args:
        factors: label -> standardised signal, popularity among them.
        new: bool (n_users,), whose rows change.
        weight: of popularity, above 0.
    """
    popular, others = np.where(new, 1 / weight, 1.0), np.where(new, 0.0, 1.0)
    return {
        label: dataclasses.replace(
            signal,
            users=scale_rows(signal.users, scale),
            offset=(signal.offset * scale).astype(np.float32),
        )
        for label, signal in factors.items()
        for scale in [popular if label == POPULARITY else others]
    }
