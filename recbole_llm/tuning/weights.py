"""Fusion weights, tuned over cached tables.

Fitting a signal is slow and done once; a trial only re-weighs what the signals have said of the
validation users. Each user keeps the items that any signal ranks high: no other can reach the
top of a weighted sum but by scoring middling with all, so that a trial costs a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_llm.evaluation import JUDGED_USERS, Metric, Validation, is_positive, masked_scores
from recbole_llm.factors import Factors, Index, Mask
from recbole_llm.fusion import Judged
from recbole_llm.fusion.base import Weights
from recbole_llm.scoring import Scorer
from recbole_llm.settings import RunOptions, Search
from recbole_llm.tuning.spaces import Parameter
from recbole_llm.tuning.trials import maximise

# All signals' scores of a batch of users.
_BATCH_BYTES = 1 << 28
# Signals that a selection adds one by one.
_PICKS = 20
# Weights that a refinement tries at once, and how far the first of them lie apart.
_BATCH = 16
_FIRST_STEP = 0.6


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """What every signal says of each validation user's candidate items.

    Attributes:
        scores: float32 (n_signals, n_users, n_candidates) on the device.
        filled: bool (n_users, n_candidates), the slots that hold an item which is ranked, once.
        hits: bool (n_users, n_candidates), which candidates are positives.
        n_positives: int64 (n_users,).
        items: int32 (n_users, n_candidates), which items they are.
    """

    scores: torch.Tensor
    filled: torch.Tensor
    hits: torch.Tensor
    n_positives: Index
    items: torch.Tensor

    def evaluate(self, weights: Sequence[float], metric: Metric) -> float:
        """The metric of the candidates' ranking by the weighted sum."""
        return self.evaluate_all([weights], metric)[0]

    def evaluate_all(self, weights: Sequence[Sequence[float]], metric: Metric) -> list[float]:
        """The metric of the rankings by several weighted sums, from one product."""
        weight = torch.tensor(
            np.array(weights, dtype=np.float32), dtype=self.scores.dtype, device=self.scores.device
        )
        fused = (weight @ self.scores.flatten(1)).view(len(weight), *self.filled.shape)
        fused = fused.masked_fill_(~self.filled, -np.inf)
        top = torch.topk(fused, min(metric.k, fused.shape[2]), dim=2).indices
        hits = torch.gather(self.hits.expand(len(weight), -1, -1), 2, top).cpu().numpy()
        return [float(metric.per_user(one, self.n_positives).mean()) for one in hits]

    def by_warmth(
        self, cold: Mask, cold_labels: Sequence[int] | None, fixed: Sequence[float], level: float
    ) -> CandidateScores:
        """The same with scores of warm items alone, and those of cold items beside them.

        Args:
            cold: bool (n_items,).
            cold_labels: the signals whose scores of cold items get weights of their own, with a
                last weight for their level; None: their weights and level are fixed, and the sum
                is one more signal, of weight 1.
            fixed: the fixed weights of all signals' scores of cold items.
            level: what is added to a cold item's score.
        """
        is_cold = torch.from_numpy(cold).to(self.items.device)[self.items.long()] & self.filled
        warm = self.scores.masked_fill(is_cold, 0.0)
        if cold_labels is None:
            weight = torch.tensor(list(fixed), dtype=warm.dtype, device=warm.device)
            total = (weight @ self.scores.flatten(1)).view(self.filled.shape) + level
            beside = total.masked_fill(~is_cold, 0.0)[None]
        else:
            chosen = self.scores[list(cold_labels)].masked_fill(~is_cold, 0.0)
            beside = torch.cat([chosen, is_cold.to(warm.dtype)[None]])
        return replace(self, scores=torch.cat([warm, beside]))


