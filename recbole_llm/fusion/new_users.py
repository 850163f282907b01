"""Users without history: whether they are served by the signals or by popularity.

Of such a user the signals know a typical row at most, or what a ridge makes of her own text, which
can be better or worse than what all others take.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.stats import sem

from recbole_llm.evaluation import Metric, evaluate_users, metric_of_users
from recbole_llm.factors import scale_rows
from recbole_llm.fusion.base import Evidence, Situation, Weights
from recbole_llm.scoring import GainedScorer
from recbole_llm.settings import RunOptions

POPULARITY = "popularity"
_LEAST_WEIGHT = 1e-3
_MOST_USERS = 4000


def server_of(evidence: Evidence, weights: Weights) -> str:
    """By what users without history are served: ``signals`` or ``popularity``.

    Args:
        evidence: with the validation part as what is wanted now.
        weights: label -> what a warm item's z-score is multiplied by.
    """
    if POPULARITY not in weights:
        return "signals"
    if evidence.new_users != "auto":
        return evidence.new_users
    # A user of the software who gave popularity no weight wants none of it.
    if evidence.weights is not None and not weights[POPULARITY]:
        return "signals"
    is_better = are_served_by_popularity(evidence.now, weights, evidence.metric, evidence.run)
    return POPULARITY if is_better else "signals"


def are_served_by_popularity(
    situation: Situation, weights: Weights, metric: Metric, run: RunOptions
) -> bool:
    """Whether new users' warm items are ranked best by popularity.

    They are, unless the signals are better by more than the standard error of their lead (Breiman
    et al., "Classification and Regression Trees", 1984): new users are few.

    Args:
        situation: with the validation part as what is wanted, and popularity among the signals.
        weights: label -> what a warm item's z-score is multiplied by.
        metric: the objective.
        run: device, seed.

    Returns:
        False too where fewer than two new users want anything.
    """
    judged = situation.judged("new_user")
    if not judged or len(judged[0].validation.users) < 2:
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


def with_popularity(weights: Weights) -> Weights:
    """The weights with one for popularity: what has none has no place among the tables."""
    return {**weights, POPULARITY: max(weights[POPULARITY], _LEAST_WEIGHT)}


def served_by_popularity(situation: Situation, weight: float) -> Situation:
    """With new users' rows that are popularity alone, as z-scores once it is weighed.

    Args:
        situation: with popularity among the signals.
        weight: of popularity, above 0.
    """
    new = np.diff(situation.known.indptr) == 0
    popular, others = np.where(new, 1 / weight, 1.0), np.where(new, 0.0, 1.0)
    factors = {
        label: dataclasses.replace(
            signal,
            users=scale_rows(signal.users, scale),
            offset=(signal.offset * scale).astype(np.float32),
        )
        for label, signal in situation.factors.items()
        for scale in [popular if label == POPULARITY else others]
    }
    return dataclasses.replace(situation, factors=factors)
