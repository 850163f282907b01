"""Signals: sources of knowledge, each a frozen settings object that fits ``Factors``.

Adding a signal is one new file and one line in :data:`SIGNALS`; its fields become settings
(``<name>_<field>``), and a field with a ``search`` range can be searched (``searched_signals``).
"""

from __future__ import annotations

from recbole_llm.signals.als import ALSSignal
from recbole_llm.signals.base import Signal, SkippedSignal
from recbole_llm.signals.intent_tower import IntentTowerSignal
from recbole_llm.signals.item_item import ItemItemSignal
from recbole_llm.signals.lightfm import LightFMSignal
from recbole_llm.signals.next_item import NextItemSignal
from recbole_llm.signals.popularity import PopularitySignal
from recbole_llm.signals.sequence import SequenceSignal
from recbole_llm.signals.slim import SLIMSignal
from recbole_llm.signals.text_intent import TextIntentSignal
from recbole_llm.signals.text_map import TextMapSignal

__all__ = ["SIGNALS", "Signal", "SkippedSignal", "register"]

SIGNALS: dict[str, type[Signal]] = {
    "als": ALSSignal,
    "lightfm": LightFMSignal,
    "item_item": ItemItemSignal,
    "slim": SLIMSignal,
    "text_intent": TextIntentSignal,
    "text_map": TextMapSignal,
    "next_item": NextItemSignal,
    "popularity": PopularitySignal,
    "sequence": SequenceSignal,
    "intent_tower": IntentTowerSignal,
}

_METHODS = ("fit", "sources", "fold_in", "describe", "settle", "variants")


def register(name: str, signal: type[Signal]) -> None:
    """Add a signal, so that ``signals: [..., name]`` and ``<name>_<field>`` settings work.

    Raises:
        ValueError: the name is taken, or the class lacks a method.
    """
    if name in SIGNALS:
        raise ValueError(f"signal `{name}` is {SIGNALS[name]} already, refused {signal}")
    missing = [method for method in _METHODS if not callable(getattr(signal, method, None))]
    if missing:
        raise ValueError(f"signal `{name}`: {signal} lacks {' and '.join(missing)}")
    SIGNALS[name] = signal
