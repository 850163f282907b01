import argparse
import gzip
import json
import sys

import pandas as pd
import pytest
import yaml

from recbole_llm.column_values import feature_type, to_ids, to_strings, to_times
from recbole_llm.errors import DataError, SettingsError
from recbole_llm.importing import ImportOptions, add_arguments, import_data, run
from recbole_llm.table_files import read_table
from recbole_llm.text import read_feature_table

CLICKS = """customerId,sku,date,rating,quantity,event,note
007,A1,2020-02-13 10:00:00,4,1,click,"good, very
good"
NA,A2,2020-02-14,5,2,buy,x
null,A 3,2020-02-15,5,2,buy,x
12,A1,2020-02-16,3.5,1,NA,x
"""


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def imported(folder, clicks=CLICKS, **options):
    source = clicks if not isinstance(clicks, str) else write(folder, "clicks.csv", clicks)
    return import_data(
        ImportOptions(interactions=source, name="mine", out=folder / "dataset", **options)
    )


def rows_of(report, suffix="inter"):
    lines = (report.folder / f"mine.{suffix}").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def said(report, text):
    return any(text in line for line in report.lines)


def column(*values, dtype=object):
    return pd.Series(list(values), dtype=dtype)


# --- the whole way


def test_interactions_become_an_atomic_file(tmp_path):
    report = imported(tmp_path)
    assert rows_of(report) == [
        [
            "user_id:token",
            "item_id:token",
            "rating:float",
            "timestamp:float",
            "event:token",
            "quantity:float",
        ],
        ["007", "A1", "4.0", "1581588000", "click", "1"],
        ["NA_", "A2", "5.0", "1581638400", "buy", "2"],
        ["null_", "A 3", "5.0", "1581724800", "buy", "2"],
        ["12", "A1", "3.5", "1581811200", "NA_", "1"],
    ]
    assert (report.n_interactions, report.n_users, report.n_items) == (4, 4, 3)
    assert report.files == ("mine.inter", "mine.yaml")


def test_report_says_what_was_guessed_changed_and_comes_next(tmp_path):
    report = imported(tmp_path, item_col="sku")
    assert (
        "clicks.csv: 4 rows (user: `customerId` (guessed); item: `sku` (given); "
        in (report.lines[0])
    )
    assert "time: `date` (guessed), ISO dates" in report.lines[0]
    assert said(report, "kept   4 interactions of 4 users with 3 items")
    assert said(report, "wrote `NA` as `NA_`, `null` as `null_`")
    assert said(report, "left out, since not numbers: `note`")
    assert report.lines[-1] == (
        "next   run_recbole --model=HybridFusion --dataset=mine "
        f"--data_path={tmp_path / 'dataset'}/"
    )


def test_dates_are_the_time_whatever_their_column_is_called(tmp_path):
    report = imported(tmp_path, "user,item,when\nu,a,3 Jan 2024\nu,b,4 Jan 2024\n")
    assert "time: `when` (guessed), dates as %d %b %Y" in report.lines[0]
    assert rows_of(report)[1] == ["u", "a", "1704240000"]


def test_the_time_is_not_guessed_among_several_columns_of_dates(tmp_path):
    report = imported(tmp_path, "user,item,seen,born\nu,a,2024-01-03,1990-05-01\n")
    assert said(report, "dates stand in `seen`, `born`: --time_col names the time")
    assert rows_of(report)[0] == ["user_id:token", "item_id:token"]


def test_rows_that_cannot_be_used_are_counted_with_the_first_example(tmp_path):
    report = imported(
        tmp_path,
        "user,item,rating,time\n,a,1,5\nu,,1,5\nu,a,nan,5\nu,a,inf,5\nu,a,1,soon\nu,a,1,\nv,b,2,7\n",
    )
    assert rows_of(report)[1:] == [["v", "b", "2", "7"]]
    assert said(report, "dropped 1 row without a user id")
    assert said(report, "dropped 1 row without an item id")
    assert said(report, "dropped 2 rows without a rating that is a number (first: `nan`, row 3)")
    assert said(report, "dropped 2 rows without a readable time (first: `soon`, row 5)")


def test_repeated_rows_are_kept_and_mentioned(tmp_path):
    report = imported(tmp_path, "user,item\nu,a\nu,a\nu,b\n")
    assert report.n_interactions == 3
    assert said(report, "1 row repeating another exactly")


def test_parts_that_are_not_wanted_are_left_out(tmp_path):
    report = imported(tmp_path, time_col="", rating_col="", behaviour_col="")
    assert rows_of(report)[0] == [
        "user_id:token",
        "item_id:token",
        "inter_rating:float",
        "quantity:float",
    ]


