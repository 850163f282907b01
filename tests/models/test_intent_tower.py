"""IntentTower beyond the contract: what it learns, what it writes, and what it refuses."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch

import recbole_llm
from recbole_llm.cli import recbole_llm_command
from recbole_llm.errors import DataError, FitError, SettingsError
from recbole_llm.saved_tables import read_tables
from recbole_llm.serving import Recommender
from recbole_llm.text_network import TextNetwork

QUICK = {
    "encoder": "lexical",
    "embedding_cache": "none",
    "epochs": 12,
    "train_batch_size": 256,
    "learning_rate": 0.02,
    "intent_tower_dimensions": 16,
    "show_progress": False,
    "state": "INFO",
}
WORDS = ["red wool coat", "steel kitchen knife"]
TUNED = {"finetune_head_epochs": 1, "finetune_batch_items": 20}


def run(data_path, folder, monkeypatch, **settings):
    monkeypatch.chdir(folder)  # RecBole writes its logs there
    place = {"data_path": str(data_path), "checkpoint_dir": str(folder)}
    return recbole_llm.run("IntentTower", "taste", config_dict={**place, **QUICK, **settings})


@pytest.mark.parametrize("normalised", [False, True])
def test_ratings_are_learned_on_the_datas_own_scale(data_path, tmp_path, monkeypatch, normalised):
    result = run(data_path, tmp_path, monkeypatch, loss="mse", normalize_all=normalised)
    assert result["test_result"]["rmse"] < 1.0  # of ratings whose standard deviation is 1.8
    assert result["test_result"]["mae"] > 0.2


def test_clicks_are_learned_as_calibrated_chances(data_path, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        result = run(data_path, tmp_path, monkeypatch, loss="bce", threshold={"rating": 4})
    assert result["test_result"]["auc"] > 0.9
    assert result["test_result"]["logloss"] < 0.5
    assert any("calibration error on the validation part" in line for line in caplog.messages)


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_what_users_say_of_themselves_and_texts_alone_rank(data_path, tmp_path, monkeypatch, loss):
    result = run(
        data_path,
        tmp_path,
        monkeypatch,
        loss=loss,
        val_interval={"rating": "[4,inf)"},
        user_text_fields="words",
        intent_tower_identities=False,
    )
    assert result["test_result"]["recall@10"] > 0.5  # 0.25 by chance


def test_a_visitor_of_a_model_of_ratings_gets_what_is_like_her_likes(
    data_path, tmp_path, monkeypatch
):
    run(data_path, tmp_path, monkeypatch, loss="mse")
    recommender = Recommender.load(next(tmp_path.glob("*.pth")))
    found = recommender.recommend_for(liked=["i0", "i2"], k=5)
    assert np.isfinite(found["score"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "bce"}, "`loss: bce` needs clicks.*`threshold`"),
        ({"loss": "mse", "load_col": {"inter": ["user_id", "item_id"]}}, "`loss: mse` needs rat"),
        ({"loss": "mse", "metrics": ["NDCG"]}, "`metrics` holds NDCG"),
        ({"loss": "hinge"}, "`loss` must be one of"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"loss_type": "CE"}, "`loss_type` is for other models of RecBole; write `loss`"),
        ({"loss": "bce", "LABEL_FIELD": "rating"}, "learns clicks, 0 or 1, and `rating` holds"),
        ({"finetune": "full"}, "`encoder` has lexical; name `bert`"),
        ({"finetune": "full", "encoder_backend": "onnx"}, "`finetune: full` trains by torch"),
        ({"intent_tower_epochs": 3}, "unknown setting `intent_tower_epochs`"),
        ({"augment": "atributes"}, "did you mean `attributes`"),
        ({"augment": "attributes", "item_text_fields": "[]"}, "varies the items' texts, and none"),
        (
            {"augment": "back_translation", "translator": {"to": "gone/there", "back": "gone"}},
            "`translator`: the folder gone/there of `to` does not exist",
        ),
    ],
)
def test_a_wrong_setting_is_named(data_path, tmp_path, monkeypatch, settings, message):
    with pytest.raises(SettingsError, match=message):
        run(data_path, tmp_path, monkeypatch, **settings)


def test_a_lost_loss_stops_with_its_step_and_keeps_the_last_checkpoint(
    data_path, tmp_path, monkeypatch
):
    from recbole_llm.tower_network import Tower

    lawful, calls = Tower.loss, []

    def loss(tower, users, items):
        calls.append(users)
        return lawful(tower, users, items) * (float("nan") if len(calls) > 12 else 1.0)

    monkeypatch.setattr(Tower, "loss", loss)
    kept = r"the loss is nan at step \d+ of epoch [1-9].* is kept in .*\.pth"
    with pytest.raises(FitError, match=kept):
        run(data_path, tmp_path, monkeypatch)
    (checkpoint,) = set(tmp_path.glob("*.pth")) - set(tmp_path.glob("*.last.pth"))
    assert np.isfinite(read_tables(checkpoint).blocks[0].items).all()


@pytest.mark.parametrize("kind", ["last_n", "full"])
def test_a_tuned_encoder_serves_new_words_wherever_the_folder_was_moved(
    data_path, tmp_path, monkeypatch, capsys, tiny_bert, kind
):
    saved = tmp_path / "saved"
    saved.mkdir()
    settings = {**TUNED, "encoder": f"lexical,bert:{tiny_bert}", "finetune": kind, "epochs": 2}
    run(data_path, saved, monkeypatch, **settings, user_text_fields="words")
    moved = saved.rename(tmp_path / "moved")
    (folder,) = moved.glob("*.encoder")
    assert list(folder.glob("*.safetensors"))
    checkpoint = next(moved.glob("*.pth"))
    place = ["recommend", "--checkpoint", str(checkpoint), "--k=5", "--json"]
    assert not recbole_llm_command([*place, "--intent", "a warm red coat"])
    assert len(json.loads(capsys.readouterr().out)[0]["items"]) == 5
    recommender = Recommender.load(checkpoint)
    found = recommender.recommend_for(user="u0", liked=["i0", "i2"], new_items=["red coat"], k=5)
    assert np.isfinite(found["score"]).all()
    assert recommender.tables.newcomers.own_texts.keys() == {"lexical", f"bert:{tiny_bert}"}
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="keep it beside the tables"):
        Recommender.load(checkpoint).recommend_for(intent="a warm red coat")


def test_lora_on_modules_that_the_encoder_does_not_have_names_those_that_it_has(
    data_path, tmp_path, monkeypatch, tiny_bert
):
    pytest.importorskip("peft")
    settings = {**TUNED, "encoder": f"bert:{tiny_bert}", "finetune": "lora"}
    with pytest.raises(SettingsError, match="no c_attn; it has dense, key, query, value"):
        run(data_path, tmp_path, monkeypatch, **settings, lora_modules="c_attn")


def test_a_full_memory_says_which_settings_lower_it(data_path, tmp_path, monkeypatch, tiny_bert):
    def forward(self, items):
        return torch.zeros(1 << 50)  # what torch itself refuses

    monkeypatch.setattr(TextNetwork, "forward", forward)
    settings = {**TUNED, "encoder": f"bert:{tiny_bert}", "finetune": "full"}
    with pytest.raises(FitError, match=r"memory is full; lower `train_batch_size`, .*batch_items"):
        run(data_path, tmp_path, monkeypatch, **settings)


AUGMENTED = {"item_text_fields": "title,for", "augment": "attributes,dropout_fields,crop_history"}


def test_augmented_texts_are_learned_from_and_none_is_served(data_path, tmp_path, monkeypatch):
    result = run(data_path, tmp_path, monkeypatch, **AUGMENTED, val_interval={"rating": "[4,inf)"})
    assert result["test_result"]["recall@10"] > 0.4  # 0.25 by chance
    tables = read_tables(next(tmp_path.glob("*.pth")))
    assert set(tables.item_texts[1:]) == {
        f"{WORDS[item % 2]} {item}. {['winter', 'cooking'][item % 2]}" for item in range(40)
    }


def test_texts_of_one_field_stay_as_they_are_and_it_is_said(
    data_path, tmp_path, monkeypatch, caplog
):
    plain = run(data_path, tmp_path, monkeypatch, epochs=2)
    with caplog.at_level(logging.WARNING):
        varied = run(data_path, tmp_path, monkeypatch, epochs=2, augment="attributes")
    assert sum("are `title` alone: they stay" in line for line in caplog.messages) == 1
    assert varied["record"]["test"] == plain["record"]["test"]


def test_there_and_back_is_learned_from(data_path, tmp_path, monkeypatch, translators):
    pair = {"to": str(translators[0]), "back": str(translators[1])}
    plain, varied = (
        run(data_path, tmp_path, monkeypatch, epochs=3, **augment)
        for augment in ({}, {"augment": "back_translation", "translator": pair})
    )
    assert varied["record"]["test"] != plain["record"]["test"]


def test_a_translator_that_fails_is_done_without_and_it_is_said_once(
    data_path, tmp_path, monkeypatch, caplog
):
    (tmp_path / "broken").mkdir()
    pair = {"to": str(tmp_path / "broken"), "back": str(tmp_path)}
    plain = run(data_path, tmp_path, monkeypatch, epochs=2)
    with caplog.at_level(logging.WARNING):
        varied = run(
            data_path, tmp_path, monkeypatch, epochs=2, augment="back_translation", translator=pair
        )
    failed = [line for line in caplog.messages if "so the run goes on without back_trans" in line]
    assert len(failed) == 1
    assert "\n" not in failed[0]
    assert varied["record"]["test"] == plain["record"]["test"]


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "varied",
    [{}, AUGMENTED, {"finetune": "last_n", **AUGMENTED}],
    ids=["frozen", "augmented", "last_n"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_result(
    data_path, tmp_path, monkeypatch, tiny_bert, varied
):
    settings = {**TUNED, **varied, "encoder": f"bert:{tiny_bert}", "epochs": 4}
    # Rates that rise over an epoch and move the encoder far, so that a lost one would be seen.
    settings |= {"finetune_warm_up": 1.0, "finetune_learning_rate": 0.01}
    whole = run(data_path, tmp_path, monkeypatch, **settings, stopping_step=10)
    folder = tmp_path / "stopped"
    folder.mkdir()

    def kill(epoch, score):
        if epoch == 2:
            raise _Killed

    place = {"data_path": str(data_path), "checkpoint_dir": str(folder)}
    values = {**place, **QUICK, **settings, "stopping_step": 10}
    with pytest.raises(_Killed):
        recbole_llm.run("IntentTower", "taste", config_dict=values, after_epoch=kill)
    (last,) = folder.glob("*.last.pth")
    resumed = run(data_path, folder, monkeypatch, **settings, stopping_step=10, resume=str(last))
    assert resumed["record"]["test"] == whole["record"]["test"]
    assert resumed["best_valid_score"] == whole["best_valid_score"]
    assert not list(folder.glob("*.last.pth"))


def test_a_file_to_resume_that_is_none_is_named(data_path, tmp_path, monkeypatch):
    for name, content in (("nowhere.last.pth", None), ("damaged.last.pth", b"no checkpoint")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingsError, match=f"`resume`: .*{name}"):
            run(data_path, tmp_path, monkeypatch, resume=name)
    run(data_path, tmp_path, monkeypatch, epochs=1)
    (saved,) = set(tmp_path.glob("IntentTower*.pth"))
    with pytest.raises(SettingsError, match="is no checkpoint of a run of these settings"):
        run(data_path, tmp_path, monkeypatch, resume=str(saved), intent_tower_dimensions=8)
