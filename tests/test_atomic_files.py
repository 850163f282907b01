import csv
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from recbole_llm.atomic_files import (
    MAX_TEXT_CHARACTERS,
    MISSING_WORDS,
    clean_white_space,
    format_numbers,
    mend_texts,
    mend_tokens,
    new_folder,
    safe_field_names,
    write_atomic_file,
)
from recbole_llm.errors import DataError
from recbole_llm.text import read_feature_table

NASTY_WORDS = [*MISSING_WORDS, "NA_", "NA__", "[PAD]", '"', "'", '""', "'\"", '"a', "'\"a", "''\"a"]
NASTY_CHARACTERS = st.one_of(
    st.sampled_from("\"'\t\n\r\x00\x0b\x0c\x1c\x85\u2028\u2029\xa0\ufeff\ud800\\,;|# _a0"),
    st.characters(),
)
NASTY = st.one_of(st.sampled_from(NASTY_WORDS), st.text(NASTY_CHARACTERS, max_size=8))


def read_as_recbole(path):
    # What Dataset._load_feat of RecBole 1.2.1 does.
    return pd.read_csv(path, delimiter="\t", engine="python", dtype=str, encoding="utf-8")


def strings(*values):
    return pd.Series(list(values), dtype=object)


def naive_clean(value):
    cleaned = ""
    for character in value:
        number = ord(character)
        control = number < 32 or 127 <= number < 160
        surrogate = 0xD800 <= number < 0xE000
        unwritable = control or surrogate or character in "\u2028\u2029"
        cleaned += " " if unwritable else character
    return " ".join(cleaned.split())


