"""How fast a signal's user rows forget: chosen on a validation part that comes later."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import Factors, Index, standardise
from recbole_llm.settings import RunOptions
from recbole_llm.signals.base import SomeSignal, by_recency, with_settings
from recbole_llm.training_data import History, TrainingData

_DECAYS = (0.9, 0.8, 0.65, 0.5, 0.35)
# Six values are told apart by fewer users than the many settings of a search.
_USERS = 2000


@dataclass(frozen=True, eq=False)
class Recency:
    """A later validation part, by which user rows that forget are judged.

    Attributes:
        users: int64 (n,), user 0 and those of a sample of the validation's.
        judged: the sample, its users numbered from 1.
        history: of these users.
        metric: the objective.
        run: device and seed.
    """

    users: Index
    judged: Validation
    history: History
    metric: Metric
    run: RunOptions

    @classmethod
    def of(
        cls,
        signal: SomeSignal,
        data: TrainingData,
        validation: Validation | None,
        metric: Metric,
        run: RunOptions,
    ) -> Recency | None:
        """None where the signal's ``history_decay`` is not to be chosen.

        That is where it has no such field, or the user has set it; where there is no order; and
        where what is wanted did not come later than what is known (a random split): no decay could
        be judged by it.
        """
        is_free = getattr(signal, "history_decay", 1.0) is None
        if not is_free or data.age is None or validation is None or not validation.is_later:
            return None
        sample = validation.sample(_USERS, seed=run.seed)
        users = np.r_[0, sample.users]
        judged = dataclasses.replace(
            sample,
            users=np.arange(1, len(users)),
            known=sample.known[users],
            positives=sample.positives[users],
        )
        return cls(users, judged, data.history[users], metric, run)

    def value(self, signal: SomeSignal, factors: Factors, decay: float) -> float:
        """The metric with user rows of that decay; 1: as they were learned.

        Args:
            signal: the settings.
            factors: the signal as it was fitted, its users' rows as learned.
            decay: ``history_decay``, in (0, 1].
        """
        if decay == 1:
            rows = factors.users[self.users]
        else:
            signal = with_settings(signal, {"history_decay": decay})
            rows = signal.fold_in(factors, signal.sources(factors), self.history)
        part = dataclasses.replace(factors, users=rows, offset=factors.offset[self.users])
        return evaluate([standardise(part)], self.judged, self.metric, self.run.device)

    def best_decay(self, signal: SomeSignal, factors: Factors) -> tuple[float, float]:
        """The decay of the highest value, among a few, and that value."""
        values = {decay: self.value(signal, factors, decay) for decay in (1.0, *_DECAYS)}
        return max(values.items(), key=itemgetter(1))


def choose_decay(
    signal: SomeSignal,
    factors: Factors,
    data: TrainingData,
    validation: Validation | None,
    metric: Metric,
    run: RunOptions,
) -> tuple[SomeSignal, Factors]:
    """The signal with the ``history_decay`` that validates best, and its tables.

    Nothing is fitted anew: the rows as learned are compared with rows folded in. Where none is to
    be chosen (:meth:`Recency.of`) the signal stays as it is.

    Args:
        signal: the settings.
        factors: the signal as it was fitted.
        data: what it was fitted on.
        validation: what it is judged by; of many users a sample is used.
        metric: the objective.
        run: device and seed.
    """
    recency = Recency.of(signal, data, validation, metric, run)
    if recency is None:
        return signal, factors
    decay, _ = recency.best_decay(signal, factors)
    chosen = with_settings(signal, {"history_decay": decay})
    return chosen, by_recency(chosen, factors, data)
