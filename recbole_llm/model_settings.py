"""What a model can be set to: one frozen object, put together of sections."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_llm.augmentation import AugmentSettings
from recbole_llm.errors import SettingsError, did_you_mean
from recbole_llm.fusion import FUSIONS, check_plot_file, parse_exposure
from recbole_llm.sequence_network import SequenceShape
from recbole_llm.settings import (
    FusionSettings,
    HistorySettings,
    Key,
    RankingSettings,
    SearchSettings,
    TaskSettings,
    TextSettings,
    Words,
    read_section,
    section_keys,
    setting,
)
from recbole_llm.signals import SIGNALS, Signal
from recbole_llm.text_network import FinetuneSettings
from recbole_llm.tower_network import TowerShape

_DEFAULT = ("als", "lightfm", "slim", "text_intent", "text_map", "popularity")
# Of what follows what a random split asks nothing: there it costs time, and helps no ranking.
_IF_LATER = ("next_item",)


@dataclass(frozen=True)
class ChoiceSettings:
    """Which signals a hybrid is made of."""

    signals: Words | None = setting(
        None,
        f"Signals that are fused; none: {', '.join(_DEFAULT)}, and {', '.join(_IF_LATER)} where "
        "the validation part is later than the training part.",
    )


@dataclass(frozen=True)
class ModelSettings:
    """All that a model can be set to.

    Attributes:
        signals: name -> signal as the user set it.
        fixed: name -> the fields that the user gave, which a search leaves alone.
        if_later: those of ``signals`` that are left out where the validation part is not later than
            the training part.
        task: what is predicted: ranking, clicks or ratings.
        text, history, ranking, search, fusion: the sections.
        completes: whether rows of items and users that a signal has not seen come from text.
    """

    signals: Mapping[str, Signal]
    fixed: Mapping[str, frozenset[str]]
    if_later: frozenset[str]
    task: str
    text: TextSettings
    history: HistorySettings
    ranking: RankingSettings
    search: SearchSettings
    fusion: FusionSettings
    completes: bool

    def variants(self, *, is_later: bool) -> dict[str, Signal]:
        """Label -> signal, those of each encoder apart.

        Args:
            is_later: whether the validation part is later than the training part.
        """
        return {
            label: signal
            for name, configured in self.signals.items()
            if is_later or name not in self.if_later
            for label, signal in configured.variants(name, self.text.encoder).items()
        }

    @property
    def uses_text(self) -> bool:
        """Whether anything reads texts."""
        return self.uses_embeddings or any(signal.uses_text for signal in self.signals.values())

    @property
    def uses_embeddings(self) -> bool:
        """Whether anything reads encoded texts."""
        return any(
            signal.uses_embeddings or (self.completes and signal.completed)
            for signal in self.signals.values()
        )

    @property
    def uses_attributes(self) -> bool:
        """Whether anything reads the items' categories and numbers."""
        return any(
            signal.uses_attributes or (self.completes and signal.completed)
            for signal in self.signals.values()
        )


def model_keys(signal_names: Sequence[str] | None) -> list[Key]:
    """The flat keys of a model.

    Args:
        signal_names: the signals that it is made of; None where the user chooses them.

    Returns:
        Its keys, in the order of the README's table.
    """
    chosen = list(SIGNALS) if signal_names is None else signal_names
    signals = [SIGNALS[name]() for name in chosen]
    keys = list(section_keys("choice", ChoiceSettings)) if signal_names is None else []
    keys += section_keys("task", TaskSettings)
    if any(signal.uses_text for signal in signals):
        keys += _text_keys(attributes=any(signal.completed for signal in signals))
    keys += section_keys("history", HistorySettings)
    keys += section_keys("ranking", RankingSettings)
    keys += section_keys("search", SearchSettings)
    if signal_names is None or any(signal.uses_embeddings for signal in signals):
        keys += section_keys("fusion", FusionSettings)
    for name in chosen:
        keys += section_keys(name, SIGNALS[name], prefix=f"{name}_")
    return keys


def _text_keys(*, attributes: bool) -> list[Key]:
    """What a model of words takes; beside them it may read attributes."""
    keys = section_keys("text", TextSettings)
    return [key for key in keys if attributes or key.field != "item_attribute_fields"]


