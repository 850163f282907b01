"""The order is the file's own, and what users are known by at test time follows it."""

import json
import logging
from collections import defaultdict

import numpy as np
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer

from recbole_llm.errors import DataError, SettingsError
from recbole_llm.host import quirks, run
from recbole_llm.host.run import read_config
from recbole_llm.model_settings import read_model_settings
from recbole_llm.models import MODELS
from recbole_llm.signals.next_item import NextItemSignal
from recbole_llm.training_data import History

# A second apart: float32, which RecBole holds times in, rounds them to 128 s at this size.
START = 1_700_000_000
LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
RANDOM = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "none"}
QUICK = {
    "signal_search_trials": 0,
    "weight_trials": 5,
    "encoder": "lexical",
    "embedding_cache": "none",
    "als_factors": 8,
    "als_regularization": 1.0,
    "lightfm_learning_rate": 0.1,
    "text_map_epochs": 1,
    "item_item_regularization": 5.0,
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Writes rows (user, item, when) in any order and loads them by RecBole."""
    monkeypatch.chdir(tmp_path)
    quirks.apply()
    (tmp_path / "shop").mkdir()

    def load(rows, field="timestamp:float", eval_args=LEAVE_ONE_OUT, **settings):
        lines = [f"user_id:token\titem_id:token\t{field}"]
        # A user whose items nobody else has: RecBole refuses who has them all.
        rows = [*rows, ("w", "other", *[1] * (field.count(":")))]
        lines += ["\t".join(map(str, row)) for row in rows]
        (tmp_path / "shop" / "shop.inter").write_text("\n".join(lines) + "\n")
        values = {
            "data_path": str(tmp_path),
            "eval_args": {**eval_args, "mode": "full"},
            "load_col": None,
        }
        config = read_config("HybridFusion", "shop", [], {**values, "topk": [2], **settings})
        return [
            loader and loader._dataset
            for loader in data_preparation(config, create_dataset(config))
        ]

    return load


def shuffled(rows):
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]


def items_of(part):
    """User -> her items in a part, in its order."""
    feat, found = part.inter_feat, defaultdict(list)
    users = part.id2token("user_id", feat["user_id"].numpy())
    for user, item in zip(users, part.id2token("item_id", feat["item_id"].numpy()), strict=True):
        found[user].append(item)
    return dict(found)


def ages_of(part):
    """(user, item) -> age; None where there is no order."""
    data, _ = part.training_data(read_model_settings(("als",), {}))
    if data.age is None:
        return None
    pairs = data.interactions.tocoo()
    users, items = part.id2token("user_id", pairs.row), part.id2token("item_id", pairs.col)
    return dict(zip(zip(users, items, strict=True), data.age.tolist(), strict=True))


def test_leave_one_out_leaves_the_last_second_out(shop):
    rows = [(f"u{user}", f"i{item}", START + item) for user in range(9) for item in range(7)]
    train, valid, test = shop(shuffled(rows))
    for user in range(9):
        assert items_of(train)[f"u{user}"] == [f"i{item}" for item in range(5)]
        assert items_of(valid)[f"u{user}"] == ["i5"]
        assert items_of(test)[f"u{user}"] == ["i6"]
    expected = {(f"u{u}", f"i{i}"): 4 - i for u in range(9) for i in range(5)}
    assert ages_of(train) == {**expected, ("w", "other"): 0}
    assert valid.comes_after(train)
    assert test.earlier == (train, valid)


def test_rows_of_one_moment_are_split_in_the_files_order_and_share_an_age(shop):
    rows = [("u", f"i{item}", START + item // 3) for item in range(9)]
    rows += [(f"v{other}", "i0", START) for other in range(40)]
    train, valid, test = shop(rows)
    assert items_of(train)["u"] == [f"i{item}" for item in range(7)]
    assert items_of(valid)["u"] + items_of(test)["u"] == ["i7", "i8"]
    ages = ages_of(train)
    assert [ages["u", f"i{item}"] for item in range(7)] == [2, 2, 2, 1, 1, 1, 0]


def test_removed_repeats_leave_ties_in_the_files_order(shop):
    rows = [("u", f"i{item}", START) for item in range(30)]
    rows = [*rows, *(("v", f"i{item}", START) for item in range(30)), ("u", "i3", START)]
    train, valid, test = shop(rows, rm_dup_inter="first")
    assert items_of(train)["u"] == [f"i{item}" for item in range(28)]
    assert items_of(valid)["u"] + items_of(test)["u"] == ["i28", "i29"]


def test_a_position_is_the_order_where_there_is_no_time(shop):
    rows = [("u", f"i{item}", item) for item in range(6)] + [("v", "i0", 0), ("v", "i1", 5)]
    train, _, test = shop(shuffled(rows), "position:float")
    assert items_of(train)["u"] == ["i0", "i1", "i2", "i3"]
    assert items_of(test) == {"u": ["i5"], "v": ["i1"]}


def test_the_field_that_the_user_names_is_the_order(shop):
    rows = [("u", f"i{item}", 9 - item, item) for item in range(6)]
    given = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "order_field": "step"}
    train, _, test = shop(rows, "timestamp:float\tstep:float", **given)
    assert items_of(test)["u"] == ["i5"]
    assert ages_of(train)["u", "i3"] == 0


@pytest.mark.parametrize("field", ["timestamp", "position"])
def test_a_split_by_order_loads_what_the_order_is_in(shop, field):
    rows = [("u", f"i{item}", item) for item in range(6)]
    _, _, test = shop(shuffled(rows), f"{field}:float", load_col={"inter": ["user_id", "item_id"]})
    assert items_of(test)["u"] == ["i5"]


def test_a_split_by_order_without_one_names_the_fields(shop):
    with pytest.raises(SettingsError, match=r"shop\.inter has no field `timestamp`.*`order_field`"):
        shop([("u", f"i{item}", item) for item in range(6)], "when:float")


@pytest.mark.parametrize(
    ("field", "rows", "said"),
    [
        ("stap:float", [("u", "i1", 1)], "has no field `step`; .*did you mean `stap`"),
        ("step:token", [("u", "i1", "a"), ("u", "i2", "b")], "`step` holds words"),
    ],
)
def test_a_field_that_is_no_order_is_named(shop, field, rows, said):
    with pytest.raises(SettingsError, match=f"`order_field`.*{said}"):
        shop(rows, field, order_field="step")


def test_a_position_that_is_no_number_is_named(shop):
    with pytest.raises(DataError, match="`position` is no number in 1 rows"):
        shop([("u", "i1", 1), ("u", "i2", ""), ("u", "i3", 2)], "position:float", RANDOM)


def test_gaps_count_nothing_and_positions_that_begin_anew_are_moments_of_several_items(shop):
    rows = [("u", f"i{item}", 1000 * item) for item in range(4)]
    rows += [("v", f"i{item}", item % 2) for item in range(4)]  # two visits, counted from 0
    everything = {**RANDOM, "split": {"RS": [1, 0, 0]}}
    ages = ages_of(shop(rows, "position:float", everything)[0])
    assert [ages["u", f"i{item}"] for item in range(4)] == [3, 2, 1, 0]
    assert [ages["v", f"i{item}"] for item in range(4)] == [1, 0, 1, 0]


@pytest.mark.parametrize("field", ["timestamp:float", "price:float"])
def test_one_moment_for_all_and_no_field_at_all_are_no_order(shop, field):
    rows = [(f"u{user}", f"i{item}", START) for user in range(9) for item in range(7)]
    train, valid, _ = shop(rows, field, RANDOM)
    assert ages_of(train) is None
    assert train.known_pairs()[1] is None
    if field == "price:float":
        assert not valid.comes_after(train)


def test_a_random_split_is_not_later(shop):
    rows = [(f"u{user}", f"i{item}", item) for user in range(30) for item in range(20)]
    train, valid, _ = shop(rows, eval_args=RANDOM)
    assert not valid.comes_after(train)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """60 users who go from item to item; titles of two kinds."""
    folder = tmp_path_factory.mktemp("data") / "steps"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for user in range(60):
        start, n = rng.integers(24), rng.integers(4, 9)
        walk = dict.fromkeys((start + step * rng.integers(1, 3)) % 24 for step in range(n))
        rows += [f"u{user}\ti{item}\t{START + when}" for when, item in enumerate(walk)]
    rows += [f"once{user}\ti{user}\t{START}" for user in range(5)]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    rows.append(f"w\tother\t{START}")
    (folder / "steps.inter").write_text("\n".join([head, *shuffled(rows)]) + "\n")
    titles = [
        f"i{item}\t{['red wool coat', 'steel kitchen knife'][item % 2]}" for item in range(24)
    ]
    (folder / "steps.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *titles]))
    users = [f"u{user}\t{['knife', 'coat'][user % 2]}" for user in range(60)]
    users += ["w\t", *(f"once{user}\t" for user in range(5))]
    (folder / "steps.user").write_text("\n".join(["user_id:token\tjob:token", *users]) + "\n")
    return folder.parent


def result_of(name, data_path, folder, eval_args=None, **settings):
    own = {key.name for key in MODELS[name].setting_keys()}
    quick = {key: value for key, value in QUICK.items() if key in own}
    values = {
        "data_path": str(data_path),
        "checkpoint_dir": str(folder),
        "result_file": str(folder / "record.json"),
        "eval_args": {**(eval_args or LEAVE_ONE_OUT), "mode": "full"},
        "load_col": None,
        "show_progress": False,
        "metric_decimal_place": 9,
    }
    done = run.run(name, "steps", config_dict={**values, **quick, **settings})
    written = json.loads((folder / "record.json").read_text())
    assert written["test_history"] == done["record"]["test_history"]
    return done


# A sequential model knows of all that came before by RecBole itself.
TABLES = [name for name, model in MODELS.items() if hasattr(model, "signal_names")]


@pytest.mark.parametrize("name", TABLES)
def test_at_test_time_users_are_known_by_validation_too(name, steps, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        both = result_of(name, steps, tmp_path)
    assert caplog.text.count("test_history: users are known by train and valid") == 1
    assert both["record"]["test_history"] == "train_and_valid"
    checkpoint, *_ = tmp_path.glob("*.pth")
    config, model, _, train, valid, test = load_data_and_model(checkpoint)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    assert trainer.evaluate(test, load_best_model=False) == both["test_result"]
    assert trainer.evaluate(valid, load_best_model=False) == both["best_valid_result"]
    again = trainer.evaluate(test, load_best_model=True, model_file=str(checkpoint))
    assert again == both["test_result"]
    checkpoint.unlink()
    alone = result_of(name, steps, tmp_path, test_history="train")
    assert alone["record"]["test_history"] == "train"
    assert alone["best_valid_result"] == both["best_valid_result"]
    assert alone["test_result"] != both["test_result"]
    # Who has no validation row is known as before.
    users, _ = test._dataset.grown_histories()
    others = np.setdiff1d(np.arange(train._dataset.user_num), users)
    assert len(others) > 1
    model.remember(test._dataset.grown_histories())
    now = model.scorer.scores(torch.from_numpy(others))
    model.remember(None)
    np.testing.assert_array_equal(now, model.scorer.scores(torch.from_numpy(others)))


def test_what_a_user_has_had_is_ranked_last_by_the_model_itself(steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result_of("ALS", steps, tmp_path)
    checkpoint, *_ = tmp_path.glob("*.pth")
    _, model, _, train, valid, test = load_data_and_model(checkpoint)
    users = torch.arange(train._dataset.user_num)
    everybody = Interaction({"user_id": users})

    def is_lowered():
        scores = model.full_sort_predict(everybody).view(len(users), -1)
        pairs = torch.cartesian_prod(users, torch.arange(scores.shape[1]))
        asked = Interaction({"user_id": pairs[:, 0], "item_id": pairs[:, 1]})
        np.testing.assert_allclose(model.predict(asked), scores.ravel(), rtol=1e-5, atol=1e-5)
        return scores.numpy() < model.scorer.scores(users).numpy() - 1

    trained = train._dataset.training_matrix().toarray() > 0
    np.testing.assert_array_equal(is_lowered(), trained)
    model.remember(test._dataset.grown_histories())
    known = trained | (valid._dataset.training_matrix().toarray() > 0)
    np.testing.assert_array_equal(is_lowered(), known)
    model.remember(None)
    np.testing.assert_array_equal(is_lowered(), trained)


@pytest.mark.parametrize(
    ("rows", "settings", "excludes"),
    [
        ([], {}, True),
        ([], {"exclude_seen": False}, False),
        ([("u0", "i0", START)], {}, False),
        ([("u0", "i0", START)], {"exclude_seen": True}, True),
    ],
)
def test_what_comes_twice_is_not_ranked_last(shop, rows, settings, excludes, caplog):
    once = [(f"u{user}", f"i{item}", START + item) for user in range(9) for item in range(7)]
    values = {"state": "INFO", **settings}
    with caplog.at_level(logging.INFO):
        train, *_ = shop([*once, *rows], **values)
        model = MODELS["ALS"](train.config, train)
    assert model.excludes_seen == excludes
    has = "histories have" if rows else "no history has"
    assert f"exclude_seen: {excludes}, {has} an item twice" in caplog.text


def test_grown_histories_are_the_earlier_parts_with_their_ages(shop):
    rows = [(f"u{user}", f"i{item}", START + item) for user in range(3) for item in range(6)]
    rows += [("once", "i0", START)]
    train, valid, test = shop(shuffled(rows))
    assert train.grown_histories() is None
    assert valid.grown_histories() is None
    users, history = test.grown_histories()
    assert sorted(test.id2token("user_id", users)) == ["u0", "u1", "u2"]
    assert isinstance(history, History)
    for row in range(3):
        part = history[[row]]
        items = test.id2token("item_id", part.weights.indices)
        ages = dict(zip(items, part.age.tolist(), strict=True))
        assert ages == {f"i{item}": 4 - item for item in range(5)}
        assert set(part.weights.data) == {1}


def test_own_texts_still_count_at_test_time(steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = [
        result_of("TextIntent", steps, tmp_path, **given)["test_result"]
        for given in ({}, {"user_text_fields": "job", "text_intent_user_text_weight": 5.0})
    ]
    assert results[0] != results[1]


def test_a_random_split_is_tested_by_training_alone(steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = result_of("ALS", steps, tmp_path, RANDOM)
    assert done["record"]["test_history"] == "train"
    assert done["record"]["signal_settings"]["als"]["history_decay"] is None


def test_the_decay_in_force_is_recorded_and_kept(steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = result_of("HybridFusion", steps, tmp_path)
    settings = done["record"]["signal_settings"]
    decays = {label: of["history_decay"] for label, of in settings.items() if "history_decay" in of}
    assert len(decays) == 6
    assert all(0 < decay <= 1 for decay in decays.values())
    assert min(decays.values()) < 1
    assert settings["next_item"]["window"] == NextItemSignal().window


def test_a_decay_out_of_range_is_named(steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (0, 1.5, -0.1):
        with pytest.raises(SettingsError, match="`als_history_decay` must be"):
            result_of("ALS", steps, tmp_path, als_history_decay=value)


def test_no_order_is_said_once(steps, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    columns = {"inter": ["user_id", "item_id"]}
    with caplog.at_level(logging.INFO):
        signals = "als,next_item,popularity"
        done = result_of("HybridFusion", steps, tmp_path, RANDOM, load_col=columns, signals=signals)
    assert caplog.text.count("have no order") == 1
    assert "next_item" not in done["record"]["signals"]
    with caplog.at_level(logging.INFO):
        result_of("ALS", steps, tmp_path, RANDOM, load_col=columns, als_history_decay=0.5)
    assert caplog.text.count("history_decay 0.5 (off: there is no order)") == 1


def test_a_history_of_one_item_repeated_is_a_history(shop):
    rows = [("u", "i1", START + step) for step in range(50)]
    rows += [(f"v{user}", f"i{item}", START + item) for user in range(9) for item in range(5)]
    train, valid, test = shop(rows)
    assert ages_of(train)["u", "i1"] == 0
    users, history = test.grown_histories()
    place = list(test.id2token("user_id", users)).index("u")
    assert history[[place]].weights.nnz == 1
    assert valid.comes_after(train)


def test_next_item_joins_where_validation_is_later_or_the_user_names_it(
    steps, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert "next_item" in result_of("HybridFusion", steps, tmp_path)["record"]["signals"]
    random = result_of("HybridFusion", steps, tmp_path, RANDOM)
    assert "next_item" not in random["record"]["signals"]
    named = result_of("HybridFusion", steps, tmp_path, RANDOM, signals="next_item,popularity")
    assert set(named["record"]["signals"]) == {"next_item", "popularity"}
