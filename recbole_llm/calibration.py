"""Probabilities that mean what they say: a logistic fit of scores, and how far they are off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEPS = 25
_PENALTY = 1e-3
_BINS = 15


def fit_platt(scores: NDArray[np.float32], clicks: NDArray[np.float32]) -> tuple[float, float]:
    """Gain and shift of ``sigmoid(gain · score + shift)`` that are likeliest, by Newton's method.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999; as there, targets are
    drawn a little towards each other, so that separable scores get a finite gain.

    Args:
        scores: (n,), any scale.
        clicks: (n,), 0 or 1.
    """
    n_clicks = clicks.sum()
    high, low = (n_clicks + 1) / (n_clicks + 2), 1 / (len(clicks) - n_clicks + 2)
    wanted = np.where(clicks > 0.5, high, low)
    design = np.c_[scores, np.ones(len(scores))].astype(np.float64)
    weights = np.array([0.0, np.log(wanted.mean() / (1 - wanted.mean()))])
    for _ in range(_STEPS):
        found = probabilities(scores, weights[0], weights[1])
        gradient = design.T @ (found - wanted) + _PENALTY * weights
        curvature = (design * (found * (1 - found))[:, None]).T @ design + _PENALTY * np.eye(2)
        weights = weights - np.linalg.solve(curvature, gradient)
    return float(weights[0]), float(weights[1])


def probabilities(scores: NDArray[np.float32], gain: float, shift: float) -> NDArray[np.float64]:
    """``sigmoid(gain · score + shift)``, (n,)."""
    logits = gain * scores.astype(np.float64) + shift
    return 0.5 * (1 + np.tanh(logits / 2))


def calibration_error(found: NDArray[np.float64], clicks: NDArray[np.float32]) -> float:
    """The expected calibration error: how far probabilities are from shares of clicks, 0 to 1.

    The mean, over bins of equally many rows, of the difference between the mean probability and
    the share of clicks. Source: Naeini et al., "Obtaining Well Calibrated Probabilities", 2015.

    Args:
        found: (n,), probabilities.
        clicks: (n,), 0 or 1.
    """
    bins = np.array_split(np.argsort(found, kind="stable"), min(_BINS, len(found)))
    gaps = [abs(found[part].mean() - clicks[part].mean()) * len(part) for part in bins]
    return float(sum(gaps) / len(found))
