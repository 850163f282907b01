"""A fitted model as a folder of arrays."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm import saved_tables
from recbole_llm.attributes import AttributeCode
from recbole_llm.errors import DataError
from recbole_llm.factors import Factors
from recbole_llm.item_form import ItemForm
from recbole_llm.newcomers import Newcomers
from recbole_llm.saved_tables import SavedTables, read_tables, tables_folder, write_tables

N_USERS, N_ITEMS = 9, 13


def random_tables(seed=0, n_users=N_USERS, n_items=N_ITEMS):
    """A dense block, a full-rank one with the history as user rows, and a block of words."""
    rng = np.random.default_rng(seed)
    history = sp.random(n_users, n_items, 0.3, format="lil", random_state=seed, dtype=np.float32)
    history[0] = 0
    history[:, 0] = 0
    history = history.tocsr()
    words = sp.random(n_items, 6, 0.4, format="csr", random_state=seed, dtype=np.float32)
    rows = [
        (rng.normal(size=(n_users, 4)), np.asfortranarray(rng.normal(size=(n_items, 4)))),
        (history, rng.normal(size=(n_items, n_items))),
        (history @ words, words),
    ]
    blocks = []
    for users, items in rows:
        if not sp.issparse(users):
            users = users.astype(np.float32)
            users[0] = 0
        items = items if sp.issparse(items) else items.astype(np.float32)
        block = Factors.of(users, items, rng.random(n_items) < 0.8)
        offset = rng.normal(size=n_users).astype(np.float32)
        offset[0] = 0
        blocks.append(dataclasses.replace(block, offset=offset))
    known = history.copy()
    known.data[:] = 1.0
    return SavedTables(
        blocks=tuple(blocks),
        user_ids=("[PAD]", *(f"u{user}" for user in range(1, n_users))),
        item_ids=("[PAD]", *(f"i{item}" for item in range(1, n_items))),
        item_titles=("", "café ☕ \ud800", *(f"title {item}" for item in range(2, n_items))),
        item_texts=(),
        item_form=ItemForm(
            "item",
            ("title", "café"),
            (
                AttributeCode("genre", True, np.array(["noir", "sci-fi ☕"])),
                AttributeCode("price", False, np.array([0.5, 2.0])),
                AttributeCode("alone", False, np.array([], dtype=np.str_)),
            ),
        ),
        known=known,
        age=rng.permutation(known.nnz).astype(np.int32),
        newcomers=Newcomers((), 0.0, {}),
        facts={"model": "HybridFusion", "dataset": "shop", "seed": 7},
    )


def assert_same_rows(one, other):
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        # SciPy would copy a whole item-item table of the other order for every batch.
        assert one.flags.f_contiguous == other.flags.f_contiguous
    if sp.issparse(one):
        one, other = one.toarray(), other.toarray()
    np.testing.assert_array_equal(one, other)


@pytest.fixture
def tables():
    return random_tables()


@pytest.fixture
def folder(tables, tmp_path):
    write_tables(tmp_path / "model.tables", tables)
    return tmp_path / "model.tables"


@pytest.mark.parametrize("mapped_bytes", [0, 1 << 30], ids=["mapped", "read"])
def test_tables_are_read_as_they_were_written(tables, folder, monkeypatch, mapped_bytes):
    monkeypatch.setattr(saved_tables, "_MAPPED_BYTES", mapped_bytes or 1)
    read = read_tables(folder)
    assert len(read.blocks) == len(tables.blocks)
    for block, written in zip(read.blocks, tables.blocks, strict=True):
        for name in ("users", "items", "known", "offset"):
            assert_same_rows(getattr(block, name), getattr(written, name))
        assert block.extra == {}
        np.testing.assert_array_equal(
            block.scores(np.arange(N_USERS)), written.scores(np.arange(N_USERS))
        )
    assert_same_rows(read.known, tables.known)
    np.testing.assert_array_equal(read.age, tables.age)
    form, written = read.item_form, tables.item_form
    assert (form.id_field, form.text_fields) == (written.id_field, written.text_fields)
    for code, other in zip(form.attributes, written.attributes, strict=True):
        assert (code.field, code.is_list) == (other.field, other.is_list)
        assert_same_rows(code.columns, other.columns)
    for name in ("user_ids", "item_ids", "item_titles", "facts"):
        assert getattr(read, name) == getattr(tables, name)
    np.testing.assert_array_equal(read.item_counts, (tables.known > 0).sum(axis=0).A1)
    np.testing.assert_array_equal(read.user_counts, (tables.known > 0).sum(axis=1).A1)


def test_writing_into_tables_leaves_the_files_as_they_are(folder, monkeypatch):
    monkeypatch.setattr(saved_tables, "_MAPPED_BYTES", 1)
    read = read_tables(folder)
    before = read.blocks[0].items.copy()
    read.blocks[0].items[:] = 0
    np.testing.assert_array_equal(read_tables(folder).blocks[0].items, before)


def test_block_without_any_entry_is_kept(tmp_path, tables):
    empty = sp.csr_matrix((N_USERS, 6), dtype=np.float32)
    block = dataclasses.replace(tables.blocks[2], users=empty)
    write_tables(tmp_path / "a.tables", dataclasses.replace(tables, blocks=(block,)))
    assert read_tables(tmp_path / "a.tables").blocks[0].users.nnz == 0


def test_checkpoint_names_the_folder_beside_it(folder):
    checkpoint = folder.with_name("model.pth")
    assert tables_folder(checkpoint) == folder
    assert read_tables(checkpoint).facts == read_tables(folder).facts


def test_older_tables_of_the_name_are_replaced(folder):
    write_tables(folder, random_tables(seed=1))
    assert_same_rows(read_tables(folder).blocks[0].users, random_tables(seed=1).blocks[0].users)


def test_failed_write_leaves_the_older_tables(folder, tables):
    before = read_tables(folder).blocks[0].users
    with pytest.raises(TypeError):
        write_tables(folder, dataclasses.replace(tables, blocks=(), facts={"no JSON": object()}))
    assert_same_rows(read_tables(folder).blocks[0].users, before)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_place_that_cannot_be_written_is_named(tables, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*m\.tables"):
        write_tables(tmp_path / "file" / "m.tables", tables)


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def change_manifest(**changes):
    def change(file):
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("block1.items.npy", cut, "block1.items.npy has 7"),
        ("block1.items.npy", flip, "checksum of block1.items.npy"),
        ("block1.users.indices.npy", flip, "checksum of block1.users.indices.npy"),
        ("item_ids.json", flip, "checksum of item_ids.json"),
        ("known.data.npy", lambda file: file.unlink(), "known.data.npy is missing"),
        ("tables.json", cut, "tables.json cannot be read"),
        ("tables.json", lambda file: file.write_text("[]"), "tables.json cannot be read"),
        ("tables.json", change_manifest(facts={}), "tables.json was changed"),
        ("tables.json", change_manifest(format=99), "has format 99"),
        ("tables.json", change_manifest(format=1), "has format 1, .*; train the model again"),
        ("tables.json", lambda file: file.unlink(), "it has no tables.json"),
    ],
)
def test_damage_is_named_in_one_line(folder, name, damage, said):
    damage(folder / name)
    with pytest.raises(DataError, match=said) as raised:
        read_tables(folder)
    assert "\n" not in str(raised.value)


def test_pickled_array_is_never_loaded(folder, tables, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    # Not through our writer, which writes no objects; checksums in order.
    np.save(folder / "block0.known.npy", np.array([Trap()]), allow_pickle=True)
    with (folder / "block0.known.npy").open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        pickle.load(file)
    assert (tmp_path / "sprung").exists(), "the trap works"
    (tmp_path / "sprung").unlink()
    manifest = json.loads((folder / "tables.json").read_text())
    file = folder / "block0.known.npy"
    manifest["files"][file.name] = {
        "bytes": file.stat().st_size,
        "sha256": saved_tables._sha256(file),
    }
    manifest["fingerprint"] = saved_tables._fingerprint(manifest)
    (folder / "tables.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="damaged"):
        read_tables(folder)
    assert not (tmp_path / "sprung").exists()


def test_table_of_a_later_version_is_refused(folder):
    file = folder / "tables.json"
    manifest = json.loads(file.read_text())
    manifest["block"][0]["fields"]["curvature"] = {"value": 3}
    manifest["fingerprint"] = saved_tables._fingerprint(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="unknown table `curvature`"):
        read_tables(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("modle.pth", "no checkpoint .*did you mean `model.pth`"),
        ("stock.pth", "stock.pth has no folder stock.tables beside it"),
        ("notes.txt", "notes.txt is no checkpoint"),
        ("nowhere/model.tables", "there is no checkpoint"),
        (".", "is no checkpoint"),
    ],
)
def test_path_that_is_no_checkpoint_is_named(folder, name, said):
    for file in ("model.pth", "stock.pth", "notes.txt"):
        (folder.parent / file).write_text("x")
    with pytest.raises(DataError, match=said):
        read_tables(folder.parent / name)
