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

from recbole_llm.evaluation import Metric, Validation, is_positive, masked_scores
from recbole_llm.factors import Factors, Index
from recbole_llm.fusion import Fusion
from recbole_llm.scoring import Scorer
from recbole_llm.settings import RunOptions
from recbole_llm.tuning.trials import maximise


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

    def evaluate(self, fusion: Fusion, parameters: Mapping[str, float], metric: Metric) -> float:
        """The metric of the fused ranking of the candidates."""
        fused = fusion.combine(parameters, self.scores).masked_fill_(~self.filled, -np.inf)
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
    parts = []
    for part, first in masked_scores(scorers[0], validation):
        users = torch.from_numpy(validation.users[part]).to(run.device)
        masked = torch.isneginf(first)
        stack = torch.stack([first, *(scorer.scores(users) for scorer in scorers[1:])])
        total = stack.sum(dim=0).masked_fill_(masked, -np.inf)
        tops = [
            torch.topk(scores.masked_fill(masked, -np.inf), k, dim=1).indices
            for scores in (*stack, total)
        ]
        items, repeated = _distinct(torch.cat(tops, dim=1), shuffled.to(run.device))
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
    """The fusion's parameters that validate best, and how fast they were found."""

    parameters: Mapping[str, float]
    value: float
    trials_per_second: float


def tune_weights(
    factors: Mapping[str, Factors],
    validation: Validation,
    fusion: Fusion,
    metric: Metric,
    run: RunOptions,
    *,
    n_trials: int,
    memory_gb: float,
) -> TunedWeights:
    """Find the fusion's parameters by Optuna on the validation split.

    Args:
        factors: label -> standardised signal.
        validation: the users to rank for; as many are used as ``memory_gb`` holds.
        fusion: the rule.
        metric: the objective.
        run: device, seed, progress.
        n_trials: parameters to try, at least 1.
        memory_gb: for the cached scores.

    Returns:
        The best parameters.
    """
    n_candidates = max(10 * metric.k, 100)
    slots = n_candidates * (len(factors) + 1)
    # Scores of all signals, their fused copy, the flags, and what topk needs.
    n_users = int(memory_gb * 2**30) // (slots * (4 * len(factors) + 14))
    sample = validation.sample(max(1, n_users), seed=run.seed)
    candidates = candidate_scores(
        list(factors.values()), sample, n_candidates=n_candidates, run=run
    )
    start = perf_counter()
    study = maximise(
        lambda parameters: candidates.evaluate(fusion, parameters, metric),
        {name: (float, bounds) for name, bounds in fusion.space(list(factors)).items()},
        starts=fusion.starts(list(factors)),
        n_trials=n_trials,
        seed=run.seed,
        title="Tuning weights",
        progress=run.progress,
    )
    return TunedWeights(study.best_params, study.best_value, n_trials / (perf_counter() - start))
