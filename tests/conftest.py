"""Two workers share two cores: a library's own threads would only wait for each other."""

import os

import pytest

# Read by OpenMP when a library first loads, here and in the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files that take minutes come first, so that both cores end together.
_LONG = ("test_readme.py", "test_commands.py", "test_tune_command.py", "test_bad_input.py")

WORDS = ["red", "blue", "wool", "steel", "coat", "knife", "lamp", "warm", "sharp", "kitchen"]


def pytest_collection_modifyitems(items):
    """Sort the long files to the front; a file's own order stays."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(_LONG)))


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


@pytest.fixture(scope="session")
def translators(tmp_path_factory):
    """Two tiny BARTs with random weights and a few words, there and back."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "red", "coat", "steel", "knife", "lamp", "warm"]
    tokenizer = Tokenizer(
        WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    folders = []
    for seed in (3, 4):  # of which the texts get answers of their own
        folders.append(tmp_path_factory.mktemp("translator"))
        torch.manual_seed(seed)
        config = BartConfig(
            vocab_size=len(words),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
            init_std=1.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
        BartForConditionalGeneration(config).save_pretrained(folders[-1])
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            model_max_length=16,
        ).save_pretrained(folders[-1])
    return tuple(folders)
