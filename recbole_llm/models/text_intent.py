"""TextIntent as a model of RecBole."""

from __future__ import annotations

from recbole_llm.models.tables_recommender import TablesRecommender


class TextIntent(TablesRecommender):
    """Text alone: items by their words, users by the words of their history."""

    signal_names = ("text_intent",)
