"""Users and items that came after the fit, from the pipeline to the list."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from recbole_llm.attributes import AttributeCode, attribute_rows
from recbole_llm.errors import DataError, DataWarning, SettingsError
from recbole_llm.evaluation import Metric, Validation
from recbole_llm.fitting import fit_model
from recbole_llm.item_form import ItemForm
from recbole_llm.model_settings import read_model_settings
from recbole_llm.newcomers import user_rows, with_histories
from recbole_llm.saved_tables import SavedTables, read_tables, write_tables
from recbole_llm.serving import VISITOR, Recommender
from recbole_llm.settings import RunOptions
from recbole_llm.training_data import History, TrainingData

N_USERS, N_ITEMS, N_COLD = 60, 41, 6
COLD = np.arange(N_ITEMS) >= N_ITEMS - N_COLD
KINDS = ["red wool coat winter", "steel kitchen knife sharp", "garden rose seed soil"]
TEXTS = ("", *(f"{KINDS[item % 3]} model{item // 3}" for item in range(1, N_ITEMS)))
RUN = RunOptions(seed=3, progress=False)
QUICK = {
    "encoder": "lexical",
    "embedding_cache": "none",
    "signal_search_trials": 0,
    "weight_trials": 0,
    "als_factors": 8,
    "als_regularization": 1.0,
    "lightfm_components": 8,
    "text_map_dimensions": 8,
    "text_map_epochs": 2,
    "item_item_regularization": 5.0,
}


def interactions():
    """Each user likes one kind of thing; the last items nobody has, the last user has none."""
    rng = np.random.default_rng(0)
    taste = np.arange(N_USERS)[:, None] % 3 == np.arange(N_ITEMS) % 3
    liked = rng.random((N_USERS, N_ITEMS)) < np.where(taste, 0.6, 0.05)
    liked[0], liked[:, 0], liked[:, COLD], liked[-1] = False, False, False, False
    held = liked & (rng.random(liked.shape) < 0.15)
    weights = rng.integers(1, 6, liked.shape)
    return tuple(
        sp.csr_matrix((part * weights).astype(np.float32)) for part in (liked & ~held, held)
    )


# Fields of the items' file; where the attributes are read, they say the kind.
FIELDS = {
    "title": TEXTS,
    "kind": ("", *(f"kind{item % 3}" for item in range(1, N_ITEMS))),
    "price": ("", *(str(10 * (item % 3) + item / 100) for item in range(1, N_ITEMS))),
}
CODES = tuple(
    AttributeCode.of(field, kind, FIELDS[field])
    for field, kind in (("kind", "token"), ("price", "float"))
)


def fitted(names=None, texts=TEXTS, codes=(), **settings):
    train, held = interactions()
    rng = np.random.default_rng(1)
    ages = [rng.permutation(count) for count in np.diff(train.indptr)]
    attributes = attribute_rows(codes, FIELDS)
    data = TrainingData(train, np.concatenate(ages).astype(np.int32), texts, attributes)
    read = read_model_settings(names, {**QUICK, **settings})
    validation = Validation.of(data.binary, held, "")
    blocks, _, newcomers = fit_model(data, validation, read, Metric("ndcg", 5), RUN)
    known = train.copy()
    known.data /= known.data.mean()
    return SavedTables(
        blocks=blocks,
        user_ids=("[PAD]", *(f"u{user}" for user in range(1, N_USERS))),
        item_ids=("[PAD]", *(f"i{item}" for item in range(1, N_ITEMS))),
        item_titles=texts or ("",) * N_ITEMS,
        item_texts=texts if newcomers.encoders else (),
        item_form=ItemForm("item_id", ("title",) if texts else (), codes),
        known=known,
        age=data.age,
        newcomers=newcomers,
        facts={"model": "HybridFusion", "dataset": "shop", "seed": 3},
    )


@pytest.fixture(scope="module", params=["warmth_gate", "weighted_sum"])
def saved(request, tmp_path_factory):
    """Read back from a folder: what is served."""
    folder = tmp_path_factory.mktemp("model") / "m.tables"
    write_tables(folder, fitted(fusion=request.param))
    return read_tables(folder)


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return fitted()


@pytest.fixture(scope="module")
def als():
    return fitted(("als",), ())


def serve(tables):
    return Recommender(tables, device="cpu")


def scores(blocks, row):
    return sum(block.scores(np.array([row]))[0] for block in blocks)


def test_newcomers_score_is_the_sum_of_gain_and_z_score_of_each_signal(saved):
    newcomers, history = saved.newcomers, History(saved.known[[3]])
    rows = user_rows(newcomers, saved.blocks, history)
    blocks = [
        dataclasses.replace(block, users=users, offset=np.zeros(1, np.float32))
        for block, users in zip(saved.blocks, rows, strict=True)
    ]
    warm = np.asarray((saved.known > 0).sum(axis=0)).ravel() > 0
    expected = np.zeros(N_ITEMS)
    apart = iter(saved.blocks[1:])
    for kept in newcomers.signals:
        signal, items = kept.signal(), kept.items
        block = next(apart) if kept.stands_apart else None
        if items is None:
            items = block.items / np.where(warm, kept.gain, kept.cold_gain)[:, None]
        if sp.issparse(items):
            items = items.toarray()
        factors = dataclasses.replace(
            saved.blocks[0], items=items, known=kept.learned, extra=kept.extra
        )
        user = signal.fold_in(factors, signal.sources(factors), history)
        user = np.asarray(user.todense() if sp.issparse(user) else user).ravel()
        raw = [float(user @ items[item]) for item in range(N_ITEMS)]
        learned = [raw[item] for item in range(N_ITEMS) if kept.learned[item]]
        for item in range(1, N_ITEMS):
            if kept.learned[item] or items[item].any():
                z = (raw[item] - np.mean(learned)) / np.std(learned)
                expected[item] += z * (kept.gain if warm[item] else kept.cold_gain)
    expected[~warm] += newcomers.level
    np.testing.assert_allclose(scores(blocks, 0)[1:], expected[1:], atol=2e-3)


def test_new_user_with_a_trained_users_history_gets_nearly_her_list(saved):
    recommender = serve(saved)
    shared = []
    for user in range(1, N_USERS - 1):
        liked = [saved.item_ids[item] for item in saved.known[user].indices]
        theirs = recommender.recommend(f"u{user}", 5)["item_id"]
        found = recommender.recommend_for(liked=liked, k=5)
        assert set(found["user_id"]) == {VISITOR}
        assert not set(found["item_id"]) & set(liked)
        shared.append(len(set(theirs) & set(found["item_id"])) / 5)
    assert np.mean(shared) > 0.8


def test_new_item_with_a_cold_items_text_gets_the_cold_items_score(saved):
    recommender, cold = serve(saved), N_ITEMS - 2
    found = recommender.recommend_for(
        user=["u4", "u5"], new_items=[TEXTS[cold], "steel coat"], k=N_ITEMS
    )
    for user in ("u4", "u5"):
        one = found[found["user_id"] == user].set_index("item_id")["score"]
        assert one["new-1"] == pytest.approx(one[f"i{cold}"], abs=1e-4)
        known = recommender.recommend(user, N_ITEMS).set_index("item_id")["score"]
        np.testing.assert_allclose(one[known.index], known, atol=1e-4)


def test_intent_of_an_items_text_finds_items_of_its_kind(saved):
    for item in (7, 8, 9):
        found = serve(saved).recommend_for(intent=TEXTS[item], k=8)
        kinds = [int(name[1:]) % 3 for name in found["item_id"]]
        assert kinds.count(item % 3) >= 6


def test_intent_of_an_items_text_puts_it_first_where_text_alone_counts():
    recommender = serve(fitted(("text_intent",)))
    for item in (7, 8, 9, N_ITEMS - 1):
        assert recommender.recommend_for(intent=TEXTS[item], k=1)["item_id"][0] == f"i{item}"


def test_weight_of_the_intent_leads_from_the_users_list_to_the_words(saved):
    recommender, intent = serve(saved), TEXTS[8]

    def ranked(**asked):
        return list(recommender.recommend_for(k=N_ITEMS, exclude_known=False, **asked)["item_id"])

    def score(weight):
        found = recommender.recommend_for(
            user="u1", intent=intent, intent_weight=weight, k=N_ITEMS, exclude_known=False
        )
        return found.set_index("item_id")["score"].sort_index()

    assert ranked(user="u1", intent=intent, intent_weight=0.0) == list(
        recommender.recommend("u1", N_ITEMS, exclude_known=False)["item_id"]
    )
    assert ranked(user="u1", intent=intent, intent_weight=1.0) == ranked(intent=intent)
    np.testing.assert_allclose(score(0.3), 0.7 * score(0.0) + 0.3 * score(1.0), atol=1e-4)


def test_liked_items_of_a_user_are_added_to_her_own(saved):
    recommender = serve(saved)
    own = {saved.item_ids[item] for item in saved.known[1].indices}
    found = recommender.recommend_for(user="u1", liked=["i2", "i5", "i38"], k=N_ITEMS)
    assert not (own | {"i2", "i5", "i38"}) & set(found["item_id"])
    before = recommender.recommend("u1", N_ITEMS, exclude_known=False)
    after = recommender.recommend_for(
        user="u1", liked=["i2", "i5", "i8", "i11"], k=N_ITEMS, exclude_known=False
    )
    kind = [f"i{item}" for item in range(14, N_ITEMS, 3)]
    means = [t.set_index("item_id").loc[kind, "rank"].mean() for t in (before, after)]
    assert means[1] < means[0]


def test_new_items_below_the_top_are_listed_with_their_rank(gate):
    recommender = serve(gate)
    everything = recommender.recommend_for(user="u4", new_items=["red coat"], k=N_ITEMS)
    found = recommender.recommend_for(user="u4", new_items=["red coat"], k=1, only=["i5", "i6"])
    assert "new-1" in set(found["item_id"])
    assert found["rank"].max() <= 3
    rank = everything.set_index("item_id").loc["new-1", "rank"]
    short = recommender.recommend_for(user="u4", new_items=["red coat"], k=1)
    assert short.set_index("item_id").loc["new-1", "rank"] == rank
    assert len(short) == (1 if rank == 1 else 2)


@pytest.mark.parametrize("names", [None, ["u59", "u1"]])
def test_what_was_expected_of_somebody_new_counts_as_one_more_like(saved, names):
    liked = ["i3", "i6"]
    found = serve(saved).recommend_for(user=names, liked=liked, k=N_ITEMS, exclude_known=False)

    def rows(counts):
        return user_rows(saved.newcomers, saved.blocks, History(sp.csr_matrix(counts[None, :])))

    likes = np.zeros(N_ITEMS, dtype=np.float32)
    likes[[3, 6]] = 1
    expected = {}
    for name, number in ((VISITOR, 0), ("u59", N_USERS - 1), ("u1", 1)):
        own = saved.known[number].toarray()[0]
        folded = rows(np.maximum(own, likes))
        if own.any():
            expected[name] = sum(f @ b.items.T for f, b in zip(folded, saved.blocks, strict=True))
            continue
        others = np.flatnonzero(saved.user_counts) if name == VISITOR else [number]
        before = [block.users[others].mean(axis=0) for block in saved.blocks]
        expected[name] = sum(
            (2 * f + b) / 3 @ block.items.T
            for f, b, block in zip(folded, before, saved.blocks, strict=True)
        )
    for name, table in found.groupby("user_id"):
        places = [int(item[1:]) for item in table["item_id"]]
        scores = np.asarray(expected[name]).ravel()[places]
        np.testing.assert_allclose(table["score"], scores, atol=1e-4)


def test_model_without_text_folds_in_liked_items(als):
    found = serve(als).recommend_for(liked=["i3", "i6"], k=5)
    assert sum(int(name[1:]) % 3 == 0 for name in found["item_id"]) >= 4


def test_wide_table_without_weight_says_nothing_of_newcomers():
    gate = fitted(signals="als,item_item,text_intent,popularity")
    kept = [s for s in gate.newcomers.signals if s.items is None]
    (place,) = (gate.newcomers.signals.index(s) for s in kept)
    wide = [n for n, b in enumerate(gate.blocks) if b.items.shape == (N_ITEMS, N_ITEMS)]
    blocks = list(gate.blocks)
    blocks[wide[0]] = dataclasses.replace(
        blocks[wide[0]], items=np.where(COLD[:, None], blocks[wide[0]].items, 0)
    )
    signals = list(gate.newcomers.signals)
    signals[place] = dataclasses.replace(signals[place], gain=0.0)
    newcomers = dataclasses.replace(gate.newcomers, signals=tuple(signals))
    rows = user_rows(newcomers, blocks, History(gate.known[[3]]))
    assert abs(rows[wide[0]]).sum() == 0
    assert all(np.isfinite(part.data if sp.issparse(part) else part).all() for part in rows)


def test_only_known_words_count_and_the_rest_is_said(gate):
    with pytest.raises(DataError, match="`intent`: none of its words occurs"):
        serve(gate).recommend_for(intent="чайник")
    with pytest.raises(DataError, match="new item `new-2`: none of its words occurs"):
        serve(gate).recommend_for(user="u1", new_items=["coat", "zzz"])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A model that reads categories and numbers beside the texts, read back from a folder."""
    folder = tmp_path_factory.mktemp("told") / "m.tables"
    write_tables(folder, fitted(codes=CODES))
    return read_tables(folder)


