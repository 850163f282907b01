"""The contract of a model on RecBole, for every entry of the table and for others' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import ModelType, get_model, get_trainer, init_logger, init_seed

from recbole_llm.host.run import read_config
from recbole_llm.saved_tables import SavedTables, read_tables
from recbole_llm.scoring import Scorer, lower
from recbole_llm.testing.encoders import lengths_of

_RELOAD = """
import sys
import numpy as np
import recbole_llm
from recbole_llm.testing.models import scores_of
from recbole.quick_start import load_data_and_model
_, model, data, _, _, test = load_data_and_model(sys.argv.pop(1))
np.save(sys.argv.pop(1), scores_of(model, data, test))
"""


def check_model(name: str, dataset: str, data_path: Path, folder: Path, **settings: Any) -> None:
    """All that a model promises, as assertions.

    Shapes, finite values, a padding item of score zero, a fresh tensor for every call, pairs that
    agree with rows, repeatable with one seed, inputs left as they were, and the same scores from a
    checkpoint in a fresh process. Of a model of tables also zeros before fitting and for the
    padding user, and the same scores from the tables beside the checkpoint. A sequential model
    scores for the histories of the test part, another for the users.

    Args:
        name: the model.
        dataset: a small data set.
        data_path: the folder that holds it.
        folder: where checkpoints go.
        settings: of the model, to make it quick.
    """
    model, data, test, checkpoint = fitted(name, dataset, data_path, folder, **settings)
    scores, asked = scores_of(model, data, test), asked_of(model, data, test)
    assert scores.shape == (len(asked), data.item_num)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert not scores[:, 0].any(), "the padding item must score zero"
    model.full_sort_predict(asked).fill_(-np.inf)
    np.testing.assert_array_equal(scores_of(model, data, test), scores)
    items = torch.arange(len(asked)) % data.item_num
    pairs = model.predict(Interaction({**asked.interaction, data.iid_field: items}))
    expected = scores[np.arange(len(asked)), items]
    lost = _rounding(model)
    np.testing.assert_allclose(pairs.cpu(), expected, rtol=1e-4, atol=max(1e-5, lost))

    again, *_ = fitted(name, dataset, data_path, folder, **settings)
    np.testing.assert_array_equal(scores_of(again, data, test), scores)
    np.testing.assert_allclose(
        reloaded_scores(checkpoint, folder / f"{name}.npy"), scores, rtol=1e-6, atol=1e-6
    )
    if not is_sequential(model):
        assert not scores[0].any(), "the padding user must score zero"
        _check_tables(read_tables(checkpoint), model, data, scores)


def _check_tables(tables: SavedTables, model: Any, data: Any, scores: NDArray[np.float32]) -> None:
    """What is served is the model: its scores, with the words of the data set's files."""
    served = Scorer(tables.blocks, "cpu").scores(torch.arange(data.user_num))
    if model.excludes_seen:
        lower(served, tables.known)
    np.testing.assert_array_equal(served, scores)
    assert list(tables.user_ids) == list(data.field2id_token[data.uid_field])
    assert list(tables.item_ids) == list(data.field2id_token[data.iid_field])
    assert len(tables.item_titles) == data.item_num


def _rounding(model: Any) -> float:
    """What float32 may lose of a score: the products that it is a sum of may be far larger."""
    products = (
        lengths_of(block.users).max() * lengths_of(block.items).max()
        for block in getattr(model, "blocks", ())
    )
    return float(2 * np.finfo(np.float32).eps * sum(products))


def is_sequential(model: Any) -> bool:
    """Whether RecBole's sequential pipeline runs a model."""
    return model.type == ModelType.SEQUENTIAL


def fitted(
    name: str, dataset: str, data_path: Path, folder: Path, **settings: Any
) -> tuple[Any, Any, Any, Path]:
    """A model fitted as RecBole does it: it, its data set, the test part, its checkpoint."""
    place = {"data_path": str(data_path), "checkpoint_dir": str(folder), "show_progress": False}
    config = read_config(name, dataset, [], {**place, **settings})
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    data = create_dataset(config)
    train, valid, test = data_preparation(config, data)
    before = {
        field: values.clone() for field, values in train.dataset.inter_feat.interaction.items()
    }
    model = get_model(name)(config, train.dataset).to(config["device"])
    if not is_sequential(model):
        unfitted = model.predict(Interaction({data.uid_field: [1], data.iid_field: [1]}))
        assert not unfitted.any(), "RecBole counts FLOPs before fitting: the scores must be zero"
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    trainer.fit(train, valid, saved=True, show_progress=False)
    trainer.evaluate(test)  # with the best checkpoint, which the model then is
    for field, values in before.items():
        assert torch.equal(values, train.dataset.inter_feat[field]), f"fitting changed `{field}`"
    return model, data, test, Path(trainer.saved_model_file)


def asked_of(model: Any, data: Any, test: Any) -> Interaction:
    """What a model is asked for: all users, or the histories of the test part."""
    if is_sequential(model):
        return test.dataset.inter_feat
    return Interaction({data.uid_field: torch.arange(data.user_num)})


def scores_of(model: Any, data: Any, test: Any) -> NDArray[np.float32]:
    """Scores of all that a model is asked for, for all items, float32 (n, n_items)."""
    scores = model.full_sort_predict(asked_of(model, data, test))
    return scores.cpu().numpy().reshape(-1, data.item_num)


def reloaded_scores(checkpoint: Path, file: Path) -> NDArray[np.float32]:
    """What the model of a checkpoint scores in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _RELOAD, str(checkpoint), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(file)
