"""IntentSequence as a model of RecBole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llm.completion import Features, features_of
from recbole_llm.factors import Table
from recbole_llm.fitting import FitReport, encode_texts
from recbole_llm.host.config import excludes_seen, given_settings
from recbole_llm.host.dataset import SequencesDataset
from recbole_llm.model_settings import sequence_keys
from recbole_llm.sequence_network import (
    Candidates,
    SequenceNetwork,
    Sequences,
    SequenceShape,
    last_states,
)
from recbole_llm.settings import Key, RankingSettings, RunOptions, TextSettings, read_section

# Takes any cosine below all others, and keeps the order of those that it is taken from.
_LOWER = 3.0


class IntentSequence(SequentialRecommender):
    """A causal transformer over item rows that start from texts, trained by RecBole's pipeline.

    The network is that of the signal `sequence`. RecBole's own keys say how it is trained:
    `epochs`, `learning_rate`, `train_batch_size`, `stopping_step`, `MAX_ITEM_LIST_LENGTH`.

    Attributes:
        report: which texts were encoded, and how long that took.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: SequencesDataset) -> None:
        super().__init__(config, dataset)
        given = given_settings(config)
        shape = read_section(SequenceShape, given, prefix="sequence_")
        run = RunOptions(str(self.device), config["seed"], bool(config["show_progress"]))
        self.report = FitReport()
        with self.report.timed("encode"):
            features = self._features(read_section(TextSettings, given), dataset, run)
        self.network = SequenceNetwork(features, self.n_items, shape, self.max_seq_length)
        wanted = dataset.inter_feat[self.ITEM_ID].numpy()
        histories = dataset.inter_feat[self.ITEM_SEQ].numpy()
        self.excludes_seen = excludes_seen(
            read_section(RankingSettings, given),
            has_repeats=bool((histories == wanted[:, None]).any()),
        )
        seen = np.union1d(wanted, histories)
        # Nothing is known of the others; padding is no item.
        known = np.zeros(self.n_items, dtype=bool)
        known[seen] = True
        if features is not None:
            known |= features.described
        known[0] = False
        self.known = known
        self.candidates = Candidates.of(wanted, self.n_items, shape.candidates)
        self.rng = np.random.default_rng(config["seed"])

    @classmethod
    def setting_keys(cls) -> list[Key]:
        """The keys that it takes beside RecBole's."""
        return sequence_keys()

    def _features(
        self, settings: TextSettings, dataset: SequencesDataset, run: RunOptions
    ) -> Features | None:
        texts = dataset.item_texts(settings.item_text_fields)
        if not any(texts):
            self.logger.warning("no item has a text: IntentSequence learns from the ids alone")
            return None
        (embeddings,), _ = encode_texts([texts], settings, run, self.report)
        return features_of(embeddings)

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Softmax of the next item against all others, or against those drawn for the step."""
        histories = interaction[self.ITEM_SEQ].cpu().numpy()
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        predicted = np.arange(histories.shape[1]) == lengths[:, None] - 1
        wanted = np.zeros_like(histories)
        wanted[predicted] = interaction[self.POS_ITEM_ID].cpu().numpy()
        against = self.candidates.draw(len(lengths), self.rng)
        return self.network.loss(histories, wanted, predicted, *against)

    def item_table(self) -> Table:
        """Unit rows of all items, float32 (n_items, d); zero where nothing is known of one."""
        return self.network.item_table() * self.known[:, None]

    def forward(self, interaction: Any, items: Table) -> Table:
        """What is wanted after each history, unit rows, float32 (n, d).

        Args:
            interaction: the histories.
            items: of :meth:`item_table`, made once for a batch.
        """
        histories = interaction[self.ITEM_SEQ].cpu().numpy()
        starts = np.arange(len(histories)) * histories.shape[1]
        stops = starts + interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        parts = Sequences(histories.ravel(), starts, stops)
        return last_states(self.network.encoder, items, parts)

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores of one item for each history, -1 to 1, or less where it is excluded."""
        items = self.item_table()
        asked = interaction[self.ITEM_ID].cpu().numpy()
        scores = (self.forward(interaction, items) * items[asked]).sum(axis=1)
        if self.excludes_seen:
            seen = (interaction[self.ITEM_SEQ].cpu().numpy() == asked[:, None]).any(axis=1)
            scores -= _LOWER * (seen & (asked > 0))
        return torch.from_numpy(scores).to(self.device)

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores of all items for each history, (n, n_items), -1 to 1, or less where excluded."""
        items = self.item_table()
        scores = self.forward(interaction, items) @ items.T
        if self.excludes_seen:
            seen = interaction[self.ITEM_SEQ].cpu().numpy()
            lowered = np.take_along_axis(scores, seen, axis=1) - _LOWER * (seen > 0)
            np.put_along_axis(scores, seen, lowered.astype(scores.dtype), axis=1)
        return torch.from_numpy(scores).to(self.device)
