"""The learned text map."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recbole_llm.completion import features_of
from recbole_llm.factors import unit_rows
from recbole_llm.settings import RunOptions
from recbole_llm.signals import SkippedSignal
from recbole_llm.signals.intent_tower import IntentTowerSignal
from recbole_llm.signals.text_map import (
    TextMapSignal,
    _SparseProduct,
    _Trainer,
    _Weights,
)
from recbole_llm.testing.signals import check_signal, small_data
from recbole_llm.training_data import TrainingData

RUN = RunOptions(seed=3, progress=False)
QUICK = TextMapSignal(dimensions=8, epochs=4, batch_size=64)


def hidden_taste(n_users=60, n_items=60):
    """Tastes that one weak direction of the vectors, and one word among many, tell apart."""
    rng = np.random.default_rng(0)
    taste = np.arange(n_items) % 2
    vectors = rng.normal(size=(n_items, 8))
    vectors[:, 0] = 0.5 * np.where(taste, 1, -1)
    words = (rng.random((n_items, 12)) < 0.4).astype(np.float32)
    words[:, :2] = 0.3 * np.eye(2)[taste]
    vectors[0], words[0] = 0, 0
    liked = rng.random((n_users, n_items)) < np.where(
        (np.arange(n_users)[:, None] % 2) == taste, 0.4, 0.02
    )
    liked[0], liked[:, 0], liked[:, -10:] = False, False, False
    return TrainingData(
        interactions=sp.csr_matrix(liked.astype(np.float32)),
        item_embeddings={
            "bert": unit_rows(vectors.astype(np.float32)),
            "lexical": sp.csr_matrix(unit_rows(words.astype(np.float32))),
        },
    )


def share_of_right_pairs(rows, data):
    """How often a cold item of the user's taste is scored above one of the other taste."""
    scores = rows.scores(np.arange(1, data.n_users))[:, -10:]
    same = (np.arange(1, data.n_users)[:, None] % 2) == (np.arange(50, 60) % 2)
    return np.mean([(s[m][:, None] > s[~m]).mean() for s, m in zip(scores, same, strict=True)])


def test_text_map_keeps_the_contract():
    check_signal("text_map", QUICK)


def test_one_signal_per_encoder():
    assert list(QUICK.variants("text_map", ["bert", "lexical"])) == [
        "text_map:bert",
        "text_map:lexical",
    ]
    assert list(QUICK.variants("text_map", ["lexical"])) == ["text_map:lexical"]


def test_one_more_map_of_all_encoders_where_it_is_wanted():
    wanted = dataclasses.replace(QUICK, together=True)
    variants = wanted.variants("text_map", ["bert", "lexical"])
    assert list(variants) == ["text_map:bert", "text_map:lexical", "text_map"]
    assert variants["text_map"].encoders == ("bert", "lexical")
    assert list(wanted.variants("text_map", ["lexical"])) == ["text_map:lexical"]


@pytest.mark.parametrize("encoders", [("bert",), ("lexical",), ("bert", "lexical")])
def test_learns_what_of_a_text_matters_for_cold_items(encoders):
    data = hidden_taste()
    signal = dataclasses.replace(
        QUICK, dimensions=16, epochs=20, learning_rate=0.05, encoders=encoders
    )
    learned = share_of_right_pairs(signal.fit(data, RUN), data)
    untrained = dataclasses.replace(signal, learning_rate=1e-9).fit(data, RUN)
    assert learned > 0.85
    assert learned > share_of_right_pairs(untrained, data) + 0.1


def test_the_number_of_epochs_is_settled_by_held_out_items_and_used():
    data = hidden_taste()
    signal = dataclasses.replace(QUICK, dimensions=16, epochs=0, encoders=("lexical",))
    settled = signal.settle(data, RUN)
    assert 1 <= settled.epochs <= 8
    assert settled.settle(data, RUN) == settled
    rows = [s.fit(data, RUN).items for s in (signal, settled)]
    np.testing.assert_array_equal(*rows)
    more = dataclasses.replace(settled, epochs=settled.epochs + 1).fit(data, RUN)
    assert np.abs(more.items - rows[0]).max() > 0.001


