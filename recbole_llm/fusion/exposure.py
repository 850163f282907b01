"""How readily cold items stand beside warm ones: one level, and what each level gives.

A level moves all cold items against all warm ones and changes no order among either, so that a
user's top k at any level is a merge of her k best warm and her k best cold items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import Metric, Validation, is_positive, masked_scores
from recbole_llm.factors import Factors, Index, Mask, Table
from recbole_llm.scoring import GainedScorer
from recbole_llm.settings import RunOptions
from recbole_llm.slices import seeded_rank, top_items

_COLUMNS = ("all", "warm_in_all", "cold_in_all")
# Shares of cold items in the top k whose levels are tried.
_SHARES = np.r_[0.0, 0.002, 0.005, 0.01, 0.02, 0.03, np.arange(0.05, 1.0, 0.025), 0.99, 1.0]


@dataclass(frozen=True)
class Wish:
    """What a user of the software wants: a level, a share, or (both None) what is best."""

    level: float | None = None
    share: float | None = None


def parse_exposure(text: str) -> Wish:
    """Read the setting ``cold_exposure``.

    Raises:
        SettingsError: it is neither auto nor a number nor a percentage.
    """
    word = text.strip().lower()
    if word == "auto":
        return Wish()
    try:
        number = float(word.removesuffix("%"))
    except ValueError:
        number = float("nan")
    if word.endswith("%") and 0 <= number <= 100:
        return Wish(share=number / 100)
    if not word.endswith("%") and abs(number) < float("inf"):
        return Wish(level=number)
    raise SettingsError(
        "`cold_exposure` must be auto, a number (what is added to a cold item's score) or a "
        f"share of the top 10 from 0% to 100%, got {text!r}"
    )


@dataclass(frozen=True, eq=False)
class Contest:
    """The best warm and the best cold items of some users, without a level.

    Attributes:
        warm, cold: float (n_users, k), scores in descending order; -inf where there are no more.
        warm_hits, cold_hits: bool (n_users, k), which of them are wanted.
        n_warm, n_cold: int64 (n_users,), how many are wanted of either kind.
        spread: of a typical user's scores over the warm and over the cold items.
    """

    warm: NDArray[np.float64]
    cold: NDArray[np.float64]
    warm_hits: Mask
    cold_hits: Mask
    n_warm: Index
    n_cold: Index
    spread: tuple[float, float]

    @classmethod
    def of(
        cls,
        factors: Sequence[Factors],
        gains: Sequence[Table],
        validation: Validation,
        cold: Mask,
        *,
        k: int,
        run: RunOptions,
    ) -> Contest:
        """Rank the warm and the cold items of the validation's users.

        Args:
            factors: standardised signals.
            gains: float32 (n_items,) each, what a signal's score of an item is multiplied by.
            validation: the users; no candidates set.
            cold: bool (n_items,).
            k: length of a list.
            run: device and seed.
        """
        scorer = GainedScorer(factors, gains, run.device)
        rank = seeded_rank(scorer.n_items, run.seed).to(run.device)
        warm_items = ~cold
        warm_items[0] = False
        sides = [torch.from_numpy(np.flatnonzero(side)) for side in (warm_items, cold)]
        values: list[list[NDArray[np.float64]]] = [[], []]
        items: list[list[Index]] = [[], []]
        spreads: list[list[float]] = [[], []]
        for _, scores in masked_scores(scorer, validation):
            for side, among in enumerate(sides):
                part = scores[:, among.to(run.device)]
                top = top_items(part, rank[among.to(run.device)], k)
                best = part.gather(1, top.clamp(min=0)).masked_fill(top < 0, -np.inf)
                values[side].append(best.double().cpu().numpy())
                items[side].append(np.where(top.cpu() < 0, 0, among[top.clamp(min=0).cpu()]))
                finite = part.isfinite()
                count = finite.sum(dim=1).clamp(min=1)
                part = part.masked_fill(~finite, 0).double()
                mean = part.sum(dim=1) / count
                variance = (part.square().sum(dim=1) / count - mean.square()).clamp(min=0)
                spreads[side].extend(variance.sqrt().cpu().tolist())
        hits = [
            is_positive(validation.positives, validation.users, np.concatenate(part))
            for part in items
        ]
        wanted = validation.positives[validation.users]
        n_cold = np.asarray(wanted.astype(bool).astype(np.int64) @ cold.astype(np.int64)).ravel()
        return cls(
            np.concatenate(values[0]),
            np.concatenate(values[1]),
            hits[0],
            hits[1],
            validation.n_positives - n_cold,
            n_cold,
            (float(np.mean(spreads[0])), float(np.mean(spreads[1]))),
        )

    def level_of_share(self, share: float, scale: float) -> float:
        """The level at which this share of the top k is cold.

        The j-th cold item is in the top k from the level on at which it passes the (k+1-j)-th warm
        one; so the share is the level's quantile among those differences.
        """
        passes = (self.warm[:, ::-1] - scale * self.cold).ravel()
        # A warm item that is not there is passed by any cold one; a cold one that is not, never.
        passes = np.where(np.isneginf(self.warm[:, ::-1].ravel()), -np.inf, passes)
        passes = np.where(np.isneginf(self.cold.ravel()), np.inf, passes)
        finite = np.sort(passes[np.isfinite(passes)])
        if not len(finite):
            return 0.0
        place = round(share * len(passes)) - int(np.isneginf(passes).sum())
        if place <= 0:
            return float(finite[0] - 1e-3)
        if place >= len(finite):
            return float(finite[-1] + 1e-3)
        return float((finite[place - 1] + finite[place]) / 2)

    def outcome(self, level: float, scale: float, metric: Metric) -> dict[str, float | None]:
        """What a level gives: see :class:`~recbole_llm.fusion.base.Fused`."""
        k = self.warm.shape[1]
        scores = np.hstack([self.warm, scale * self.cold + level])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        there = np.take_along_axis(scores, order, axis=1) > -np.inf
        from_cold = (order >= k) & there
        hits = np.take_along_axis(np.hstack([self.warm_hits, self.cold_hits]), order, axis=1)
        hits &= there

        def mean(chosen: Mask, wanted: Index) -> float | None:
            users = wanted > 0
            if not users.any():
                return None
            return float(metric.per_user(chosen[users, : metric.k], wanted[users]).mean())

        return {
            "level": level,
            "cold_share": float(from_cold[:, : metric.k].mean()),
            "all": mean(hits, self.n_warm + self.n_cold),
            "warm_in_all": mean(hits & ~from_cold, self.n_warm),
            "cold_in_all": mean(hits & from_cold, self.n_cold),
        }

    def curve(self, scale: float, metric: Metric) -> list[Mapping[str, float | None]]:
        """What the levels of many shares of cold items give, by increasing level."""
        levels = [self.level_of_share(share, scale) for share in _SHARES]
        return [self.outcome(level, scale, metric) for level in sorted(set(levels))]


def exposure_table(
    curve: Sequence[Mapping[str, float | None]], level: float, metric: Metric
) -> list[str]:
    """Some levels of a curve as lines of a table, for the log, below the one in force."""
    shown = [curve[round(place)] for place in np.linspace(0, len(curve) - 1, min(9, len(curve)))]
    lines = [f"cold_exposure: {level:.2f} is added to a cold item's score"]
    lines.append(f"{'level':>7}{'cold items':>12}" + "".join(f"{name:>13}" for name in _COLUMNS))
    for point in shown:
        cells = [point[name] for name in _COLUMNS]
        text = "".join("            –" if cell is None else f"{cell:>13.4f}" for cell in cells)
        lines.append(f"{point['level']:>7.2f}{point['cold_share']:>12.1%}{text}")
    return [*lines, f"each level's {metric}, and cold items' share of the top {metric.k}"]
