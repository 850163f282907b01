"""Weights of their own for cold items, a level that sets them beside the warm ones, new users."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from recbole_llm.evaluation import Validation
from recbole_llm.factors import Factors, Mask, Table, gated
from recbole_llm.fusion.base import Evidence, Fused, Judged, Situation, Weights, or_equal
from recbole_llm.fusion.exposure import Contest, Wish, parse_exposure
from recbole_llm.fusion.new_users import (
    POPULARITY,
    served_by_popularity,
    server_of,
    with_popularity,
)
from recbole_llm.fusion.weighted_sum import sum_of

# Where fewer of the items are cold, their signals count equally: weights of their own are not
# worth fitting all signals once more.
_FEW_COLD = 0.05
# Of the levels that validate as well as the best within this, the one that shows most cold items.
_AS_GOOD = 0.999
# A level is chosen by the validation part where at least so much of what is wanted there is
# cold; else by warm items that are completed as if they were.
_ENOUGH_COLD = 0.01
_MOST_USERS = 4000
# The spread of a user's scores of cold items beside that of warm ones. What the best cold items
# get above the others is worth more: so the validation parts of four cold splits say. Where few
# items are cold nothing says so, and the spreads are the same.
_SPREAD = 2.0


class WarmthGate:
    """Warm items: ``Σ w_k z_k``. Cold ones: ``level + s · Σ v_k z_k``.

    ``w`` is tuned on warm items among warm ones. ``v`` is the mean of what is selected on cold
    items among cold ones (those of the validation part, and warm ones that are completed as if
    they were cold) and on warm items: few cold items are soon learned by heart. ``s`` gives cold
    items twice the warm ones' spread over the items of a typical user. So no order among warm
    items or among cold ones depends on the level. Users without history are served by popularity
    where the signals do not validate better.
    """

    def fit(self, evidence: Evidence, cold_exposure: str) -> Fused:
        """Tune both weights, then choose the level; what the user fixed stays as it is."""
        weights = evidence.tuned("warm")
        server = server_of(evidence, weights)
        if server == POPULARITY:
            weights = with_popularity(weights)
            now = served_by_popularity(evidence.now, weights[POPULARITY])
            evidence = dataclasses.replace(evidence, now=now)
        fused = self._gate(evidence, weights, parse_exposure(cold_exposure))
        return dataclasses.replace(fused, new_users=server)

    def _gate(self, evidence: Evidence, warm_weights: Weights, wish: Wish) -> Fused:
        now, metric, run = evidence.now, evidence.metric, evidence.run
        fixed = evidence.cold_weights
        cold = now.cold
        told = [label for label, factors in now.factors.items() if factors.known[cold].any()]
        if not told:
            return sum_of(now.factors, warm_weights)
        if fixed is not None and wish.level is not None:
            blocks = _blocks(now, warm_weights, fixed, wish.level)
            return Fused(blocks, warm_weights, fixed, wish.level, (), fixed)
        imagined = None
        if now.wanted is not None and cold.sum() > _FEW_COLD * len(cold):
            imagined = evidence.as_if_cold()
        judged: list[Judged] = []
        if imagined is not None:
            judged = now.judged("cold") + imagined.judged("cold") + now.judged("warm")
        cold_weights = fixed
        if cold_weights is None:
            cold_weights = or_equal(evidence.select([part.of(told) for part in judged]), told)

        def contest(situation: Situation) -> Contest:
            is_cold = situation.cold
            return Contest.of(
                list(situation.factors.values()),
                _gains(situation, is_cold, warm_weights, cold_weights),
                _users_of(situation).sample(_MOST_USERS, seed=run.seed),
                is_cold,
                k=metric.k,
                run=run,
            )

        served = contest(now)
        spread = _SPREAD if imagined is not None else 1.0
        # What the user fixed is what a cold item's z-score is multiplied by, as it stands.
        has_scale = fixed is None and served.spread[1]
        scale = spread * served.spread[0] / served.spread[1] if has_scale else 1.0
        measured = served
        wanted_cold = served.n_cold.sum() / max(1, (served.n_cold + served.n_warm).sum())
        if wanted_cold < _ENOUGH_COLD and imagined is not None:
            assert now.wanted is not None
            measured = contest(dataclasses.replace(imagined, wanted=now.wanted, hidden=now.known))
        curve = measured.curve(scale, metric)
        if wish.level is not None:
            level = wish.level
        elif wish.share is not None:
            level = served.level_of_share(wish.share, scale)
        else:
            level = _best_level(curve)
        cold_gains = {label: scale * weight for label, weight in cold_weights.items()}
        blocks = _blocks(now, warm_weights, cold_gains, level)
        return Fused(blocks, warm_weights, cold_weights, level, curve, cold_gains)


def _best_level(curve: Sequence[Mapping[str, float | None]]) -> float:
    """The highest of the levels that are as good as the best; 0 where nobody wants anything."""
    values = [point["all"] or 0.0 for point in curve]
    good = [p["level"] for p, v in zip(curve, values, strict=True) if v >= _AS_GOOD * max(values)]
    return float(good[-1] or 0.0) if any(values) else 0.0


def _blocks(
    now: Situation, warm: Weights, cold_gains: Weights, level: float
) -> tuple[Factors, ...]:
    gains = _gains(now, now.cold, warm, cold_gains)
    return gated(list(now.factors.values()), gains, np.float32(level) * now.cold)


def _gains(situation: Situation, cold: Mask, warm: Weights, of_cold: Weights) -> list[Table]:
    return [
        np.where(cold, of_cold.get(label, 0.0), warm[label]).astype(np.float32)
        for label in situation.factors
    ]


def _users_of(situation: Situation) -> Validation:
    judged = situation.judged()
    if judged:
        return judged[0].validation
    known = situation.known
    users = np.flatnonzero(np.diff(known.indptr)).astype(np.int64)
    return Validation(users, known, type(known)(known.shape, dtype=known.dtype))
