import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.cold_split import (
    LEFT_OUT,
    TEST,
    TRAIN,
    VALID,
    Source,
    SplitOptions,
    check_no_filters,
    check_options,
    cold_split,
    write_split,
)
from recbole_llm.errors import DataError, SettingsError


def interactions(seed=0, n_users=30, n_items=20, n_rows=400):
    """Few popular and many rare items, pairs repeated."""
    rng = np.random.default_rng(seed)
    items = np.minimum(rng.geometric(0.15, n_rows), n_items)
    users = rng.integers(0, n_users, n_rows)
    return np.char.add("u", users.astype(str)), np.char.add("i", items.astype(str))


def parts_of(ids, parts):
    """Id -> the parts that it is in, by a loop that anybody can read."""
    found = {}
    for name, part in zip(ids, parts, strict=True):
        found.setdefault(name, set()).add(int(part))
    return found


def cold_in(ids, parts, part):
    return {name for name, its in parts_of(ids, parts).items() if part in its and TRAIN not in its}


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    cold=st.sampled_from(["items", "users", "both"]),
    fraction=st.sampled_from([0.2, 0.3, 0.5]),
    by_time=st.booleans(),
)
def test_no_cold_item_or_user_is_in_training_or_in_both_parts(seed, cold, fraction, by_time):
    users, items = interactions(seed)
    times = np.random.default_rng(seed).integers(0, 9, len(users)).astype(float)
    how = {"cold": cold, "fraction": fraction, "seed": seed, "times": times if by_time else None}
    split = cold_split(users, items, **how)
    for kind, ids in (("items", items), ("users", users)):
        if cold not in (kind, "both"):
            continue
        cold_valid, cold_test = (cold_in(ids, split.parts, part) for part in (VALID, TEST))
        assert cold_valid
        assert cold_test
        assert not cold_valid & cold_test
        for name, its in parts_of(ids, split.parts).items():
            if name in cold_valid | cold_test:
                assert len(its - {LEFT_OUT}) == 1
            elif its != {LEFT_OUT}:
                assert TRAIN in its
    assert (split.parts == LEFT_OUT).any() <= (cold == "both")
    trained = split.parts == TRAIN
    for row, cold_row in enumerate(split.cold_rows):
        seen = users[row] in users[trained] and items[row] in items[trained]
        assert cold_row == (not seen)
    for part in (VALID, TEST):
        assert set(split.cold_rows[split.parts == part]) == {False, True}
    np.testing.assert_array_equal(cold_split(users, items, **how).parts, split.parts)


def test_fraction_of_the_items_is_cold_and_the_rest_is_drawn_8_1_1():
    users, items = np.tile(np.arange(100), 100), np.repeat(np.arange(100), 100)
    split = cold_split(users, items, cold="items", fraction=0.2, seed=1)
    assert [len(cold_in(items, split.parts, part)) for part in (VALID, TEST)] == [10, 10]
    assert np.bincount(split.parts).tolist() == [6400, 800 + 1000, 800 + 1000]
    assert split.n_kept_in_train == 0


def test_seed_changes_the_cold_items_and_both_has_those_of_items():
    users, items = np.tile(np.arange(40), 40), np.repeat(np.arange(40), 40)
    cold = [
        cold_in(items, cold_split(users, items, cold=cold, fraction=0.3, seed=seed).parts, TEST)
        for cold, seed in (("items", 1), ("items", 2), ("both", 1))
    ]
    assert cold[0] != cold[1]
    assert cold[0] == cold[2]


def test_by_time_the_very_newest_items_are_cold_in_test():
    users, items = np.tile(np.arange(50), 10), np.repeat(np.arange(10), 50)
    # Item 3 is an old one with the latest interaction of all.
    times = items * 100.0 + users
    times[(items == 3) & (users == 7)] = 1e9
    split = cold_split(users, items, cold="items", fraction=0.4, seed=0, times=times)
    assert cold_in(items, split.parts, TEST) == {8, 9}
    assert cold_in(items, split.parts, VALID) == {6, 7}


