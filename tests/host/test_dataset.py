"""What RecBole's processing loses is kept: the file's own weights and times, and the words."""

import numpy as np
import pytest
from recbole.data import create_dataset, data_preparation

from recbole_llm.errors import DataError, SettingsError
from recbole_llm.host.run import read_config
from recbole_llm.model_settings import read_model_settings

# 128 s apart: float32, which RecBole holds times in, cannot tell them apart at this size.
START = 1_700_000_000
ROWS = [
    ("u1", "i1", 5, "click", START + 2),
    ("u1", "i2", 1, "cart", START + 1),
    ("u1", "i3", 3, "purchase", START),
    ("u1", "i3", 4, "click", START + 3),
    ("u2", "i1", 2, "click", START),
    ("u2", "i4", 2, "purchase", START + 9),
]
SETTINGS = """
load_col: {inter: [user_id, item_id, rating, timestamp]}
normalize_all: true
eval_args: {split: {RS: [1, 0, 0]}, order: RO, group_by: none, mode: full}
topk: [2]
"""


@pytest.fixture
def training_part(tmp_path, monkeypatch):
    """Writes rows, loads them by RecBole, and gives the training part and its settings."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.yaml").write_text(SETTINGS)
    (folder / "shop.item").write_text(
        "item_id:token\ttitle:token_seq\ni1\tred coat\ni2\tsteel knife\ni4\twool hat\n"
    )
    (folder / "shop.user").write_text("user_id:token\tjob:token\nu1\twriter\nu2\tdoctor\n")

    def load(rows=ROWS, **settings):
        head = "user_id:token\titem_id:token\trating:float\tkind:token\ttimestamp:float"
        lines = [head, *("\t".join(map(str, row)) for row in rows)]
        (folder / "shop.inter").write_text("\n".join(lines) + "\n")
        config = read_config("HybridFusion", "shop", [], {"data_path": str(tmp_path), **settings})
        data = create_dataset(config)
        train, _, _ = data_preparation(config, data)
        return train.dataset, read_model_settings(None, settings)

    return load


def weights_of(part):
    """``user item`` -> weight, by the file's own ids."""
    matrix = part.training_matrix().tocoo()
    users = part.id2token("user_id", matrix.row)
    items = part.id2token("item_id", matrix.col)
    return {f"{u} {i}": w for u, i, w in zip(users, items, matrix.data.tolist(), strict=True)}


def test_each_interaction_counts_one_and_repeats_add_up(training_part):
    part, _ = training_part()
    assert weights_of(part) == {
        "u1 i1": 1,
        "u1 i2": 1,
        "u1 i3": 2,
        "u2 i1": 1,
        "u2 i4": 1,
    }


def test_weights_are_the_files_own_and_not_the_scaled_ones(training_part):
    part, _ = training_part(interaction_weight_field="rating")
    assert float(part.inter_feat["rating"].max()) <= 1.0  # RecBole has scaled them
    assert weights_of(part) == {"u1 i1": 5, "u1 i2": 1, "u1 i3": 7, "u2 i1": 2, "u2 i4": 2}


@pytest.mark.parametrize(
    "behaviours", [{"click": 1, "cart": 3, "purchase": 5}, "click:1,cart:3,purchase:5"]
)
def test_behaviours_count_what_the_user_says(training_part, behaviours):
    part, _ = training_part(interaction_weight_field="kind", behaviour_weights=behaviours)
    assert weights_of(part) == {"u1 i1": 1, "u1 i2": 3, "u1 i3": 6, "u2 i1": 1, "u2 i4": 5}


def test_a_behaviour_without_a_weight_is_named(training_part):
    with pytest.raises(SettingsError, match="no weight for: purchase"):
        training_part(interaction_weight_field="kind", behaviour_weights="click:1,cart:3")


def test_words_need_behaviour_weights(training_part):
    with pytest.raises(SettingsError, match="`behaviour_weights`"):
        training_part(interaction_weight_field="kind")


def test_a_weight_that_is_no_number_is_an_error_and_not_the_mean(training_part):
    with pytest.raises(DataError, match="`rating` is no number in 1 rows, the first is row 2"):
        training_part([ROWS[0], ("u1", "i2", "", "cart", START), *ROWS[2:]])


def test_the_order_is_that_of_the_files_own_times(training_part):
    part, settings = training_part()
    data, _ = part.training_data(settings)
    user = part.token2id("user_id", "u1")
    row = slice(*data.interactions.indptr[user : user + 2])
    items = part.id2token("item_id", data.interactions.indices[row])
    assert dict(zip(items, data.age[row].tolist(), strict=True)) == {"i3": 0, "i1": 1, "i2": 2}


def test_texts_stand_at_their_items_and_users(training_part):
    part, settings = training_part(user_text_fields="job")
    data, user_texts = part.training_data(settings)
    texts = {
        item: data.item_texts[part.token2id("item_id", item)] for item in ("i1", "i2", "i3", "i4")
    }
    assert texts == {"i1": "red coat", "i2": "steel knife", "i3": "", "i4": "wool hat"}
    assert data.item_texts[0] == ""
    assert "writer" in user_texts[part.token2id("user_id", "u1")]
    assert user_texts[0] == ""


def test_full_ranking_scores_many_users_at_once(training_part):
    part, _ = training_part()
    assert part.config["eval_batch_size"] >= part.item_num * part.user_num
    assert np.isfinite(part.raw_times).all()
