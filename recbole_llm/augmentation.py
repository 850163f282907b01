"""Other texts of items and parts of histories, which training alone sees.

Attributes as `name: value`: Li et al., "Text Is All You Need" (Recformer), 2023, here in random
order and number. Dropped fields: UniSRec's dropped words (Hou et al., 2022), by whole fields.
Crops: Xie et al., "Contrastive Learning for Sequential Recommendation" (CL4SRec), 2022; of random
length here.
Back-translation: Sennrich et al., "Improving Neural Machine Translation Models with Monolingual
Data", 2016, here as a paraphrase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recbole_llm.errors import SettingsError
from recbole_llm.factors import Index, Mask
from recbole_llm.settings import Words, setting
from recbole_llm.text import join_sentences, title_field

_OF_TEXTS = ("attributes", "dropout_fields", "back_translation")
_CROP = "crop_history"

_DROPPED = 0.3
# An item's field is its translation as often as itself.
_TRANSLATED = 0.5
# The shortest crop of a history, as a share of it.
_SHORTEST = 0.5

# A field's name and its value.
_Field = tuple[str, str]


@dataclass(frozen=True)
class AugmentSettings:
    """What training varies, and evaluation does not."""

    augment: Words | None = setting(
        None,
        "What training varies: attributes (an item's fields as `name: value`, some of them, in "
        "any order), dropout_fields (fields left out), back_translation (fields there and back by "
        "`translator`), crop_history (a part of each history); none: nothing.",
        choices=(*_OF_TEXTS, _CROP),
        key="augment",
    )
    variants: int = setting(
        3,
        "Texts of an item beside the plain one that `augment` makes and has encoded, once; each "
        "epoch reads one of them all.",
        at_least=1,
    )
    translator: Mapping[str, str] | None = setting(
        None,
        "Folders of two seq2seq models of transformers, to another language and back: "
        "to:FOLDER,back:FOLDER.",
        key="translator",
    )

    def __post_init__(self) -> None:
        if "back_translation" in self.of_texts and self.translator is None:
            raise SettingsError(
                "`augment: back_translation` needs `translator`, as in `translator: {to: FOLDER, "
                "back: FOLDER}`"
            )
        if self.translator is not None and set(self.translator) != {"to", "back"}:
            raise SettingsError(
                f"`translator` takes `to` and `back`, got {', '.join(self.translator)}"
            )

    @property
    def of_texts(self) -> Words:
        """What is done to texts."""
        return tuple(kind for kind in self.augment or () if kind != _CROP)

    @property
    def crops(self) -> bool:
        """Whether histories are cropped."""
        return _CROP in (self.augment or ())


def variants(
    fields: Mapping[str, Sequence[str]],
    kinds: Sequence[str],
    n: int,
    rng: np.random.Generator,
    translations: Mapping[str, str] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Other texts of items.

    Args:
        fields: name -> a value of each item, "" where it has none.
        kinds: of `AugmentSettings.of_texts`.
        n: texts of each item.
        rng: of all draws.
        translations: value -> what it became there and back; values that are not in it stay.

    Returns:
        n lists of a text per item, "" where all fields are empty.
    """
    names = tuple(fields)
    title = title_field(names) if names else ""
    rows = [
        [(name, value) for name, value in zip(names, values, strict=True) if value]
        for values in zip(*fields.values(), strict=True)
    ]
    return tuple(
        tuple(_variant(row, kinds, title, rng, translations or {}) for row in rows)
        for _ in range(n)
    )


def _variant(
    fields: list[_Field],
    kinds: Sequence[str],
    title: str,
    rng: np.random.Generator,
    translations: Mapping[str, str],
) -> str:
    if "dropout_fields" in kinds:
        fields = _some(fields, 1 - _DROPPED, rng)
    if translations:
        fields = [
            (name, translations.get(value, value) if rng.random() < _TRANSLATED else value)
            for name, value in fields
        ]
    if "attributes" not in kinds:
        return join_sentences([value for _, value in fields])
    named = [value for name, value in fields if name == title]
    others = _some([field for field in fields if field[0] != title], 0.5, rng)
    parts = [*named, *(f"{name.replace('_', ' ')}: {value}" for name, value in others)]
    return join_sentences([parts[place] for place in rng.permutation(len(parts))])


def _some(fields: list[_Field], share: float, rng: np.random.Generator) -> list[_Field]:
    """About a share of the fields, in their order; one at least, where there is one."""
    kept = rng.random(len(fields)) < share
    if not kept.any() and fields:
        kept[rng.integers(len(fields))] = True
    return [field for field, stays in zip(fields, kept, strict=True) if stays]


def crop(indptr: Index, age: NDArray[np.int32] | None, rng: np.random.Generator) -> Mask:
    """Which entries are in a random part of each history, half of it at least.

    Args:
        indptr: int (n + 1,), where each of n histories begins and ends.
        age: int32 (nnz,), 0 for the latest, items of one moment in any order; None: no order.
        rng: of the parts.

    Returns:
        bool (nnz,): consecutive entries by age, or any subset where there is no order.
    """
    lengths = np.diff(indptr)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((rng.random(len(owners)), *(() if age is None else (age,)), owners))
    sizes = np.ceil(rng.uniform(_SHORTEST, 1, len(lengths)) * lengths)
    first = indptr[:-1] + np.floor(rng.random(len(lengths)) * (lengths - sizes + 1))
    places = np.arange(len(owners))
    kept = np.zeros(len(owners), dtype=bool)
    kept[order] = (places >= first[owners]) & (places < (first + sizes)[owners])
    return kept
