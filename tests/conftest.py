"""Two workers share two cores: a library's own threads would only wait for each other."""

import os

import pytest

# Read by OpenMP when a library first loads, here and in the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = ["red", "blue", "wool", "steel", "coat", "knife", "lamp", "warm", "sharp", "kitchen"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """The folder of a BERT of three layers that reads 16 tokens."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    place = tmp_path_factory.mktemp("bert")
    (place / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    )
    tokenizer = BertTokenizerFast(str(place / "vocab.txt"), model_max_length=16)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place