def test_interaction_of_a_user_and_an_item_cold_in_different_parts_is_left_out():
    users, items = np.tile(np.arange(20), 20), np.repeat(np.arange(20), 20)
    parts = cold_split(users, items, cold="both", fraction=0.2, seed=3).parts
    side = {TRAIN: set(range(20))}
    for part in (VALID, TEST):
        side[part] = (cold_in(users, parts, part), cold_in(items, parts, part))
    for user, item, part in zip(users, items, parts, strict=True):
        of_user = [p for p in (VALID, TEST) if user in side[p][0]]
        of_item = [p for p in (VALID, TEST) if item in side[p][1]]
        if of_user and of_item and of_user != of_item:
            assert part == LEFT_OUT
        elif of_user or of_item:
            assert [part] == (of_user or of_item)
    assert (parts == LEFT_OUT).sum() == 2 * 2 * 2


def test_warm_item_with_one_interaction_is_never_drawn_out_of_training():
    # 100 items with one interaction each, 10 with 40.
    items = np.concatenate([np.arange(100), np.repeat(np.arange(100, 110), 40)])
    users = np.tile(np.arange(20), 25)
    for seed in range(5):
        split = cold_split(users, items, cold="items", fraction=0.2, seed=seed)
        assert len(cold_in(items, split.parts, VALID) | cold_in(items, split.parts, TEST)) == 22
        assert split.n_kept_in_train > 0


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"fraction": 0.0}, SettingsError, "`fraction` must be between 0 and 1"),
        ({"fraction": 1.0}, SettingsError, "`fraction` must be between 0 and 1"),
        ({"fraction": float("nan")}, SettingsError, "`fraction` must be between 0 and 1"),
        ({"fraction": 0.99}, SettingsError, "leaves no warm item"),
        ({"fraction": 0.99, "cold": "users"}, SettingsError, "leaves no warm user"),
        ({"fraction": 0.05}, DataError, "too small to split"),
        ({"seed": -1}, SettingsError, "`seed`"),
        ({"times": np.array([1.0, np.nan] * 200)}, DataError, "200 interactions without a time"),
    ],
)
def test_what_cannot_be_split_is_refused(changes, error, said):
    users, items = interactions()
    with pytest.raises(error, match=said):
        cold_split(users, items, **{"cold": "items", "fraction": 0.2, "seed": 1, **changes})


@pytest.mark.parametrize("n_rows", [0, 1, 12])
def test_data_too_small_to_split_are_refused(n_rows):
    with pytest.raises(DataError, match="too small to split"):
        cold_split(np.arange(n_rows), np.arange(n_rows), cold="items", fraction=0.5, seed=1)


# --- files


HEAD = b"user_id:token\titem_id:token\trating:float\n"


