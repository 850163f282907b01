"""The towers as a signal; rankings are tested by the contract, and with the text map."""

import numpy as np
import scipy.sparse as sp
import torch

from recbole_llm.factors import unit_rows
from recbole_llm.settings import RunOptions
from recbole_llm.signals.intent_tower import IntentTowerSignal
from recbole_llm.training_data import TrainingData

RUN = RunOptions(seed=3, progress=False)
N_ITEMS, COLD = 60, np.arange(50, 60)


def test_a_cold_items_value_is_told_by_text_and_attributes_and_the_mean_ones_where_these_lack():
    rng = np.random.default_rng(0)
    liked = rng.random((40, N_ITEMS)) < 0.4
    liked[0], liked[:, 0], liked[:, COLD] = False, False, False
    kind = np.arange(N_ITEMS) % 2
    kinds = np.eye(2, dtype=np.float32)[kind]
    says_nothing = rng.normal(size=(N_ITEMS, 4)).astype(np.float32)
    kinds[0], says_nothing[0] = 0, 0
    data = TrainingData(
        interactions=sp.csr_matrix(liked.astype(np.float32)),
        item_embeddings={"bert": unit_rows(says_nothing)},
        item_attributes=sp.csr_matrix(kinds),
    )
    signal = IntentTowerSignal(loss="mse", dimensions=8, encoders=("bert",))
    tower = signal.tower(data, RUN)
    with torch.no_grad():
        tower.biases.copy_(torch.from_numpy(kind.astype(np.float32)))
    factors = signal.tables(tower, data)
    texts = {"bert": data.item_embeddings["bert"][COLD]}
    described = signal.describe(factors, texts, data.item_attributes[COLD])
    np.testing.assert_allclose(described, factors.items[COLD], atol=1e-5)
    of_one, of_other = described[kind[COLD] == 1, -2], described[kind[COLD] == 0, -2]
    assert of_one.min() > of_other.max() + 0.3
    untold = signal.describe(factors, texts)
    assert (of_other.max() < untold[:, -2]).all()
    assert (untold[:, -2] < of_one.min()).all()
    mean = data.item_attributes[1:].mean(axis=0) @ factors.extra["map1"]
    expected = texts["bert"] @ factors.extra["map0"] + mean
    np.testing.assert_allclose(untold[:, :8], expected, atol=1e-5)