def test_a_step_leaves_the_positive_out_of_its_history_and_out_of_the_negatives():
    """The gradient, read from the first moment, against that of a loss by loops."""
    data = hidden_taste()
    signal = dataclasses.replace(QUICK, encoders=("bert",), history_sample=1000)
    rows, history = data.item_embeddings["bert"], data.binary
    trainer = _Trainer(features_of({"bert": rows}), history, signal, RUN)
    popular = int(np.argmax(history.sum(axis=0)))
    fans = np.flatnonzero(history[:, [popular]].toarray().ravel())[:2]
    users = np.array([*fans, *(u for u in (1, 2, 3) if u not in fans)])
    items = np.array([popular, popular, *(history[u].indices[-1] for u in users[2:])])
    weights = trainer.weights[0].value.clone().requires_grad_()
    mapped = torch.nn.functional.normalize(torch.from_numpy(rows) @ weights)
    share = np.asarray(history.mean(axis=0)).ravel() / history.mean(axis=0).sum()
    loss = torch.zeros(())
    for user, item in zip(users, items, strict=True):
        others = [other for other in history[user].indices if other != item]
        intent = torch.nn.functional.normalize(mapped[others].sum(dim=0), dim=0)
        negatives = [other for other in items if other != item]
        logits = [
            intent @ mapped[candidate] / signal.temperature - 0.5 * np.log(share[candidate])
            for candidate in (item, *negatives)
        ]
        loss = loss - torch.log_softmax(torch.stack(logits), dim=0)[0] / len(users)
    loss.backward()
    trainer._step(history[users], items)
    np.testing.assert_allclose(trainer.weights[0].mean / 0.1, weights.grad, atol=1e-5)


def test_adam_steps_as_torch_does_where_all_rows_are_used():
    n = 1200  # more than are moved at once
    start, gradients = torch.randn(n, 3), torch.randn(4, n, 3)
    ours = _Weights(start.clone(), 0.05)
    theirs = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([theirs], lr=0.05)
    for gradient in gradients:
        ours.step(torch.arange(n), gradient)
        theirs.grad = gradient.clone()
        adam.step()
    torch.testing.assert_close(ours.value, theirs.detach())


def test_sparse_product_has_the_gradient_of_the_dense_one():
    matrix = sp.random(6, 4, density=0.5, random_state=0, format="csr", dtype=np.float32)
    dense, factor = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3)
    (_SparseProduct.apply(matrix, dense) * factor).sum().backward()
    torch.testing.assert_close(dense.grad, torch.from_numpy(matrix.toarray()).T @ factor)


def test_a_users_own_text_moves_her_row():
    data = hidden_taste()
    texts = np.zeros((data.n_users, 8), dtype=np.float32)
    texts[5] = data.item_embeddings["bert"][7]
    told = dataclasses.replace(data, user_embeddings={"bert": texts})
    signal = dataclasses.replace(QUICK, encoders=("bert",))
    before, after = signal.fit(data, RUN), signal.fit(told, RUN)
    np.testing.assert_array_equal(after.users[6], before.users[6])
    assert after.users[5] @ after.items[7] > before.users[5] @ before.items[7]


def test_without_texts_or_histories_it_says_so():
    signal = dataclasses.replace(QUICK, encoders=("bert",))
    with pytest.raises(SkippedSignal, match="item_text_fields"):
        signal.fit(small_data(), RUN)
    data = hidden_taste()
    lonely = sp.csr_matrix(np.eye(data.n_users, data.n_items, dtype=np.float32))
    with pytest.raises(SkippedSignal, match="two items"):
        signal.fit(dataclasses.replace(data, interactions=lonely), RUN)


@pytest.mark.parametrize("signal", [QUICK, IntentTowerSignal(identities=False)])
def test_what_attributes_say_is_learned_and_may_be_missing_of_a_newcomer(signal):
    data = hidden_taste()
    taste = np.eye(2, dtype=np.float32)[np.arange(data.n_items) % 2]
    taste[0] = 0
    noise = np.random.default_rng(1).normal(size=(data.n_items, 8)).astype(np.float32)
    noise[[0, -1]] = 0
    told = dataclasses.replace(
        data,
        item_embeddings={"bert": unit_rows(noise)},
        item_attributes=sp.csr_matrix(taste),
    )
    signal = dataclasses.replace(signal, epochs=20, learning_rate=0.05, encoders=("bert",))
    rows = signal.fit(told, RUN)
    assert rows.known[1:].all()  # the last one has no text, and is told by its attributes
    assert share_of_right_pairs(rows, told) > 0.95
    untold = signal.fit(dataclasses.replace(told, item_attributes=None), RUN)
    assert share_of_right_pairs(untold, told) < 0.8
    # Who comes with a text alone is taken for the mean item in all else.
    mean = told.item_attributes[1:].mean(axis=0)
    expected = told.item_embeddings["bert"] @ rows.extra["map0"] + mean @ rows.extra["map1"]
    described = signal.describe(rows, told.item_embeddings)
    np.testing.assert_allclose(described[1:-1], unit_rows(np.asarray(expected))[1:-1], atol=1e-4)
    assert not described[[0, -1]].any()
    whole = signal.describe(rows, told.item_embeddings, told.item_attributes)
    np.testing.assert_allclose(whole, rows.items, atol=1e-5)
