"""Probabilities that mean what they say: a logistic fit of scores, and how far they are off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

_MOST_STEPS = 1000
_BINS = 15


def fit_platt(scores: NDArray[np.float32], clicks: NDArray[np.float32]) -> tuple[float, float]:
    """Gain and shift of ``sigmoid(gain · score + shift)`` that are likeliest.

    Args:
        scores: (n,), any scale.
        clicks: (n,), 0 or 1.
    """
    weights, shift = fit_chances(scores[:, None], clicks, penalty=1e-3)
    return float(weights[0]), shift


def fit_chances(
    features: NDArray[np.floating], clicks: NDArray[np.floating], *, penalty: float
) -> tuple[NDArray[np.float64], float]:
    """Weights (k,) and intercept of a logistic regression of clicks.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999; as there, targets are
    drawn a little towards each other, so that neither separable scores nor clicks of one kind
    alone give infinite weights.

    Args:
        features: (n, k), of like scales.
        clicks: (n,), 0 or 1.
        penalty: L2, of the weights alone, in rows.
    """
    n_clicks = clicks.sum()
    high, low = (n_clicks + 1) / (n_clicks + 2), 1 / (len(clicks) - n_clicks + 2)
    wanted = np.where(clicks > 0.5, high, low)
    # A target between 0 and 1 is a share of a row of either kind.
    found = LogisticRegression(C=1 / penalty, max_iter=_MOST_STEPS, tol=1e-6).fit(
        np.r_[features, features].astype(np.float64),
        np.repeat([1, 0], len(clicks)),
        sample_weight=np.r_[wanted, 1 - wanted],
    )
    return found.coef_[0], float(found.intercept_[0])


def probabilities(scores: NDArray[np.floating], gain: float, shift: float) -> NDArray[np.float64]:
    """``sigmoid(gain · score + shift)``, (n,)."""
    logits = gain * scores.astype(np.float64) + shift
    return 0.5 * (1 + np.tanh(logits / 2))


def calibration_error(found: NDArray[np.float64], clicks: NDArray[np.floating]) -> float:
    """The expected calibration error: how far probabilities are from shares of clicks, 0 to 1.

    The mean, over bins of equally many rows, of the difference between the mean probability and
    the share of clicks. Source: Naeini et al., "Obtaining Well Calibrated Probabilities", 2015.
    Scikit-learn's ``calibration_curve`` does not say how many rows its bins have, which ties make
    unequal.

    Args:
        found: (n,), probabilities.
        clicks: (n,), 0 or 1.
    """
    bins = np.array_split(np.argsort(found, kind="stable"), min(_BINS, len(found)))
    gaps = [abs(found[part].mean() - clicks[part].mean()) * len(part) for part in bins]
    return float(sum(gaps) / len(found))
