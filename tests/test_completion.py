"""Rows of cold items and users, against dense formulas."""

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm import completion
from recbole_llm.completion import (
    choose_penalty,
    complete,
    complete_users,
    completion_map,
    conjugate_gradients,
    features_of,
    fit_ridge,
    trust,
)
from recbole_llm.factors import Factors, standardise, unit_rows

N_ITEMS, N_USERS, WIDTH = 40, 15, 6
COLD = np.array([33, 34, 35, 36])
NO_TEXT = np.array([38, 39])


def make_features(seed=0, n=N_ITEMS):
    rng = np.random.default_rng(seed)
    dense = unit_rows(rng.normal(size=(n, 5)).astype(np.float32))
    words = sp.random(n, 30, density=0.3, random_state=seed, format="csr", dtype=np.float32)
    dense[0] = 0
    empty = np.zeros(n, dtype=bool)
    empty[0] = True
    if n == N_ITEMS:
        dense[NO_TEXT] = 0
        empty[NO_TEXT] = True
    words = (sp.diags((~empty).astype(np.float32)) @ words).tocsr()
    words.eliminate_zeros()
    return features_of({"bert": dense, "lexical": words})


def make_signal(features, seed=1, noise=0.0):
    """Item rows that are a linear function of the texts, and their interaction counts."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(block.shape[1], WIDTH)) for block in features.blocks]
    items = (features.product(maps) + 0.5 + noise * rng.normal(size=(N_ITEMS, WIDTH))).astype(
        np.float32
    )
    counts = rng.integers(1, 50, N_ITEMS)
    counts[0], counts[COLD] = 0, 0
    users = rng.normal(size=(N_USERS, WIDTH)).astype(np.float32)
    users[0] = 0
    return Factors.of(users, items.copy(), counts > 0), items, counts


def dense_ridge(features, rows, weights, penalty):
    """The normal equations with an unpenalised column of ones, all dense, float64."""
    used = (weights > 0) & features.described
    x = np.hstack([np.sqrt(0.3) * features.blocks[0], np.sqrt(0.7) * features.blocks[1].toarray()])
    x = np.hstack([x, np.ones((len(x), 1))]).astype(np.float64)
    w = weights[used] / weights[used].mean()
    shrink = penalty * np.eye(x.shape[1])
    shrink[-1, -1] = 0
    gram = x[used].T @ (w[:, None] * x[used]) + shrink
    return x @ np.linalg.solve(gram, x[used].T @ (w[:, None] * rows[used]))


@pytest.mark.parametrize("penalty", [0.1, 3.0, 100.0])
def test_ridge_equals_the_normal_equations(penalty):
    features = make_features()
    signal, _, counts = make_signal(features, noise=0.3)
    weights = trust(counts) * signal.known
    rows = fit_ridge(features, signal.items, weights, penalty=penalty).apply(features)
    expected = dense_ridge(features, signal.items, weights, penalty)
    np.testing.assert_allclose(
        rows[features.described], expected[features.described], atol=5e-3 * abs(expected).max()
    )
    assert not rows[~features.described].any()


def make_attributes(seed=3):
    """Unit rows, missing for every fourth item."""
    rows = np.abs(np.random.default_rng(seed).normal(size=(N_ITEMS, 4))).astype(np.float32)
    rows[::4] = 0
    return sp.csr_matrix(unit_rows(rows))


@pytest.mark.parametrize("with_texts", [True, False])
def test_ridge_with_attributes_equals_the_normal_equations(with_texts):
    texts, attributes = make_features(), make_attributes()
    signal, _, counts = make_signal(texts, noise=0.3)
    embeddings = {"bert": texts.blocks[0], "lexical": texts.blocks[1]} if with_texts else {}
    features = features_of(embeddings, attributes)
    weights = trust(counts) * signal.known
    fitted = fit_ridge(features, signal.items, weights, penalty=3.0)
    # Centred by the rows that have them, so that a row without is the mean one.
    x = attributes.toarray()
    told = x.any(axis=1)
    used = (weights > 0) & features.described
    x[told] -= np.average(x[used & told], axis=0, weights=weights[used & told])
    blocks = [x * np.sqrt(0.35 if with_texts else 1)]
    if with_texts:
        dense, words = (
            np.asarray(b if isinstance(b, np.ndarray) else b.toarray()) for b in texts.blocks
        )
        blocks += [np.sqrt(0.65 * 0.3) * dense, np.sqrt(0.65 * 0.7) * words]
    x = np.hstack([*blocks, np.ones((N_ITEMS, 1))]).astype(np.float64)
    w = weights[used] / weights[used].mean()
    shrink = 3.0 * np.eye(x.shape[1])
    shrink[-1, -1] = 0
    gram = x[used].T @ (w[:, None] * x[used]) + shrink
    expected = x @ np.linalg.solve(gram, x[used].T @ (w[:, None] * signal.items[used]))
    rows = fitted.apply(features)
    at = features.described
    np.testing.assert_allclose(rows[at], expected[at], atol=5e-3 * abs(expected).max())


def test_items_without_text_are_completed_by_their_attributes():
    texts, attributes = make_features(), make_attributes()
    signal, _, counts = make_signal(texts)
    features = features_of({"bert": texts.blocks[0], "lexical": texts.blocks[1]}, attributes)
    unknown = NO_TEXT[attributes[NO_TEXT].getnnz(axis=1) > 0]
    assert len(unknown)
    counts[NO_TEXT] = 0
    signal = Factors.of(signal.users, signal.items, counts > 0)
    ridge = completion_map(standardise(signal), features, counts, seed=0)
    assert complete(standardise(signal), ridge, features).known[unknown].all()


def test_conjugate_gradients_solve_every_column_from_any_start():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(20, 20)).astype(np.float32)
    matrix = half @ half.T + 5 * np.eye(20, dtype=np.float32)
    targets = rng.normal(size=(20, 3)).astype(np.float32) * np.float32([1, 1e-3, 0])
    expected = np.linalg.solve(matrix.astype(np.float64), targets)
    for start in (None, rng.normal(size=(20, 3)).astype(np.float32)):
        solution = conjugate_gradients(lambda x: matrix @ x, targets, start)
        np.testing.assert_allclose(solution[:, :2], expected[:, :2], rtol=0.02, atol=1e-5)
        if start is None:
            assert not solution[:, 2].any()


def test_completion_finds_the_rows_of_cold_items_and_keeps_the_learned_ones():
    features = make_features()
    signal, truth, counts = make_signal(features)
    signal = standardise(signal)
    before = signal.items.copy()
    ridge = completion_map(signal, features, counts, seed=0, penalty=1e-3)
    completed = complete(signal, ridge, features)
    assert completed.known[COLD].all()
    assert not completed.known[0]
    np.testing.assert_array_equal(completed.items[signal.known], before[signal.known])
    np.testing.assert_array_equal(signal.items, before)
    wrong = completed.items[COLD] - truth[COLD]
    assert np.square(wrong).mean() < 0.5 * truth[COLD].var(axis=0).mean()
    users = np.arange(N_USERS)
    expected = completed.users @ completed.items[COLD].T + completed.offset[:, None]
    np.testing.assert_allclose(completed.scores(users)[:, COLD], expected, atol=1e-5)


def test_an_item_without_text_stays_unknown():
    features = make_features()
    signal, _, counts = make_signal(features)
    counts[NO_TEXT] = 0
    signal = Factors.of(signal.users, signal.items.copy(), counts > 0)
    ridge = completion_map(signal, features, counts, seed=0)
    completed = complete(signal, ridge, features)
    assert not completed.known[NO_TEXT].any()
    assert not completed.items[NO_TEXT].any()


def test_rows_of_full_width_are_completed_in_place_as_by_the_ridge_of_the_whole_table():
    features = make_features()
    _, _, counts = make_signal(features)
    rng = np.random.default_rng(3)
    table = rng.normal(size=(N_ITEMS, N_ITEMS)).astype(np.float32)
    history = sp.random(N_USERS, N_ITEMS, density=0.3, random_state=0, format="csr", dtype="f4")
    signal = Factors.of(history, table, counts > 0)
    whole = fit_ridge(features, signal.items, trust(counts), penalty=2.0).apply(features)
    ridge = completion_map(signal, features, counts, seed=0, rank=N_ITEMS, penalty=2.0)
    completed = complete(signal, ridge, features)
    assert np.shares_memory(completed.items, signal.items)
    np.testing.assert_allclose(completed.items[COLD], whole[COLD], atol=5e-3)


def test_rows_of_a_sparse_table_are_completed_by_their_largest_entries(monkeypatch):
    features = make_features()
    _, _, counts = make_signal(features)
    rng = np.random.default_rng(3)
    table = rng.normal(size=(N_ITEMS, N_ITEMS)).astype(np.float32)
    history = sp.random(N_USERS, N_ITEMS, density=0.3, random_state=0, format="csr", dtype="f4")
    signal = Factors.of(history, sp.csr_matrix(table), counts > 0)
    whole = fit_ridge(features, signal.items.toarray(), trust(counts), penalty=2.0).apply(features)
    ridge = completion_map(signal, features, counts, seed=0, rank=N_ITEMS, penalty=2.0)
    completed = complete(signal, ridge, features)
    np.testing.assert_allclose(completed.items.toarray()[COLD], whole[COLD], atol=5e-3)
    warm = signal.known
    np.testing.assert_array_equal(completed.items.toarray()[warm], signal.items.toarray()[warm])
    monkeypatch.setattr(completion, "_MOST_ENTRIES", 5)
    rows = completed.items.toarray()[COLD]
    cut = complete(signal, ridge, features).items.toarray()[COLD]
    least = np.sort(abs(rows), axis=1)[:, [-5]]
    np.testing.assert_allclose(cut, np.where(abs(rows) >= least, rows, 0), atol=1e-6)


def test_wide_dense_rows_are_completed_in_a_copy_by_their_projection():
    features = make_features()
    signal, _, counts = make_signal(features)
    wide = np.random.default_rng(4).normal(size=(signal.items.shape[1], 40)).astype(np.float32)
    signal = Factors.of(signal.users @ wide, signal.items @ wide, signal.known)
    before = signal.items.copy()
    whole = fit_ridge(features, signal.items, trust(counts), penalty=2.0).apply(features)
    ridge = completion_map(signal, features, counts, seed=0, rank=20, penalty=2.0)
    assert ridge.basis.shape == (20, 40)
    completed = complete(signal, ridge, features)
    np.testing.assert_allclose(completed.items[COLD], whole[COLD], atol=5e-3 * abs(whole).max())
    np.testing.assert_array_equal(signal.items, before)


def test_noise_asks_for_a_larger_penalty_than_a_clean_law():
    features = make_features()
    chosen = []
    for noise in (0.0, 20.0):
        signal, _, counts = make_signal(features, noise=noise)
        weights = trust(counts) * signal.known
        chosen.append(choose_penalty(features, signal.items, weights, signal.users, seed=0))
    assert chosen[0] < chosen[1]


def test_signals_without_text_have_no_map():
    features = make_features()
    signal, _, counts = make_signal(features)
    blank = features_of({"bert": np.zeros((N_ITEMS, 3), np.float32)})
    assert completion_map(signal, blank, counts, seed=0) is None


def test_a_new_user_gets_the_mean_user_and_one_with_text_what_it_says():
    features = make_features()
    signal, _, _ = make_signal(features)
    counts = np.full(N_USERS, 5)
    counts[[0, 3, 4]] = 0
    mean = signal.users[counts > 0].mean(axis=0)
    completed = complete_users(signal, counts, seed=0)
    np.testing.assert_allclose(completed.users[[3, 4]], [mean, mean], atol=1e-6)
    np.testing.assert_array_equal(completed.users[counts > 0], signal.users[counts > 0])
    assert not completed.users[0].any()
    texts = make_features(seed=8, n=N_USERS)
    texts.described[4] = False
    told = complete_users(signal, counts, texts, seed=0)
    np.testing.assert_allclose(told.users[4], mean, atol=1e-6)
    assert np.abs(told.users[3] - mean).max() > 1e-4


def test_a_new_user_of_a_sparse_signal_scores_as_the_mean_user():
    rng = np.random.default_rng(0)
    history = sp.random(N_USERS, N_ITEMS, density=0.4, random_state=1, format="csr", dtype="f4")
    lil = history.tolil()
    lil[[0, 3]] = 0
    history = lil.tocsr()
    table = rng.normal(size=(N_ITEMS, N_ITEMS)).astype(np.float32)
    signal = Factors.of(history, table, np.ones(N_ITEMS, dtype=bool))
    counts = np.diff(history.indptr)
    completed = complete_users(signal, counts, seed=0)
    weights = trust(counts) / trust(counts).sum()
    scores = signal.scores(np.arange(N_USERS))
    np.testing.assert_allclose(completed.scores(np.array([3]))[0], weights @ scores, atol=1e-4)
    np.testing.assert_allclose(completed.scores(np.array([5])), scores[[5]], atol=1e-6)


@pytest.mark.parametrize("most", [20_000, 33])
def test_the_penalty_seen_in_random_directions_is_as_good_as_the_best_of_all_columns(
    monkeypatch, most
):
    monkeypatch.setattr(completion, "_CHOOSING_ROWS", most)
    features = make_features()
    signal, _, counts = make_signal(features, noise=3.0)
    weights = trust(counts) * signal.known
    others = np.random.default_rng(2).standard_normal((200, signal.items.shape[1]))
    chosen = choose_penalty(features, signal.items, weights, others.astype(np.float32), seed=0)
    used = np.flatnonzero((weights > 0) & features.described)
    looked_at = np.random.default_rng(0).permutation(used)[:most]
    held, kept = np.split(looked_at, [round(0.2 * len(looked_at))])
    rest = np.zeros_like(weights)
    rest[kept] = weights[kept]

    def error(penalty):
        said = fit_ridge(features, signal.items, rest, penalty=penalty).apply(features[held])
        wrong = (said - signal.items[held]) @ others.T
        return float(weights[held] @ np.square(wrong).sum(axis=1))

    assert error(chosen) <= 1.01 * min(map(error, (100.0, 30.0, 10.0, 3.0, 1.0, 0.3)))
