"""``recbole-llm recommend`` and ``export`` as users type them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_llm.cli import recbole_llm_command
from recbole_llm.saved_tables import read_tables


def command(name, *arguments, cwd):
    module = "import sys; from recbole_llm import cli; sys.exit(getattr(cli, sys.argv.pop(1))())"
    return subprocess.run(
        [sys.executable, "-c", module, f"{name}_command", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def train(folder, model, *settings):
    """A trained model's checkpoint; its data set is gone then."""
    rng = np.random.default_rng(0)
    rows = [
        f"u{user}\ti{item}\t{rng.integers(0, 6)}"
        for user in range(40)
        for item in rng.choice(28, 9, replace=False)
        if (user + item) % 2 or rng.random() < 0.2
    ]
    titles = [f"i{item}\t{['wool', 'steel'][item % 2]}\tThing {item}" for item in range(28)]
    data = folder / "data" / "shop"
    data.mkdir(parents=True)
    head = "user_id:token\titem_id:token\trating:float"
    (data / "shop.inter").write_text("\n".join([head, *rows]) + "\n")
    head = "item_id:token\tkind:token_seq\ttitle:token_seq"
    (data / "shop.item").write_text("\n".join([head, *titles]) + "\n")
    (data / "shop.yaml").write_text("load_col: {inter: [user_id, item_id, rating]}\n")
    done = command(
        "run_recbole",
        f"--model={model}",
        "--dataset=shop",
        f"--data_path={folder / 'data'}",
        "--signal_search_trials=0",
        "--show_progress=False",
        *settings,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "data")
    (checkpoint,) = (folder / "saved").glob("*.pth")
    assert f"saved {Path('saved') / checkpoint.name} and" in done.stderr
    return checkpoint


@pytest.fixture(scope="module")
def als(tmp_path_factory):
    # The default is for real data: here it would leave nothing but ties.
    return train(tmp_path_factory.mktemp("als"), "ALS", "--als_regularization=0.1")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    return train(
        tmp_path_factory.mktemp("hybrid"),
        "HybridFusion",
        "--signals=als,item_item,text_intent",
        "--encoder=lexical",
        "--weight_trials=0",
        "--als_regularization=0.1",
        "--interaction_weight_field=rating",
    )


def said(capsys, *arguments):
    assert recbole_llm_command(arguments) == 0
    return capsys.readouterr().out


def ranking(tables, user):
    """A user's items by score, those of the training part left out, and the scores."""
    row = tables.user_ids.index(user)
    scores = sum(block.scores(np.array([row]))[0] for block in tables.blocks)
    scores[0] = -np.inf
    scores[tables.known[row].indices] = -np.inf
    order = [item for item in np.argsort(-scores) if np.isfinite(scores[item])]
    return [tables.item_ids[item] for item in order], scores[order]


@pytest.mark.parametrize("kind", ["als", "hybrid"])
def test_lists_are_the_models_best_unseen_items(kind, request, capsys):
    checkpoint = request.getfixturevalue(kind)
    path = str(checkpoint.with_suffix(".tables"))
    answers = json.loads(
        said(capsys, "recommend", "--checkpoint", path, "--user=u4", "--user=u7", "--json", "--k=5")
    )
    assert [answer["user"] for answer in answers] == ["u4", "u7"]
    for answer in answers:
        items, scores = ranking(read_tables(checkpoint), answer["user"])
        assert [row["item_id"] for row in answer["items"]] == items[:5]
        np.testing.assert_allclose([row["score"] for row in answer["items"]], scores[:5], rtol=1e-4)
        assert [row["rank"] for row in answer["items"]] == [1, 2, 3, 4, 5]
        titles = [f"Thing {row['item_id'][1:]}" for row in answer["items"]]
        assert [row["title"] for row in answer["items"]] == titles


def test_interaction_that_counts_nothing_is_known_all_the_same(als, hybrid):
    # The hybrid weighs by rating: what is rated 0 is no history, and not to be recommended.
    known, weighted = read_tables(als).known, read_tables(hybrid).known
    assert (known.indices == weighted.indices).all()
    assert (known.indptr == weighted.indptr).all()
    assert set(known.data) == {1}
    assert weighted.data.min() == 0
    assert weighted.data[weighted.data > 0].mean() == pytest.approx(1)
    tables = read_tables(hybrid).blocks
    (history,) = [block.users for block in tables if block.users.shape == known.shape]
    assert (known.astype(bool) > history.astype(bool)).nnz > 0


