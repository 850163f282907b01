"""Models of tables that predict clicks and ratings."""

import logging

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model

import recbole_llm
from recbole_llm.errors import SettingsError
from recbole_llm.newcomers import user_rows
from recbole_llm.saved_tables import read_tables
from recbole_llm.serving import Recommender
from recbole_llm.testing.models import fitted
from recbole_llm.training_data import History

QUICK = {
    "encoder": "lexical",
    "embedding_cache": "none",
    "signal_search_trials": 0,
    "show_progress": False,
    "state": "INFO",
}
CLICKS = {"task": "clicks", "threshold": {"rating": 4}}


def run(data_path, folder, monkeypatch, model="HybridFusion", **settings):
    monkeypatch.chdir(folder)  # RecBole writes its logs there
    place = {"data_path": str(data_path), "checkpoint_dir": str(folder)}
    return recbole_llm.run(model, "taste", config_dict={**place, **quick(model), **settings})


def quick(model):
    unread = ("encoder", "embedding_cache") if model in ("ALS", "LightFM") else ()
    return {key: value for key, value in QUICK.items() if key not in unread}


@pytest.mark.parametrize("normalised", [False, True])
def test_ratings_are_predicted_on_the_datas_own_scale(
    data_path, tmp_path, monkeypatch, caplog, normalised
):
    settings = {"task": "ratings", "normalize_all": normalised}
    with caplog.at_level(logging.INFO):
        result = run(data_path, tmp_path, monkeypatch, **settings)
    assert result["test_result"]["rmse"] < 0.8  # of ratings whose standard deviation is 1.8
    assert result["test_result"]["mae"] > 0.1
    assert any("with all signals: rmse" in line for line in caplog.messages)


def test_clicks_are_predicted_as_calibrated_chances(data_path, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        result = run(data_path, tmp_path, monkeypatch, **CLICKS)
    assert result["test_result"]["auc"] > 0.95
    assert result["test_result"]["logloss"] < 0.35
    assert sum("calibration error" in line for line in caplog.messages) == 2


@pytest.mark.parametrize(
    ("model", "settings"),
    [("ALS", {"als_regularization": 0.1, "als_factors": 8}), ("LightFM", {}), ("TextIntent", {})],
)
def test_a_single_signal_predicts_ratings_too(data_path, tmp_path, monkeypatch, model, settings):
    result = run(data_path, tmp_path, monkeypatch, model, task="ratings", **settings)
    assert result["test_result"]["rmse"] < 1.5  # of ratings whose standard deviation is 1.8


@pytest.mark.parametrize("task", [CLICKS, {"task": "ratings"}])
def test_predictions_are_what_the_scores_say_and_a_checkpoint_keeps_them(
    data_path, tmp_path, monkeypatch, task
):
    monkeypatch.chdir(tmp_path)
    model, data, _, checkpoint = fitted(
        "HybridFusion", "taste", data_path, tmp_path, **QUICK, **task
    )
    users = torch.arange(1, data.user_num)
    items = users % (data.item_num - 1) + 1
    asked = Interaction({data.uid_field: users, data.iid_field: items})
    found = model.predict(asked).numpy()
    scores = model.full_sort_predict(asked).view(len(users), -1)
    for number, user in enumerate(users):
        total = scores[number, items[number]] + model.prediction.user_terms[user]
        expected = 1 / (1 + np.exp(-total)) if "threshold" in task else min(5, max(1, total))
        assert found[number] == pytest.approx(float(expected), rel=1e-4)
    assert (found > (0.5 if "threshold" in task else 3)).any()
    _, again, *_ = load_data_and_model(str(checkpoint))
    np.testing.assert_array_equal(again.predict(asked).numpy(), found)


def test_a_model_of_ratings_serves_what_it_predicts_and_folds_in_by_likes_and_dislikes(
    data_path, tmp_path, monkeypatch
):
    run(data_path, tmp_path, monkeypatch, task="ratings", signals="item_item,text_intent")
    tables = read_tables(next(tmp_path.glob("*.pth")))
    assert {signal.side for signal in tables.newcomers.signals} == {"", "liked", "disliked"}
    assert min(signal.gain for signal in tables.newcomers.signals) < 0
    users = np.flatnonzero(tables.user_counts)
    history = History(tables.known, tables.age)[users]
    rows = user_rows(tables.newcomers, tables.blocks, history)
    found = sum(r @ block.items.T for r, block in zip(rows, tables.blocks, strict=True))
    expected = sum(block.scores(users) for block in tables.blocks)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    recommender = Recommender(tables, device="cpu")
    best = recommender.recommend_for(liked=["i0", "i2"], k=5)["item_id"]
    assert all(int(item[1:]) % 2 == 0 for item in best)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "clicks"}, "`task: clicks` needs clicks.*`threshold`"),
        ({"task": "ratings", "load_col": {"inter": ["user_id", "item_id"]}}, "needs ratings"),
        ({"task": "ratings", "metrics": ["NDCG"]}, "`task: ratings` is measured by RMSE, MAE"),
        ({"task": "stars"}, "`task` must be one of ranking, clicks, ratings"),
        ({"task": "ratings", "fusion_weights": "als:1"}, "`fusion_weights` is for `task: ranking`"),
        (
            {"task": "ratings", "eval_args": {"split": {"RS": [9, 0, 1]}}},
            "fitted on validation rows",
        ),
        ({"signals": "als,intent_tower", "loss": "mse"}, "among `signals` the tower ranks: write"),
    ],
)
def test_a_wrong_setting_is_named(data_path, tmp_path, monkeypatch, settings, message):
    with pytest.raises(SettingsError, match=message):
        run(data_path, tmp_path, monkeypatch, **settings)


def test_the_towers_loss_says_what_it_predicts(data_path, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="unknown setting `task`"):
        run(data_path, tmp_path, monkeypatch, "IntentTower", task="ratings")


def test_a_tower_among_the_signals_is_weighed_for_ratings_too(data_path, tmp_path, monkeypatch):
    settings = {"task": "ratings", "signals": "popularity,intent_tower"}
    result = run(data_path, tmp_path, monkeypatch, **settings)
    alone = run(data_path, tmp_path, monkeypatch, task="ratings", signals="popularity")
    assert result["test_result"]["rmse"] < alone["test_result"]["rmse"]
