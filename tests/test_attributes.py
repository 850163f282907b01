"""Categories and numbers of items as rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.attributes import attribute_codes, attribute_rows, attributes_of
from recbole_llm.errors import SettingsError
from recbole_llm.text import FeatureTable, attribute_fields


def table(columns, types):
    n = len(next(iter(columns.values())))
    ids = tuple(f"i{number}" for number in range(n))
    columns = {name: tuple(values) for name, values in columns.items()}
    return FeatureTable(Path("shop.item"), "item_id", ids, columns, types)


def rows_of(columns, types, fields=None):
    items = table(columns, types)
    ids = ("[PAD]", *items.ids)
    codes = attribute_codes(items, fields, ids)
    rows = attributes_of(items, codes, ids)
    return None if rows is None else rows.toarray(), tuple(code.field for code in codes)


def test_each_field_counts_alike_in_a_unit_row():
    rows, chosen = rows_of(
        {"brand": ["a", "a", "b", "b", "a"], "genres": ["x y", "y x", "x", "y", ""]},
        {"brand": "token", "genres": "token_seq"},
    )
    assert chosen == ("brand", "genres")
    half, whole, quarter = np.sqrt(0.5), 1.0, 0.5
    expected = [
        [0, 0, 0, 0],  # the padding
        [half, 0, quarter, quarter],
        [half, 0, quarter, quarter],
        [0, half, half, 0],
        [0, half, 0, half],
        [whole, 0, 0, 0],
    ]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_what_one_item_alone_has_is_left_out():
    rows, _ = rows_of({"brand": ["a", "a", "a", "b"]}, {"brand": "token"}, ["brand"])
    np.testing.assert_allclose(rows[:, 0], [0, 1, 1, 1, 0])
    assert rows.shape[1] == 1
    assert rows_of({"brand": ["a", "b", "c"]}, {"brand": "token"}, ["brand"])[0] is None


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40).filter(lambda v: len(set(v)) > 1))
def test_a_number_is_spread_over_the_two_nearest_quantiles(values):
    rows, _ = rows_of({"price": [*map(str, values), ""]}, {"price": "float"})
    knots = np.unique(np.quantile(values, np.linspace(0, 1, 8)))
    for row, value in zip(rows[1:-1], values, strict=True):
        hats = [np.interp(value, knots, unit) for unit in np.eye(len(knots))]
        np.testing.assert_allclose(row, hats / np.linalg.norm(hats), atol=1e-5)
    assert not rows[0].any()
    assert not rows[-1].any()


def test_years_are_numbers_and_other_codes_are_categories():
    years = [str(1950 + number % 30) for number in range(80)]
    rows, _ = rows_of({"year": ["unknown", *years]}, {"year": "token"})
    assert rows.shape[1] == 8
    nearness = rows @ rows[2]  # of 1950
    assert nearness[3] > nearness[5] > nearness[28] == nearness[1] == 0
    codes, _ = rows_of(
        {"code": [str(100 + number % 40) for number in range(80)]}, {"code": "token"}
    )
    assert codes.shape[1] == 40


def test_what_comes_later_is_read_as_what_was_there():
    columns = {
        "brand": ["a", "a", "b", "b", "c"],
        "genres": ["x y", "y", "x", "", "x"],
        "price": ["1", "2", "4", "", "9"],
    }
    items = table(columns, {"brand": "token", "genres": "token_seq", "price": "float"})
    codes = attribute_codes(items, ["brand", "genres", "price"], items.ids)
    known = attributes_of(items, codes, items.ids).toarray()
    np.testing.assert_array_equal(attribute_rows(codes, columns).toarray(), known)
    brand, genres, price = codes
    for code, unknown in ((brand, "c"), (brand, "x"), (genres, "w"), (price, "?"), (price, "")):
        assert not code.rows([unknown]).nnz, (code.field, unknown)
    np.testing.assert_array_equal(
        genres.rows(["w x", "x"]).toarray(), genres.rows(["x", "x"]).toarray()
    )
    # Of what is beyond all that was there nothing is known.
    np.testing.assert_array_equal(
        price.rows(["0.9", "1", "9", "9.1"]).getnnz(axis=1) > 0, [0, 1, 1, 0]
    )


def test_words_alone_are_no_attribute():
    columns = {
        "title": ["red coat", "steel knife", "wool hat", "oak chair"],
        "price": ["1", "2", "", "1"],
        "weight": ["3", "3", "3", ""],
        "brand": ["a", "b", "a", "b"],
    }
    types = {"title": "token_seq", "price": "float", "weight": "float", "brand": "token"}
    assert attribute_fields(table(columns, types)) == ("price", "brand")
    assert rows_of({"title": columns["title"]}, types) == (None, ())
    assert rows_of(columns, types, []) == (None, ())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["pric"], "`item_attribute_fields`: shop.item has no field `pric`.*did you mean `price`"),
        (["vector"], "`item_attribute_fields`: `vector` holds lists of numbers"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(fields, said):
    columns = {"price": ["1", "2"], "vector": ["1 2", "3 4"]}
    with pytest.raises(SettingsError, match=said):
        rows_of(columns, {"price": "float", "vector": "float_seq"}, fields)