def test_table_is_printed_by_a_fresh_process_from_the_tables_alone(als, tmp_path):
    # A .pth of rubbish: only the folder beside it is read.
    (tmp_path / "m.pth").write_text("rubbish")
    shutil.copytree(als.with_suffix(".tables"), tmp_path / "m.tables")
    done = command("recbole_llm", "recommend", "--checkpoint=m.pth", "--user=u4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, columns, *rows = done.stdout.splitlines()
    assert head == "user u4"
    assert columns.split() == ["rank", "item", "title", "score"]
    items, _ = ranking(read_tables(als), "u4")
    assert [row.split()[:4] for row in rows] == [
        [str(rank), item, "Thing", item[1:]] for rank, item in enumerate(items[:10], start=1)
    ]


@pytest.mark.parametrize("name", ["recs.csv", "recs.parquet"])
def test_file_for_all_users_holds_each_users_list(als, tmp_path, capsys, name):
    out = tmp_path / name
    said(capsys, "recommend", "--checkpoint", str(als), "--all_users", "--k=6", f"--out={out}")
    table = pd.read_csv(out) if out.suffix == ".csv" else pd.read_parquet(out)
    assert list(table.columns) == ["user_id", "item_id", "score", "rank"]
    tables = read_tables(als)
    assert list(table["user_id"].unique()) == list(tables.user_ids[1:])
    for user, rows in table.groupby("user_id"):
        items, scores = ranking(tables, user)
        assert list(rows["item_id"]) == items[:6]
        np.testing.assert_allclose(rows["score"], scores[:6], rtol=1e-4)
    assert list(tmp_path.iterdir()) == [out]


def test_listed_items_alone_are_ranked_and_others_left_out(als, tmp_path, capsys):
    (tmp_path / "only").write_text("\ufeffi1\r\ni2\n\n i3 \ni4\nmissing\n", encoding="utf-8")
    (tmp_path / "exclude").write_text("i2\n")
    options = [f"--only={tmp_path / 'only'}", f"--exclude={tmp_path / 'exclude'}"]
    code = recbole_llm_command(
        ["recommend", "--checkpoint", str(als), "--user=u4", "--json", *options]
    )
    printed = capsys.readouterr()
    assert code == 0
    items, _ = ranking(read_tables(als), "u4")
    found = [row["item_id"] for row in json.loads(printed.out)[0]["items"]]
    assert found == [item for item in items if item in ("i1", "i3", "i4")]
    assert printed.err == ("warning: `only`: 1 of 5 items are unknown, the first is `missing`\n")


def test_similar_items_are_listed_with_titles(hybrid, capsys):
    printed = said(capsys, "recommend", "--checkpoint", str(hybrid), "--similar=i3", "--k=2")
    assert printed.startswith("item i3: Thing 3\n")
    assert len(printed.splitlines()) == 4
    answer = json.loads(
        said(capsys, "recommend", "--checkpoint", str(hybrid), "--similar=i3", "--json")
    )
    assert answer[0]["item"] == "i3"
    assert "i3" not in {row["item_id"] for row in answer[0]["items"]}


def test_visitor_with_liked_items_gets_a_list_without_them(als, capsys):
    base = ["recommend", "--checkpoint", str(als), "--k=3", "--liked", "i1", "i3"]
    head, _, *rows = said(capsys, *base, "--liked", "i5").splitlines()
    assert head == "visitor: liked Thing 1; Thing 3; Thing 5"
    assert len(rows) == 3
    (answer,) = json.loads(said(capsys, *base, "--json"))
    assert answer["user"] == "visitor"
    assert answer["liked"] == {"i1": "Thing 1", "i3": "Thing 3"}
    assert not {"i1", "i3"} & {row["item_id"] for row in answer["items"]}


def test_intent_and_new_items_are_ranked_at_once_with_their_place(hybrid, tmp_path, capsys):
    base = ["recommend", "--checkpoint", str(hybrid), "--k=2", "--intent=wool thing"]
    asked = [*base, "--user=u4", "--user=u7", "--new_item=steel", "--new_item", "wool 99"]
    answers = json.loads(said(capsys, *asked, "--intent_weight=0.7", "--json"))
    assert [answer["user"] for answer in answers] == ["u4", "u7"]
    lines = said(capsys, *asked, "--intent_weight=0.7").splitlines()
    for answer in answers:
        assert answer["intent"] == "wool thing"
        assert len(answer["items"]) == 2
        assert [new["text"] for new in answer["new_items"]] == ["steel", "wool 99"]
        for new in answer["new_items"]:
            assert 1 <= new["rank"] <= new["of"] <= 30
            assert (
                f"{new['item_id']}, {new['text']}: rank {new['rank']} of {new['of']}, score "
                f"{new['score']:.4f}" in lines
            )
    assert "user u4: wants “wool thing”" in lines
    out = tmp_path / "recs.csv"
    printed = said(capsys, *asked, f"--out={out}")
    assert "u7: new-2, wool 99: rank" in printed
    table = pd.read_csv(out)
    assert {"new-1", "new-2"} <= set(table[table["user_id"] == "u4"]["item_id"])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("new.csv", "id,Kind,Title\nn1,steel,Thing 99\nn2,wool,Thing 99\n"),
        (
            "new.item",
            "item_id:token\tkind:token_seq\ttitle:token_seq\n"
            "n1\tsteel\tThing 99\nn2\twool\tThing 99\n",
        ),
    ],
)
def test_a_table_of_new_items_is_ranked_by_its_fields(hybrid, tmp_path, capsys, file, text):
    # `kind` is a category as well as text.
    (tmp_path / file).write_text(text)
    base = ["recommend", "--checkpoint", str(hybrid), "--user=u4", "--k=2", "--json"]
    (answer,) = json.loads(said(capsys, *base, f"--new_items={tmp_path / file}"))
    places = {new["item_id"]: new["rank"] for new in answer["new_items"]}
    assert places["n1"] != places["n2"]
    assert [new["text"] for new in answer["new_items"]] == ["steel. Thing 99", "wool. Thing 99"]
    assert read_tables(hybrid).item_form.attributes[0].field == "kind"


