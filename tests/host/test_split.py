"""Cold splits of data sets, loaded and filtered by RecBole and read by it again."""

import argparse
from itertools import chain

import numpy as np
import pandas as pd
import pytest
from recbole.data import create_dataset

from recbole_llm import cold_split
from recbole_llm.cold_split import PARTS, SplitOptions
from recbole_llm.errors import DataError, SettingsError
from recbole_llm.host.run import read_config
from recbole_llm.host.split import load_source, run, split

HEAD = "uid:token;iid:token;stars:float;when:float"
SETTINGS = """
USER_ID_FIELD: uid
ITEM_ID_FIELD: iid
RATING_FIELD: stars
TIME_FIELD: when
field_separator: ";"
load_col: {inter: [uid, iid, stars, when]}
item_text_fields: [name]
normalize_all: true
user_inter_num_interval: "[3,inf)"
"""


@pytest.fixture
def shop(tmp_path):
    """30 users, 20 items, some pairs repeated; user u99 has one interaction, item i19 no name."""
    rng = np.random.default_rng(4)
    rows = [
        f"u{rng.integers(30)};i{min(rng.geometric(0.12) - 1, 19)};{rng.integers(1, 6)}.0"
        f";{1_600_000_000 + rng.integers(9999)}"
        for _ in range(500)
    ]
    folder = tmp_path / "data" / "shop"
    folder.mkdir(parents=True)
    (folder / "shop.inter").write_text("\n".join([HEAD, *rows, "u99;i1;3.0;1600000000"]) + "\n")
    (folder / "shop.item").write_text(
        "\n".join(["iid:token;name:token_seq", *(f"i{item};item {item}" for item in range(19))])
    )
    (folder / "shop.yaml").write_text(SETTINGS)
    return tmp_path / "data"


def kept_by_recbole(data_path, **settings):
    """The interactions that RecBole itself trains and tests on, as written in the file's words."""
    config = read_config("Pop", "shop", [], {"data_path": str(data_path), **settings})
    return _pairs(create_dataset(config))


def _pairs(data):
    feat = data.inter_feat
    users, items = (data.id2token(field, feat[field]) for field in ("uid", "iid"))
    return sorted(zip(users, items, strict=True))


def written(options):
    files = [options.folder / f"{options.name}.{part}.inter" for part in PARTS]
    return [file.read_text().splitlines()[1:] for file in files]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"rm_dup_inter": "last"},
        {"user_inter_num_interval": "[9,inf)", "item_inter_num_interval": "[5,55]"},
        {"val_interval": "{'stars': '[3,5)'}"},
        {"load_col": "{'inter': ['uid', 'iid', 'when'], 'item': ['iid']}"},
    ],
)
def test_split_holds_what_recboles_filters_leave(shop, tmp_path, filters):
    options = SplitOptions("shop", tmp_path / "out")
    split(options, {"data_path": str(shop), **filters})
    pairs = sorted(tuple(line.split(";")[:2]) for part in written(options) for line in part)
    assert pairs == kept_by_recbole(shop, **filters)
    lines = (shop / "shop" / "shop.inter").read_text().splitlines()
    assert set(chain(*written(options))) < set(lines)


def test_repeats_are_removed_by_time_as_recbole_does(shop):
    source = load_source("shop", {"data_path": str(shop), "rm_dup_inter": "first"})
    file = pd.read_csv(shop / "shop" / "shop.inter", sep=";")
    first = file.groupby(["uid:token", "iid:token"])["when:float"].min()
    kept = file.iloc[source.rows].set_index(["uid:token", "iid:token"])["when:float"]
    assert kept.index.is_unique
    assert (kept == first.loc[kept.index]).all()


