"""`cold_eval` with RecBole's models and ours, on a data set with cold items and new users."""

import json
import sys

import numpy as np
import pytest

import recbole_llm
from recbole_llm.errors import SettingsError
from recbole_llm.host.cold_evaluation import training_counts

NAME = "tiny"
# u1..u12 with w1..w15 in training; c1..c3 occur in validation alone, c4..c6 in test alone.
SETTINGS = {
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": {"inter": ["user_id", "item_id"]},
    "metrics": ["Recall", "NDCG"],
    "topk": [3, 10],
    "valid_metric": "ndcg@10",
    "epochs": 1,
    "show_progress": False,
    "state": "ERROR",
    "cold_eval": True,
}
PREFIXES = ("all", "warm", "warm_in_all", "cold", "cold_in_all", "new_user", "few_user")
KEYS = {f"{part}_ndcg@{k}" for part in (*PREFIXES, "known_user") for k in (3, 10)}


def write_part(folder, part, pairs):
    lines = ["user_id:token\titem_id:token", *("\t".join(pair) for pair in pairs)]
    (folder / NAME / f"{NAME}.{part}.inter").write_text("\n".join(lines) + "\n")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    (tmp_path / NAME).mkdir()
    rng = np.random.default_rng(0)
    train = {
        f"u{u}": rng.permutation(15)[: 3 if u < 4 else 7] + 1 for u in range(1, 11)
    }  # u11 and u12 are new
    train["u1"] = [15]
    train["u10"] = range(1, 15)  # every warm item has an interaction
    write_part(tmp_path, "train", [(u, f"w{i}") for u, items in train.items() for i in items])
    for part, first in (("valid", 1), ("test", 4)):
        pairs = [(f"u{u}", f"c{first + u % 3}") for u in range(1, 13)]
        pairs += [("u1", "w3"), ("u12", "w4"), ("u11", "w5")]
        write_part(tmp_path, part, pairs)
    return tmp_path


def run(folder, model="Pop", **changes):
    return recbole_llm.run(
        model, NAME, config_dict=SETTINGS | {"data_path": str(folder)} | changes, saved=False
    )


@pytest.mark.parametrize("model", ["BPR", "Pop", "ALS"])
def test_every_model_reports_warm_and_cold_in_the_record(data, model):
    small = {"signal_search_trials": 0, "als_factors": 4} if model == "ALS" else {}
    run(data, model, result_file="record.json", **small)
    record = json.loads((data / "record.json").read_text())
    for part in ("valid", "test"):
        assert {*KEYS, "coverage@10", "cold_count@10", "ndcg@10"} <= record[part].keys()
    # Its scores do not tie, so that the order of ties makes no difference to RecBole's own.
    if model == "BPR":
        assert record["test"]["all_ndcg@10"] == pytest.approx(record["test"]["ndcg@10"])
    # Three candidates for one wanted item: it is among the first three.
    assert record["test"]["cold_recall@3"] == 1.0
    assert record["test"]["cold_ndcg@10"] != round(record["test"]["cold_ndcg@10"], 4)


def test_recboles_own_function_reports_them_with_the_log_of_the_test(data, caplog):
    from recbole.quick_start import run_recbole

    settings = SETTINGS | {"data_path": str(data), "state": "INFO", "valid_metric": "Cold_NDCG@10"}
    with caplog.at_level("INFO"):
        result = run_recbole("Pop", NAME, config_dict=settings, saved=False)
    assert result["test_result"].keys() >= KEYS
    assert result["best_valid_score"] == result["best_valid_result"]["cold_ndcg@10"]
    table = [line.split() for line in caplog.text.splitlines() if "cold_in_all " in line]
    assert len(table) == 2  # one for each cut-off, of the test part alone


def test_a_checkpoint_is_evaluated_once_the_training_part_is_collected(data):
    from recbole.quick_start import load_data_and_model
    from recbole.utils import get_trainer

    settings = SETTINGS | {"data_path": str(data)}
    expected = recbole_llm.run("BPR", NAME, config_dict=settings, saved=True)["test_result"]
    (checkpoint,) = (data / "saved").glob("BPR-*.pth")
    config, model, _, train, _, test = load_data_and_model(str(checkpoint))
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    with pytest.raises(SettingsError, match="data_collect"):
        trainer.evaluate(test, load_best_model=False)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(test, load_best_model=False) == pytest.approx(dict(expected))