@pytest.mark.parametrize("kind", ["als", "hybrid"])
def test_exported_vectors_rank_as_the_model_does(kind, request, tmp_path, capsys):
    checkpoint, out = request.getfixturevalue(kind), tmp_path / "vectors"
    printed = said(capsys, "export", "--checkpoint", str(checkpoint), f"--out={out}")
    assert ("sparse user rows" in printed) == (kind == "hybrid")
    tables = read_tables(checkpoint)
    ids = {name: (out / f"{name}_ids.txt").read_text().split() for name in ("user", "item")}
    vectors = {name: np.load(out / f"{name}_vectors.npy") for name in ids}
    assert ids["user"] == list(tables.user_ids[1:])
    assert ids["item"] == list(tables.item_ids[1:])
    expected = sum(block.scores(np.arange(len(tables.user_ids))) for block in tables.blocks)
    np.testing.assert_allclose(vectors["user"] @ vectors["item"].T, expected[1:, 1:], atol=1e-3)
    facts = json.loads((out / "export.json").read_text())
    assert facts["dimensions"] == vectors["item"].shape[1]
    # One user of the hybrid has rated all with 0: all items tie, and any order is right.
    assert facts["top_10_agreement"] >= {"als": 1, "hybrid": 0.97}[kind]
    assert f"{facts['top_10_agreement']:.1%} of the model's top 10" in printed


def test_low_rank_is_said_to_lose_something(hybrid, tmp_path, capsys):
    out = tmp_path / "vectors"
    printed = said(capsys, "export", "--checkpoint", str(hybrid), f"--out={out}", "--rank=1")
    assert "approximated by 1 dimensions each" in printed
    assert 0.3 < json.loads((out / "export.json").read_text())["top_10_agreement"] < 1


def test_export_replaces_a_folder_only_when_asked(als, tmp_path, capsys):
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "mine.txt").write_text("kept")
    export = ["export", "--checkpoint", str(als), f"--out={tmp_path / 'vectors'}"]
    assert recbole_llm_command(export) == 1
    assert "vectors exists; choose another name" in capsys.readouterr().err
    assert (tmp_path / "vectors" / "mine.txt").exists()
    assert recbole_llm_command([*export, "--overwrite"]) == 0
    assert not (tmp_path / "vectors" / "mine.txt").exists()


