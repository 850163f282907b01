"""The algebra on tables, against loops that anybody can read."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.factors import Factors, gated, products, standardise
from recbole_llm.scoring import Scorer


def draw_factors(seed, kind="dense", n_users=6, n_items=9, d=4):
    rng = np.random.default_rng(seed)
    users = rng.normal(size=(n_users, d)).astype(np.float32)
    items = rng.normal(size=(n_items, d)).astype(np.float32)
    users[rng.random(users.shape) < 0.3] = 0
    items[rng.random(items.shape) < 0.3] = 0
    users[0] = 0
    known = rng.random(n_items) < 0.8
    known[1:4] = True
    if kind != "dense":
        users = sp.csr_matrix(users)
    if kind == "sparse":
        items = sp.csr_matrix(items)
    return Factors.of(users, items, known)


def naive_scores(f):
    users = f.users.toarray() if sp.issparse(f.users) else f.users
    items = f.items.toarray() if sp.issparse(f.items) else f.items
    scores = np.zeros((f.n_users, f.n_items))
    for u in range(f.n_users):
        for i in range(f.n_items):
            scores[u, i] = float(users[u] @ items[i]) + f.offset[u] * f.known[i]
    return scores


def weighted(signals, weights):
    n_items = signals[0].n_items
    gains = [np.full(n_items, weight, np.float32) for weight in weights]
    return gated(signals, gains, np.zeros(n_items, np.float32))


KINDS = st.sampled_from(["dense", "sparse_users", "sparse"])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), KINDS)
def test_standardised_tables_score_as_per_user_z_scores(seed, kind):
    f = draw_factors(seed, kind)
    raw = naive_scores(f)
    expected = np.zeros_like(raw)
    for u in range(1, f.n_users):
        known = raw[u, f.known]
        if known.std() > 1e-5:
            expected[u, f.known] = (known - known.mean()) / known.std()
    np.testing.assert_allclose(standardise(f).scores(np.arange(f.n_users)), expected, atol=2e-3)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 40))
def test_products_of_sparse_rows_are_those_of_dense_ones(seed, n_rows):
    rows = sp.random(n_rows, 30, density=0.2, random_state=seed, format="csr", dtype=np.float32)
    items = sp.random(9, 30, density=0.2, random_state=seed + 1, format="csr", dtype=np.float32)
    expected = rows.toarray() @ items.toarray().T
    for table in (items, items.toarray()):
        found = products(rows, table)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(KINDS, min_size=1, max_size=4))
def test_fused_tables_score_as_the_weighted_sum(seed, kinds):
    signals = [standardise(draw_factors(seed + n, kind)) for n, kind in enumerate(kinds)]
    weights = np.random.default_rng(seed).random(len(kinds)) + 0.1
    expected = sum(w * naive_scores(f) for w, f in zip(weights, signals, strict=True))
    blocks = weighted(signals, weights)
    total = sum(block.scores(np.arange(6)) for block in blocks)
    np.testing.assert_allclose(total, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "sparse_users", "sparse"])
def test_scorer_equals_the_tables_for_rows_and_for_pairs(kind):
    f = standardise(draw_factors(3, kind))
    scorer = Scorer([f, f], "cpu")
    users = torch.arange(f.n_users)
    scores = scorer.scores(users)
    np.testing.assert_allclose(scores, 2 * f.scores(users.numpy()), atol=1e-5)
    items = torch.tensor([0, 3, 8, 1, 2, 5])
    np.testing.assert_allclose(scorer.pairs(users, items), scores[users, items], atol=1e-5)
    scores.fill_(-np.inf)
    assert torch.isfinite(scorer.scores(users)).all()


def test_weight_zero_leaves_a_signal_out_and_changes_no_order():
    als, text = standardise(draw_factors(1)), standardise(draw_factors(2, "sparse"))
    (block,) = weighted([als, text], [0.5, 0.0])
    users = np.arange(als.n_users)
    np.testing.assert_array_equal(
        block.scores(users).argsort(kind="stable"), (als.scores(users) * 0.5).argsort(kind="stable")
    )


def test_a_user_without_knowledge_scores_zero_everywhere():
    f = standardise(draw_factors(5))
    assert not f.scores(np.array([0])).any()
