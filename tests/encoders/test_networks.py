"""Causal models, static embeddings and ONNX, with tiny networks that are made here."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from recbole_llm.encoders import EncoderOptions, NetworkOptions, build
from recbole_llm.errors import SettingsError
from recbole_llm.testing.encoders import SAMPLE_TEXTS, check_encoder, check_fingerprints_differ
from recbole_llm.text_network import FinetuneSettings, TextNetwork


def encoder_of(folder, cache=None, **network):
    options = EncoderOptions(progress=False, network=NetworkOptions(**network), cache=cache)
    return build(str(folder), options)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """A GPT-2 of three layers; its tokenizer knows bytes, and no padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("gpt")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<|endoftext|>", *letters])}
    bytes_alone = Tokenizer(models.BPE(vocabulary, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, eos_token="<|endoftext|>", model_max_length=64
    )
    assert tokenizer.pad_token is None
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=64, n_embd=16, n_layer=3, n_head=2, n_inner=32
    )
    GPT2LMHeadModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """Static embeddings as sentence-transformers writes them."""
    from sentence_transformers import SentenceTransformer, models

    place = tmp_path_factory.mktemp("static")
    torch.manual_seed(0)
    module = models.StaticEmbedding(byte_tokenizer(), embedding_dim=8)
    SentenceTransformer(modules=[module], device="cpu").save(str(place), create_model_card=False)
    return place


def byte_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def naive_rows(folder, texts, weigh):
    """Each text by itself through transformers: the tokens' rows by the weights of ``weigh(n)``."""
    from transformers import AutoModel, AutoTokenizer

    network = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            states = network(**tokens).last_hidden_state[0].numpy()
        row = weigh(len(states)) @ states
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


POOLINGS = {
    "last": lambda n: np.eye(n)[-1],
    "mean": lambda n: np.full(n, 1 / n),
    "weighted_mean": lambda n: np.arange(1, n + 1) / (n * (n + 1) / 2),
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_causal_models_rows_are_those_of_each_text_alone(gpt, pooling):
    texts = [text for text in SAMPLE_TEXTS if text.strip()]
    rows = encoder_of(gpt, pooling=pooling).encode(texts)
    np.testing.assert_allclose(rows, naive_rows(gpt, texts, POOLINGS[pooling]), atol=1e-5)


def test_a_causal_model_keeps_the_contract_of_encoders(gpt):
    check_encoder(encoder_of(gpt))


def test_config_json_tells_causal_models_from_sentence_encoders(gpt, tmp_path):
    causal = encoder_of(gpt).fingerprint()
    assert encoder_of(gpt, kind="causal", pooling="last").fingerprint() == causal
    folder = shutil.copytree(gpt, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    for architectures, kind, wanted in (
        (["GPT2Model"], "gpt2", "last"),
        (["SomeForCausalLM"], "unheard_of", "last"),
        (None, "gpt2", "last"),
        (["BertModel"], "bert", "mean"),
        (None, "unheard_of", "mean"),
    ):
        changed = {**config, "architectures": architectures, "model_type": kind}
        (folder / "config.json").write_text(json.dumps(changed))
        given = encoder_of(folder, pooling=wanted).fingerprint()
        assert encoder_of(folder).fingerprint() == given, (architectures, kind)


def test_kind_and_pooling_are_part_of_the_fingerprint(gpt):
    check_fingerprints_differ(
        encoder_of(gpt),
        encoder_of(gpt, pooling="mean"),
        encoder_of(gpt, pooling="weighted_mean"),
        encoder_of(gpt, kind="sentence"),
    )


def test_a_folder_of_modules_says_by_itself_what_it_is(gpt, tmp_path):
    network = encoder_of(gpt, pooling="weighted_mean").network()
    network.save(str(tmp_path / "whole"), create_model_card=False)
    expected = encoder_of(gpt, pooling="weighted_mean").encode(SAMPLE_TEXTS)
    for options in ({}, {"kind": "sentence", "pooling": "mean"}):
        rows = encoder_of(tmp_path / "whole", **options).encode(SAMPLE_TEXTS)
        np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["last_n", "lora", "full"])
def test_a_causal_model_learns_and_is_saved_as_an_encoder(gpt, tmp_path, kind, recwarn):
    if kind == "lora":
        pytest.importorskip("peft")
    settings = FinetuneSettings(finetune=kind, last_n=1, lora_modules=("c_attn",))
    texts = ("", "red wool coat", "steel knife", "a long text " * 20)
    text = TextNetwork(encoder_of(gpt).network(), texts, settings)
    before = text.rows(np.arange(4))
    np.testing.assert_allclose(before, encoder_of(gpt).encode(texts), atol=1e-5)
    learned, every = text.n_learned
    assert (learned == every) == (kind == "full")
    text.train()
    optimizer = torch.optim.AdamW(text.groups(0.1))
    rows = text(np.array([1, 2]))
    (rows[0] @ rows[1]).backward()
    optimizer.step()
    after = text.rows(np.arange(4))
    assert abs(after - before).max() > 1e-3
    text.save(tmp_path / "tuned")
    np.testing.assert_allclose(encoder_of(tmp_path / "tuned").encode(texts), after, atol=1e-4)
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]


