"""Search of a signal's own settings on the validation split."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import Factors, standardise
from recbole_llm.settings import RunOptions
from recbole_llm.signal_cache import fit_cached
from recbole_llm.signals.base import Signal, with_settings
from recbole_llm.training_data import TrainingData
from recbole_llm.tuning.recency import Recency
from recbole_llm.tuning.spaces import Parameter
from recbole_llm.tuning.trials import maximise

# Interactions, or items, from which on settings are compared after brief fits.
_MANY, _MANY_ITEMS = 1 << 20, 10_000
# A search compares settings with each other: some thousand users tell them apart.
_SEARCH_USERS = 4000


@dataclass(frozen=True)
class Found:
    """The best of the settings tried: the signal, its tables as it learned them, its metric.

    After a search by brief fits the metric is that of the brief one.
    """

    signal: Signal
    factors: Factors
    value: float
    n_trials: int


def search_space(signal: Signal, fixed: Collection[str]) -> dict[str, Parameter]:
    """The fields of a signal that may be searched, without those that the user fixed."""
    hints = typing.get_type_hints(type(signal))
    return {
        field.name: Parameter(hints[field.name], search)
        for field in dataclasses.fields(signal)  # type: ignore[arg-type]  # a dataclass, by contract
        if (search := field.metadata.get("search"))
        and search.in_runs
        and field.name not in {*fixed, *getattr(signal, "unread", ())}
    }


def search_signal(
    label: str,
    signal: Signal,
    data: TrainingData,
    validation: Validation,
    metric: Metric,
    run: RunOptions,
    *,
    n_trials: int,
    fixed: Collection[str],
) -> Found:
    """Fit a signal with several settings and keep the one that validates best.

    On many interactions or items they are compared after fits that a signal calls brief, and the
    best is then fitted in full.

    Where a decay of the histories will be chosen, all are judged by rows that forget as those of
    the first settings do best: what is best at remembering all may be poor at what comes next.

    Args:
        label: what the bar calls it.
        signal: the signal as the user set it.
        data: what it learns from.
        validation: what it is judged by; a sample of its users is used.
        metric: the objective.
        run: device, seed, progress.
        n_trials: settings to try.
        fixed: fields that the user has set, which are left alone.

    Returns:
        The best.
    """
    space = search_space(signal, fixed)
    sample = validation.sample(_SEARCH_USERS, seed=run.seed)
    recency = Recency.of(signal, data, validation, metric, run)
    is_large = data.interactions.nnz >= _MANY or data.n_items >= _MANY_ITEMS
    brief = _brief(signal) if is_large else {}
    decay: float | None = None
    best: Found | None = None
    starts = [
        {name: value for name, value in start.items() if name in space} for start in signal.starts
    ]

    def objective(values: dict[str, Any]) -> float:
        nonlocal best, decay
        candidate = with_settings(signal, {**values, **brief})
        candidate, factors = fit_cached(candidate, data, run)
        if recency is None:
            value = evaluate([standardise(factors)], sample, metric, run.device)
        elif decay is None:
            decay, value = recency.best_decay(candidate, factors)
        else:
            value = recency.value(candidate, factors, decay)
        if best is None or value > best.value:
            best = Found(candidate, factors, value, n_trials)
        return value

    maximise(
        objective,
        space,
        starts=starts,
        n_trials=n_trials,
        seed=run.seed,
        title=f"Searching {label}",
        progress=run.progress,
    )
    assert best is not None
    if not brief:
        return best
    whole = with_settings(best.signal, {name: getattr(signal, name) for name in brief})
    return Found(*fit_cached(whole, data, run), best.value, n_trials)


def _brief(signal: Signal) -> dict[str, Any]:
    """What of a signal's settings makes a fit shorter that still tells good settings from poor."""
    shorter: Mapping[str, Any] = getattr(signal, "brief", {})
    return {name: value for name, value in shorter.items() if value < getattr(signal, name)}
