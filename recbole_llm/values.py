"""Clicks and ratings: what is known of single pairs, and what signals and biases say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import KFold

from recbole_llm.calibration import fit_chances, probabilities
from recbole_llm.errors import SettingsError
from recbole_llm.factors import Index, Table
from recbole_llm.training_data import History, TrainingData, entries, with_entries

# Mean reactions that a bias stands for before anything is known, in interactions.
DAMPING = 5.0
_BIAS_SWEEPS = 10
# L2 penalties that the signals' coefficients may have, in rows: many signals and few rows want a
# great one.
_PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
_FOLDS = 5
# How users reacted, beyond what was expected: the sign of what is read.
SIDES = {"liked": 1, "disliked": -1}
# Smaller reactions, and spreads, are none: rounding errors of equal weights.
_NO_REACTION = 1e-3
# What a visitor's like counts, in standard deviations above the mean.
_LIKE = 2.0


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pairs whose click or rating is known.

    Attributes:
        users: int64 (n,).
        items: int64 (n,).
        values: float64 (n,), clicks (0 or 1) or ratings on the data's own scale.
    """

    users: Index
    items: Index
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ValueTask:
    """What is to be predicted, and what is known of it.

    Attributes:
        is_clicks: whether these are clicks; else ratings.
        train: what biases are made of.
        valid: what the regression is fitted on: the signals know the training part by heart.
        shape: (n_users, n_items).
    """

    is_clicks: bool
    train: Labelled
    valid: Labelled
    shape: tuple[int, int]

    @classmethod
    def of(
        cls, name: str, train: Labelled, valid: Labelled | None, shape: tuple[int, int]
    ) -> ValueTask:
        """Of a `task`.

        Raises:
            SettingsError: there are no validation rows.
        """
        if valid is None or not len(valid.users):
            raise SettingsError(
                f"`task: {name}` is fitted on validation rows, and there is none; let `eval_args` "
                "split some off"
            )
        return cls(name == "clicks", train, valid, shape)


@dataclass(frozen=True)
class ValueScale:
    """The scale of what is predicted.

    Attributes:
        mean, spread: of the training values; their standard deviation.
        low, high: the least and the greatest of them.
    """

    mean: float
    spread: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> ValueScale:
        """The scale of values, (n,)."""
        moments = (values.mean(dtype=float), values.std(dtype=float) or 1.0)
        return cls(*map(float, (*moments, values.min(), values.max())))


