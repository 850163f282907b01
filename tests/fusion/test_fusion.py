"""Fusion rules: weights by warmth, and the level of cold items."""

import copy
import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import Factors, gated
from recbole_llm.fusion import FUSIONS, Evidence, Situation, parse_exposure
from recbole_llm.fusion.exposure import Contest, Wish
from recbole_llm.fusion.new_users import are_served_by_popularity, served_by_popularity
from recbole_llm.fusion.weighted_sum import sum_of
from recbole_llm.model_settings import read_model_settings
from recbole_llm.settings import RunOptions
from recbole_llm.tuning import weights as tuning_weights
from recbole_llm.tuning.weights import collect_candidates, select_weights, tune_weights

METRIC, RUN = Metric("ndcg", 5), RunOptions(seed=3, progress=False)
N_USERS, N_ITEMS, N_COLD = 30, 40, 12
COLD = np.arange(N_ITEMS) >= N_ITEMS - N_COLD


def signal(rng, kind="dense", known=None):
    """A signal of random tables; `full`: sparse users and dense items, `words`: both sparse."""
    users = rng.normal(size=(N_USERS, 6)).astype(np.float32)
    items = rng.normal(size=(N_ITEMS, 6)).astype(np.float32)
    users[0], items[0] = 0, 0
    if kind != "dense":
        users = sp.csr_matrix(users * (rng.random(users.shape) < 0.5)).astype(np.float32)
    if kind == "words":
        items = sp.csr_matrix(items * (rng.random(items.shape) < 0.5)).astype(np.float32)
    factors = Factors.of(users, items, np.ones(N_ITEMS, bool) if known is None else known)
    offset = rng.normal(size=N_USERS).astype(np.float32)
    offset[0] = 0
    return dataclasses.replace(factors, offset=offset)


def situation(seed=0, kinds=("dense", "full", "words")):
    """Warm items are known to all signals, cold ones to all but popularity."""
    rng = np.random.default_rng(seed)
    factors = {kind: signal(rng, kind) for kind in kinds}
    factors["popularity"] = signal(rng, known=~COLD)
    known = (rng.random((N_USERS, N_ITEMS)) < 0.3).astype(np.float32)
    known[:, COLD], known[0], known[:, 0] = 0, 0, 0
    known[1:, 1:-N_COLD][np.arange(N_ITEMS - N_COLD - 1) % (N_USERS - 1), range(27)] = 1
    wanted = (rng.random((N_USERS, N_ITEMS)) < 0.1) * (1 - known)
    wanted[0], wanted[:, 0] = 0, 0
    return Situation(factors, sp.csr_matrix(known), sp.csr_matrix(wanted.astype(np.float32)))


def evidence_of(now, trials=30):
    def tune(sets):
        if not sets:
            return {}
        return tune_weights(sets, METRIC, RUN, n_trials=trials, memory_gb=0.1).weights

    def select(sets):
        return select_weights(sets, METRIC, RUN, memory_gb=0.1) if sets else {}

    return Evidence(now, lambda: situation(seed=9), tune, select, METRIC, RUN)


def fit(now, exposure="auto", rule="warmth_gate", trials=30):
    return FUSIONS[rule].fit(evidence_of(now, trials), exposure)


def scores_of(blocks):
    return sum(block.scores(np.arange(N_USERS)) for block in blocks)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_gated_tables_equal_the_sum_by_user_and_item(seed):
    rng = np.random.default_rng(seed)
    factors = list(situation(seed).factors.values())
    gains = [rng.normal(size=N_ITEMS).astype(np.float32) for _ in factors]
    gains[rng.integers(len(gains))][:] = 0
    constant = rng.normal(size=N_ITEMS).astype(np.float32)
    constant[0] = 0
    expected = np.zeros((N_USERS, N_ITEMS))
    for user in range(1, N_USERS):
        scores = [f.scores(np.array([user]))[0] for f in factors]
        for item in range(1, N_ITEMS):
            expected[user, item] = constant[item] + sum(
                gain[item] * of_user[item] for of_user, gain in zip(scores, gains, strict=True)
            )
    np.testing.assert_allclose(
        scores_of(gated(factors, gains, constant)), expected, rtol=1e-4, atol=1e-4
    )


def test_the_level_changes_no_order_among_warm_items_nor_among_cold_ones():
    low, high = (scores_of(fit(situation(), level).blocks) for level in ("-3", "2.5"))
    np.testing.assert_allclose(high[:, ~COLD], low[:, ~COLD], atol=1e-5)
    np.testing.assert_allclose(high[1:, COLD], low[1:, COLD] + 5.5, atol=1e-4)
    assert not high[0].any()
    assert not high[:, 0].any()