def test_items_get_types_by_what_they_hold(tmp_path):
    items = [
        {"sku": "A1", "title": '"Weird Al"\tin 3-D', "price": 1.5, "genres": ["Sci Fi", "Drama"]},
        {"sku": "A2", "title": "Alien", "rating": 4, "colour: main": "red", "ean": "0012"},
        {"sku": "A2", "title": "again"},
        {"title": "lost"},
        {"sku": "Z9", "title": "N/A", "nothing": None, "ean": "13", "colour: main": "blue"},
    ]
    source = write(tmp_path, "items.jsonl", "\n".join(map(json.dumps, items)))
    report = imported(tmp_path, items=source)
    assert rows_of(report, "item") == [
        [
            "item_id:token",
            "title:token_seq",
            "price:float",
            "genres:token_seq",
            "item_rating:float",
            "colour_main:token",
            "ean:token",
        ],
        ["A1", '\'"Weird Al" in 3-D', "1.5", "Sci Fi Drama", "", "", ""],
        ["A2", "Alien", "", "", "4", "red", "0012"],
        ["Z9", "", "", "", "", "blue", "13"],
    ]
    for text in (
        "dropped 1 row without an id of the item",
        "dropped 1 row with an id seen before (the first is kept)",
        "left out, since empty: `nothing`",
        "title: 1 value such as `N/A` taken as missing",
        "1 item without a row in items.jsonl (first: `A 3`): kept, without text",
        "1 item of items.jsonl without an interaction",
    ):
        assert said(report, text), text


def test_users_are_found_by_the_interactions_name_for_them(tmp_path):
    source = write(tmp_path, "users.csv", "kunde,age,bio\nu,30,likes spy films\nv,,cooks\n")
    report = imported(tmp_path, "kunde,item\nu,a\nv,b\n", users=source, user_col="kunde")
    assert rows_of(report, "user") == [
        ["user_id:token", "age:float", "bio:token_seq"],
        ["u", "30", "likes spy films"],
        ["v", "", "cooks"],
    ]


def test_settings_name_the_fields_and_offer_the_rest(tmp_path):
    items = write(
        tmp_path, "items.csv", "sku,no,title\nA1,never again,Good film\nA2,hardly ever,Bad film\n"
    )
    users = write(tmp_path, "users.csv", "customerId,bio\n007,likes spy films\n12,cooks at home\n")
    report = imported(tmp_path, items=items, users=users)
    text = (report.folder / "mine.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp", "event", "quantity"]},
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "RATING_FIELD": "rating",
        "TIME_FIELD": "timestamp",
        "item_text_fields": ["no", "title"],
    }
    assert "# user_text_fields: [bio]" in text
    assert "# interaction_weight_field: rating  # or event, quantity" in text


@pytest.mark.parametrize(("n_new", "ranked"), [(3, True), (4, False)])
def test_items_without_an_interaction_are_ranked_unless_they_are_the_most(
    tmp_path, monkeypatch, n_new, ranked
):
    new = "".join(f"N{number},New film {number}\n" for number in range(n_new))
    items = write(tmp_path, "items.csv", f"sku,title\nA1,Alien\nA2,Brazil\n{new}")
    report = imported(tmp_path, items=items)
    what = "ranked, too, as new ones" if ranked else "left out; uncomment"
    assert any(f"items without an interaction are {what}" in line for line in report.lines)
    monkeypatch.setattr(sys, "argv", ["run_recbole"])
    monkeypatch.chdir(tmp_path)
    from recbole.data import create_dataset

    from recbole_llm.host.run import read_config

    config = read_config("ALS", "mine", [], {"data_path": str(tmp_path / "dataset"), "topk": [1]})
    dataset = create_dataset(config)
    assert dataset.inter_num == 4  # that with `A 3`, which has no row in items.csv, is kept
    known = {"[PAD]", "A1", "A2", "A 3"} | (
        {f"N{number}" for number in range(n_new)} if ranked else set()
    )
    assert set(dataset.field2id_token["item_id"]) == known


def test_settings_leave_out_what_the_data_lack(tmp_path):
    report = imported(tmp_path, "user,item\nu,a\n")
    settings = yaml.safe_load((report.folder / "mine.yaml").read_text(encoding="utf-8"))
    assert settings == {
        "load_col": {"inter": ["user_id", "item_id"]},
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
    }
    assert said(report, "no --items: the items have no text")