def source_of(folder, body, n_rows, rows=None, **changes):
    rows = np.arange(n_rows) if rows is None else rows
    inter, item = folder / "mine.inter", folder / "mine.item"
    inter.write_bytes(HEAD + body)
    item.write_bytes(b"item_id:token\ttitle:token_seq\n0\t\xff\n")
    facts = {
        "files": {"inter": inter, "item": item},
        "n_rows": n_rows,
        "rows": rows,
        "users": (rows % 20).astype(str).astype(object),
        "items": (rows // 20).astype(str).astype(object),
        "times": None,
        "time_field": "timestamp",
        "encoding": "utf-8",
        "field_separator": "\t",
        "settings": {"USER_ID_FIELD": "user_id", "load_col": {"inter": ["user_id", "item_id"]}},
        "filters": {"rm_dup_inter": "first"},
    }
    return Source(**{**facts, **changes})


def body_of(n_rows):
    # Ratings as no float would print them; Windows' line ends; a byte that is no UTF-8.
    return b"".join(b"%d\t%d\t04.50\xff\r\n" % (row % 20, row // 20) for row in range(n_rows))


def lines_of(options):
    files = [options.folder / f"{options.name}.{part}.inter" for part in ("train", "valid", "test")]
    contents = [file.read_bytes() for file in files]
    assert all(content.startswith(HEAD) for content in contents)
    return [content.removeprefix(HEAD).splitlines(keepends=True) for content in contents]


def test_parts_hold_the_lines_of_the_file_byte_for_byte(tmp_path):
    body = body_of(400)
    options = SplitOptions("mine", tmp_path / "out")
    report = write_split(options, source_of(tmp_path, body, 400))
    parts = lines_of(options)
    assert sorted(line for part in parts for line in part) == sorted(body.splitlines(True))
    item = (options.folder / f"{options.name}.item").read_bytes()
    assert item == (tmp_path / "mine.item").read_bytes()
    assert f"run_recbole --dataset={options.name} --data_path={tmp_path / 'out'}" in report[-1]
    for part, line in zip(parts, report[2:], strict=False):
        assert f" {len(part)} interactions" in line


def test_filtered_rows_blank_lines_and_a_missing_last_line_end_do_not_shift_the_lines(tmp_path):
    body = body_of(400).replace(b"3\t0\t", b"\r\n\n3\t0\t", 1).removesuffix(b"\r\n")
    rows = np.arange(400)[np.arange(400) % 7 != 0]
    options = SplitOptions("mine", tmp_path / "out", cold="users")
    write_split(options, source_of(tmp_path, body, 400, rows))
    written = sorted(line.strip() for part in lines_of(options) for line in part)
    assert written == sorted(body_of(400).splitlines()[row] for row in rows)


def test_settings_file_names_the_parts_and_says_how_they_were_made(tmp_path):
    options = SplitOptions("mine", tmp_path / "out", fraction=0.3, seed=5)
    report = write_split(options, source_of(tmp_path, body_of(400), 400))
    text = (options.folder / f"{options.name}.yaml").read_text()
    assert yaml.safe_load(text) == {
        "benchmark_filename": ["train", "valid", "test"],
        "USER_ID_FIELD": "user_id",
        "load_col": {"inter": ["user_id", "item_id"]},
    }
    for said in ("--dataset mine --cold items --fraction 0.3 --seed 5 --by random", *report[:-2]):
        assert said in text
    assert "rm_dup_inter='first'" in text
    assert str(tmp_path) not in text


def test_same_split_twice_is_the_same_bytes(tmp_path):
    source = source_of(tmp_path, body_of(400), 400)
    contents = []
    for out in ("one", "two"):
        options = SplitOptions("mine", tmp_path / out, cold="both")
        write_split(options, source)
        contents.append({file.name: file.read_bytes() for file in options.folder.iterdir()})
    assert contents[0] == contents[1]


def test_split_that_exists_is_not_overwritten(tmp_path):
    source = source_of(tmp_path, body_of(400), 400)
    options = SplitOptions("mine", tmp_path / "out")
    options.folder.mkdir(parents=True)
    with pytest.raises(SettingsError, match="exists"):
        write_split(options, source)
    assert not list(options.folder.iterdir())


@pytest.mark.parametrize("wrong", [{"fraction": 1.5}, {"seed": -1}])
def test_a_wrong_number_is_named_before_a_place_that_is_taken(tmp_path, wrong):
    options = SplitOptions("mine", tmp_path / "out", **wrong)
    options.folder.mkdir(parents=True)
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        check_options(options)


@pytest.mark.parametrize(
    ("body", "options", "error", "said"),
    [
        (body_of(399), {}, DataError, "mend it"),
        (body_of(401), {}, DataError, "mend it"),
        (body_of(400), {"by": "time"}, SettingsError, "`timestamp`"),
    ],
)
def test_failed_split_leaves_nothing_behind(tmp_path, body, options, error, said):
    options = SplitOptions("mine", tmp_path / "out", **options)
    with pytest.raises(error, match=said):
        write_split(options, source_of(tmp_path, body, 400))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# --- filters on split files


def test_filter_on_split_files_is_an_error_for_our_models_and_a_warning_for_others():
    given = {"rm_dup_inter": "first", "user_inter_num_interval": "[5,inf)", "topk": 10}
    with pytest.raises(SettingsError, match="`rm_dup_inter`, `user_inter_num_interval`"):
        check_no_filters(given, strict=True)
    warnings = check_no_filters(given, strict=False)
    assert [line.split()[0] for line in warnings] == ["`rm_dup_inter`", "`user_inter_num_interval`"]


def test_filter_that_drops_nothing_is_no_filter():
    nothing = {
        "rm_dup_inter": None,
        "filter_inter_by_user_or_item": False,
        "item_inter_num_interval": "[0, inf)",
    }
    assert check_no_filters(nothing, strict=True) == []
