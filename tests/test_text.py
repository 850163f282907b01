from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.errors import DataError, SettingsError
from recbole_llm.text import (
    FeatureTable,
    categorical_fields,
    clean,
    compose,
    read_feature_table,
    text_fields,
)


def write(path: Path, *lines: str, end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    return path


def column_table(kind: str, values: list[str]) -> FeatureTable:
    ids = tuple(map(str, range(len(values))))
    return FeatureTable(Path("x.item"), "item_id", ids, {"x": tuple(values)}, {"x": kind})


@pytest.fixture
def films(tmp_path):
    path = write(
        tmp_path / "films.item",
        "item_id:token\ttitle:token_seq\tyear:float\tgenres:token_seq\toverview:token_seq",
        "1\tToy Story\t1995\tAnimation Comedy\tToys live <i>happily</i>.",
        "2\tWho?\t\tComedy\t",
        "3\tNA\t1996\t\tnull",
        "4\t\t\t\t",
    )
    return read_feature_table(path, id_field="item_id")


def test_columns_types_and_ids_are_read_as_they_are_written(films):
    assert films.ids == ("1", "2", "3", "4")
    assert films.columns["title"] == ("Toy Story", "Who?", "NA", "")
    assert films.types == {
        "title": "token_seq",
        "year": "float",
        "genres": "token_seq",
        "overview": "token_seq",
    }


def test_words_for_missing_and_quotes_stay_what_they_are(tmp_path):
    values = [
        "NA",
        "null",
        "None",
        "nan",
        '"Hello" he said',
        '"open',
        "'tis",
        "a\x85b\u2028c\fd",
        " ",
    ]
    rows = [f"{number}\t{value}" for number, value in enumerate(values)]
    path = write(tmp_path / "x.item", "item_id:token\tname:token", *rows)
    assert list(read_feature_table(path, id_field="item_id").columns["name"]) == values


def test_a_byte_order_mark_and_windows_line_ends_are_dropped(tmp_path):
    lines = ("item_id:token\tname:token", "1\tblue cap", "", "2\t")
    path = write(tmp_path / "x.item", *lines, end="\r\n", encoding="utf-8-sig")
    table = read_feature_table(path, id_field="item_id")
    assert table.ids == ("1", "2")
    assert table.columns == {"name": ("blue cap", "")}


def test_of_rows_with_one_id_the_first_is_kept(tmp_path):
    path = write(tmp_path / "x.item", "name:token\titem_id:token", "one\t7", "two\t8", "three\t7")
    table = read_feature_table(path, id_field="item_id")
    assert table.ids == ("7", "8")
    assert table.columns["name"] == ("one", "two")


def test_separator_and_encoding_can_be_set(tmp_path):
    path = write(tmp_path / "x.item", "item_id:token|name:token", "1|café", encoding="latin-1")
    table = read_feature_table(path, id_field="item_id", field_separator="|", encoding="latin-1")
    assert table.columns["name"] == ("café",)
    with pytest.raises(DataError, match=r"x.item is not in utf-8 \(byte 30\).*`encoding`"):
        read_feature_table(path, id_field="item_id", field_separator="|")


def test_a_file_with_a_head_line_alone_has_no_rows(tmp_path):
    path = write(tmp_path / "x.item", "item_id:token\tname:token")
    table = read_feature_table(path, id_field="item_id")
    assert table.ids == ()
    assert table.columns == {"name": ()}
    assert text_fields(table) == categorical_fields(table) == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("item_id:token\tname:token", "1\ta", "2\tb\tc"),
            "line 3 has 3 fields, the head line has 2",
        ),
        (("item_id:token\tname:token", "1"), "line 2 has 1 fields, the head line has 2"),
        (("item:token\tname:token", "1\ta"), "no field `item_id`; it has: item, name"),
        (("item_ids:token\tname:token",), "did you mean `item_ids`"),
        (("item_id:token\tname", "1\ta"), "line 1: `name` must be a new name and a type of token,"),
        (("item_id:token\tname:text", "1\ta"), "line 1: `name:text` must be"),
        (("item_id:token\titem_id:token",), "line 1: `item_id:token` must be"),
        (("item_id:token,name:token",), "`item_id:token,name:token` must be"),
        ((), "line 1: `` must be"),
    ],
)
def test_a_broken_file_is_named_with_line_and_reason(tmp_path, lines, message):
    path = write(tmp_path / "broken.item", *lines)
    with pytest.raises(DataError, match=message) as caught:
        read_feature_table(path, id_field="item_id")
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.item does not exist"):
        read_feature_table(tmp_path / "no.item", id_field="item_id")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<p>Red &amp; <b>blue</b></p><br/>cap", "Red & blue cap"),
        ("AT&amp;amp;T &lt;i&gt;phone&lt;/i&gt;", "AT&T phone"),
        ("H<sub>2</sub>O", "H2O"),
        ('<a href="x>y" class=z>link</a> <IMG SRC=a.png>', "link"),
        ("a<script>let x = '<p>';</script>b<STYLE type='t'>p {}</STYLE>c<!-- d -->e", "a b c e"),
        ("cut <script>let x = 1", "cut"),
        ("3 < 5 and 7 > 2, a <b and c> d, I <3 you", "3 < 5 and 7 > 2, a <b and c> d, I <3 you"),
        ("tab\there\x00null\x85next\u200bzero\ud800half", "tab here null next zero half"),
        ("  many \u00a0 \u3000 blanks\n", "many blanks"),
        ("ﬁne ＦＵＬＬ ①", "fine FULL 1"),
        ("soft\u00adhyphen\u200f\ufeff", "softhyphen"),
        ("Smile 😀 👩‍🚀 🏳️‍🌈 naïve 不锈钢 हिन्दी", "Smile 😀 👩‍🚀 🏳️‍🌈 naïve 不锈钢 हिन्दी"),
        ("cafe\u0301", "café"),
        ("None of the above", "None of the above"),
        ("Nan's kitchen", "Nan's kitchen"),
    ],
)
def test_clean_leaves_one_line_of_readable_text(raw, expected):
    assert clean(raw) == expected


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "None", "NULL", "N/A", "na", "<NA>", " <na> ", "", " "]
)
def test_a_value_that_says_missing_is_no_text(word):
    assert clean(word) == ""


