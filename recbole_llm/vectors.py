"""The whole model as one vector a user and one an item, for any index of inner products."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from recbole_llm.factors import Factors, gated

# Halko, Martinsson and Tropp 2011: a few more dimensions and a few passes, and the subspace that
# is found is as good as the best.
_OVERSAMPLING = 16
_PASSES = 4


def compact_vectors(blocks: Sequence[Factors], *, rank: int, seed: int) -> Factors:
    """Blocks as one dense pair of tables without offset.

    Dense blocks are kept as they are. One with sparse user rows has as many dimensions as there
    are items or words, so that its scores are approximated by the best of a low rank.

    Args:
        blocks: tables whose scores add up.
        rank: most dimensions of each block with sparse user rows, at least 1.
        seed: of the random start of the approximation.

    Returns:
        Tables whose inner products are the model's scores: all but exactly without a sparse block.
    """
    dense = [
        truncated(block, rank=rank, seed=seed) if block.is_sparse else block for block in blocks
    ]
    ones = np.ones(blocks[0].n_items, dtype=np.float32)
    (joined,) = gated(dense, [ones] * len(dense), 0 * ones)
    return joined


def truncated(block: Factors, *, rank: int, seed: int) -> Factors:
    """A block's products by a randomised singular value decomposition, offset kept as it is.

    Source: Halko, Martinsson, Tropp, "Finding structure with randomness", 2011, algorithms 4.4 and
    5.1. The products themselves are never made.
    """
    users, items = block.users, block.items
    width = min(rank + _OVERSAMPLING, block.n_users, block.n_items)
    start = np.random.default_rng(seed).standard_normal((block.n_items, width), dtype=np.float32)
    basis, _ = np.linalg.qr(users @ (items.T @ start))
    for _ in range(_PASSES):
        other, _ = np.linalg.qr(items @ (users.T @ basis))
        basis, _ = np.linalg.qr(users @ (items.T @ other))
    projected = np.asarray(items @ (users.T @ basis))  # (n_items, width)
    _, values, axes = np.linalg.svd(projected, full_matrices=False)
    # A dimension of rounding errors alone carries nothing.
    rotation = axes[:rank][values[:rank] > 1e-6 * values[0]].T
    return dataclasses.replace(
        block,
        users=np.asarray(basis @ rotation, dtype=np.float32),
        items=np.asarray(projected @ rotation, dtype=np.float32),
    )