def test_warm_items_are_ranked_by_what_is_tuned_for_warm_items_alone():
    now = situation()
    (warm,) = now.judged("warm")
    weights = tune_weights([warm], METRIC, RUN, n_trials=30, memory_gb=0.1).weights
    # A wide table is scaled in place: each fusion gets its own.
    alone = sum_of(situation().factors, weights).blocks
    expected = evaluate(alone, warm.validation, METRIC)
    assert evaluate(fit(now, "1.5").blocks, warm.validation, METRIC) == pytest.approx(expected)


def test_of_many_users_a_sample_is_weighed_by_and_the_exact_candidates_are_of_all(monkeypatch):
    monkeypatch.setattr(tuning_weights, "JUDGED_USERS", 3)
    (warm,) = situation().judged("warm")
    n_users = len(warm.validation.users)
    for exact, expected in ((False, 3), (True, n_users)):
        (found,) = collect_candidates([warm], METRIC, RUN, 0.1, exact=exact)
        assert len(found.filled) == len(found.n_positives) == expected
    assert n_users > 3


def test_cold_items_are_weighed_by_cold_ones_imagined_ones_and_warm_ones():
    now = situation()
    told = [label for label in now.factors if label != "popularity"]
    sets = [
        judged.of(told)
        for judged in now.judged("cold") + situation(seed=9).judged("cold") + now.judged("warm")
    ]
    assert len(sets) == 3
    assert fit(now).cold_weights == select_weights(sets, METRIC, RUN, memory_gb=0.1)


