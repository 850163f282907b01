"""The sliced metrics equal a loop over the users, whatever ties, NaN and masks there are."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.cold_metrics import RankingCollector
from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import METRIC_NAMES, Metric, Validation, evaluate
from recbole_llm.factors import Factors
from recbole_llm.slices import SLICES, seeded_rank, top_items


def ranked_naively(scores, rank, candidates):
    """The candidates that may be recommended, the best first."""
    allowed = [i for i in candidates if not math.isnan(scores[i]) and scores[i] != -math.inf]
    return sorted(allowed, key=lambda i: (-scores[i], rank[i]))


def metric_naively(name, ranked, wanted, k):
    hits = [item in wanted for item in ranked[:k]]
    found = sum(hits)
    if name == "ndcg":
        gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
        return gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
    if name == "map":
        precisions = [sum(hits[: p + 1]) / (p + 1) for p, hit in enumerate(hits) if hit]
        return sum(precisions) / min(k, len(wanted))
    if name == "mrr":
        return 1 / (hits.index(True) + 1) if found else 0.0
    return {"recall": found / len(wanted), "precision": found / k, "hit": float(found > 0)}[name]


def values_naively(case, slice_name, metric):
    """What each user of a slice gets, straight from the definitions."""
    items = range(1, case["n_items"])
    cold = {i for i in items if not case["warm"][i]}
    in_part = {i for wanted in case["wanted"] for i in wanted}
    candidates = {"warm": set(items) - cold, "cold": cold & in_part}.get(slice_name, set(items))
    values = []
    for user, (scores, wanted) in enumerate(zip(case["scores"], case["wanted"], strict=True)):
        if slice_name.startswith("warm"):
            wanted = wanted - cold
        if slice_name.startswith("cold"):
            wanted = wanted & cold
        count = case["user_counts"][user]
        group = "new_user" if count == 0 else "few_user" if count <= 5 else "known_user"
        if not wanted or (slice_name.endswith("user") and slice_name != group):
            continue
        ranked = ranked_naively(scores, case["rank"], candidates)
        values.append(metric_naively(metric.name, ranked, wanted, metric.k))
    return values


@st.composite
def cases(draw):
    n_items = draw(st.integers(2, 12))
    n_users = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 9))
    # Few values, so that most rows have ties, also at the cut-off.
    value = st.sampled_from([0.0, 0.0, 1.0, -1.0, -math.inf, math.nan, math.inf])
    scores = draw(
        st.lists(
            st.lists(value, min_size=n_items, max_size=n_items), min_size=n_users, max_size=n_users
        )
    )
    for row in scores:
        row[0] = -math.inf
    item = st.integers(1, n_items - 1)
    flags = st.lists(st.booleans(), min_size=n_items - 1, max_size=n_items - 1)
    sets = st.sets(item, min_size=1)
    counts = st.integers(0, 8)
    return {
        "n_items": n_items,
        "scores": scores,
        "warm": [False, *draw(flags)],
        "wanted": draw(st.lists(sets, min_size=n_users, max_size=n_users)),
        "user_counts": draw(st.lists(counts, min_size=n_users, max_size=n_users)),
        "rank": seeded_rank(n_items, seed).tolist(),
        "seed": seed,
        "batch": draw(st.integers(1, n_users)),
        "k": draw(st.integers(1, 14)),
        "n_waiting": draw(st.sampled_from([1, 30, 1000])),
    }


def collected(case):
    warm = np.array(case["warm"])
    part = np.array([i for wanted in case["wanted"] for i in sorted(wanted)])
    # Users are known to the data set by other numbers than their rows in the evaluation.
    counts = np.array([99, *case["user_counts"]])
    collector = RankingCollector(
        counts, warm, part, k=case["k"], seed=case["seed"], n_waiting=case["n_waiting"]
    )
    scores = torch.tensor(case["scores"], dtype=torch.float32)
    for start in range(0, len(scores), case["batch"]):
        rows = range(start, min(start + case["batch"], len(scores)))
        pairs = [(row - start, item) for row in rows for item in case["wanted"][row]]
        positive_rows, positive_items = torch.tensor(pairs).T
        batch = scores[rows.start : rows.stop]
        before = batch.clone()
        users = torch.arange(rows.start, rows.stop) + 1
        collector.add(batch, users, positive_rows, positive_items)
        assert torch.equal(batch.nan_to_num(), before.nan_to_num())
        batch.zero_()  # a model may do so
    return collector.ranking()


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_sliced_metric_equals_a_loop_over_the_users(case):
    ranking = collected(case)
    for slice_name in SLICES:
        for name in METRIC_NAMES:
            for k in {1, case["k"]}:
                metric = Metric(name, k)
                expected = values_naively(case, slice_name, metric)
                found = ranking.per_user(slice_name, metric)
                assert ranking.users(slice_name).sum() == len(expected)
                assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_coverage_and_cold_count_equal_a_loop_over_the_users(case):
    ranking = collected(case)
    items = range(1, case["n_items"])
    tops = [ranked_naively(row, case["rank"], items)[: case["k"]] for row in case["scores"]]
    cold = [sum(not case["warm"][i] for i in top) for top in tops]
    assert ranking.coverage(case["k"]) == pytest.approx(len(set().union(*tops)) / len(items))
    assert ranking.cold_count(case["k"]) == pytest.approx(sum(cold) / len(cold))


def test_equal_scores_are_ranked_by_the_seeded_order_alone():
    ranks = [seeded_rank(50, seed) for seed in (1, 1, 2)]
    first, again, other = (top_items(torch.zeros(3, 50), rank, 5) for rank in ranks)
    assert first.tolist() == [torch.argsort(ranks[0])[:5].tolist()] * 3
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_masked_or_not_a_number_is_not_recommended():
    scores = torch.tensor([[-math.inf, math.nan, 2.0, -math.inf, 1.0], [-math.inf] * 5])
    assert top_items(scores, seeded_rank(5, 0), 3).tolist() == [[2, 4, -1], [-1, -1, -1]]


def test_many_items_with_ties_at_the_cut_equal_a_full_sort():
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 30, (40, 700))).float()
    rank = seeded_rank(700, 3)
    expected = [ranked_naively(row, rank.tolist(), range(700))[:10] for row in scores.tolist()]
    assert top_items(scores, rank, 10).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(SLICES)))
def test_tuning_on_a_slice_sees_what_is_reported_of_it(seed, slice_name):
    rng = np.random.default_rng(seed)
    n_users, n_items = 8, 15
    known = rng.random((n_users, n_items)) < rng.choice([0.05, 0.5], (n_users, 1))
    known[:, [0, 1, 2, 3]] = False
    wanted = (rng.random((n_users, n_items)) < 0.3) & ~known
    known[0] = wanted[0] = wanted[:, 0] = False
    tables = rng.normal(size=(n_users, 4)), rng.normal(size=(n_items, 4))
    factors = Factors.of(*(t.astype(np.float32) for t in tables), np.ones(n_items, bool))
    metric = Metric.parse(f"{slice_name}_NDCG@3")
    validation = Validation.of(
        sp.csr_matrix(known, dtype=np.float32), sp.csr_matrix(wanted, dtype=np.float32), slice_name
    )
    users = np.flatnonzero(wanted.any(axis=1))
    scores = np.where(known, -np.inf, factors.products(slice(None)))[users]
    scores[:, 0] = -np.inf
    collector = RankingCollector(
        known.sum(axis=1), known.any(axis=0), np.flatnonzero(wanted.any(axis=0)), k=3, seed=0
    )
    rows, items = np.nonzero(wanted[users])
    collector.add(
        torch.from_numpy(scores), *(torch.from_numpy(table) for table in (users, rows, items))
    )
    expected = collector.ranking().per_user(slice_name, metric)
    if validation is None:
        assert not len(expected)
    else:
        assert evaluate([factors], validation, metric) == pytest.approx(expected.mean())


@pytest.mark.parametrize("text", ["cold_NDGC@10", "lukewarm_NDCG@10", "coverage@10"])
def test_what_is_no_slice_cannot_be_tuned_on(text):
    with pytest.raises(SettingsError, match="valid_metric"):
        Metric.parse(text)
    assert str(Metric.parse("Cold_In_All_NDCG@5")) == "cold_in_all_ndcg@5"