def test_lora_names_the_modules_of_a_causal_model(gpt):
    pytest.importorskip("peft")
    with pytest.raises(SettingsError, match="no query, value; it has c_attn, c_fc, c_proj"):
        TextNetwork(encoder_of(gpt).network(), ["a text"], FinetuneSettings(finetune="lora"))


def test_static_embeddings_keep_the_contract_of_encoders(static):
    check_encoder(encoder_of(static))


def test_static_embeddings_are_the_mean_of_the_tokens_rows(static):
    from safetensors.numpy import load_file

    tokenizer = byte_tokenizer()
    (file,) = static.rglob("model.safetensors")
    table = load_file(file)["embedding.weight"]
    texts = ["red coat", "steel"]
    means = np.array([table[tokenizer.encode(text).ids].mean(axis=0) for text in texts])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder_of(static).encode(texts), expected, atol=1e-6)


def test_a_model2vec_folder_without_modules_is_static_embeddings(tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tokenizer = byte_tokenizer()
    n_tokens = tokenizer.get_vocab_size()
    tables = {
        "embeddings": rng.integers(-127, 127, (40, 8)).astype(np.int8),
        "mapping": rng.integers(0, 40, n_tokens),
        "weights": rng.random(n_tokens, dtype=np.float32),
    }
    save_file(tables, tmp_path / "model.safetensors")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"normalize": true}')
    ids = tokenizer.encode("red coat").ids
    row = sum(tables["weights"][t] * tables["embeddings"][tables["mapping"][t]] for t in ids)
    (found,) = encoder_of(tmp_path).encode(["red coat"])
    np.testing.assert_allclose(found, row / np.linalg.norm(row), atol=1e-5)


def test_what_is_no_transformer_cannot_be_trained_or_exported(static, tmp_path):
    with pytest.raises(SettingsError, match=r"`finetune: full` .* is a StaticEmbedding"):
        TextNetwork(encoder_of(static).network(), ["a"], FinetuneSettings(finetune="full"))
    with pytest.raises(SettingsError, match=r"`encoder_backend: onnx` .* is a StaticEmbedding"):
        encoder_of(static, tmp_path, backend="onnx").encode(["a text"])


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_onnx_back_end_keeps_the_contract_of_encoders(gpt, tmp_path, quantize):
    check_encoder(encoder_of(gpt, tmp_path, backend="onnx", quantize=quantize))


