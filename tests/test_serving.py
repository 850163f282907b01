"""Recommending from saved tables."""

import dataclasses
import math

import numpy as np
import pytest
from test_saved_tables import N_ITEMS, N_USERS, random_tables

from recbole_llm import serving
from recbole_llm.errors import DataError, DataWarning, SettingsError
from recbole_llm.factors import Factors
from recbole_llm.serving import Recommender
from recbole_llm.slices import seeded_rank

pytestmark = pytest.mark.filterwarnings("ignore::recbole_llm.errors.DataWarning")
USERS = [f"u{user}" for user in range(1, N_USERS)]


@pytest.fixture
def tables():
    return random_tables()


@pytest.fixture
def recommender(tables):
    return Recommender(tables, device="cpu")


def all_scores(tables):
    return sum(block.scores(np.arange(N_USERS)) for block in tables.blocks)


def naive(tables, users, k, *, exclude_known, only, exclude):
    """Item by item, user by user."""
    scores, known = all_scores(tables), tables.known.toarray()
    rows = []
    for user in users:
        row = tables.user_ids.index(user)
        candidates = []
        for item in range(1, N_ITEMS):
            name = tables.item_ids[item]
            if exclude_known and known[row, item]:
                continue
            if (only is not None and name not in only) or name in (exclude or ()):
                continue
            candidates.append((-scores[row, item], name))
        for rank, (score, name) in enumerate(sorted(candidates)[:k], start=1):
            rows.append((user, name, -score, rank))
    return rows


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("exclude_known", [True, False])
@pytest.mark.parametrize(
    ("only", "exclude"),
    [(None, None), (["i2", "i5", "i7"], None), (None, ["i3", "i4"]), (["i2", "i5"], ["i5"])],
)
def test_recommendations_are_those_of_loops(recommender, tables, k, exclude_known, only, exclude):
    options = {"exclude_known": exclude_known, "only": only, "exclude": exclude}
    users = ["u5", "u1", "u8", "u2"]
    found = recommender.recommend(users, k, **options)
    assert list(found.columns) == ["user_id", "item_id", "score", "rank"]
    expected = naive(tables, users, k, **options)
    pairs = [(user, item, rank) for user, item, _, rank in expected]
    assert list(zip(found["user_id"], found["item_id"], found["rank"], strict=True)) == pairs
    np.testing.assert_allclose(found["score"], [row[2] for row in expected], rtol=1e-5, atol=1e-6)


def test_users_in_batches_get_what_they_get_alone(recommender, monkeypatch):
    together = recommender.recommend(USERS, 3)
    alone = [recommender.recommend(user, 3) for user in USERS]
    monkeypatch.setattr(serving, "_BATCH_BYTES", 3 * 24 * N_ITEMS)  # three users
    batched = list(recommender.recommend_all(3))
    assert len(batched) == math.ceil(len(USERS) / 3)
    columns = ["user_id", "item_id", "rank"]
    for parts in (alone, batched):
        for name in columns:
            assert list(together[name]) == [value for part in parts for value in part[name]]


def test_equally_good_items_come_in_the_runs_seeded_order(tables):
    flat = Factors.of(
        np.ones((N_USERS, 1), np.float32), np.ones((N_ITEMS, 1), np.float32), np.ones(N_ITEMS, bool)
    )
    recommender = Recommender(dataclasses.replace(tables, blocks=(flat,)), device="cpu")
    rank = seeded_rank(N_ITEMS, tables.facts["seed"]).numpy()
    best = [f"i{item}" for item in np.argsort(rank) if item][:5]
    found = recommender.recommend("u3", 5, exclude_known=False)
    assert list(found["item_id"]) == best


def test_ids_may_be_numbers_and_repeat(tables):
    named = dataclasses.replace(tables, user_ids=tuple(map(str, range(N_USERS))))
    recommender = Recommender(named, device="cpu")
    found = recommender.recommend([4, np.int64(4), "4"], 2)
    assert list(found["user_id"]) == ["4", "4"]
    assert recommender.recommend(4, 2).equals(found)


def test_no_user_gets_an_empty_table(recommender):
    assert recommender.recommend([]).empty


def test_similar_items_are_those_whose_scores_go_together(recommender, tables, monkeypatch):
    scores = all_scores(tables)[1:, 1:].astype(np.float64)
    expected = np.corrcoef(scores.T)[2]
    expected[2] = -2
    order = np.argsort(-expected)[:4]
    monkeypatch.setattr(serving, "_BATCH_BYTES", 3 * 24 * N_ITEMS)
    found = recommender.similar_items("i3", 4)
    assert list(found["item_id"]) == [f"i{1 + item}" for item in order]
    np.testing.assert_allclose(found["score"], expected[order], atol=1e-5)
    assert list(found["rank"]) == [1, 2, 3, 4]


def test_item_that_scores_alike_for_all_resembles_none(tables):
    block = tables.blocks[0]
    known = block.known.copy()
    known[5] = False
    nothing = Factors.of(block.users, block.items.copy(), known)
    recommender = Recommender(dataclasses.replace(tables, blocks=(nothing,)), device="cpu")
    with pytest.raises(DataError, match="nothing is known of item `i5`"):
        recommender.similar_items("i5")
    found = recommender.similar_items("i4", N_ITEMS).set_index("item_id")["score"]
    assert found["i5"] == 0
    assert found.abs().max() > 0.1


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda r: r.recommend("u11"), DataError, "user `u11` is unknown: .*did you mean `u1`"),
        (lambda r: r.recommend("[PAD]"), DataError, "user `\\[PAD\\]` is unknown"),
        (lambda r: r.similar_items("i122"), DataError, "item `i122` is unknown.*`i12`"),
        (lambda r: r.recommend("u1", 0), SettingsError, "`k` must be at least 1, got 0"),
        (lambda r: next(r.recommend_all(-1)), SettingsError, "`k` must be at least 1"),
        (lambda r: r.similar_items("i1", 0), SettingsError, "`k` must be at least 1"),
        (lambda r: r.recommend("u1", only=["x"]), DataError, "`only` holds no known item"),
        (lambda r: r.recommend("u1", only=[]), DataError, "`only` holds no known item"),
        (lambda r: Recommender(r.tables, device="tpu"), SettingsError, "`device` must be"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(recommender, ask, error, said):
    with pytest.raises(error, match=said) as raised:
        ask(recommender)
    assert "\n" not in str(raised.value)


def test_listed_items_that_are_unknown_are_said_and_left_out(recommender):
    with pytest.warns(DataWarning, match="`only`: 1 of 2 items are unknown, the first is `i99`"):
        found = recommender.recommend("u1", only=["i99", "i3"], exclude_known=False)
    assert list(found["item_id"]) == ["i3"]


def test_user_without_history_is_said(tables):
    known = tables.known.tolil()
    known[2] = 0
    recommender = Recommender(dataclasses.replace(tables, known=known.tocsr()), device="cpu")
    with pytest.warns(DataWarning, match="user `u2` has no interaction"):
        assert len(recommender.recommend("u2", 4)) == 4