def test_a_new_item_with_a_cold_items_fields_is_scored_as_it_is(told):
    cold = np.flatnonzero(COLD)
    news = [{field: values[item] for field, values in FIELDS.items()} for item in cold]
    found = serve(told).recommend_for(user=["u1", "u2", "u3"], new_items=news, k=N_ITEMS)
    for user, table in found.groupby("user_id"):
        score = table.set_index("item_id")["score"]
        theirs = score[[f"i{item}" for item in cold]].to_numpy()
        ours = score[[f"new-{number}" for number in range(1, len(cold) + 1)]].to_numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=user)


def test_what_is_said_of_a_new_item_beside_its_text_counts(told):
    # A text that fits no kind, as that of a thing with a name alone.
    news = [{"title": "model3", "kind": f"kind{kind}", "price": 10 * kind} for kind in range(3)]
    found = serve(told).recommend_for(user="u3", new_items=[*news, "model3"], k=1)
    places = found.set_index("item_id")["rank"][[f"new-{number}" for number in range(1, 5)]]
    assert places.idxmin() == "new-1"  # u3 likes kind 0
    assert places["new-1"] < places["new-4"]


def test_new_items_come_as_a_table_with_ids_of_their_own(told):
    table = pd.DataFrame(
        {
            "SKU": ["n7", None],
            "Title": [KINDS[0], KINDS[1]],
            "kind": ["kind0", np.nan],
            "Price ": [0.0, 10.0],
            "stock": [1, 2],
        }
    )
    with pytest.warns(DataWarning, match="stock passed over; the model reads title, kind, price"):
        found = serve(told).recommend_for(user="u3", new_items=table, k=N_ITEMS)
    as_mappings = serve(told).recommend_for(
        user="u3",
        new_items=[
            {"item_id": "n7", "title": KINDS[0], "kind": "kind0", "price": 0},
            {"title": KINDS[1], "price": "10"},
        ],
        k=N_ITEMS,
    )
    pd.testing.assert_frame_equal(found, as_mappings)
    assert {"n7", "new-1"} < set(found["item_id"])