def test_recbole_loads_the_result(tmp_path, monkeypatch):
    items = write(tmp_path, "items.csv", 'sku,title\nA1,"""Weird Al"" in 3-D"\nA2,NA\nA 3,Alien\n')
    report = imported(tmp_path, items=items)
    # RecBole's Config reads the command line.
    monkeypatch.setattr(sys, "argv", ["run_recbole"])
    monkeypatch.chdir(tmp_path)
    from recbole.config import Config
    from recbole.data import create_dataset

    settings = yaml.safe_load((report.folder / "mine.yaml").read_text(encoding="utf-8"))
    load_col = {**settings["load_col"], "item": ["item_id", "title"]}
    config = Config(
        model="BPR",
        dataset="mine",
        config_dict={**settings, "load_col": load_col, "data_path": str(tmp_path / "dataset")},
    )
    dataset = create_dataset(config)
    assert dataset.inter_num == 4
    assert set(dataset.field2id_token["user_id"]) == {"[PAD]", "007", "NA_", "null_", "12"}
    assert set(dataset.field2id_token["item_id"]) == {"[PAD]", "A1", "A2", "A 3"}
    assert {"'\"Weird", "Alien"} <= set(dataset.field2id_token["title"])
    assert read_feature_table(report.folder / "mine.item", id_field="item_id").ids == (
        "A1",
        "A2",
        "A 3",
    )


def test_command_prints_the_report(tmp_path, capsys):
    source = write(tmp_path, "clicks.csv", CLICKS)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = str(tmp_path / "dataset")
    given = ["--interactions", str(source), "--name", "mine", "--out", out, "--rating_col="]
    assert run(parser.parse_args(given)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("read ")
    assert "rating:" not in printed[0]
    assert printed[-1].startswith("next   run_recbole --model=HybridFusion --dataset=mine")


# --- reading


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "user,item\n007,a b\n2,c\n"),
        ("t.csv", "user;item\n007;a b\n2;c\n"),
        ("t.txt", "user|item\n007|a b\n2|c\n"),
        ("t.tsv", "user\titem\n007\ta b\n2\tc\n"),
        ("t.csv", "user,item,\n007,a b,\n2,c,\n"),
        ("t.csv", "user,item\n007,a b,\n2,c,,\n"),
        ("t.csv", "user,item\n2,c\n1,b,surplus\n007,a b\n"),
        ("t.csv", "user,item\r\n\r\n007,a b\r\n2,c\r\n"),
        ("t.csv", '"user","item"\n"r1","007","a b"\n"r2","2","c"\n'),
        ("t.csv", ",user,item\n0,007,a b\n1,2,c\n"),
        ("t.jsonl", '{"user": "007", "item": "a b"}\n\n{"user": 2, "item": "c"}\n'),
        ("t.ndjson", '{"user": "007", "item": "a b"}\n{"user": 2.0, "item": "c"}\n'),
        ("t.json", '[{"user": "007", "item": "a b"}, {"user": 2, "item": "c"}]'),
    ],
)
def test_tables_of_all_kinds_are_read_alike(tmp_path, name, content):
    frame = read_table(write(tmp_path, name, content)).frame
    rows = set(zip(to_ids(frame["user"]), to_ids(frame["item"]), strict=True))
    assert rows == {("007", "a b"), ("2", "c")}


def test_compressed_text_is_read(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"user,item\nu,a\n"))
    assert list(read_table(tmp_path / "t.csv.gz").frame.columns) == ["user", "item"]


def test_parquet_keeps_long_ids_beside_a_gap_and_lists(tmp_path):
    frame = pd.DataFrame(
        {"user": pd.array([2**60 + 1, None], dtype="Int64"), "tags": [["a b", "c"], None]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet").frame
    assert to_ids(read["user"]).tolist() == [str(2**60 + 1), ""]
    assert to_strings(read["tags"]).tolist() == ["a b c", ""]
    assert feature_type(read["tags"], "x") == "token_seq"


def test_parquet_without_pyarrow_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="Parquet needs a pyarrow that works here"):
        read_table(write(tmp_path, "t.parquet", "x"))


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("cp1252", "not UTF-8: read as Windows-1252 (Western European)"),
    ],
)
def test_encodings_are_told_apart(tmp_path, encoding, note):
    table = read_table(write(tmp_path, "t.csv", "user,item\nJosé,Käse\n", encoding))
    assert table.frame.iloc[0].tolist() == ["José", "Käse"]
    assert list(table.frame.columns) == ["user", "item"]
    assert table.notes == ((note,) if note else ())