def test_onnx_gives_torchs_rows_and_int8_nearly_so(tmp_path):
    texts = [*SAMPLE_TEXTS, "a long text of many words " * 100]
    rows = build("bert", EncoderOptions(progress=False)).encode(texts)
    said = rows.any(axis=1)
    for quantize, nearest in (("none", 1 - 1e-5), ("int8", 0.97)):
        network = NetworkOptions(backend="onnx", quantize=quantize)
        options = EncoderOptions(progress=False, network=network, cache=tmp_path)
        found = build("bert", options).encode(texts)
        assert ((found * rows).sum(axis=1)[said] > nearest).all()
        assert not found[~said].any()


def test_an_int8_row_is_the_texts_own_whatever_it_is_encoded_with(tmp_path):
    network = NetworkOptions(backend="onnx", quantize="int8")
    encoder = build("bert", EncoderOptions(progress=False, network=network, cache=tmp_path))
    texts = [*SAMPLE_TEXTS, "a long text of many words " * 100]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-6)


def test_a_network_is_exported_once(gpt, tmp_path, monkeypatch):
    first = encoder_of(gpt, tmp_path, backend="onnx").encode(SAMPLE_TEXTS)
    (file,) = tmp_path.rglob("*.onnx")
    monkeypatch.setattr("recbole_llm.encoders.onnx._export", None)
    assert np.array_equal(encoder_of(gpt, tmp_path, backend="onnx").encode(SAMPLE_TEXTS), first)
    assert list(tmp_path.rglob("*.onnx")) == [file]


def test_an_export_that_fails_leaves_nothing_and_is_one_line(gpt, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr("recbole_llm.encoders.onnx._export", fail)
    with pytest.raises(SettingsError, match=r"cannot be exported .no such operator") as caught:
        encoder_of(gpt, tmp_path, backend="onnx").encode(["a text"])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "onnx").iterdir())


def test_back_ends_have_fingerprints_of_their_own(gpt):
    check_fingerprints_differ(
        encoder_of(gpt),
        encoder_of(gpt, backend="onnx"),
        encoder_of(gpt, backend="onnx", quantize="int8"),
    )


def test_int8_without_onnx_and_onnx_without_its_extra_are_one_line(gpt, monkeypatch):
    with pytest.raises(
        SettingsError, match="`encoder_quantize: int8` needs `encoder_backend: onnx`"
    ):
        encoder_of(gpt, quantize="int8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingsError, match=r"pip install recbole_llm\[onnx\]"):
        encoder_of(gpt, backend="onnx")


@pytest.mark.parametrize(
    "network",
    [{"pooling": "weighted_mean"}, {"kind": "sentence"}, {"backend": "onnx", "quantize": "int8"}],
)
def test_a_served_model_encodes_as_it_was_trained(gpt, tmp_path, monkeypatch, network):
    import recbole_llm
    from recbole_llm.serving import Recommender

    monkeypatch.chdir(tmp_path)  # RecBole writes its logs there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "tiny"
    place.mkdir()
    clicks = [f"u{user}\ti{(user + step) % 12}" for user in range(20) for step in range(8)]
    (place / "tiny.inter").write_text("\n".join(["user_id:token\titem_id:token", *clicks]) + "\n")
    titles = [f"i{item}\ta red coat of size {item}" for item in range(12)]
    (place / "tiny.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *titles]) + "\n")
    settings = {f"encoder_{name}": value for name, value in network.items()}
    fixed = {"data_path": str(tmp_path), "encoder": str(gpt), "show_progress": False}
    recbole_llm.run("TextIntent", "tiny", config_dict={**fixed, **settings, "state": "ERROR"})
    (checkpoint,) = (tmp_path / "saved").glob("*.pth")
    recommender = Recommender.load(checkpoint)
    assert np.isfinite(recommender.recommend_for(intent="a blue coat", k=3)["score"]).all()
    kept = recommender.tables.newcomers
    assert NetworkOptions(**kept.network) == NetworkOptions(**network)
    assert kept.encoders == {str(gpt): encoder_of(gpt, **network).fingerprint()}
