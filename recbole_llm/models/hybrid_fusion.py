"""HybridFusion as a model of RecBole."""

from __future__ import annotations

from recbole_llm.models.tables_recommender import TablesRecommender


class HybridFusion(TablesRecommender):
    """All signals, or those that ``signals`` names, fused with weights tuned on validation."""

    signal_names = None
