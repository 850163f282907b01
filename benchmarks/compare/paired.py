"""What a difference between two models is worth: paired over seeds and users.

A user counts in every seed (another split, another start), so that her differences depend on each
other: seeds and users are both drawn for the interval, and the test flips all of a user's
differences at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
N_BOOTSTRAP = 2000
N_FLIPS = 10_000
LEVEL = 0.05
# Users in one step of the flips: 10,000 of them need 40 MB then.
_STEP = 1000


@dataclass(frozen=True)
class Difference:
    """One model ahead of another one.

    Attributes:
        mean: over all users of all seeds, ours less theirs.
        low, high: its 95 % interval.
        p: of no difference, two-sided.
        relative: the mean by theirs; NaN where theirs is 0.
        n_seeds, n_users: how many there were.
    """

    mean: float
    low: float
    high: float
    p: float
    relative: float
    n_seeds: int
    n_users: int


def differences(
    ours: Mapping[int, tuple[NDArray[np.int32], Table]],
    theirs: Mapping[int, tuple[NDArray[np.int32], Table]],
) -> tuple[Table, float]:
    """The differences of two models on what both were measured on.

    Args:
        ours: seed -> users, ascending, and their values.
        theirs: the same.

    Returns:
        (n_seeds, n_users) with NaN where a user has nothing to be found in a split; and the mean
        of theirs.

    Raises:
        ValueError: the two were not measured on the same users.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    users = np.unique(np.concatenate([ours[seed][0] for seed in seeds])) if seeds else np.zeros(0)
    table = np.full((len(seeds), len(users)), np.nan)
    level = []
    for row, seed in zip(table, seeds, strict=True):
        if not np.array_equal(ours[seed][0], theirs[seed][0]):
            raise ValueError(f"seed {seed}: the models were measured on different users")
        row[np.searchsorted(users, ours[seed][0])] = ours[seed][1] - theirs[seed][1]
        level.append(theirs[seed][1])
    return table, float(np.concatenate(level).mean()) if level else float("nan")


def compare(table: Table, level: float) -> Difference:
    """Mean, interval and test of differences (n_seeds, n_users); NaN: there is none."""
    mean = float(np.nanmean(table))
    low, high = interval(table)
    relative = mean / level if level else float("nan")
    return Difference(mean, low, high, flip_test(table), relative, *table.shape)


@lru_cache(maxsize=3)
def _draws(n: int, n_draws: int, seed: int) -> Table:
    """How often each of n is drawn, with replacement, (n_draws, n)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n, size=(n_draws, n), dtype=np.int32)
    return np.array([np.bincount(row, minlength=n) for row in drawn], dtype=np.float64)


def interval(table: Table, n_draws: int = N_BOOTSTRAP) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean; seeds and users are drawn independently.

    Owen, "The pigeonhole bootstrap", 2007: no draw is too hopeful by it.
    """
    n_seeds, n_users = table.shape
    there = ~np.isnan(table)
    seeds, users = _draws(n_seeds, n_draws, 1), _draws(n_users, n_draws, 2)
    total = ((users @ np.where(there, table, 0.0).T) * seeds).sum(axis=1)
    count = ((users @ there.T.astype(np.float64)) * seeds).sum(axis=1)
    low, high = np.percentile(total / count, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=1)
def _signs(n: int, n_flips: int, seed: int) -> NDArray[np.int8]:
    """Which of n are flipped, 0 or 1, (n_flips, n)."""
    return np.random.default_rng(seed).integers(0, 2, size=(n_flips, n), dtype=np.int8)


def flip_test(table: Table, n_flips: int = N_FLIPS, seed: int = 3) -> float:
    """Two-sided p of the paired permutation test: signs of a user's differences are flipped.

    Monte Carlo; what was seen counts as one of the flips, so that p is never 0.
    """
    of_users = np.nansum(table, axis=0)
    flipped = _signs(len(of_users), n_flips, seed)
    sums = np.zeros(n_flips)
    for start in range(0, len(of_users), _STEP):
        part = slice(start, start + _STEP)
        sums += flipped[:, part] @ of_users[part]
    sums = of_users.sum() - 2 * sums
    # Sums of the same numbers in another order differ in the last digits.
    as_far = np.abs(sums) >= abs(of_users.sum()) * (1 - 1e-9)
    return float((1 + as_far.sum()) / (1 + n_flips))


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number by Holm's step-down method, in the order given."""
    order = np.argsort(values, kind="stable")
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def verdict(difference: Difference, corrected: float) -> str:
    """`win`, `loss` or `open`: a win needs its interval and the test, a loss its interval."""
    if difference.high < 0:
        return "loss"
    return "win" if difference.low > 0 and corrected < LEVEL else "open"
