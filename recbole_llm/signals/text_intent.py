"""Text intent: items by what their text says, users by the texts of their history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recbole_llm.completion import has_text
from recbole_llm.factors import Factors, Rows
from recbole_llm.intent import history_weights, user_intent
from recbole_llm.settings import RunOptions, Search, Words, setting
from recbole_llm.signals.base import SkippedSignal, TextSignal
from recbole_llm.training_data import TrainingData


@dataclass(frozen=True)
class TextIntentSignal(TextSignal):
    """The cosine of an item's text and a user's intent, by one encoder."""

    history_decay: float = setting(
        0.95,
        "What an item of the history counts beside the next later one, where there is an order.",
        above=0.0,
        at_most=1.0,
        search=Search(0.5, 1.0, in_runs=False),
    )
    user_text_weight: float = setting(
        0.3, "What a user's own text counts beside her history.", at_least=0.0
    )
    encoders: Words = ()

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Sum the history's texts; nothing is trained."""
        (encoder,) = self.encoders
        rows = data.item_embeddings.get(encoder)
        if rows is None or not has_text(rows).any():
            raise SkippedSignal("no item has a text, see `item_text_fields`")
        history = history_weights(data.interactions, data.age, decay=self.history_decay)
        users = user_intent(
            history,
            rows,
            user_embeddings=data.user_embeddings.get(encoder),
            user_text_weight=self.user_text_weight,
        )
        return Factors.of(users, rows.copy(), has_text(rows))

    def describe(self, factors: Factors, embeddings: Mapping[str, Rows]) -> Rows:
        """The embedding itself."""
        (encoder,) = self.encoders
        return embeddings[encoder]