def test_one_broken_byte_does_not_spoil_a_utf8_file(tmp_path):
    (tmp_path / "t.csv").write_bytes("user,item\nJosé,Käse\nñ,ü".encode() + b"\xff\n")
    table = read_table(tmp_path / "t.csv")
    assert table.frame["item"].tolist() == ["Käse", "ü\ufffd"]
    assert table.notes == ("not UTF-8 in places: 1 byte replaced",)


@pytest.mark.parametrize("last", ['e\tf\t"y', 'e\tf\ty"'])
def test_stray_quotes_do_not_swallow_lines(tmp_path, last):
    content = f'user\titem\ttitle\na\tb\t"Weird\nc\td\tx\n{last}\n'
    table = read_table(write(tmp_path, "t.tsv", content))
    assert table.frame["user"].tolist() == ["a", "c", "e"]
    assert "never closed" in table.notes[0]


def test_rows_wider_than_the_head_are_dropped_and_counted(tmp_path):
    table = read_table(write(tmp_path, "t.csv", "user,item\n1,b,oops\n2,c\n"))
    assert table.frame["user"].tolist() == ["2"]
    assert table.notes == ("dropped 1 row with more fields than the head's 2",)


# --- values


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        (column(42.0, None, 7.5, dtype="float64"), ["42", "", "7.5"]),
        (column("42.0", "", "7"), ["42", "", "7"]),
        (column("42.0", "x"), ["42.0", "x"]),
        (column("007", " a\tb "), ["007", "a b"]),
        (column(1, 2.0, "03", None, b"x"), ["1", "2", "03", "", "x"]),
        (column(5, 6, dtype="int64"), ["5", "6"]),
        (column("a", None, dtype="category"), ["a", ""]),
    ],
)
def test_ids_look_as_people_know_them(values, ids):
    assert to_ids(values).tolist() == ids


@pytest.mark.parametrize(
    ("values", "seconds", "written"),
    [
        (["1577836800", "1577836801"], [1577836800, 1577836801], "Unix seconds"),
        (["1577836800000", "1577836800500"], [1577836800, 1577836800.5], "Unix milliseconds"),
        (["1577836800000000"], [1577836800], "Unix microseconds"),
        (["1577836800000000000"], [1577836800], "Unix nanoseconds"),
        (["1", "2"], [1, 2], "numbers, taken as they are"),
        (["2020-01-01", "2020-01-01T01:00:00+01:00"], [1577836800, 1577836800], "ISO dates"),
        (["20200101", "20201231"], [1577836800, 1609372800], "dates as %Y%m%d"),
        (["01/02/2020", "13/02/2020"], [1580515200, 1581552000], "dates as %d/%m/%Y"),
        (["01/02/2020", "02/13/2020"], [1577923200, 1581552000], "dates as %m/%d/%Y"),
        (["2020-01-01 00:00:00 UTC"], [1577836800], "dates as %Y-%m-%d %H:%M:%S %Z"),
        (["Jan 1, 2020", "2020-01-01"], [1577836800, 1577836800], None),
    ],
)
def test_times_are_understood_however_they_are_written(values, seconds, written):
    times = to_times(column(*values))
    assert times.seconds.tolist() == seconds
    assert written in (None, times.written)


def test_dates_of_a_typed_column_keep_their_zone():
    local = pd.Series(pd.to_datetime(["2020-01-01"]).tz_localize("Europe/Berlin"))
    assert to_times(local).seconds.tolist() == [1577833200]


def test_day_and_month_that_cannot_be_told_apart_are_said_and_can_be_given():
    times = to_times(column("03/04/2020"))
    assert "--time_format '%d/%m/%Y'" in times.notes[0]
    assert to_times(column("03/04/2020"), "%d/%m/%Y").seconds.tolist() == [1585872000]


@pytest.mark.parametrize(
    ("values", "name", "kind"),
    [
        (["1", "2.5", "", "N/A"], "x", "float"),
        (["0012", "13"], "x", "token"),
        (["red", "blue"], "colour", "token"),
        (["Alien", "Heat"], "Title", "token_seq"),
        (["a film of ghosts", "a film of love"], "x", "token_seq"),
        (["Home & Garden"] * 9 + ["Toys & Games"] * 9, "x", "token"),
        (["Action|Comedy", "Drama", ""], "x", "token_seq"),
        (['["a", "b c"]', "[]"], "x", "token_seq"),
        ([True, False], "x", "token"),
        (["", None, "NULL"], "x", None),
    ],
)
def test_type_follows_from_the_values(values, name, kind):
    assert feature_type(column(*values), name) == kind


