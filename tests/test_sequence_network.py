"""Sequences in their order, and the network that reads them."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recbole_llm.completion import features_of
from recbole_llm.errors import SettingsError
from recbole_llm.sequence_network import (
    Candidates,
    SequenceEncoder,
    SequenceNetwork,
    Sequences,
    SequenceShape,
    encoder_of,
    last_states,
    rows_of_texts,
    sequences,
)
from recbole_llm.training_data import History

SHAPE = SequenceShape(dimensions=8, heads=2, blocks=2)


def random_history(seed=0, n_users=12, n_items=15):
    """Histories with ties, an empty one and one of a single item."""
    rng = np.random.default_rng(seed)
    liked = rng.random((n_users, n_items)) < 0.4
    liked[0] = False
    liked[1] = np.arange(n_items) == 3
    weights = sp.csr_matrix(liked.astype(np.float32))
    return History(weights, rng.integers(0, 5, weights.nnz).astype(np.int32))


def naive(history, known):
    """Oldest first; of one moment in the order of the columns."""
    parts = []
    for user in range(history.weights.shape[0]):
        row = slice(*history.weights.indptr[user : user + 2])
        pairs = zip(history.age[row], history.weights.indices[row], strict=True)
        parts.append([item for age, item in sorted(pairs, key=lambda p: (-p[0], p[1]))])
    return [[item for item in part if known[item]] for part in parts]


def lists(parts):
    return [
        parts.items[start:stop].tolist()
        for start, stop in zip(parts.starts, parts.stops, strict=True)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_sequences_equal_the_naive_ones(seed):
    history = random_history(seed)
    known = np.random.default_rng(seed).random(15) < 0.8
    assert lists(sequences(history, known)) == naive(history, known)


def test_a_history_without_ages_is_in_the_order_of_its_columns():
    history = History(random_history().weights)
    known = np.ones(15, dtype=bool)
    assert lists(sequences(history, known))[2] == history.weights[2].indices.tolist()


def test_items_of_one_moment_are_shuffled_by_seed_and_others_stay_in_order():
    history, known = random_history(), np.ones(15, dtype=bool)
    ordered, other = (lists(sequences(history, known, seed=seed)) for seed in (1, 2))
    assert ordered != other
    age = {
        (user, item): age
        for user in range(12)
        for item, age in zip(
            history.weights[user].indices,
            history.age[slice(*history.weights.indptr[user : user + 2])],
            strict=True,
        )
    }
    for user, items in enumerate(ordered):
        ages = [age[user, item] for item in items]
        assert ages == sorted(ages, reverse=True)


def test_the_last_items_are_kept_and_padding_is_on_the_right():
    parts = Sequences(np.arange(10, 20), np.array([0, 4, 4]), np.array([4, 4, 10]))
    assert lists(parts.last(3)) == [[11, 12, 13], [], [17, 18, 19]]
    places, inside = parts.last(5).padded()
    padded = np.where(inside, parts.items[places], 0)
    assert padded.tolist() == [[10, 11, 12, 13, 0], [0] * 5, [15, 16, 17, 18, 19]]


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_windows_predict_every_item_but_the_first_once(most):
    parts = sequences(random_history(), np.ones(15, dtype=bool))
    windows = parts.windows(most)
    assert windows.lengths.min() > 1
    assert windows.lengths.max() <= most + 1
    predicted = [
        place
        for start, stop in zip(windows.starts, windows.stops, strict=True)
        for place in range(start + 1, stop)
    ]
    expected = [
        place
        for start, stop in zip(parts.starts, parts.stops, strict=True)
        for place in range(start + 1, stop)
    ]
    assert sorted(predicted) == expected


def test_later_items_do_not_change_earlier_states():
    torch.manual_seed(0)
    encoder = SequenceEncoder(SHAPE, 6).eval()
    rows = torch.randn(3, 6, 8)
    changed = rows.clone()
    changed[:, 4:] = torch.randn(3, 2, 8)
    with torch.no_grad():
        before, after = encoder(rows), encoder(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_the_last_state_is_that_of_the_sequence_alone():
    torch.manual_seed(0)
    encoder = SequenceEncoder(SHAPE, 4)
    rows = np.random.default_rng(0).standard_normal((15, 8)).astype(np.float32)
    parts = sequences(random_history(), np.ones(15, dtype=bool))
    states = last_states(encoder, rows, parts)
    assert not states[0].any()
    for user, items in enumerate(lists(parts)):
        if items:
            with torch.no_grad():
                alone = encoder(torch.from_numpy(rows[items[-4:]])[None])[0, -1]
            np.testing.assert_allclose(states[user], alone, atol=1e-5)


def test_a_history_of_50_000_events_is_cut():
    encoder = SequenceEncoder(SHAPE, 10)
    rows = np.random.default_rng(0).standard_normal((50_000, 8)).astype(np.float32)
    weights = sp.csr_matrix(np.ones((1, 50_000), dtype=np.float32))
    history = History(weights, np.arange(50_000, dtype=np.int32)[::-1].copy())
    parts = sequences(history, np.ones(50_000, dtype=bool))
    last = Sequences(np.arange(50_000), np.array([49_990]), np.array([50_000]))
    np.testing.assert_array_equal(
        last_states(encoder, rows, parts), last_states(encoder, rows, last)
    )


def trained_a_little(features, n_items=15, **settings):
    torch.manual_seed(0)
    shape = SequenceShape(dimensions=8, dropout=0.0, identity_dropout=0.0, **settings)
    return SequenceNetwork(features, n_items, shape, 5)


def test_the_loss_equals_a_softmax_by_hand():
    network = trained_a_little(None).eval()
    histories = np.array([[3, 4, 0], [5, 0, 0], [6, 7, 8]])
    wanted = np.array([[4, 9, 0], [2, 0, 0], [7, 8, 1]])
    predicted = np.array([[True, True, False], [True, False, False], [True, False, True]])
    ranked = [1, 2, 4, 7, 9, 10, 11]  # those wanted, and the candidates
    correction = np.linspace(-1, 0, 15).astype(np.float32)
    loss = network.loss(histories, wanted, predicted, np.array([10, 11]), correction)
    table = network.item_table()
    losses = []
    for row, step in np.argwhere(predicted):
        inputs = torch.from_numpy(table[histories[row, : step + 1]])[None]
        with torch.no_grad():
            state = network.encoder(inputs)[0, -1].numpy()
        logits = table[ranked] @ state / 0.1 - correction[ranked]
        own = logits[ranked.index(wanted[row, step])]
        losses.append(np.log(np.exp(logits).sum()) - own)
    np.testing.assert_allclose(loss.item(), np.mean(losses), rtol=1e-4)


def test_an_item_has_the_row_of_its_text_and_one_without_a_row_of_its_own():
    rng = np.random.default_rng(0)
    words = sp.random(15, 20, 0.3, format="csr", dtype=np.float32, random_state=0)
    dense = rng.standard_normal((15, 6)).astype(np.float32)
    dense[:2] = 0
    words = sp.vstack([0 * words[:2], words[2:]], format="csr")
    words.eliminate_zeros()
    features = features_of({"bert": dense, "lexical": words})
    network = trained_a_little(features)
    table = network.item_table()
    described = rows_of_texts(network.arrays(), features)
    np.testing.assert_allclose(described[2:], table[2:], atol=1e-5)
    assert not described[:2].any()
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-5)


def test_the_arrays_hold_the_encoder():
    network = trained_a_little(None)
    arrays = network.arrays()
    assert all(array.dtype == np.float32 for array in arrays.values())
    rows, parts = np.eye(15, 8, dtype=np.float32), sequences(random_history(), np.ones(15, bool))
    again = encoder_of(arrays, SequenceShape(dimensions=8), 5)
    np.testing.assert_array_equal(
        last_states(again, rows, parts), last_states(network.encoder, rows, parts)
    )


def test_few_candidates_are_all_there_and_many_are_drawn_with_their_chance():
    rng = np.random.default_rng(0)
    wanted = rng.integers(1, 40, 500) ** 2 // 40 + 1
    every, log_chance = Candidates.of(wanted, 60, 100).draw(8, rng)
    assert every.tolist() == np.unique(wanted).tolist()
    assert log_chance is None
    candidates = Candidates.of(wanted, 60, 5)
    there = np.zeros(60)
    for _ in range(4000):
        drawn, log_chance = candidates.draw(8, rng)
        there[np.union1d(drawn, rng.choice(wanted, 8))] += 1 / 4000
    chance = np.exp(log_chance)
    np.testing.assert_allclose(there[candidates.warm], chance[candidates.warm], atol=0.03)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(SettingsError, match="sequence_heads"):
        SequenceEncoder(SequenceShape(dimensions=9, heads=2), 5)
