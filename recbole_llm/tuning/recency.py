"""How fast a signal's user rows forget: chosen on a validation part that comes later."""

from __future__ import annotations

import dataclasses

import numpy as np

from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import Factors, Rows, standardise
from recbole_llm.settings import RunOptions
from recbole_llm.signals.base import SomeSignal, by_recency, with_settings
from recbole_llm.training_data import TrainingData

_DECAYS = (0.9, 0.8, 0.65, 0.5, 0.35)
# Six values are told apart by fewer users than the many settings of a search.
_USERS = 2000


def choose_decay(
    signal: SomeSignal,
    factors: Factors,
    data: TrainingData,
    validation: Validation | None,
    metric: Metric,
    run: RunOptions,
) -> tuple[SomeSignal, Factors]:
    """The signal with the ``history_decay`` that validates best, and its tables.

    Nothing is fitted anew: the rows as learned are compared with rows folded in. A signal without
    such a field, or for which the user has set it, stays as it is; and so does any where there is
    no order, or where what is wanted did not come later than what is known (a random split): no
    decay could be judged by it.

    Args:
        signal: the settings.
        factors: the signal as it was fitted.
        data: what it was fitted on.
        validation: what it is judged by; of many users a sample is used.
        metric: the objective.
        run: device and seed.
    """
    is_free = getattr(signal, "history_decay", 1.0) is None
    if not is_free or data.age is None or validation is None or not validation.is_later:
        return signal, factors
    sample = validation.sample(_USERS, seed=run.seed)
    users = np.r_[0, sample.users]
    judged = dataclasses.replace(
        sample,
        users=np.arange(1, len(users)),
        known=sample.known[users],
        positives=sample.positives[users],
    )
    history, sources = data.history[users], signal.sources(factors)

    def value(rows: Rows) -> float:
        part = dataclasses.replace(factors, users=rows, offset=factors.offset[users])
        return evaluate([standardise(part)], judged, metric, run.device)

    values = {1.0: value(factors.users[users])}
    for decay in _DECAYS:
        candidate = with_settings(signal, {"history_decay": decay})
        values[decay] = value(candidate.fold_in(factors, sources, history))
    chosen = with_settings(signal, {"history_decay": max(values, key=lambda decay: values[decay])})
    return chosen, by_recency(chosen, factors, data)
