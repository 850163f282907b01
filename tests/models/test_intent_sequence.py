"""IntentSequence beyond the contract: what it learns, and data that it cannot use."""

import json
import logging

import numpy as np
import pytest
from recbole.quick_start import load_data_and_model

import recbole_llm
from recbole_llm.errors import SettingsError

QUICK = {
    "encoder": "lexical",
    "embedding_cache": "none",
    "epochs": 25,
    "learning_rate": 0.01,
    "train_batch_size": 64,
    "sequence_dimensions": 16,
    "show_progress": False,
    "state": "WARNING",
}


def circle(folder, *, times=True, titles=True, steps=7):
    """60 users who go around a circle of 15 items; the times' differences are lost in float32."""
    place = folder / "circle"
    place.mkdir()
    rows = [
        f"u{user}\ti{(user + step) % 15}" + (f"\t{1_600_000_000 + step}" if times else "")
        for user in range(60)
        for step in reversed(range(steps))
    ]
    head = "user_id:token\titem_id:token" + ("\ttimestamp:float" if times else "")
    (place / "circle.inter").write_text("\n".join([head, *rows]) + "\n")
    if titles:
        names = [f"i{item}\tnumber {item} of all" for item in range(15)]
        (place / "circle.item").write_text(
            "\n".join(["item_id:token\ttitle:token_seq", *names]) + "\n"
        )
    fields = ["user_id", "item_id", *["timestamp"] * times]
    (place / "circle.yaml").write_text(f"load_col: {{inter: [{', '.join(fields)}]}}\n")
    return folder


def run(folder, monkeypatch, **settings):
    monkeypatch.chdir(folder)  # RecBole writes its logs there
    settings = {"data_path": str(folder), "checkpoint_dir": str(folder), **QUICK, **settings}
    return recbole_llm.run("IntentSequence", "circle", config_dict=settings)


def test_it_learns_what_comes_next_from_the_files_own_times(tmp_path, monkeypatch):
    file = tmp_path / "record.json"
    run(circle(tmp_path), monkeypatch, result_file=str(file), topk=[2], valid_metric="NDCG@2")
    record = json.loads(file.read_text())
    assert record["test"]["recall@2"] > 0.6
    assert record["seconds"]["encode"] > 0
    assert record["settings"]["train_neg_sample_args"]["distribution"] == "none"


@pytest.mark.parametrize(
    ("excluded", "rounds", "line"),
    [("auto", 1, "no history has an item twice"), ("auto", 3, "histories have"), (False, 1, "")],
)
def test_items_of_a_history_are_ranked_last_where_none_comes_twice(
    tmp_path, monkeypatch, caplog, excluded, rounds, line
):
    folder = circle(tmp_path, steps=7 * rounds)
    settings = {"epochs": 1, "exclude_seen": excluded, "state": "INFO"}
    with caplog.at_level(logging.INFO):
        run(folder, monkeypatch, **settings)
    assert not line or any("exclude_seen" in said and line in said for said in caplog.messages)
    file = max(tmp_path.glob("*.pth"), key=lambda path: path.stat().st_mtime)
    _, model, _, _, _, test = load_data_and_model(str(file))
    interaction = next(iter(test))[0]
    scores = model.full_sort_predict(interaction).numpy()
    seen = np.take_along_axis(scores, interaction["item_id_list"].numpy(), axis=1)
    is_item = interaction["item_id_list"].numpy() > 0
    assert (seen[is_item] < -1.5).all() == (excluded == "auto" and rounds == 1)
    assert (scores[:, 1:] > -1.5).any(axis=1).all()


def test_without_texts_it_learns_from_the_ids_and_says_so(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        result = run(circle(tmp_path, titles=False), monkeypatch)
    assert result["test_result"]["recall@10"] > 0.8
    assert sum("from the ids alone" in line for line in caplog.messages) == 1


def test_without_an_order_it_says_which_field_is_missing(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"circle\.inter has no field `timestamp`.*`order_fie"):
        run(circle(tmp_path, times=False), monkeypatch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_heads": 3}, "sequence_heads"),
        ({"sequence_epochs": 3}, "unknown setting `sequence_epochs`"),
        ({"sequence_temperature": 0}, "sequence_temperature"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, monkeypatch, settings, message):
    with pytest.raises(SettingsError, match=message):
        run(circle(tmp_path), monkeypatch, **settings)
