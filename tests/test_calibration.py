"""Probabilities that mean what they say."""

import numpy as np
import pytest

from recbole_llm.calibration import calibration_error, fit_platt, probabilities


def test_platt_finds_the_gain_and_shift_that_made_the_clicks():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000).astype(np.float32)
    clicks = (rng.random(20_000) < probabilities(scores, 1.7, -0.6)).astype(np.float32)
    assert fit_platt(scores, clicks) == pytest.approx((1.7, -0.6), abs=0.06)


def test_scores_that_tell_all_get_a_finite_gain():
    scores, clicks = np.array([-1, -1, 1, 1], np.float32), np.array([0, 0, 1, 1], np.float32)
    gain, shift = fit_platt(scores, clicks)
    assert 0 < gain < 50
    assert shift == pytest.approx(0, abs=1e-6)


def test_the_calibration_error_is_the_gap_between_belief_and_share():
    found = np.full(1000, 0.8)
    clicks = np.r_[np.ones(500), np.zeros(500)].astype(np.float32)
    shuffled = np.random.default_rng(0).permutation(clicks)
    assert calibration_error(found, shuffled) == pytest.approx(0.3, abs=0.02)
    assert calibration_error(clicks.astype(float), clicks) == pytest.approx(0.0, abs=0.01)
