"""IntentTower as a model of RecBole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from recbole.utils import ModelType

from recbole_llm.atomic_files import new_folder
from recbole_llm.calibration import calibration_error, fit_platt, probabilities
from recbole_llm.encoders import EncoderOptions, build
from recbole_llm.encoders.bert import BertEncoder
from recbole_llm.errors import SettingsError
from recbole_llm.fitting import encode, model_of
from recbole_llm.host.config import given_settings
from recbole_llm.host.dataset import TablesDataset
from recbole_llm.model_settings import tower_keys
from recbole_llm.models.tables_recommender import TablesRecommender
from recbole_llm.scoring import Scorer
from recbole_llm.settings import Key, read_section
from recbole_llm.signals.base import with_settings
from recbole_llm.signals.intent_tower import IntentTowerSignal
from recbole_llm.text_network import FinetuneSettings, TextNetwork
from recbole_llm.values import ValueScale

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
        self.label_field = config["LABEL_FIELD"]
        if signal.loss == "mse":
            self._scale = ValueScale.of(dataset.labelled().values)
        self.calibration: torch.Tensor
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self._values: Scorer | None = None
        self.tower = signal.tower(
            self.source.data, self.run, self._text_network(given_settings(config))
        )

    def _text_network(self, given: Mapping[str, Any]) -> TextNetwork | None:
        """The encoder that learns: the first network of `encoder`, which comes first from now on.

        Raises:
            SettingsError: none of the encoders is a network, or no item has a text.
        """
        settings = read_section(FinetuneSettings, given, prefix="finetune_")
        if settings.finetune == "frozen":
            return None
        options = EncoderOptions(str(self.device), progress=False)
        encoders = {spec: build(spec, options) for spec in self.signal.encoders}
        networks = [spec for spec, found in encoders.items() if isinstance(found, BertEncoder)]
        if not networks or self.source.item_texts is None:
            raise SettingsError(
                f"`finetune: {settings.finetune}` trains a network on the items' texts, and "
                f"`encoder` has {', '.join(encoders)}; name `bert` or a model's folder"
                if not networks
                else f"`finetune: {settings.finetune}` needs items with texts, and none has one"
            )
        others = [spec for spec in encoders if spec != networks[0]]
        self.signal = with_settings(self.signal, {"encoders": (networks[0], *others)})
        chosen = encoders[networks[0]]
        assert isinstance(chosen, BertEncoder)
        text = TextNetwork(chosen.network(), self.source.data.item_texts, settings)
        learned, every = text.n_learned
        self.logger.info(
            f"finetune: {settings.finetune}: {learned:,} of the encoder's {every:,} weights move "
            f"({learned / every:.2%}), from epoch {settings.head_epochs} on"
        )
        return text

    def save_encoder(self, folder: Path) -> None:
        """Write the tuned encoder, and let the tables say that it made them."""
        if self.tower.text is None:
            return
        with new_folder(folder, overwrite=True) as filling:
            self.tower.text.save(filling)
        others = self.signal.encoders[1:]
        spec = f"bert:{folder}"
        tuned = build(spec, EncoderOptions(progress=False))
        kept = {name: self.source.encoders[name] for name in others}
        self.newcomers = replace(
            self.newcomers,
            encoders={spec: tuned.fingerprint(), **kept},
            signals=tuple(
                replace(signal, settings={**signal.settings, "encoders": (spec, *others)})
                for signal in self.newcomers.signals
            ),
        )

    @classmethod
    def setting_keys(cls) -> list[Key]:
        """The keys that it takes beside RecBole's."""
        return tower_keys()

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """The mean loss of the rows; negatives are drawn by the tower itself."""
        users, items = (interaction[field].cpu().numpy() for field in (self.USER_ID, self.ITEM_ID))
        if not self.tower.is_valued:
            return self.tower.loss(users, items)
        wanted = interaction[self.label_field].to(self.device, torch.float32)
        if self.signal.loss == "mse":
            wanted = (wanted - self._scale.mean) / self._scale.spread
        return self.tower.value_loss(users, items, wanted)

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores of user-item pairs: ratings on the data's scale, or chances of a click."""
        if not self.tower.is_valued or not self.blocks:
            return super().predict(interaction)
        scores = self._raw(interaction[self.USER_ID], interaction[self.ITEM_ID])
        if self.signal.loss == "mse":
            scale = self._scale
            return (scale.mean + scale.spread * scores).clamp(scale.low, scale.high)
        gain, shift = self.calibration
        return torch.sigmoid(gain * scores + shift)

    def calibrate(self, valid: TablesDataset) -> tuple[float, float]:
        """Make chances of clicks of the scores, by the validation part.

        Returns:
            The expected calibration error there, before and after.
        """
        rows = valid.inter_feat
        scores = self._raw(rows[self.USER_ID], rows[self.ITEM_ID]).cpu().numpy()
        clicks = rows[self.label_field].numpy()
        fitted = fit_platt(scores, clicks)
        before = float(self.tower.base)
        self.calibration.copy_(torch.tensor(fitted))
        return (
            calibration_error(probabilities(scores, 1.0, before), clicks),
            calibration_error(probabilities(scores, *fitted), clicks),
        )

    def _raw(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """What the towers say of pairs, before any scale."""
        if self._values is None:  # after a checkpoint was loaded, too
            factors = self.signal.tables(self.tower, self.source.data)
            self._values = Scorer([factors], self.device)
        return self._values.pairs(users.to(self.device), items.to(self.device))

    def load_other_parameter(self, para: dict[str, Any] | None) -> None:
        """Take the tables from a checkpoint."""
        super().load_other_parameter(para)
        self._values = None
        if para is not None and self.tower.is_valued:
            self.tower.refresh()

    def make_tables(self) -> None:
        """Score by what the towers say now."""
        factors = self.signal.tables(self.tower, self.source.data)
        self.blocks, self.newcomers = model_of(
            _SIGNAL, self.signal, factors, self.source, self.settings, self.run
        )
        self.item_texts = self.source.data.item_texts if self.newcomers.encoders else ()
        self._scorer = None
        if self.tower.is_valued:
            self._values = Scorer([factors], self.device)
            self.calibration.copy_(torch.tensor([1.0, float(self.tower.base)]))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_values": None}
