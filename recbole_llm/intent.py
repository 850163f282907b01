"""User intent: what a user wants, read from the items of her history and from her own words."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import normalize

from recbole_llm.factors import Rows


def user_intent(
    history: sp.csr_matrix,
    item_embeddings: Rows,
    *,
    user_embeddings: Rows | None = None,
    user_text_weight: float = 0.0,
) -> Rows:
    """Unit rows of intent: the weighted mean of the history's texts, plus the user's own text.

    Args:
        history: CSR (n_users, n_items) of weights whose rows sum to 1 or 0.
        item_embeddings: unit rows (n_items, d), dense or CSR; zero for an item without text.
        user_embeddings: unit rows (n_users, d) of the users' own text.
        user_text_weight: what the own text counts beside a whole history.

    Returns:
        float32 (n_users, d) of the embeddings' kind; a user of whom nothing is known is zero.
    """
    intent = history @ item_embeddings
    if user_embeddings is not None and user_text_weight:
        intent = intent + user_embeddings * np.float32(user_text_weight)
    return normalize(intent).astype(np.float32)
