"""Fusion weights, tuned over cached tables.

Fitting a signal is slow and done once; a trial only re-weighs what the signals have said of the
validation users. Each user keeps the items that any signal ranks high: no other can reach the
top of a weighted sum but by scoring middling with all, so that a trial costs a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_llm.evaluation import Metric, Validation, is_positive, masked_scores
from recbole_llm.factors import Factors, Index
from recbole_llm.fusion import Judged
from recbole_llm.scoring import Scorer
from recbole_llm.settings import RunOptions, Search
from recbole_llm.tuning.spaces import Parameter
from recbole_llm.tuning.trials import maximise

# Signals that a selection adds one by one.
_PICKS = 20


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """What every signal says of each validation user's candidate items.

    Attributes:
        scores: float32 (n_signals, n_users, n_candidates) on the device.
        filled: bool (n_users, n_candidates), the slots that hold an item which is ranked, once.
        hits: bool (n_users, n_candidates), which candidates are positives.
        n_positives: int64 (n_users,).
    """

    scores: torch.Tensor
    filled: torch.Tensor
    hits: torch.Tensor
    n_positives: Index

    def evaluate(self, weights: Sequence[float], metric: Metric) -> float:
        """The metric of the candidates' ranking by the weighted sum."""
        weight = torch.tensor(list(weights), dtype=self.scores.dtype, device=self.scores.device)
        fused = (weight @ self.scores.flatten(1)).view(self.filled.shape)
        fused = fused.masked_fill_(~self.filled, -np.inf)
        top = torch.topk(fused, min(metric.k, fused.shape[1]), dim=1).indices
        hits = torch.gather(self.hits, 1, top).cpu().numpy()
        return float(metric.per_user(hits, self.n_positives).mean())


def candidate_scores(
    factors: Sequence[Factors],
    validation: Validation,
    *,
    n_candidates: int,
    run: RunOptions,
) -> CandidateScores:
    """Collect the candidates of the validation users: each signal's top items, and their sum's.

    Args:
        factors: standardised signals.
        validation: the users to rank for.
        n_candidates: items taken from each signal's ranking.
        run: device and seed.

    Returns:
        The signals' scores of the candidates.
    """
    scorers = [Scorer([f], run.device) for f in factors]
    n_items = factors[0].n_items
    k = min(n_candidates, n_items - 1)
    # Ties are broken by a seeded order of the items, not by their numbers.
    shuffled = torch.from_numpy(np.random.default_rng(run.seed).permutation(n_items))
    n_slots = k * (len(factors) + 1)
    few = None
    if validation.candidates is not None:
        ranked = np.flatnonzero(validation.candidates)
        if len(ranked) <= n_slots:
            few, n_slots = torch.from_numpy(ranked), len(ranked)
    # Filled part by part: joining parts at the end would take the memory twice.
    filled = torch.zeros(
        (len(validation.users), n_slots), dtype=torch.bool, device=torch.device(run.device)
    )
    found = CandidateScores(
        torch.zeros((len(factors), *filled.shape), device=filled.device),
        filled,
        torch.zeros_like(filled),
        validation.n_positives,
    )
    for part, first in masked_scores(scorers[0], validation):
        users = torch.from_numpy(validation.users[part]).to(run.device)
        masked = torch.isneginf(first)
        stack = torch.stack([first, *(scorer.scores(users) for scorer in scorers[1:])])
        total = stack.sum(dim=0).masked_fill_(masked, -np.inf)
        if few is not None:
            chosen = few.to(run.device).expand(len(users), -1)
        else:
            tops = [
                torch.topk(scores.masked_fill(masked, -np.inf), k, dim=1).indices
                for scores in (*stack, total)
            ]
            chosen = torch.cat(tops, dim=1)
        items, repeated = _distinct(chosen, shuffled.to(run.device))
        kept = torch.gather(stack, 2, items.expand(len(stack), *items.shape))
        filled = ~(repeated | torch.gather(masked, 1, items))
        hits = is_positive(validation.positives, validation.users[part], items.cpu().numpy())
        found.scores[:, part] = kept.masked_fill_(~filled, 0.0)
        found.filled[part] = filled
        found.hits[part] = torch.from_numpy(hits).to(run.device)
    return found


