"""What training varies: texts and histories."""

import numpy as np
import pytest

from recbole_llm.augmentation import AugmentSettings, crop, variants
from recbole_llm.errors import SettingsError
from recbole_llm.settings import read_section

FIELDS = {
    "brand": ("acme", "", "", "bolt"),
    "title": ("red coat", "blue lamp", "", ""),
    "item_kind": ("wool", "steel", "", ""),
}


def many(kinds, **options):
    return variants(FIELDS, kinds, 400, np.random.default_rng(0), **options)


def texts_of(item, kinds, **options):
    return {texts[item] for texts in many(kinds, **options)}


def test_attributes_are_all_labelled_subsets_in_all_orders_around_the_title():
    brand, kind, title = "brand: acme", "item kind: wool", "red coat"
    orders = [(a, title) for a in (brand, kind)] + [(title, a) for a in (brand, kind)]
    three = {brand, kind, title}
    orders += [(a, b, c) for a in three for b in three - {a} for c in three - {a, b}]
    assert texts_of(0, ["attributes"]) == {". ".join(order) for order in orders}


def test_dropped_fields_leave_one_at_least_in_their_order():
    parts = ("acme", "red coat", "wool")
    kept = [[p for n, p in enumerate(parts) if number >> n & 1] for number in range(1, 8)]
    assert texts_of(0, ["dropout_fields"]) == {". ".join(part) for part in kept}


def test_a_field_is_its_translation_at_times():
    found = texts_of(1, ["back_translation"], translations={"blue lamp": "azure light"})
    assert found == {"blue lamp. steel", "azure light. steel"}
    assert texts_of(1, ["back_translation"]) == {"blue lamp. steel"}


def test_an_item_without_text_has_none_and_one_of_one_field_keeps_it():
    kinds = ["attributes", "dropout_fields"]
    assert texts_of(2, kinds) == {""}
    assert texts_of(3, kinds) == {"brand: bolt"}


def test_texts_depend_on_the_seed_alone():
    first, again, other = (
        variants(FIELDS, ["attributes"], 9, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


def naive_window(ages, kept):
    """Whether what is kept are neighbours by age."""
    return not any(min(ages[kept]) < age < max(ages[kept]) for age in ages[~kept] if kept.any())


@pytest.mark.parametrize("ordered", [True, False])
def test_a_crop_is_at_least_half_of_each_history_and_neighbours_where_there_is_an_order(ordered):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 60)
    indptr = np.r_[0, np.cumsum(lengths)]
    age = np.concatenate([rng.permutation(n) for n in lengths]).astype(np.int32)
    windows, crops = [], set()
    for _ in range(20):
        kept = crop(indptr, age if ordered else None, rng)
        crops.add(kept.tobytes())
        for start, stop, n in zip(indptr[:-1], indptr[1:], lengths, strict=True):
            part = slice(start, stop)
            assert kept[part].sum() >= n / 2
            windows.append(naive_window(age[part], kept[part]))
    assert len(crops) == 20
    assert all(windows) == ordered


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"augment": "atributes"}, "`augment` must be one of .*did you mean `attributes`"),
        ({"augment": "back_translation"}, "needs `translator`"),
        ({"augment": ["crop_history"], "translator": "to:a"}, "takes `to` and `back`, got to"),
        ({"translator": "a"}, "`translator` must look like name:value,name:value, got 'a'"),
        ({"augment_variants": 0}, "`augment_variants` must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named(given, message):
    with pytest.raises(SettingsError, match=message):
        read_section(AugmentSettings, given, prefix="augment_")


@pytest.mark.parametrize("pair", ["{to:en/fr,back:fr/en}", {"to": "en/fr", "back": "fr/en"}])
def test_a_pair_of_models_is_read_from_the_command_line_and_from_yaml(pair):
    given = {"augment": "[back_translation,crop_history]", "translator": pair}
    settings = read_section(AugmentSettings, given, prefix="augment_")
    assert settings.translator == {"to": "en/fr", "back": "fr/en"}
    assert settings.of_texts == ("back_translation",)
    assert settings.crops