@pytest.mark.parametrize(
    ("news", "said"),
    [
        ([{"item_id": "i3", "title": "coat"}], "new item `i3`: the model knows it"),
        ([{"item_id": "n", "title": "coat"}] * 2, "new item `n`: it is there twice"),
        ([{"title": "coat"}, {"kind": "kind1"}], "new item 2 has no text.*reads `title`"),
    ],
)
def test_a_new_item_that_cannot_be_ranked_is_named(told, news, said):
    with pytest.raises(SettingsError, match=said):
        serve(told).recommend_for(user="u1", new_items=news)


def test_signal_that_is_not_registered_is_named(gate):
    signals = (dataclasses.replace(gate.newcomers.signals[0], name="mine"),)
    tables = dataclasses.replace(
        gate, newcomers=dataclasses.replace(gate.newcomers, signals=signals)
    )
    with pytest.raises(DataError, match="a signal `mine` that is not registered"):
        serve(tables).recommend_for(liked="i3")


def test_encoder_that_is_another_one_now_is_refused(gate):
    newcomers = dataclasses.replace(gate.newcomers, encoders={"lexical": "0" * 64})
    with pytest.raises(DataError, match="`lexical` is not the one"):
        serve(dataclasses.replace(gate, newcomers=newcomers)).recommend_for(intent="coat")


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({}, SettingsError, "give a user, liked items or an intent"),
        ({"new_items": ["coat"]}, SettingsError, "give a user, liked items or an intent"),
        ({"intent": " \n"}, SettingsError, "`intent` is blank"),
        ({"user": "u1", "new_items": ["coat", ""]}, SettingsError, "`new_item` 2 is blank"),
        ({"liked": ["i3", "i333"]}, DataError, "item `i333` is unknown.*did you mean `i33`"),
        ({"user": "u111", "intent": "coat"}, DataError, "user `u111` is unknown"),
        ({"intent": "coat", "intent_weight": 1.5}, SettingsError, "`intent_weight` must be from"),
        ({"liked": "i3", "k": 0}, SettingsError, "`k` must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(gate, asked, error, said):
    with pytest.raises(error, match=said) as raised:
        serve(gate).recommend_for(**asked)
    assert "\n" not in str(raised.value)


def test_model_that_reads_no_text_refuses_words(als):
    for asked in ({"intent": "coat"}, {"user": "u1", "new_items": "coat"}):
        with pytest.raises(DataError, match=r"encodes no text.*train HybridFusion"):
            serve(als).recommend_for(**asked)


def test_real_encoder_says_what_it_reads_of_long_and_foreign_words():
    tables = fitted(("text_intent",), encoder="bert,lexical")
    recommender = serve(tables)
    with pytest.warns(DataWarning, match="rests on bert alone"):
        found = recommender.recommend_for(intent="ein Messer für die Küche", k=5)
    assert sum(int(name[1:]) % 3 == 1 for name in found["item_id"]) >= 4
    with pytest.warns(DataWarning, match=r"bert reads the first \d+ of its 5,000 words"):
        recommender.recommend_for(intent=" ".join(["red coat"] * 2500))


FORGETFUL = {f"{name}_history_decay": 0.3 for name in ("als", "lightfm", "item_item", "text_map")}


@pytest.fixture(scope="module")
def forgetful():
    return fitted(**FORGETFUL, text_intent_history_decay=0.3)


def kinds(found):
    return [int(name[1:]) % 3 for name in found["item_id"]]


def test_a_visitors_list_follows_the_last_click(forgetful):
    recommender = serve(forgetful)
    for liked, last in ((["i3", "i6", "i4", "i7"], 1), (["i4", "i7", "i3", "i6"], 0)):
        found = kinds(recommender.recommend_for(liked=liked, k=6))
        assert found.count(last) > found.count(1 - last)
    lists = [
        tuple(recommender.recommend_for(liked=liked, k=8, exclude_known=False)["item_id"])
        for liked in (["i3", "i4"], ["i4", "i3"], ["i3", "i4", "i3"])
    ]
    assert lists[0] != lists[1]
    assert lists[1] == lists[2], "what was liked again is the last one liked"


def test_a_users_likes_are_later_than_her_history_which_keeps_its_ages(forgetful):
    item = 8
    recommender, user = serve(forgetful), 4
    own = forgetful.known[[user]]
    row = slice(*forgetful.known.indptr[user : user + 2])
    age = np.zeros(N_ITEMS, np.int32)
    age[own.indices] = forgetful.age[row] + 1
    age[item] = 0
    counts = own.toarray()
    counts[0, item] = max(counts[0, item], 1)
    weights = sp.csr_matrix(counts)
    history = History(weights, age[weights.indices])
    rows = user_rows(forgetful.newcomers, forgetful.blocks, history)
    expected = sum(r @ b.items.T for r, b in zip(rows, forgetful.blocks, strict=True))
    found = recommender.recommend_for(
        user=f"u{user}", liked=[f"i{item}"], k=N_ITEMS, exclude_known=False
    )
    places = [int(name[1:]) for name in found["item_id"]]
    np.testing.assert_allclose(found["score"], np.asarray(expected).ravel()[places], atol=1e-4)


def test_rows_of_grown_histories_stand_in_the_place_of_the_old_ones(saved):
    users = np.array([2, 5])
    history = History(saved.known, saved.age)[users].then([3, 7])
    blocks = with_histories(saved.newcomers, saved.blocks, users, history)
    expected = user_rows(saved.newcomers, saved.blocks, history)
    others = np.setdiff1d(np.arange(N_USERS), users)
    for block, before, rows in zip(blocks, saved.blocks, expected, strict=True):
        difference = abs(block.users[users] - rows)
        assert difference.max() < 1e-5
        assert abs(block.users[others] - before.users[others]).sum() == 0
        assert block.items is before.items
