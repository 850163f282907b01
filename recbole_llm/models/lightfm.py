"""LightFM as a model of RecBole."""

from __future__ import annotations

from recbole_llm.models.tables_recommender import TablesRecommender


class LightFM(TablesRecommender):
    """LightFM on identities, and with `item_features: true` on text and attributes."""

    signal_names = ("lightfm",)
