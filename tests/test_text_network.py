"""The encoder that learns, with a tiny BERT that is made here."""

import numpy as np
import pytest
import torch

from recbole_llm.encoders import EncoderOptions, build
from recbole_llm.errors import SettingsError
from recbole_llm.text_network import FinetuneSettings, TextNetwork

TEXTS = ("", "red wool coat", "steel knife", "red wool coat", "blue lamp " * 20, "warm")


@pytest.fixture(scope="module")
def folder(tiny_bert):
    return tiny_bert


def encoder_of(folder):
    return build(f"bert:{folder}", EncoderOptions(progress=False))


def network_of(folder, **settings):
    return TextNetwork(encoder_of(folder).network(), TEXTS, FinetuneSettings(**settings))


def step(text):
    """One step that pulls two texts apart."""
    text.train()
    optimizer = torch.optim.AdamW(text.groups(0.1))
    rows = text(np.array([1, 2]))
    (rows[0] @ rows[1]).backward()
    optimizer.step()


def test_rows_are_the_encoders_own_whatever_the_order(folder):
    text = network_of(folder, finetune="full")
    items = np.array([5, 0, 4, 2, 3, 1])
    expected = encoder_of(folder).encode(TEXTS)[items]
    np.testing.assert_allclose(text.rows(items), expected, atol=1e-5)
    assert text.rows(items[:0]).shape == (0, 16)


def test_training_reads_the_chosen_variants_and_evaluation_the_texts(folder):
    others = ("", "sharp knife", "lamp", "warm coat", "", "blue")
    text = TextNetwork(
        encoder_of(folder).network(), TEXTS, FinetuneSettings(finetune="full"), [TEXTS, others]
    )
    text.chosen = np.array([0, 2, 1, 2, 2, 0])
    read = ["", "sharp knife", "steel knife", "warm coat", "", "warm"]
    for module in text.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    items = np.array([3, 1, 5, 4, 2])
    text.train()
    expected = encoder_of(folder).encode(read)[items]
    np.testing.assert_allclose(text(items).detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(text.rows(items), encoder_of(folder).encode(TEXTS)[items], atol=1e-5)


def test_long_texts_are_cut_and_counted_once(folder, caplog):
    network_of(folder, finetune="full")
    assert [line for line in caplog.messages if "1 of 4 texts are longer than" in line]


@pytest.mark.parametrize("kind", ["last_n", "full"])
def test_what_is_chosen_moves_and_nothing_else(folder, kind):
    text = network_of(folder, finetune=kind, last_n=1)
    before = {name: value.clone() for name, value in text.state_dict().items()}
    step(text)
    moved = {name for name, value in text.state_dict().items() if (value != before[name]).any()}
    assert any("layer.2." in name for name in moved)
    assert any("layer.0." in name for name in moved) == (kind == "full")
    learned, every = text.n_learned
    assert (learned == every) == (kind == "full")


def test_lower_layers_have_lower_rates(folder):
    groups = network_of(folder, finetune="full", layer_decay=0.5).groups(0.1)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.05, 0.025, 0.0125])


@pytest.mark.parametrize("kind", ["last_n", "lora", "full"])
def test_a_saved_network_is_an_encoder_like_any_other(folder, tmp_path, kind):
    if kind == "lora":
        pytest.importorskip("peft")
    text = network_of(folder, finetune=kind)
    before = text.rows(np.arange(6))
    step(text)
    after = text.rows(np.arange(6))
    assert abs(after - before).max() > 1e-3
    text.save(tmp_path / "tuned")
    assert list((tmp_path / "tuned").glob("*.safetensors"))
    np.testing.assert_allclose(encoder_of(tmp_path / "tuned").encode(TEXTS), after, atol=1e-4)


def test_lora_moves_few_weights_and_names_the_modules_that_there_are(folder):
    pytest.importorskip("peft")
    learned, every = network_of(folder, finetune="lora", lora_rank=1).n_learned
    assert 0 < learned < 0.1 * every
    with pytest.raises(SettingsError, match=r"no c_attn; it has dense, key, query, value"):
        network_of(folder, finetune="lora", lora_modules=("c_attn",))


def test_a_network_without_layers_has_no_last_ones(folder, monkeypatch):
    network = encoder_of(folder).network()
    network[0].auto_model.encoder = torch.nn.Identity()
    with pytest.raises(SettingsError, match="the encoder has no layers; choose `finetune: full`"):
        TextNetwork(network, TEXTS, FinetuneSettings(finetune="last_n"))


def test_frozen_layers_run_once_and_what_they_said_is_kept(folder, monkeypatch):
    text = network_of(folder, finetune="last_n", last_n=1)
    (layers,) = [m for m in text.modules() if isinstance(m, torch.nn.ModuleList)]
    runs = []
    layers[1].register_forward_hook(lambda *_: runs.append(1))
    items = np.array([5, 0, 4, 2, 3, 1])
    np.testing.assert_allclose(text.rows(items), encoder_of(folder).encode(TEXTS)[items], atol=1e-5)
    assert len(runs) == 1
    step(text)
    tuned = text.rows(items)
    assert len(runs) == 1
    monkeypatch.setattr("recbole_llm.frozen_layers._MOST_BYTES", 0)
    again = network_of(folder, finetune="last_n", last_n=1)
    again.load_state_dict(text.state_dict())
    np.testing.assert_allclose(again.rows(items), tuned, atol=1e-5)
    assert again._frozen is None


def test_where_all_layers_learn_none_is_kept(folder):
    assert network_of(folder, finetune="last_n", last_n=3)._frozen is None
    assert network_of(folder, finetune="full")._frozen is None