def sequence_keys() -> list[Key]:
    """The flat keys of a sequential model; how it is trained, RecBole's own keys say."""
    described = [*_text_keys(attributes=False), *section_keys("history", HistorySettings)]
    # The network reads no users' texts, and an item of a sequence is there or not.
    unread = ("user_text_fields", "interaction_weight_field", "behaviour_weights", "test_history")
    return [
        *(key for key in described if key.field not in unread),
        *section_keys("ranking", RankingSettings),
        *section_keys("sequence", SequenceShape, prefix="sequence_"),
    ]


def tower_keys() -> list[Key]:
    """The flat keys of the tower as a model; how it is trained, RecBole's own keys say."""
    described = [*_text_keys(attributes=True), *section_keys("history", HistorySettings)]
    shape = section_keys("intent_tower", TowerShape, prefix="intent_tower_")
    ranked = section_keys("ranking", RankingSettings)
    tuned = section_keys("finetune", FinetuneSettings, prefix="finetune_")
    varied = section_keys("augment", AugmentSettings, prefix="augment_")
    return [*described, *ranked, *shape, *tuned, *varied]


def read_model_settings(
    signal_names: Sequence[str] | None, given: Mapping[str, Any]
) -> ModelSettings:
    """Build a model's settings from flat keys; keys that are not its own are ignored.

    Args:
        signal_names: the signals that it is made of; None where the user chooses them.
        given: flat keys and raw values.

    Raises:
        SettingsError: a value is not allowed, or a signal or fusion rule is unknown.
    """
    is_hybrid = signal_names is None
    if_later: Sequence[str] = ()
    if signal_names is None:
        signal_names = read_section(ChoiceSettings, given).signals
        if signal_names is None:
            signal_names, if_later = (*_DEFAULT, *_IF_LATER), _IF_LATER
        if not signal_names:
            raise SettingsError(f"`signals` names no signal; it knows {', '.join(SIGNALS)}")
    _check_signals("signals", signal_names)
    search = read_section(SearchSettings, given)
    _check_signals("searched_signals", search.searched_signals)
    fusion = read_section(FusionSettings, given)
    if fusion.fusion not in FUSIONS:
        raise SettingsError(
            f"`fusion` must be one of {', '.join(FUSIONS)}, got {fusion.fusion!r}"
            + did_you_mean(fusion.fusion, FUSIONS)
        )
    parse_exposure(fusion.cold_exposure)
    if fusion.new_users == "popularity" and "popularity" not in signal_names:
        raise SettingsError("`new_users` is popularity, which is not among `signals`; add it there")
    if fusion.exposure_plot is not None:
        check_plot_file(fusion.exposure_plot)
    task = read_section(TaskSettings, given).task
    for key in ("fusion_weights", "cold_weights"):
        if task != "ranking" and getattr(fusion, key) is not None:
            raise SettingsError(
                f"`{key}` is for `task: ranking`; with `task: {task}` a regression on the "
                "validation part weighs the signals; leave it out"
            )
    settings = ModelSettings(
        signals={
            name: read_section(SIGNALS[name], given, prefix=f"{name}_") for name in signal_names
        },
        fixed={
            name: frozenset(
                key.field
                for key in section_keys(name, SIGNALS[name], prefix=f"{name}_")
                if key.name in given
            )
            for name in signal_names
        },
        if_later=frozenset(if_later),
        task=task,
        text=read_section(TextSettings, given),
        history=read_section(HistorySettings, given),
        ranking=read_section(RankingSettings, given),
        search=search,
        fusion=fusion,
        # A classic by its own name stays what it is, and reads no text.
        completes=is_hybrid and fusion.completion,
    )
    labels = settings.variants(is_later=True)
    _check_labels("fusion_weights", fusion.fusion_weights, labels)
    _check_labels("cold_weights", fusion.cold_weights, labels)
    return settings


def _check_labels(key: str, weights: Mapping[str, float] | None, labels: Collection[str]) -> None:
    for label in weights or ():
        if label not in labels:
            raise SettingsError(
                f"`{key}` names `{label}`, which is no signal of this run; it has "
                f"{', '.join(labels)}" + did_you_mean(label, labels)
            )


def _check_signals(key: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in SIGNALS:
            raise SettingsError(
                f"`{key}` names an unknown signal `{name}`; it knows {', '.join(SIGNALS)}"
                + did_you_mean(name, SIGNALS)
            )
