"""The models that RecBole finds by name; adding one is a file and a line in :data:`MODELS`."""

from __future__ import annotations

from typing import Any

from recbole_llm.models.als import ALS
from recbole_llm.models.hybrid_fusion import HybridFusion
from recbole_llm.models.intent_sequence import IntentSequence
from recbole_llm.models.intent_tower import IntentTower
from recbole_llm.models.lightfm import LightFM
from recbole_llm.models.text_intent import TextIntent

__all__ = ["MODELS"]

MODELS: dict[str, type[Any]] = {
    model.__name__: model
    for model in (ALS, LightFM, TextIntent, HybridFusion, IntentSequence, IntentTower)
}