def _distinct(items: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's items in the given order of all items, and which of them repeat the one before."""
    ranks, _ = torch.sort(order[items], dim=1)
    repeated = torch.zeros_like(ranks, dtype=torch.bool)
    repeated[:, 1:] = ranks[:, 1:] == ranks[:, :-1]
    return torch.argsort(order)[ranks], repeated


@dataclass(frozen=True)
class TunedWeights:
    """The weights that validate best, as shares that sum to 1, and how fast they were found."""

    weights: Mapping[str, float]
    value: float
    trials_per_second: float


def tune_weights(
    sets: Sequence[Judged],
    metric: Metric,
    run: RunOptions,
    *,
    n_trials: int,
    memory_gb: float,
) -> TunedWeights:
    """Find one weight per signal, in 0..1, by Optuna.

    Args:
        sets: the same signals with what they are judged by, once or several times; the objective
            is the mean over them. As many users are looked at as ``memory_gb`` holds.
        metric: the objective.
        run: device, seed, progress.
        n_trials: weights to try, at least 1: equal ones, each signal alone, then Optuna's, so
            that tuning ends no worse than the best of these.
        memory_gb: for the cached scores.

    Returns:
        The weights.
    """
    labels = list(sets[0].factors)
    candidates = _candidates(sets, metric, run, memory_gb)

    def objective(parameters: Mapping[str, float]) -> float:
        weights = [parameters[label] for label in labels]
        return float(np.mean([part.evaluate(weights, metric) for part in candidates]))

    start = perf_counter()
    study = maximise(
        objective,
        {label: Parameter(float, Search()) for label in labels},
        starts=[
            {label: 1.0 for label in labels},
            *({other: float(other == label) for other in labels} for label in labels),
        ],
        n_trials=n_trials,
        seed=run.seed,
        title="Tuning weights",
        progress=run.progress,
    )
    seconds = perf_counter() - start
    best = _shares(np.array([study.best_params[label] for label in labels]))
    return TunedWeights(
        dict(zip(labels, best.tolist(), strict=True)), study.best_value, n_trials / seconds
    )


def select_weights(
    sets: Sequence[Judged], metric: Metric, run: RunOptions, *, memory_gb: float
) -> Mapping[str, float]:
    """Weights by ensemble selection, the mean of those that each set selects for itself.

    From nothing, the signal is added that helps most, twenty times, and may be added again; its
    share is its weight. Few small sets are learned by heart less than by the best of many trials,
    and what helps in one of them alone counts less.

    Source: Caruana, Niculescu-Mizil, Crew, Ksikes, "Ensemble Selection from Libraries of Models",
    2004.

    Args:
        sets: the same signals with what they are judged by, once or several times.
        metric: the objective.
        run: device, seed.
        memory_gb: for the cached scores.

    Returns:
        Label -> share; they sum to 1.
    """
    labels = list(sets[0].factors)
    selected = [
        _selected(part, metric, len(labels)) for part in _candidates(sets, metric, run, memory_gb)
    ]
    return dict(zip(labels, np.mean(selected, axis=0).tolist(), strict=True))


def _selected(scores: CandidateScores, metric: Metric, n_signals: int) -> NDArray[np.float64]:
    picks = np.zeros(n_signals)
    best_value, best = -1.0, picks
    for _ in range(_PICKS):
        values = [scores.evaluate(list(picks + one), metric) for one in np.eye(n_signals)]
        picks = picks + np.eye(n_signals)[int(np.argmax(values))]
        if max(values) > best_value:
            best_value, best = max(values), picks
    return best / best.sum()


def _candidates(
    sets: Sequence[Judged], metric: Metric, run: RunOptions, memory_gb: float
) -> list[CandidateScores]:
    """What the signals say of the sets' candidates, as far as the memory goes."""
    n_signals = len(sets[0].factors)
    n_candidates = max(10 * metric.k, 100)
    slots = n_candidates * (n_signals + 1)
    # Scores of all signals, their fused copy, the flags, and what topk needs.
    n_users = int(memory_gb * 2**30) // (slots * (4 * n_signals + 14) * len(sets))
    return [
        candidate_scores(
            list(judged.factors.values()),
            judged.validation.sample(max(1, n_users), seed=run.seed),
            n_candidates=n_candidates,
            run=run,
        )
        for judged in sets
    ]


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights that sum to 1; equal ones where all are zero."""
    total = weights.sum()
    return weights / total if total else np.full(len(weights), 1 / len(weights))