def test_written_lists_become_words(tmp_path):
    items = write(
        tmp_path,
        "items.csv",
        "sku,genres,tags\n"
        "A1,Sci-Fi|Film noir,\"['a b', 'c']\"\n"
        'A2,Drama,"[""d"", [""e""]]"\n'
        "A 3,Comedy,[broken]\n",
    )
    report = imported(tmp_path, items=items)
    assert rows_of(report, "item")[1:] == [
        ["A1", "Sci-Fi Film noir", "a b c"],
        ["A2", "Drama", "d e"],
        ["A 3", "Comedy", "[broken]"],
    ]


# --- what goes wrong


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "\n\n", "is empty"),
        ("t.csv", "user,item\n", "has no rows"),
        ("t.csv", "\0\1\2", "is not a text file"),
        ("t.csv", "user,user,item\n1,2,3\n", "has the column `user` twice"),
        ("t.csv", "what,item\n1,2\n", r"hold the user id; name it with --user_col \(columns: what"),
        ("t.csv", "user,what\n1,2\n", "hold the item id; name it with --item_col"),
        ("t.tsv", "196\t242\n1\t2\n", "is the first line data"),
        ("t.csv", "user,item\n,2\n1,\n", "no row is left; dropped 1 row without a user id"),
        ("t.csv", "user,item,date\n1,2,soon\n", "column `date` is a time .first: `soon`"),
        ("t.parquet", "x", "cannot be read"),
        ("t.csv.gz", "x", "cannot be read"),
        ("t.jsonl", '{"user": 1}\n{bad\n', "line 2 is not JSON"),
        ("t.json", "[1, 2]", "must hold objects"),
        ("t.xlsx", "x", "cannot tell the format"),
    ],
)
def test_unusable_table_is_one_clear_line_and_leaves_nothing(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        imported(tmp_path, write(tmp_path, name, content))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "dataset").exists()


def test_missing_file_suggests_a_near_name(tmp_path):
    write(tmp_path, "clicks.csv", CLICKS)
    with pytest.raises(DataError, match=r"does not exist; did you mean `clicks\.csv`"):
        imported(tmp_path, tmp_path / "click.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_col": "skus"}, "no column `skus`; did you mean `sku`"),
        ({"user_col": "sku"}, "`sku` cannot be both user and item"),
        ({"time_format": "%q"}, "--time_format '%q'"),
    ],
)
def test_option_that_does_not_fit_the_table_is_a_settings_error(tmp_path, options, message):
    with pytest.raises(SettingsError, match=message):
        imported(tmp_path, **options)


def test_rating_without_numbers_is_an_error_only_when_it_was_named(tmp_path):
    clicks = "user,item,rating\nu,a,good\n"
    with pytest.raises(DataError, match="`rating` holds no number"):
        imported(tmp_path, clicks, rating_col="rating")
    assert said(imported(tmp_path, clicks), "`rating` holds no number, so it is not taken")


def test_items_of_other_ids_are_refused(tmp_path):
    items = write(tmp_path, "items.csv", "id,title\nq,Hello world\n")
    with pytest.raises(DataError, match=r"column `id` \(first: `q`\).*--item_id_col"):
        imported(tmp_path, items=items)


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", "", ".hidden", "two words"])
def test_name_that_is_no_plain_folder_is_refused(tmp_path, name):
    source = write(tmp_path, "clicks.csv", CLICKS)
    with pytest.raises(SettingsError, match="--name must be"):
        import_data(ImportOptions(interactions=source, name=name, out=tmp_path / "dataset"))


def test_existing_data_set_is_replaced_only_when_asked(tmp_path):
    imported(tmp_path)
    with pytest.raises(SettingsError, match="--overwrite"):
        imported(tmp_path, "user,item\nu,a\n")
    report = imported(tmp_path, "user,item\nu,a\n", overwrite=True)
    assert rows_of(report)[1:] == [["u", "a"]]


def test_overwriting_keeps_the_former_when_it_fails_and_spares_files_of_others(tmp_path):
    folder = imported(tmp_path).folder
    before = (folder / "mine.inter").read_text()
    with pytest.raises(DataError):
        imported(tmp_path, "user,item\n", overwrite=True)
    assert (folder / "mine.inter").read_text() == before
    (folder / "notes.md").write_text("mine")
    with pytest.raises(SettingsError, match=r"notes\.md is no file of ours"):
        imported(tmp_path, overwrite=True)
    assert (folder / "notes.md").read_text() == "mine"