def test_popularity_gives_nothing_to_cold_items():
    fused = fit(situation())
    assert set(fused.cold_weights) == {"dense", "full", "words"}
    assert set(fused.weights) == {*fused.cold_weights, "popularity"}
    assert sum(fused.weights.values()) == pytest.approx(1)
    assert sum(fused.cold_weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("share", [0, 10, 37, 80, 100])
def test_a_wanted_share_of_cold_items_is_met(share):
    now = situation()
    scores = scores_of(fit(now, f"{share}%").blocks)
    users = now.judged()[0].validation.users
    scores[now.known.toarray() > 0] = -np.inf
    scores[:, 0] = -np.inf
    top = np.argsort(-scores[users], axis=1)[:, : METRIC.k]
    assert COLD[top].mean() == pytest.approx(share / 100, abs=1 / top.size)


def test_the_curve_tells_what_each_level_gives():
    now = situation()
    fused = fit(now)
    levels = [point["level"] for point in fused.exposure]
    assert levels == sorted(levels)
    assert fused.exposure[0]["cold_share"] == 0
    assert fused.exposure[-1]["cold_share"] == 1
    for point in fused.exposure[:: len(levels) // 4]:
        blocks = fit(situation(), str(point["level"])).blocks
        for name, slice_name in (
            ("all", ""),
            ("warm_in_all", "warm_in_all"),
            ("cold_in_all", "cold_in_all"),
        ):
            validation = Validation.of(now.known, now.wanted, slice_name)
            assert evaluate(blocks, validation, METRIC) == pytest.approx(point[name]), name
    best = max(point["all"] for point in fused.exposure)
    (chosen,) = (p for p in fused.exposure if p["level"] == fused.cold_level)
    assert chosen["all"] >= 0.999 * best


def test_shares_are_met_where_users_have_few_items():
    contest = Contest(
        warm=np.array([[3.0, 1.0], [2.0, -np.inf]]),
        cold=np.array([[1.0, 0.5], [0.0, -np.inf]]),
        warm_hits=np.zeros((2, 2), bool),
        cold_hits=np.zeros((2, 2), bool),
        n_warm=np.zeros(2, int),
        n_cold=np.ones(2, int),
        spread=(1.0, 1.0),
    )
    # The second user has one item of either kind: her list holds the cold one at any level.
    shares = [
        contest.outcome(contest.level_of_share(s, 1.0), 1.0, Metric("ndcg", 2))["cold_share"]
        for s in (0.25, 0.5, 0.75)
    ]
    assert shares == [0.25, 0.5, 0.75]


def test_without_a_cold_item_the_gate_is_the_weighted_sum():
    def all_warm():
        now = situation()
        known = now.known.tolil()
        known[1, np.flatnonzero(COLD)] = 1
        return dataclasses.replace(now, known=known.tocsr())

    gate, flat = (fit(all_warm(), rule=rule) for rule in ("warmth_gate", "weighted_sum"))
    assert gate.cold_level is None
    np.testing.assert_array_equal(scores_of(gate.blocks), scores_of(flat.blocks))


def test_selected_weights_are_as_good_as_any_signal_and_the_mean_over_sets():
    (one,), (other,) = (situation(seed=seed).judged("cold") for seed in (0, 9))
    labels = ["dense", "full", "words"]
    sets = [one.of(labels), other.of(labels)]

    def select(parts):
        return np.array([*select_weights(parts, METRIC, RUN, memory_gb=0.1).values()])

    for part in sets:
        weights = select([part])
        values = []
        for shares in (weights, *np.eye(3)):
            # A copy, since a wide table is scaled in place.
            blocks = sum_of(copy.deepcopy(part.factors), dict(zip(labels, shares, strict=True)))
            values.append(evaluate(blocks.blocks, part.validation, METRIC, "cpu"))
        assert weights.sum() == pytest.approx(1)
        assert values[0] >= max(values[1:])
    np.testing.assert_allclose(select(sets), (select(sets[:1]) + select(sets[1:])) / 2)


def test_cold_exposure_is_read():
    assert parse_exposure("auto") == Wish()
    assert parse_exposure(" 10% ") == Wish(share=0.1)
    assert parse_exposure("-0.5") == Wish(level=-0.5)
    assert read_model_settings(None, {"cold_exposure": 0.3}).fusion.cold_exposure == "0.3"


@pytest.mark.parametrize("text", ["lots", "nan", "inf", "120%", "-1%", "%", "x%", ""])
def test_a_bad_cold_exposure_gets_one_line(text):
    with pytest.raises(SettingsError, match="`cold_exposure` must be auto, a number"):
        read_model_settings(None, {"cold_exposure": text})


NEW = np.arange(N_USERS) >= N_USERS - 12


def with_new_users(now, wanted_by_new):
    """The last users have no history, and want the items that a matrix of scores puts first."""
    known, wanted = now.known.tolil(), now.wanted.tolil()
    for user in np.flatnonzero(NEW):
        known[user], wanted[user] = 0, 0
        warm = np.where(COLD, -np.inf, wanted_by_new[user])
        warm[0] = -np.inf
        wanted[user, np.argsort(-warm)[:3]] = 1
    return dataclasses.replace(now, known=known.tocsr(), wanted=wanted.tocsr())


def test_new_users_served_by_popularity_get_its_scores_and_nobody_elses_change():
    now = with_new_users(situation(), np.zeros((N_USERS, N_ITEMS)))
    weights = {"dense": 0.5, "full": 0.2, "words": 0.2, "popularity": 0.1}

    def weighed(factors):
        return sum(weights[label] * f.scores(np.arange(N_USERS)) for label, f in factors.items())

    before, popular = weighed(now.factors), now.factors["popularity"].scores(np.arange(N_USERS))
    after = weighed(served_by_popularity(now, weights["popularity"]).factors)
    np.testing.assert_allclose(after[~NEW], before[~NEW], atol=1e-5)
    np.testing.assert_allclose(after[NEW], popular[NEW], atol=1e-4)


def test_new_users_are_served_by_popularity_unless_the_signals_are_surely_better():
    now = situation()
    weights = dict.fromkeys(now.factors, 0.25)
    everybody = np.arange(N_USERS)
    popular = with_new_users(now, now.factors["popularity"].scores(everybody))
    assert are_served_by_popularity(popular, weights, METRIC, RUN)
    told = with_new_users(now, sum(f.scores(everybody) for f in now.factors.values()))
    assert not are_served_by_popularity(told, weights, METRIC, RUN)
    assert not are_served_by_popularity(now, weights, METRIC, RUN)  # nobody is new


@pytest.mark.parametrize("wish", ["auto", "signals", "popularity"])
def test_the_gate_serves_new_users_as_is_wished(wish):
    now = situation()
    popular = now.factors["popularity"].scores(np.arange(N_USERS))
    evidence = evidence_of(with_new_users(now, popular), trials=5)
    fused = FUSIONS["warmth_gate"].fit(dataclasses.replace(evidence, new_users=wish), "auto")
    assert fused.new_users == ("signals" if wish == "signals" else "popularity")
    warm = np.flatnonzero(~COLD)[1:]
    expected = popular
    if wish == "signals":
        before = situation().factors.items()
        expected = sum(fused.weights[k] * f.scores(np.arange(N_USERS)) for k, f in before)
    scores = scores_of(fused.blocks)[NEW][:, warm]
    np.testing.assert_allclose(scores, expected[NEW][:, warm], atol=1e-3)


def test_who_gives_popularity_no_weight_gets_none_of_it_unless_she_asks():
    fixed = {"dense": 1.0, "full": 1.0, "words": 1.0, "popularity": 0.0}
    for wish, serves in (("auto", "signals"), ("popularity", "popularity")):
        now = situation()
        popular = now.factors["popularity"].scores(np.arange(N_USERS))
        evidence = evidence_of(with_new_users(now, popular), trials=5)
        evidence = dataclasses.replace(evidence, weights=fixed, new_users=wish)
        fused = FUSIONS["warmth_gate"].fit(evidence, "auto")
        assert fused.new_users == serves
        assert (fused.weights["popularity"] > 0) == (serves == "popularity")
