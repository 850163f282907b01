"""What trials rank by: many weights at once, the full ranking, and looks at a fit."""

import dataclasses

import numpy as np
import pytest

from recbole_llm import fitting
from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import gated, standardise
from recbole_llm.fitting import fit_model
from recbole_llm.fusion import Judged
from recbole_llm.fusion.weighted_sum import sum_of
from recbole_llm.model_settings import read_model_settings
from recbole_llm.settings import RunOptions
from recbole_llm.signal_cache import fit_cached, is_cached
from recbole_llm.signals import SIGNALS
from recbole_llm.signals.base import InSteps
from recbole_llm.testing.signals import ENCODER, small_data
from recbole_llm.training_data import without_items
from recbole_llm.tuning.weights import collect_candidates, refine_weights

METRIC, RUN = Metric("ndcg", 5), RunOptions(seed=3, progress=False)
NAMES = ("als", "item_item", "popularity")


def halves():
    """Data, and a third of its interactions as what is wanted; items 20 to 24 are cold."""
    data = small_data(n_users=60)
    matrix = data.interactions.copy()
    drawn = np.random.default_rng(0).random(matrix.nnz) < 0.3
    drawn |= (matrix.indices >= 20) & (matrix.indices < 25)
    wanted, rest = matrix.copy(), matrix.copy()
    wanted.data, rest.data = drawn.astype(np.float32), (~drawn).astype(np.float32)
    wanted.eliminate_zeros()
    rest.eliminate_zeros()
    return dataclasses.replace(data, interactions=rest), wanted


@pytest.fixture(scope="module")
def judged():
    data, wanted = halves()
    factors = {name: standardise(SIGNALS[name]().fit(data, RUN)) for name in NAMES}
    return Judged(factors, Validation.of(data.binary, wanted))


def copied(factors):
    return [dataclasses.replace(part, items=part.items.copy()) for part in factors.values()]


def test_many_weights_at_once_are_each_by_itself_and_the_full_ranking(judged):
    (scores,) = collect_candidates([judged], METRIC, RUN, 1.0, exact=True)
    tried = np.random.default_rng(1).random((6, len(NAMES)))
    values = scores.evaluate_all(tried, METRIC)
    for weights, value in zip(tried, values, strict=True):
        assert value == pytest.approx(scores.evaluate(weights, METRIC), abs=1e-12)
        parts = dict(zip(NAMES, copied(judged.factors), strict=True))
        fused = sum_of(parts, dict(zip(NAMES, weights.tolist(), strict=True)))
        assert value == pytest.approx(evaluate(fused.blocks, judged.validation, METRIC), abs=1e-6)


@pytest.mark.parametrize("tuned", [False, True])
def test_cold_items_beside_warm_ones_are_the_gated_tables_ranking(judged, tuned):
    rng = np.random.default_rng(2)
    # Cold to the gate are items that the signals know: their scores then matter.
    cold = np.isin(np.arange(judged.validation.known.shape[1]), [3, 4, 5, 6])
    warm, cold_weights, level = rng.random(3), rng.random(3), 0.4
    (scores,) = collect_candidates([judged], METRIC, RUN, 1.0, exact=True)
    split = scores.by_warmth(cold, [0, 1, 2] if tuned else None, cold_weights, level)
    given = [*warm, *cold_weights, level] if tuned else [*warm, 1.0]
    gains = [
        np.where(cold, v, w).astype(np.float32) for w, v in zip(warm, cold_weights, strict=True)
    ]
    blocks = gated(copied(judged.factors), gains, np.float32(level) * cold)
    expected = evaluate(blocks, judged.validation, METRIC)
    assert split.evaluate(given, METRIC) == pytest.approx(expected, abs=1e-6)


def test_refined_weights_are_no_worse_and_a_weight_of_0_can_grow(judged):
    candidates = collect_candidates([judged], METRIC, RUN, 1.0)
    start = {"als": 0.0, "item_item": 0.0, "popularity": 1.0}
    found = refine_weights(candidates, METRIC, start, NAMES, rounds=6, seed=1)
    assert sum(found.values()) == pytest.approx(1)
    before, after = (
        candidates[0].evaluate([weights[name] for name in NAMES], METRIC)
        for weights in (start, found)
    )
    assert after > before


