"""IntentTower as a model of RecBole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.utils import ModelType

from recbole_llm.atomic_files import new_folder
from recbole_llm.augmentation import AugmentSettings, variants
from recbole_llm.back_translation import back_translated, model_folders
from recbole_llm.calibration import calibration_error, fit_platt, probabilities
from recbole_llm.encoders import EncoderOptions, build
from recbole_llm.encoders.bert import BertEncoder
from recbole_llm.errors import SettingsError, one_line
from recbole_llm.fitting import encode, encoder_options, model_of, open_cache
from recbole_llm.host.config import given_settings
from recbole_llm.host.dataset import TablesDataset
from recbole_llm.model_settings import tower_keys
from recbole_llm.models.tables_recommender import TablesRecommender
from recbole_llm.scoring import Scorer
from recbole_llm.settings import Key, Search, read_section
from recbole_llm.signals.base import with_settings
from recbole_llm.signals.intent_tower import IntentTowerSignal
from recbole_llm.text_network import FinetuneSettings, TextNetwork
from recbole_llm.tower_network import TowerShape
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
    #: Where a study looks for those that it changes.
    host_searches: ClassVar[dict[str, Search]] = {"learning_rate": Search(5e-4, 0.02, log=True)}

    def __init__(self, config: Any, dataset: TablesDataset) -> None:
        super().__init__(config, dataset)
        augment = read_section(AugmentSettings, given_settings(config), prefix="augment_")
        data, user_texts = dataset.training_data(self.settings)
        if augment.of_texts:
            data = replace(data, item_variants=self._item_variants(dataset, augment))
        self.source = encode(data, user_texts, self.settings, self.run, self.report)
        if not self.source.data.item_embeddings:
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
        text = self._text_network(given_settings(config))
        self.tower = self.signal.tower(self.source.data, self.run, text, crops=augment.crops)

    def _item_variants(
        self, dataset: TablesDataset, augment: AugmentSettings
    ) -> tuple[tuple[str, ...], ...]:
        """Other texts of the items, for training.

        Raises:
            SettingsError: no item has a text, or a translator's folder does not exist.
        """
        fields = dataset.item_fields(self.settings.text.item_text_fields)
        values = {value for column in fields.values() for value in column if value}
        if not values:
            raise SettingsError(
                f"`augment: {', '.join(augment.of_texts)}` varies the items' texts, and none has "
                "one; name the fields by `item_text_fields`, or leave it out"
            )
        translations: dict[str, str] = {}
        if "back_translation" in augment.of_texts:
            translations = self._back_translated(sorted(values), augment)
        elif len(fields) == 1:
            self.logger.warning(
                f"`augment: {', '.join(augment.of_texts)}` varies which fields are read, and the "
                f"items' texts are `{next(iter(fields))}` alone: they stay as they are"
            )
        if not translations and (len(fields) == 1 or augment.of_texts == ("back_translation",)):
            return ()
        rng = np.random.default_rng(self.run.seed)
        return variants(fields, augment.of_texts, augment.variants, rng, translations)

    def _back_translated(self, values: list[str], augment: AugmentSettings) -> dict[str, str]:
        """The values there and back; nothing where the translator fails.

        Raises:
            SettingsError: its folder does not exist, or the cache cannot be written.
        """
        assert augment.translator is not None
        models, text = model_folders(augment.translator), self.settings.text
        cache = open_cache(text.embedding_cache)
        folder = None if cache is None else cache.folder
        try:
            return back_translated(values, models, folder, self.run, text.encoder_batch_size)
        except SettingsError:
            raise
        # The libraries raise what they like: OSError, ValueError, a torch error, ...
        except Exception as error:
            self.logger.warning(
                f"`translator` failed, so the run goes on without back_translation: "
                f"{one_line(error)}"
            )
            return {}

    def _text_network(self, given: Mapping[str, Any]) -> TextNetwork | None:
        """The encoder that learns: the first network of `encoder`, which comes first from now on.

        Raises:
            SettingsError: none of the encoders is a network, or no item has a text.
        """
        settings = read_section(FinetuneSettings, given, prefix="finetune_")
        if settings.finetune == "frozen":
            return None
        text_settings = self.settings.text
        if text_settings.encoder_backend != "torch":
            raise SettingsError(
                f"`finetune: {settings.finetune}` trains by torch, and `encoder_backend` is "
                f"{text_settings.encoder_backend}; use `encoder_backend: torch`, or "
                "`finetune: frozen`"
            )
        options = encoder_options(text_settings, replace(self.run, progress=False))
        encoders = {spec: build(spec, options) for spec in self.signal.encoders}
        networks = [spec for spec, found in encoders.items() if isinstance(found, BertEncoder)]
        if not networks or not self.source.data.item_embeddings:
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
        data = self.source.data
        text = TextNetwork(chosen.network(), data.item_texts, settings, data.item_variants)
        learned, every = text.n_learned
        self.logger.info(
            f"finetune: {settings.finetune}: {learned:,} of the encoder's {every:,} weights move "
            f"({learned / every:.2%}), from epoch {settings.head_epochs} on"
        )
        return text

    def save_encoder(self, folder: Path) -> None:
        """Write the tuned encoder, and let the tables say that it made them.

        Args:
            folder: its place, beside the tables.
        """
        if self.tower.text is None:
            return
        with new_folder(folder, overwrite=True) as filling:
            self.tower.text.save(filling)
        spec = self.signal.encoders[0]
        written = build(f"bert:{folder}", EncoderOptions(progress=False)).fingerprint()
        self.newcomers = replace(
            self.newcomers,
            encoders={**self.newcomers.encoders, spec: written},
            tuned={spec: folder.name},
        )

    @classmethod
    def setting_keys(cls) -> list[Key]:
        """The keys that it takes beside RecBole's."""
        return tower_keys()

    @classmethod
    def searched_keys(cls, given: Mapping[str, Any]) -> list[Key]:
        """The keys that a study changes: RecBole's, and its own without what the user has set."""
        unread = read_section(TowerShape, given, prefix="intent_tower_").unread
        tuned = read_section(FinetuneSettings, given, prefix="finetune_").finetune != "frozen"
        own = [
            key
            for key in tower_keys()
            if key.field not in unread and (tuned or key.section != "finetune")
        ]
        hosts = [
            Key(name, "host", name, float, cls.host_defaults[name], "", search)
            for name, search in cls.host_searches.items()
        ]
        return [key for key in (*hosts, *own) if key.name not in given]

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
        before = self.tower.base.item()
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
            self.calibration.copy_(torch.tensor([1.0, self.tower.base.item()]))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_values": None}