REFUSED = [
    (["--user=u4", "--k=0"], "`--k` must be at least 1, got 0"),
    (["--user=u444"], "user `u444` is unknown: the model has been trained on 40 users"),
    (["--user=u4", "--user=newcomer"], "user `newcomer` is unknown"),
    (["--similar=i277"], "did you mean `i27`?"),
    (["--all_users"], "`--all_users` needs `--out FILE.parquet`"),
    (["--all_users", "--out={tmp}/recs.xlsx"], "`--out` must end in .csv or .parquet"),
    (["--all_users", "--out={tmp}/nowhere/recs.csv"], "there is no folder {tmp}/nowhere"),
    (["--all_users", "--out={tmp}/folder.csv"], "cannot write {tmp}/folder.csv"),
    (["--user=u4", "--json", "--out={tmp}/recs.csv"], "without `--json`"),
    ([], "give one of `--user ID`"),
    (["--user=u4", "--similar=i3"], "give one of `--user ID`"),
    (["--user=u4", "--only={tmp}/unknown.txt"], "`only` holds no known item"),
    (["--user=u4", "--only={tmp}/missing.txt"], "`--only`: cannot read {tmp}/missing.txt: No such"),
    (["--user=u4", "--exclude={tmp}/binary"], "`--exclude`: cannot read {tmp}/binary: it is no UT"),
    (["--similar=i3", "--only={tmp}/unknown.txt"], "do not go with `--similar`"),
    (["--intent= "], "`intent` is blank"),
    (["--intent=wool"], "the model ALS encodes no text"),
    (["--user=u4", "--new_item=wool"], "the model ALS encodes no text"),
    (["--user=u4", "--new_item="], "`new_item` 1 is blank"),
    (["--liked", "i3", "i277"], "item `i277` is unknown: the model has been trained on 28 items"),
    (["--new_item=wool"], "new items are ranked for somebody: give `--user`"),
    (["--similar=i3", "--new_item=wool"], "new items are ranked for somebody"),
    (["--user=u4", "--new_item=wool", "--new_items={tmp}/x.csv"], "goes without `--new_items`"),
    (["--user=u4", "--new_items={tmp}/x.csv"], "{tmp}/x.csv does not exist"),
    (["--similar=i3", "--liked", "i2"], "give one of `--user ID`"),
    (["--user=u4", "--intent_weight=0.2"], "`--intent_weight` goes with `--intent TEXT`"),
    (["--intent=x", "--intent_weight=2"], "`intent_weight` must be from 0 to 1, got 2"),
    (["--user=u4", "--device=tpu"], "`device` must be auto, cpu, cuda or mps"),
    (["--user=u4", "--checkpoint={tmp}/nowhere.pth"], "there is no checkpoint {tmp}/nowhere.pth"),
    (["--user=u4", "--checkpoint", "a.pth", "b.pth"], "`--checkpoint` takes one path, got 2"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED, ids=lambda value: str(value)[:40])
def test_bad_input_gets_one_line_and_a_nonzero_exit(als, tmp_path, capsys, options, line):
    (tmp_path / "unknown.txt").write_text("x\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.csv").mkdir()
    before = sorted(tmp_path.iterdir())
    options = [option.format(tmp=tmp_path) for option in options]
    if not any("--checkpoint" in option for option in options):
        options += ["--checkpoint", str(als)]
    assert recbole_llm_command(["recommend", *options]) == 1
    printed = capsys.readouterr()
    *_, last = printed.err.splitlines()
    assert last.startswith("error: ")
    assert line.format(tmp=tmp_path) in last
    assert "Traceback" not in printed.err
    assert not printed.out
    assert sorted(tmp_path.iterdir()) == before


def test_damaged_tables_are_refused_by_the_command(als, tmp_path, capsys):
    folder = shutil.copytree(als.with_suffix(".tables"), tmp_path / "m.tables")
    file = folder / "block0.users.npy"
    file.write_bytes(file.read_bytes()[:-1])
    for arguments in (["recommend", "--user=u4"], ["export", f"--out={tmp_path / 'vectors'}"]):
        assert recbole_llm_command([*arguments, "--checkpoint", str(folder)]) == 1
        assert "m.tables is damaged (block0.users.npy has" in capsys.readouterr().err
    assert not (tmp_path / "vectors").exists()