def fitted(**given):
    data, wanted = halves()
    given = {"signals": ",".join(NAMES), "signal_search_trials": 0, **given}
    settings = read_model_settings(None, given)
    return fit_model(data, Validation.of(data.binary, wanted), settings, METRIC, RUN)


def test_weights_that_are_set_are_used_and_those_not_named_count_nothing():
    blocks, report, newcomers = fitted(
        fusion="weighted_sum", fusion_weights={"als": 0.7, "popularity": 0.2}
    )
    assert report.weights == {"als": 0.7, "item_item": 0.0, "popularity": 0.2}
    assert report.trials_per_second is None
    assert {signal.gain for signal in newcomers.signals} == {0.7, 0.2}
    assert len(blocks) == 1  # the item-item table, which stands apart, is left out


def test_of_many_users_a_sample_judges_what_was_fitted(monkeypatch):
    monkeypatch.setattr(fitting, "JUDGED_USERS", 20)
    blocks, report, _ = fitted(fusion="weighted_sum")
    data, wanted = halves()
    whole = Validation.of(data.binary, wanted)
    sample = whole.sample(20, seed=RUN.seed)
    assert len(sample.users) == 20 < len(whole.users)
    assert report.fused == pytest.approx(evaluate(blocks, sample, METRIC))
    assert report.fused != pytest.approx(evaluate(blocks, whole, METRIC))


def test_words_on_the_command_line_may_name_a_signal_with_a_colon():
    given = {"signals": "als,text_map", "encoder": "bert"}
    settings = read_model_settings(None, {**given, "fusion_weights": "als:0.6,text_map:bert:0.4"})
    assert settings.fusion.fusion_weights == {"als": 0.6, "text_map:bert": 0.4}


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"alss": 1.0}, "did you mean `als`"),
        ({"als": -1.0}, "must be at least 0"),
        ({"als": 0.0}, "gives no weight to any"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, reason):
    with pytest.raises(SettingsError, match=reason):
        fitted(fusion_weights=weights)


@pytest.mark.parametrize("name", [name for name in SIGNALS if issubclass(SIGNALS[name], InSteps)])
def test_the_last_look_is_the_fitted_signal(name, tmp_path):
    data = small_data()
    signal = next(iter(SIGNALS[name]().variants(name, [ENCODER]).values()))
    seen, users = [], np.arange(data.n_users)
    run = dataclasses.replace(RUN, signal_cache=str(tmp_path))
    settled, _ = fit_cached(signal, data, run, lambda _, part: seen.append(part.scores(users)))
    assert len(seen) > 1
    np.testing.assert_array_equal(seen[-1], settled.fit(data, RUN).scores(users))
    assert not np.array_equal(seen[0], seen[-1])
    assert is_cached(signal, data, run)


def test_a_fit_that_is_given_up_is_not_kept(tmp_path):
    data, run = small_data(), dataclasses.replace(RUN, signal_cache=str(tmp_path))

    def give_up(step, tables):
        raise KeyError

    with pytest.raises(KeyError):
        fit_cached(SIGNALS["als"](), data, run, give_up)
    assert not is_cached(SIGNALS["als"](), data, run)


def test_als_in_steps_is_implicits_als():
    from implicit.als import AlternatingLeastSquares

    data = without_items(small_data(), np.zeros(30, dtype=bool))
    signal = SIGNALS["als"](factors=8)
    whole = AlternatingLeastSquares(
        factors=8,
        regularization=20.0,
        alpha=2.0,
        iterations=15,
        random_state=RUN.seed,
        use_gpu=False,
    )
    whole.fit(data.confidence, show_progress=False)
    np.testing.assert_allclose(signal.fit(data, RUN).users[1:], whole.user_factors[1:], atol=1e-6)