def damped_biases(
    users: Index, items: Index, values: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Damped means of users' and of items' values, each beyond those of the others.

    Source: Koren, "Factorization Meets the Neighborhood", 2008, its baseline estimates; here users'
    and items' are swept in turn until they agree.

    Args:
        users: int64 (n,).
        items: int64 (n,).
        values: (n,), of mean 0.
        shape: (n_users, n_items).

    Returns:
        float64 (n_users,) and (n_items,); 0 where nothing is known.
    """
    of_users, of_items = np.zeros(shape[0]), np.zeros(shape[1])
    for _ in range(_BIAS_SWEEPS):
        of_items = _damped_means(items, values - of_users[users], shape[1])
        of_users = _damped_means(users, values - of_items[items], shape[0])
    return of_users, of_items


def _damped_means(groups: Index, values: NDArray[np.float64], n_groups: int) -> NDArray[np.float64]:
    counts = np.bincount(groups, minlength=n_groups)
    return np.bincount(groups, values, n_groups) / (counts + DAMPING)


@dataclass(frozen=True, eq=False)
class Expectation:
    """What is expected of an interaction, so that liking a thing is more than having it.

    Attributes:
        item_biases: float64 (n_items,), in standard deviations.
        spread: the standard deviation of what interactions count, 1 in the mean.
        like: what a visitor's like counts.
        sizes: side -> mean size of the training part's reactions on it; none where there is none.
    """

    item_biases: NDArray[np.float64]
    spread: float
    like: float
    sizes: Mapping[str, float]

    @classmethod
    def of(cls, history: History) -> Expectation:
        """What the training part lets expect."""
        weights = history.weights
        spread = float(weights.data.std()) if weights.nnz else 0.0
        if spread < _NO_REACTION:
            spread = 1.0
        values = (weights.data.astype(np.float64) - 1) / spread
        _, biases = damped_biases(*entries(weights), values, weights.shape)
        like = float(min(weights.data.max(initial=1.0), 1 + _LIKE * spread))
        expectation = cls(biases, spread, like, {})
        reactions = expectation.reactions(weights)
        sizes = {}
        for side, sign in SIDES.items():
            on_side = sign * reactions > _NO_REACTION
            if on_side.any():
                sizes[side] = float(np.abs(reactions[on_side]).mean())
        return replace(expectation, sizes=sizes)

    def reactions(self, weights: sp.csr_matrix) -> NDArray[np.float64]:
        """What entries count beyond their items' and users' biases, in standard deviations."""
        users, items = entries(weights)
        rest = (weights.data.astype(np.float64) - 1) / self.spread - self.item_biases[items]
        return rest - _damped_means(users, rest, weights.shape[0])[users]

    def side(self, history: History, name: str) -> History:
        """The entries on one of the sides, each counting as much as its reaction, 1 in the mean."""
        reactions = SIDES[name] * self.reactions(history.weights)
        kept = reactions > _NO_REACTION
        part = with_entries(TrainingData(history.weights, history.age), kept)
        part.interactions.data = (reactions[kept] / self.sizes[name]).astype(np.float32)
        return replace(history, weights=part.interactions, age=part.age)

    def side_of(self, data: TrainingData, name: str) -> TrainingData:
        """The training part alike."""
        part = self.side(data.history, name)
        return replace(data, interactions=part.weights, age=part.age)


@dataclass(frozen=True, eq=False)
class PairFeatures:
    """What a regression reads of n pairs.

    Attributes:
        z_scores: (n, k), of k signals.
        user_bias: float64 (n,), in standard deviations.
        item_bias: float64 (n,), likewise.
    """

    z_scores: Table
    user_bias: NDArray[np.float64]
    item_bias: NDArray[np.float64]

    def __getitem__(self, rows: Index) -> PairFeatures:
        """Some of the pairs."""
        return PairFeatures(self.z_scores[rows], self.user_bias[rows], self.item_bias[rows])


@dataclass(frozen=True, eq=False)
class Regression:
    """``intercept + Σ_k gains_k z_k + of_user b_u + of_item b_i``: log odds, or a rating."""

    intercept: float
    gains: NDArray[np.float64]
    of_user: float
    of_item: float

    def score(self, pairs: PairFeatures) -> NDArray[np.float64]:
        """Of n pairs, float64 (n,)."""
        biases = self.of_user * pairs.user_bias + self.of_item * pairs.item_bias
        return self.intercept + pairs.z_scores @ self.gains + biases


def fit_regression(
    pairs: PairFeatures,
    values: NDArray[np.float64],
    scale: ValueScale,
    *,
    is_clicks: bool,
    penalty: float,
) -> Regression:
    """Logistic regression of clicks, or ridge regression of ratings beyond the biases.

    Args:
        pairs: n of them.
        values: (n,), clicks or ratings.
        scale: of the training values.
        is_clicks: whether they are clicks.
        penalty: L2 of the signals' coefficients, in rows; those of the biases have one of 1.
    """
    less = penalty**-0.5
    design = np.c_[less * pairs.z_scores, pairs.user_bias, pairs.item_bias].astype(np.float64)
    if is_clicks:
        weights, intercept = fit_chances(design, values, penalty=1.0)
        return Regression(intercept, less * weights[:-2], *map(float, weights[-2:]))
    # So that the penalty draws towards the biases alone, not towards the mean.
    rest = (values - scale.mean) / scale.spread - pairs.user_bias - pairs.item_bias
    found = Ridge(1.0).fit(design, rest)
    weights = scale.spread * found.coef_
    return Regression(
        scale.mean + scale.spread * float(found.intercept_),
        less * weights[:-2],
        *(scale.spread + weights[-2:]).tolist(),
    )


def held_out_values(
    pairs: PairFeatures,
    values: NDArray[np.float64],
    scale: ValueScale,
    *,
    is_clicks: bool,
    penalty: float,
    seed: int,
) -> NDArray[np.float64]:
    """Of each row what a regression on the other folds predicts, (n,); args as above."""
    found = np.empty(len(values))
    folds = KFold(min(_FOLDS, len(values)), shuffle=True, random_state=seed)
    for fitted, held in folds.split(values):
        of_fold = fit_regression(
            pairs[fitted], values[fitted], scale, is_clicks=is_clicks, penalty=penalty
        )
        found[held] = predicted(of_fold.score(pairs[held]), scale, is_clicks=is_clicks)
    return found


def best_penalty(
    pairs: PairFeatures,
    values: NDArray[np.float64],
    scale: ValueScale,
    *,
    is_clicks: bool,
    seed: int,
) -> tuple[float, NDArray[np.float64]]:
    """The penalty that predicts held-out rows best, and its :func:`held_out_values`; args alike."""
    found = {
        penalty: held_out_values(
            pairs, values, scale, is_clicks=is_clicks, penalty=penalty, seed=seed
        )
        for penalty in _PENALTIES
    }
    measure = partial(log_loss, labels=[0, 1]) if is_clicks else mean_squared_error
    best = min(_PENALTIES, key=lambda penalty: measure(values, found[penalty]))
    return best, found[best]


def predicted(
    found: NDArray[np.float64], scale: ValueScale, *, is_clicks: bool
) -> NDArray[np.float64]:
    """Chances of log odds, 0 to 1; or ratings within their scale."""
    return probabilities(found, 1.0, 0.0) if is_clicks else found.clip(scale.low, scale.high)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What makes chances or ratings of a model's scores.

    Attributes:
        is_clicks: whether chances are predicted; else ratings.
        user_terms: float64 (n_users,), what a user's scores leave out, since it ranks nothing.
        scale: of the training values.
    """

    is_clicks: bool
    user_terms: NDArray[np.float64]
    scale: ValueScale

    def values(self, scores: Table, users: Index) -> Table:
        """Chances or ratings of pairs, float32 (n,)."""
        found = scores.astype(np.float64) + self.user_terms[users]
        return predicted(found, self.scale, is_clicks=self.is_clicks).astype(np.float32)
