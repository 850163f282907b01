"""ALS as a model of RecBole."""

from __future__ import annotations

from recbole_llm.models.tables_recommender import TablesRecommender


class ALS(TablesRecommender):
    """Weighted matrix factorisation by the `implicit` library."""

    signal_names = ("als",)
