"""The whole model as one vector a user and one an item."""

import numpy as np
import pytest
from test_saved_tables import N_ITEMS, N_USERS, random_tables

from recbole_llm.vectors import compact_vectors, truncated

USERS = np.arange(N_USERS)


def summed(blocks):
    return sum(block.scores(USERS) for block in blocks)


def test_dense_blocks_are_exact_whatever_the_rank():
    blocks = random_tables().blocks[:1]
    vectors = compact_vectors(blocks, rank=1, seed=0)
    assert not vectors.offset.any()
    np.testing.assert_allclose(vectors.users @ vectors.items.T, summed(blocks), atol=1e-5)


def test_vectors_of_full_rank_score_as_the_model_does():
    blocks = random_tables().blocks
    vectors = compact_vectors(blocks, rank=N_ITEMS, seed=0)
    np.testing.assert_allclose(vectors.users @ vectors.items.T, summed(blocks), atol=1e-4)
    np.testing.assert_allclose(vectors.users[0], 0, atol=1e-6)


@pytest.mark.parametrize("block", random_tables(n_users=60, n_items=50).blocks[1:])
def test_truncation_is_the_best_of_its_rank(block):
    scores = block.products(slice(None))
    left, values, right = np.linalg.svd(scores)
    best = (left[:, :4] * values[:4]) @ right[:4]
    short = truncated(block, rank=4, seed=1)
    assert short.users.shape == (60, 4)
    np.testing.assert_allclose(short.users @ short.items.T, best, atol=1e-3)
    np.testing.assert_array_equal(short.offset, block.offset)
