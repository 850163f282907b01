"""Every registered model keeps the contract."""

import numpy as np
import pytest
from recbole.utils import ModelType

from recbole_llm.models import MODELS
from recbole_llm.serving import Recommender
from recbole_llm.testing.models import check_model

QUICK = {
    "signal_search_trials": 2,
    "weight_trials": 5,
    "encoder": "lexical",
    "sequence_dimensions": 8,
    "sequence_epochs": 2,
}


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """60 users, 30 items with titles, two tastes; i29 has no title, i28 no interaction."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "shop"
    folder.mkdir()
    rows = [
        f"u{user}\ti{item}\t{rng.integers(1, 6)}\t{user * 100 + item}"
        for user in range(60)
        for item in rng.choice(28, 9, replace=False)
        if (user + item) % 2 or rng.random() < 0.2
    ]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "shop.inter").write_text("\n".join([head, *rows]) + "\n")
    titles = [
        f"i{item}\t{['red wool coat', 'steel kitchen knife'][item % 2]}" for item in range(29)
    ]
    (folder / "shop.item").write_text(
        "\n".join(["item_id:token\ttitle:token_seq", *titles, "i29\t"]) + "\n"
    )
    (folder / "shop.yaml").write_text(
        "load_col:\n  inter: [user_id, item_id, rating, timestamp]\n  item: [item_id, title]\n"
    )
    return folder.parent


@pytest.mark.parametrize("name", MODELS)
def test_model_keeps_the_contract(name, data_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # RecBole writes its logs there
    own = {key.name for key in MODELS[name].setting_keys()}
    quick = {key: value for key, value in QUICK.items() if key in own}
    if MODELS[name].type == ModelType.SEQUENTIAL:
        quick |= {"epochs": 3, "train_batch_size": 64}
    check_model(name, "shop", data_path, tmp_path, **quick)


def test_a_hybrid_with_a_sequence_signal_keeps_the_contract(data_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = {"encoder": "lexical", "weight_trials": 5, "sequence_epochs": 2}
    check_model("HybridFusion", "shop", data_path, tmp_path, signals="sequence,popularity", **quick)
    recommender = Recommender.load(next(tmp_path.glob("*.pth")))
    forwards, backwards = (
        recommender.recommend_for(liked=liked, k=5)["score"].tolist()
        for liked in (["i1", "i2"], ["i2", "i1"])
    )
    assert forwards != backwards
