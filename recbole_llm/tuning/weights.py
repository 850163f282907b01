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
from recbole_llm.tuning.trials import maximise

# Robust weights are the mean of one in so many of the trials, the best ones.
_GOOD_PART = 3


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """What every signal says of each validation user's candidate items.

    Attributes:
        scores: float32 (n_signals, n_users, n_candidates) on the device; a slot that repeats an
            item is -inf for every signal.
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
    few = None
    if validation.candidates is not None:
        ranked = np.flatnonzero(validation.candidates)
        if len(ranked) <= k * (len(factors) + 1):
            few = torch.from_numpy(ranked)
    parts = []
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
        parts.append(
            (kept.masked_fill_(~filled, 0.0), filled, torch.from_numpy(hits).to(run.device))
        )
    all_scores, all_filled, all_hits = zip(*parts, strict=True)
    return CandidateScores(
        torch.cat(all_scores, dim=1),
        torch.cat(all_filled),
        torch.cat(all_hits),
        validation.n_positives,
    )


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
    robust: bool = False,
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
        robust: in place of the best weights the mean of the best third, which lies nearer to
            equal ones: one small set is soon learned by heart.

    Returns:
        The weights.
    """
    labels = list(sets[0].factors)
    n_candidates = max(10 * metric.k, 100)
    slots = n_candidates * (len(labels) + 1)
    # Scores of all signals, their fused copy, the flags, and what topk needs.
    n_users = int(memory_gb * 2**30) // (slots * (4 * len(labels) + 14) * len(sets))
    candidates = [
        candidate_scores(
            list(judged.factors.values()),
            judged.validation.sample(max(1, n_users), seed=run.seed),
            n_candidates=n_candidates,
            run=run,
        )
        for judged in sets
    ]
    tried: list[tuple[float, NDArray[np.float64]]] = []

    def objective(parameters: Mapping[str, float]) -> float:
        weights = np.array([parameters[label] for label in labels])
        value = float(np.mean([part.evaluate(list(weights), metric) for part in candidates]))
        tried.append((value, _shares(weights)))
        return value

    start = perf_counter()
    maximise(
        objective,
        {label: (float, Search(0.0, 1.0)) for label in labels},
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
    tried.sort(key=lambda trial: -trial[0])
    best = tried[0][1]
    if robust:
        good = [weights for _, weights in tried[: max(1, len(tried) // _GOOD_PART)]]
        best = np.mean(good, axis=0)
    return TunedWeights(
        dict(zip(labels, best.tolist(), strict=True)), tried[0][0], n_trials / seconds
    )


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights that sum to 1; equal ones where all are zero."""
    total = weights.sum()
    return weights / total if total else np.full(len(weights), 1 / len(weights))
