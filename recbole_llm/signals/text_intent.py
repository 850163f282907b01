"""Text intent: items by what their text says, users by the texts of their history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import scipy.sparse as sp

from recbole_llm.completion import is_told
from recbole_llm.factors import Factors, Rows
from recbole_llm.settings import RunOptions, Words, setting
from recbole_llm.signals.base import SkippedSignal, TextSignal, decay_setting, folded_in
from recbole_llm.training_data import TrainingData


@dataclass(frozen=True)
class TextIntentSignal(TextSignal):
    """The cosine of an item's text and a user's intent, by one encoder."""

    history_decay: float | None = decay_setting()
    user_text_weight: float = setting(
        0.3, "What a user's own text counts beside her history.", at_least=0.0
    )
    encoders: Words = ()

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Sum the history's texts; nothing is trained."""
        (encoder,) = self.encoders
        rows = data.item_embeddings.get(encoder)
        if rows is None or not is_told(rows).any():
            raise SkippedSignal("no item has a text, see `item_text_fields`")
        return folded_in(self, data, rows.copy(), is_told(rows))

    def describe(
        self,
        factors: Factors,
        embeddings: Mapping[str, Rows],
        attributes: sp.csr_matrix | None = None,
    ) -> Rows:
        """The embedding itself."""
        (encoder,) = self.encoders
        return embeddings[encoder]