@given(st.text())
def test_clean_text_is_one_trimmed_line_that_can_be_encoded(text):
    cleaned = clean(text)
    assert cleaned == " ".join(cleaned.split())
    assert cleaned.isprintable() or not cleaned.isascii()
    assert cleaned.encode().decode() == cleaned


@pytest.mark.parametrize(
    "values",
    [
        ["Toy Story", "Heat", "Se7en"],
        ["technician", "writer"],
        ["United_Kingdom", "France"],
        ["see http://x.org/a.png", "a 12 mm bolt, steel"],
        ["英雄", "活着"],
        ["हिन्दी", "चाय"],
        ["Чайник"],
        ["word", "", "", "", "nan"],
        ["<p>some words</p>"],
    ],
)
@pytest.mark.parametrize("kind", ["token", "token_seq"])
def test_fields_of_words_are_text(kind, values):
    assert text_fields(column_table(kind, values)) == ("x",)


@pytest.mark.parametrize(
    "values",
    [
        ["1995", "1996"],
        ["M", "F"],
        ["B00TNNWMXI", "B00IBZE2EQ 0123456789"],
        ["85711", "T8H1N"],
        ["https://example.org/some/page", "www.example.org", "shop.example.com/cap"],
        ["someone@example.org"],
        ["/images/cap.jpg", "./images/cap", "cap-red.PNG?size=large", "C:\\images\\cap"],
        ["True", "False"],
        ["", "nan"],
        ["2016-05-01", "01-Jan-1995"],
        ["3f2b8e1c-77aa-4f0e-9d0a-aaaaaaaaaaaa"],
        [],
    ],
)
@pytest.mark.parametrize("kind", ["token", "token_seq"])
def test_fields_of_codes_numbers_and_places_are_not_text(kind, values):
    assert text_fields(column_table(kind, values)) == ()


@pytest.mark.parametrize("kind", ["float", "float_seq"])
def test_numeric_fields_are_neither_text_nor_categories(kind):
    table = column_table(kind, ["word"] * 4 + ["other"] * 4)
    assert text_fields(table) == categorical_fields(table) == ()


def test_half_of_the_values_make_a_field_text_wherever_they_stand():
    assert text_fields(column_table("token", ["12"] * 5000 + ["word"] * 5000)) == ("x",)
    assert text_fields(column_table("token", ["12"] * 5200 + ["word"] * 4800)) == ()


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("token", ["M", "F", "M", "", "F"], True),
        ("token", ["red", "red", "red"], False),
        ("token", ["a", "b", "c", "a"], False),
        ("token", [], False),
        ("token_seq", ["Comedy Drama", "Drama", "Comedy", "Drama Comedy"], True),
        ("token_seq", ["the red cap", "the blue cap", "the mug", "a red mug", "a pen"], False),
        ("token_seq", ["Toy Story", "Heat", "Toy Soldiers", "Jumanji"], False),
        ("token_seq", ["", ""], False),
    ],
)
def test_categories_are_few_values_that_rows_share(kind, values, expected):
    assert categorical_fields(column_table(kind, values)) == (("x",) if expected else ())


def test_compose_joins_values_as_sentences_in_the_order_of_fields_and_ids(films):
    texts = compose(films, ["title", "genres", "overview"], ["3", "1", "2", "4", "9", "[PAD]"])
    assert texts == [
        "",
        "Toy Story. Animation Comedy. Toys live happily.",
        "Who? Comedy",
        "",
        "",
        "",
    ]
    assert compose(films, ["overview", "year"], ["1"]) == ["Toys live happily. 1995"]
    assert compose(films, [], ["1"]) == [""]


def test_the_padding_id_has_no_text_even_if_a_row_is_called_so():
    table = FeatureTable(Path("x"), "id", ("[PAD]",), {"name": ("word",)}, {"name": "token"})
    assert compose(table, ["name"], ["[PAD]"]) == [""]


def test_an_unknown_field_names_the_setting_and_the_fields_there_are(films):
    with pytest.raises(SettingsError) as caught:
        compose(films, ["titel"], ["1"])
    assert str(caught.value) == (
        f"`item_text_fields`: {films.path} has no field `titel`; it has: title, year, genres, "
        "overview; did you mean `title`?"
    )
    with pytest.raises(SettingsError, match="`user_text_fields`: "):
        compose(films, ["item_id"], ["1"], setting="user_text_fields")


def test_recboles_own_films_and_users_are_understood():
    folder = Path(find_spec("recbole").origin).parent / "dataset_example" / "ml-100k"
    items = read_feature_table(folder / "ml-100k.item", id_field="item_id")
    assert len(items.ids) == 1682
    assert text_fields(items) == ("movie_title", "class")
    assert categorical_fields(items) == ("release_year", "class")
    assert compose(items, text_fields(items), ["1"]) == ["Toy Story. Animation Children's Comedy"]
    users = read_feature_table(folder / "ml-100k.user", id_field="user_id")
    assert text_fields(users) == ("occupation",)
    assert categorical_fields(users) == ("age", "gender", "occupation")