def candidate_scores(
    factors: Sequence[Factors],
    validation: Validation,
    *,
    n_candidates: int | None,
    run: RunOptions,
) -> CandidateScores:
    """Collect the candidates of the validation users: each signal's top items, and their sum's.

    Args:
        factors: standardised signals.
        validation: the users to rank for.
        n_candidates: items taken from each signal's ranking; None: all in their own order, so
            that the metric is that of the full ranking, ties included.
        run: device and seed.

    Returns:
        The signals' scores of the candidates.
    """
    scorers = [Scorer([f], run.device) for f in factors]
    n_items = factors[0].n_items
    k = min(n_candidates or n_items, n_items - 1)
    # Ties are broken by a seeded order of the items, not by their numbers.
    shuffled = torch.from_numpy(np.random.default_rng(run.seed).permutation(n_items))
    n_slots = k * (len(factors) + 1)
    few = None
    if n_candidates is None:
        few = shuffled = torch.arange(n_items)
        n_slots = n_items
    elif validation.candidates is not None:
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
        torch.zeros_like(filled, dtype=torch.int32),
    )
    batch = _BATCH_BYTES // len(scorers)
    for part, first in masked_scores(scorers[0], validation, memory_bytes=batch):
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
        found.items[part] = items
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
            is the mean over them. See :func:`collect_candidates` for how many users are looked at.
        metric: the objective.
        run: device, seed, progress.
        n_trials: weights to try, at least 1: equal ones, each signal alone, then Optuna's, so
            that tuning ends no worse than the best of these.
        memory_gb: for the cached scores.

    Returns:
        The weights.
    """
    labels = list(sets[0].factors)
    candidates = collect_candidates(sets, metric, run, memory_gb)

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
        _selected(part, metric, len(labels))
        for part in collect_candidates(sets, metric, run, memory_gb)
    ]
    return dict(zip(labels, np.mean(selected, axis=0).tolist(), strict=True))


def refine_weights(
    candidates: Sequence[CandidateScores],
    metric: Metric,
    start: Weights,
    labels: Sequence[str],
    *,
    rounds: int,
    seed: int,
) -> dict[str, float]:
    """Better weights near known ones: a batch of random steps from the best, again and again.

    Args:
        candidates: what the objective is the mean over.
        metric: the objective.
        start: weights to begin with.
        labels: of the candidates' signals.
        rounds: how many batches.
        seed: of the steps.

    Returns:
        Label -> share; they sum to 1, and are no worse than ``start``.
    """
    rng = np.random.default_rng(seed)
    best = _shares(np.array([start.get(label, 0.0) for label in labels]))
    best_value = -1.0
    for round_ in range(rounds):
        size = _FIRST_STEP * 0.6**round_
        steps = rng.standard_normal((2, _BATCH, len(labels)))
        # By ratios, and a little beside, so that a weight of 0 is not kept for ever.
        tried = best * np.exp(size * steps[0]) + np.maximum(0, 0.05 * size * steps[1])
        tried[0] = best
        tried /= tried.sum(axis=1, keepdims=True)
        values = np.mean([part.evaluate_all(tried, metric) for part in candidates], axis=0)
        if values.max() > best_value:
            best_value, best = float(values.max()), tried[int(values.argmax())]
    return dict(zip(labels, best.tolist(), strict=True))


def _selected(scores: CandidateScores, metric: Metric, n_signals: int) -> NDArray[np.float64]:
    picks = np.zeros(n_signals)
    best_value, best = -1.0, picks
    for _ in range(_PICKS):
        values = [scores.evaluate(list(picks + one), metric) for one in np.eye(n_signals)]
        picks = picks + np.eye(n_signals)[int(np.argmax(values))]
        if max(values) > best_value:
            best_value, best = max(values), picks
    return best / best.sum()


def collect_candidates(
    sets: Sequence[Judged],
    metric: Metric,
    run: RunOptions,
    memory_gb: float,
    *,
    exact: bool = False,
) -> list[CandidateScores]:
    """What the signals say of the sets' candidates, as far as the memory goes.

    Of more than :data:`~recbole_llm.evaluation.JUDGED_USERS` users a sample is looked at.

    Args:
        sets: what is looked at.
        metric: the objective.
        run: device and seed.
        memory_gb: for the scores of all sets.
        exact: whether all items of all users are candidates, where the memory holds them, however
            many they are.
    """
    n_signals, n_items = len(sets[0].factors), next(iter(sets[0].factors.values())).n_items
    # Scores of all signals, their fused copy, the flags, and what topk needs.
    n_slots = int(memory_gb * 2**30) // ((4 * n_signals + 18) * len(sets))
    n_tops = max(10 * metric.k, 100)
    n_users = min(JUDGED_USERS, n_slots // (n_tops * (n_signals + 1)))
    n_candidates: int | None = n_tops
    if exact and n_slots >= n_items * max(len(judged.validation.users) for judged in sets):
        n_candidates, n_users = None, n_slots // n_items
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