@settings(deadline=None, max_examples=300)
@given(rows=st.lists(st.tuples(NASTY, NASTY, NASTY), min_size=1, max_size=8))
@example(rows=[("NA", "null", '"a'), ("NA_", '"', 'b"'), ("[PAD]", "", "")])
@example(rows=[("NaN", "NaN", "NaN"), ("\x000", "", ""), ("", "", "")])
def test_recbole_reads_back_each_row_and_keeps_ids_apart(rows):
    ids, categories, texts = (strings(*column) for column in zip(*rows, strict=True))
    kept = clean_white_space(ids) != ""
    ids, categories, texts = ids[kept], categories[kept], texts[kept]
    table = pd.DataFrame(
        {"item_id": mend_tokens(ids), "kind": mend_tokens(categories), "title": mend_texts(texts)}
    )
    types = {"item_id": "token", "kind": "token", "title": "token_seq"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.item"
        write_atomic_file(path, table, types)
        read = read_as_recbole(path)
        plain = read_feature_table(path, id_field="item_id")
    assert list(read.columns) == ["item_id:token", "kind:token", "title:token_seq"]
    assert read["item_id:token"].notna().all()
    for column, field in zip(read.columns, table.columns, strict=True):
        assert read[column].fillna("").tolist() == table[field].tolist()
    # Our own reader, which takes quotes and "NA" as they are, sees the same.
    assert plain.ids == tuple(dict.fromkeys(table["item_id"]))
    meant = [clean_white_space(strings(value)).iloc[0] for value in ids]
    pairs = set(zip(meant, table["item_id"], strict=True))
    assert len(set(meant)) == len(set(table["item_id"])) == len(pairs)


@given(NASTY)
def test_clean_value_is_one_trimmed_line(value):
    (cleaned,) = clean_white_space(strings(value))
    assert " ".join(cleaned.split()) == naive_clean(value)
    assert cleaned == cleaned.strip()


def test_missing_words_are_those_of_pandas():
    assert set(STR_NA_VALUES) - {""} == MISSING_WORDS


def test_tokens_that_would_vanish_are_escaped_without_clashes():
    tokens = mend_tokens(strings("NA", "NA_", "null", "[PAD]", "nature", ""))
    assert tokens.tolist() == ["NA_", "NA__", "null_", "[PAD]_", "nature", ""]


def test_only_a_leading_quote_is_guarded():
    texts = mend_texts(strings('"Weird Al"', '15" screen', "'\"", "'tis"))
    assert texts.tolist() == ['\'"Weird Al"', '15" screen', "''\"", "'tis"]


def test_text_that_says_missing_becomes_empty_and_long_text_is_cut_to_what_csv_reads(tmp_path):
    texts = mend_texts(strings("N/A", '"' + "x" * 200_000))
    assert texts.tolist()[0] == ""
    assert len(texts.iloc[1]) == MAX_TEXT_CHARACTERS + 1 < csv.field_size_limit()
    table = pd.DataFrame({"item_id": ["1", "2"], "title": texts})
    write_atomic_file(tmp_path / "x.item", table, {"item_id": "token", "title": "token_seq"})
    assert read_as_recbole(tmp_path / "x.item")["title:token_seq"].iloc[1] == texts.iloc[1]


def test_index_and_input_are_left_as_they_are():
    values = pd.Series(["NA", " a\tb"], index=[7, 3], dtype=object)
    assert mend_tokens(values).to_dict() == {7: "NA_", 3: "a b"}
    assert values.to_dict() == {7: "NA", 3: " a\tb"}


@pytest.mark.parametrize("mend", [clean_white_space, mend_tokens, mend_texts])
def test_no_rows_are_no_problem(mend):
    assert mend(strings()).tolist() == []


@pytest.mark.parametrize(
    ("numbers", "written"),
    [
        ([1.0, np.nan, 3.0], ["1", "", "3"]),
        ([1.0, 2.5, np.inf], ["1.0", "2.5", ""]),
        ([1577836800.0], ["1577836800"]),
        ([1577836800.123], ["1577836800.123"]),
        ([1e300], ["1e+300"]),
        ([np.nan], [""]),
        ([], []),
    ],
)
def test_numbers_are_written_short_and_missing_ones_empty(numbers, written):
    assert format_numbers(pd.Series(numbers, dtype=np.float64)).tolist() == written


def test_field_names_are_safe_and_distinct_from_each_other_and_from_those_taken():
    names = safe_field_names(
        ["colour: main", "colour main", "rating", "größe", "::"], taken=["rating"], prefix="item_"
    )
    assert list(names.values()) == [
        "colour_main",
        "colour_main_2",
        "item_rating",
        "größe",
        "column",
    ]


def test_value_that_was_not_mended_is_refused_rather_than_written(tmp_path):
    with pytest.raises(csv.Error):
        write_atomic_file(
            tmp_path / "x.item", pd.DataFrame({"item_id": ["a\tb"]}), {"item_id": "token"}
        )


def test_folder_appears_only_after_success(tmp_path):
    target = tmp_path / "deep" / "mine"
    with new_folder(target) as folder:
        (folder / "a").write_text("new")
        assert not target.exists()
    assert (target / "a").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["mine"]


def test_failure_leaves_the_former_folder_and_no_rest(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("old")

    def fill_and_fail():
        with new_folder(tmp_path / "mine", overwrite=True) as folder:
            (folder / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_and_fail()
    assert (tmp_path / "mine" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_failed_move_puts_the_former_folder_back(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("old")
    real = os.replace

    def replace(source, target):
        if str(source).endswith(".new"):
            raise OSError("disk is gone")
        real(source, target)

    monkeypatch.setattr("recbole_llm.atomic_files.os.replace", replace)
    with (
        pytest.raises(OSError, match="disk is gone"),
        new_folder(tmp_path / "mine", overwrite=True),
    ):
        pass
    assert (tmp_path / "mine" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_existing_folder_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("old")
    with pytest.raises(DataError, match="--overwrite"), new_folder(tmp_path / "mine"):
        pass
    with new_folder(tmp_path / "mine", overwrite=True) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["b"]
