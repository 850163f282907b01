"""Our metrics are RecBole's."""

import inspect

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.config import Config
from recbole.evaluator import metrics as recbole_metrics

from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import Metric, Validation, evaluate, is_positive
from recbole_llm.factors import Factors

NAMES = {
    "ndcg": "NDCG",
    "recall": "Recall",
    "precision": "Precision",
    "hit": "Hit",
    "mrr": "MRR",
    "map": "MAP",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 5, 10])
def test_metric_equals_recboles(name, k):
    rng = np.random.default_rng(k)
    hits = rng.random((50, k)) < 0.2
    n_positives = np.maximum(hits.sum(axis=1), rng.integers(1, 20, 50))
    Config.compatibility_settings(None)  # restores np.float, which the metrics use
    config = {"topk": [k], "metric_decimal_place": 12}
    metric = getattr(recbole_metrics, NAMES[name])(config)
    takes_length = "pos_len" in inspect.signature(metric.metric_info).parameters
    info = metric.metric_info(hits, n_positives) if takes_length else metric.metric_info(hits)
    expected = metric.topk_result(name, info)
    ours = Metric.parse(f"{NAMES[name]}@{k}").per_user(hits, n_positives).mean()
    assert ours == pytest.approx(expected[f"{name}@{k}"], abs=1e-9)


@pytest.mark.parametrize("text", ["NDGC@10", "AUC", "ndcg", "ndcg@0"])
def test_what_cannot_be_tuned_on_is_named(text):
    with pytest.raises(SettingsError, match="valid_metric"):
        Metric.parse(text)


def test_known_items_are_not_ranked_but_a_repeated_positive_is():
    items = np.array([[0], [3], [2], [1]], dtype=np.float32)
    f = Factors.of(np.array([[0], [1]], dtype=np.float32), items, np.ones(4, bool))
    known = sp.csr_matrix(np.array([[0, 0, 0, 0], [0, 1, 1, 0]], dtype=np.float32))
    wanted = sp.csr_matrix(np.array([[0, 0, 0, 0], [0, 0, 1, 0]], dtype=np.float32))
    validation = Validation.of(known, wanted)
    assert evaluate([f], validation, Metric("mrr", 2)) == 1.0
    assert Validation.of(known, sp.csr_matrix((2, 4), dtype=np.float32)) is None


def test_is_positive_equals_a_look_up():
    rng = np.random.default_rng(0)
    dense = rng.random((5, 7)) < 0.4
    items = torch.randint(0, 7, (5, 3)).numpy()
    found = is_positive(sp.csr_matrix(dense), np.arange(5), items)
    assert (found == np.take_along_axis(dense, items, axis=1)).all()
