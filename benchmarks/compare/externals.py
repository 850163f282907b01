"""Peers that RecBole does not have, on its split and under the same evaluator.

Those of other libraries are none of the project's dependencies: where one is not installed, its
cells say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import scipy.linalg
import torch

from recbole_llm.model_settings import read_model_settings
from recbole_llm.signals.lightfm import item_features

#: The model as which the data are loaded: one that reads texts.
HOST = "LightFM"


@dataclass(frozen=True, eq=False)
class Scored:
    """What the evaluator asks of a model."""

    scores: Any
    user_field: str
    device: torch.device = torch.device("cpu")

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores of users for all items."""
        found = self.scores(interaction[self.user_field].numpy())
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def irspack_ials(data: Any, seed: int, n_threads: int, **settings: Any) -> tuple[Any, int]:
    """Irspack's iALS++ on identities."""
    from irspack import IALSRecommender

    fitted = IALSRecommender(
        data.binary.tocsr(),
        random_seed=seed,
        n_threads=n_threads,
        **settings,
    ).learn()
    dims = settings["n_components"]
    return fitted.get_score, 4 * dims * sum(data.binary.shape)


def irspack_slim(data: Any, seed: int, n_threads: int, **settings: Any) -> tuple[Any, int]:
    """Irspack's SLIM: RecBole's SLIMElastic, a hundred times as fast."""
    from irspack import SLIMRecommender

    history = data.binary.tocsr()
    fitted = SLIMRecommender(history, n_threads=n_threads, **settings).learn()
    weights = fitted.W.tocsr().astype(np.float32)
    size = weights.data.nbytes + weights.indices.nbytes
    return (lambda asked: (history[asked] @ weights).toarray()), size


def rectools_als(data: Any, seed: int, n_threads: int, **settings: Any) -> tuple[Any, int]:
    """RecTools' ALS that learns from items' features together with their identities."""
    import pandas as pd
    from implicit.cpu.als import AlternatingLeastSquares
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import ImplicitALSWrapperModel

    rows = data.binary.tocoo()
    interactions = pd.DataFrame(
        {Columns.User: rows.row, Columns.Item: rows.col, Columns.Weight: 1.0}
    ).assign(**{Columns.Datetime: "2020-01-01"})
    words = item_features(data, identities=False).tocoo()
    warm = np.isin(words.row, rows.col)
    features = pd.DataFrame(
        {"id": words.row[warm], "feature": "words", "value": words.col[warm].astype(str)}
    )
    dataset = Dataset.construct(
        interactions,
        item_features_df=features if len(features) else None,
        cat_item_features=["words"],
    )
    model = ImplicitALSWrapperModel(
        AlternatingLeastSquares(random_state=seed, num_threads=n_threads, **settings),
        fit_features_together=True,
    ).fit(dataset)
    tables = []
    for found, ids, size in zip(
        model.get_vectors(),
        (dataset.user_id_map, dataset.item_id_map),
        data.binary.shape,
        strict=True,
    ):
        table = np.zeros((size, found.shape[1]), dtype=np.float32)
        table[ids.external_ids.astype(int)] = found
        tables.append(table)
    users, items = tables
    return (lambda asked: users[asked] @ items.T), users.nbytes + items.nbytes


def ease_by_users(data: Any, seed: int, n_threads: int, reg_weight: float) -> tuple[Any, int]:
    """EASE (Steck 2019) by the inverse of a users x users matrix, where users are the fewer.

    RecBole's inverts items x items: with 17,000 items one fit is all that the cap allows. Both give
    the same scores, since ``X (X'X + rI)^-1 = (XX' + rI)^-1 X``.
    """
    interactions = data.binary.tocsr().astype(np.float64)
    among_users = (interactions @ interactions.T).toarray()
    among_users[np.diag_indices_from(among_users)] += reg_weight
    history = interactions.toarray()
    factor = scipy.linalg.cho_factor(among_users, overwrite_a=True, check_finite=False)
    ridge = scipy.linalg.cho_solve(factor, history, check_finite=False)
    diagonal = (1 - np.einsum("ui,ui->i", history, ridge)) / reg_weight
    scores = (history - ridge / diagonal).astype(np.float32)
    return (lambda asked: scores[asked]), scores.nbytes


#: Name -> what fits it, and its settings with their types.
MODELS: Mapping[str, tuple[Any, Mapping[str, type]]] = {
    "EASEByUsers": (ease_by_users, {"reg_weight": float}),
    "IrspackIALS": (
        irspack_ials,
        {"n_components": int, "alpha0": float, "reg": float, "train_epochs": int},
    ),
    "IrspackSLIM": (irspack_slim, {"alpha": float, "l1_ratio": float}),
    "RecToolsALS": (
        rectools_als,
        {"factors": int, "regularization": float, "alpha": float, "iterations": int},
    ),
}


def split_settings(name: str, values: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's own settings, and those of the run."""
    types = MODELS[name][1]
    own = {key: types[key](value) for key, value in values.items() if key in types}
    return own, {key: value for key, value in values.items() if key not in types}


def fit(
    name: str, settings: Mapping[str, Any], config: Any, dataset: Any
) -> tuple[Scored, dict[str, Any]]:
    """A fitted model and how it came about."""
    begin = perf_counter()
    data, _ = dataset.training_data(read_model_settings(("lightfm",), config.external_config_dict))
    fitter, _ = MODELS[name]
    scores, size = fitter(data, config["seed"], torch.get_num_threads(), **settings)
    facts = {
        "seconds": {"fit": perf_counter() - begin},
        "was_cut": False,
        "epochs": 0,
        "model_bytes": size,
    }
    return Scored(scores, dataset.uid_field), facts