def test_recbole_reads_the_split_as_its_parts(shop, tmp_path):
    options = SplitOptions("shop", tmp_path / "out", cold="both", by="time")
    split(options, {"data_path": str(shop)})
    config = read_config("Pop", options.name, [], {"data_path": str(tmp_path / "out")})
    assert config["item_text_fields"] == ["name"]
    assert config["normalize_all"] is True
    assert config["user_inter_num_interval"] == "[0,inf)"
    parts = create_dataset(config).build()
    for part, lines in zip(parts, written(options), strict=True):
        assert _pairs(part) == sorted(tuple(line.split(";")[:2]) for line in lines)


def test_columns_that_the_user_names_are_carried_over_and_model_settings_are_not(shop, tmp_path):
    (shop / "shop" / "shop.yaml").write_text("encoding: utf-8\n")
    file = tmp_path / "mine.yaml"
    file.write_text(f"{SETTINGS}learning_rate: 0.1\n")
    options = SplitOptions("shop", tmp_path / "out")
    split(options, {"data_path": str(shop), "config_files": str(file), "threshold": "{'stars': 3}"})
    text = (options.folder / f"{options.name}.yaml").read_text()
    for line in ("encoding: utf-8", "USER_ID_FIELD: uid", "field_separator: ;", "stars: 3"):
        assert line in text
    settings = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in settings if "learning_rate" in line or "num_interval" in line]


def test_command_splits_recboles_bundled_data_set(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    cold_split.add_arguments(parser)
    args = parser.parse_args(["--dataset=ml-100k", "--cold=items", "--out", str(tmp_path)])
    args.settings = {}
    assert run(args) == 0
    name = "ml-100k-cold-items-2020"
    assert f"run_recbole --dataset={name} --data_path={tmp_path}" in capsys.readouterr().out
    source = load_source("ml-100k", {}).files["inter"].read_text().splitlines()[1:]
    parts = written(SplitOptions("ml-100k", tmp_path))
    assert sorted(chain(*parts)) == sorted(source)
    train, valid, test = ({line.split("\t")[1] for line in part} for part in parts)
    # 336 of 1,682 items, half for each part.
    assert (len(valid - train), len(test - train)) == (168, 168)
    assert not (valid - train) & (test - train)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"user_inter_num_intervall": "[5,inf)"}, SettingsError, "user_inter_num_interval"),
        ({"learning_rate": "0.1"}, SettingsError, "unknown setting `learning_rate`"),
        ({"user_inter_num_interval": "5"}, SettingsError, "`5` is no interval"),
        ({"val_interval": "{'starz': '[3,5)'}"}, DataError, "starz"),
        ({"val_interval": "stars"}, SettingsError, "`val_interval` must look like"),
        ({"user_inter_num_interval": "[500,inf)"}, DataError, "empty"),
        ({"USER_ID_FIELD": "user"}, SettingsError, "`USER_ID_FIELD`"),
        ({"data_path": "nowhere"}, DataError, "nowhere"),
        ({"config_files": "nowhere.yaml"}, SettingsError, "nowhere.yaml"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(shop, tmp_path, settings, error, said):
    with pytest.raises(error, match=said) as raised:
        split(SplitOptions("shop", tmp_path / "out"), {"data_path": str(shop), **settings})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_misspelt_filter_in_the_data_sets_own_settings_is_named(shop, tmp_path):
    file = shop / "shop" / "shop.yaml"
    file.write_text(file.read_text().replace("user_inter_num", "user_inter_nun"))
    with pytest.raises(SettingsError, match="did you mean `user_inter_num_interval`"):
        split(SplitOptions("shop", tmp_path / "out"), {"data_path": str(shop)})


def test_split_of_a_split_is_refused(shop, tmp_path):
    options = SplitOptions("shop", tmp_path / "out")
    split(options, {"data_path": str(shop)})
    again = SplitOptions(options.name, tmp_path / "out")
    # Its folder has no single .inter file, and its YAML names the parts.
    with pytest.raises(SettingsError, match="split already"):
        split(again, {"data_path": str(tmp_path / "out")})