def test_a_slice_without_users_is_left_out(data):
    lines = (data / NAME / f"{NAME}.test.inter").read_text().splitlines()
    kept = [line for line in lines if "\tc" not in line]
    (data / NAME / f"{NAME}.test.inter").write_text("\n".join(kept) + "\n")
    result = run(data)["test_result"]
    assert "warm_ndcg@10" in result
    assert not [key for key in result if key.startswith("cold_") and "count" not in key]


@pytest.mark.parametrize("model", ["Pop", "ALS"])
def test_a_slice_without_validation_users_cannot_be_the_objective(data, model):
    lines = (data / NAME / f"{NAME}.valid.inter").read_text().splitlines()
    kept = [line for line in lines if "\tc" not in line]
    (data / NAME / f"{NAME}.valid.inter").write_text("\n".join(kept) + "\n")
    with pytest.raises(SettingsError, match="`valid_metric` is cold_ndcg@10"):
        run(data, model, valid_metric="cold_NDCG@10")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_args": {"mode": "uni100"}}, "full ranking"),
        (
            {"eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC"},
            "full ranking",
        ),
        ({"cold_eval": "yes"}, "`cold_eval` must be true or false, got 'yes'"),
        ({"cold_eval": False, "valid_metric": "cold_NDCG@10"}, "`cold_ndcg` needs `cold_eval"),
        ({"cold_eval": False, "metrics": ["NDCG", "coverage"]}, "`coverage` needs `cold_eval"),
        ({"valid_metric": "cold_MRR@10"}, "`metrics` has no mrr"),
        ({"valid_metric": "cold_NDCG@7"}, "`topk`"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(data, changes, message):
    with pytest.raises(SettingsError, match=message) as raised:
        run(data, **changes)
    assert "\n" not in str(raised.value)


def test_without_cold_eval_nothing_changes(data):
    assert run(data, cold_eval=False)["test_result"].keys() == {
        f"{name}@{k}" for name in ("recall", "ndcg") for k in (3, 10)
    }


def test_a_sequential_model_counts_the_items_before_its_rows_too(data):
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    rng = np.random.default_rng(1)
    histories = {f"u{u}": rng.permutation(20)[: rng.integers(3, 12)] for u in range(1, 9)}
    rows = [f"{u}\ti{i}\t{t}" for u, items in histories.items() for t, i in enumerate(items)]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (data / NAME / f"{NAME}.inter").write_text("\n".join([head, *rows]) + "\n")
    changes = {
        "benchmark_filename": None,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "train_neg_sample_args": None,
        "MAX_ITEM_LIST_LENGTH": 5,
    }
    settings = SETTINGS | {"data_path": str(data)} | changes
    config = Config("GRU4Rec", NAME, config_dict=settings)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    users, items = training_counts(train.dataset)
    for user, history in histories.items():
        # The last two are those of validation and test; of a single one RecBole makes no row.
        in_training = len(history) - 2 if len(history) > 3 else 0
        assert users[dataset.token2id("user_id", user)] == in_training
    seen = {f"i{i}" for history in histories.values() if len(history) > 3 for i in history[:-2]}
    tokens = dataset.field2id_token["item_id"]
    assert {token for token, count in zip(tokens, items, strict=True) if count} == seen

    result = run(data, "GRU4Rec", **changes)["test_result"]
    assert {"all_ndcg@10", "known_user_ndcg@10", "coverage@10"} <= result.keys()


def test_the_trade_off_of_cold_items_is_plotted_where_the_user_says(data, caplog):
    pytest.importorskip("matplotlib")
    titles = [
        f"{kind}{n}\t{'red' if n % 2 else 'blue'} coat" for kind in "wc" for n in range(1, 16)
    ]
    items = "\n".join(["item_id:token\ttitle:token_seq", *titles])
    (data / NAME / f"{NAME}.item").write_text(items + "\n")
    small = {"signals": "als,popularity", "signal_search_trials": 0, "als_factors": 4}
    small |= {"encoder": "lexical", "weight_trials": 5, "exposure_plot": "curve.png"}
    run(data, "HybridFusion", **small)
    assert (data / "curve.png").read_bytes().startswith(b"\x89PNG")
    (data / "curve.png").unlink()
    run(data, "HybridFusion", **small, fusion="weighted_sum")
    assert not (data / "curve.png").exists()
    assert "`exposure_plot`: no cold item is wanted" in caplog.text
