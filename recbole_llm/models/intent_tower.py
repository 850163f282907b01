"""IntentTower as a model of RecBole."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from recbole.utils import ModelType

from recbole_llm.fitting import encode, model_of
from recbole_llm.host.dataset import TablesDataset
from recbole_llm.model_settings import tower_keys
from recbole_llm.models.tables_recommender import TablesRecommender
from recbole_llm.settings import Key
from recbole_llm.signals.intent_tower import IntentTowerSignal

_SIGNAL = "intent_tower"


class IntentTower(TablesRecommender):
    """Item and user towers over a text encoder, trained by RecBole's pipeline.

    The towers are those of the signal `intent_tower`. RecBole's own keys say how they are trained:
    `epochs`, `learning_rate`, `train_batch_size`, `weight_decay`, `stopping_step`. It scores by the
    tables of the last epoch that has ended.
    """

    type = ModelType.GENERAL
    signal_names = (_SIGNAL,)
    host_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 0.005,
        "train_batch_size": 4096,
        "stopping_step": 3,
    }

    def __init__(self, config: Any, dataset: TablesDataset) -> None:
        super().__init__(config, dataset)
        data, user_texts = dataset.training_data(self.settings)
        self.source = encode(data, user_texts, self.settings, self.run, self.report)
        if self.source.item_texts is None:
            self.logger.warning("no item has a text: IntentTower learns from the ids alone")
        (signal,) = self.settings.variants(is_later=False).values()
        assert isinstance(signal, IntentTowerSignal)
        self.signal = signal
        self.tower = signal.tower(self.source.data, self.run)

    @classmethod
    def setting_keys(cls) -> list[Key]:
        """The keys that it takes beside RecBole's."""
        return tower_keys()

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """The mean loss of the users' items; negatives are drawn by the tower itself."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        return self.tower.loss(users.cpu().numpy(), items.cpu().numpy())

    def make_tables(self) -> None:
        """Score by what the towers say now."""
        factors = self.signal.tables(self.tower, self.source.data)
        self.blocks, self.newcomers = model_of(
            _SIGNAL, self.signal, factors, self.source, self.settings, self.run
        )
        self.item_texts = self.source.data.item_texts if self.newcomers.encoders else ()
        self._scorer = None
