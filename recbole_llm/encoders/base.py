"""What an encoder is, and what encoders share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llm.factors import Table

TextRows: TypeAlias = Table | sp.csr_matrix


@dataclass(frozen=True)
class NetworkOptions:
    """What a model's files are taken for and run by; part of what the rows are.

    Attributes:
        kind: ``sentence``, ``causal``, or ``auto``, which the files tell.
        pooling: how a model that names no pooling makes one row of its tokens' rows: ``last``,
            ``mean``, ``weighted_mean``, or ``auto`` (``last`` of a causal model, else ``mean``).
        backend: ``torch`` or ``onnx``.
        quantize: ``none`` or ``int8``.
    """

    kind: str = "auto"
    pooling: str = "auto"
    backend: str = "torch"
    quantize: str = "none"


@dataclass(frozen=True)
class EncoderOptions:
    """How a run goes; but for ``network`` no part of what the rows are.

    Attributes:
        device: torch's name of the device that a network runs on.
        batch_size: texts in one step of a network.
        progress: whether to show a bar while texts are encoded
            (:func:`recbole_llm.embedding_cache.encode_cached` does it for every encoder).
        network: what a model's files are taken for and run by.
        cache: folder that keeps exported networks; None keeps none.
    """

    device: str = "cpu"
    batch_size: int = 64
    progress: bool = True
    network: NetworkOptions = NetworkOptions()
    cache: Path | None = None


def transformer_slot(network: Any) -> str | None:
    """Under which name a network of sentence-transformers keeps its transformer; None: it has none.

    It is `auto_model` up to release 5, then `model`.
    """
    return next((s for s in ("auto_model", "model") if s in network[0]._modules), None)


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into rows of a table.

    A new kind is one file with a class like this and a line in ``ENCODERS``; no base class is
    needed. ``recbole_llm.testing.encoders`` holds the contract as tests.
    """

    @property
    def name(self) -> str:
        """Short label for logs, as in the setting: ``bert``, ``lexical``."""
        ...

    @property
    def contextual(self) -> bool:
        """Whether a text's row depends on that text and the settings alone.

        If so, rows are kept in the embedding cache one by one, and must be dense.
        """
        ...

    @property
    def options(self) -> EncoderOptions:
        """How the run goes."""
        ...

    def fingerprint(self) -> str:
        """64 hex digits that differ where rows may: kind, settings, weights, texts fitted on."""
        ...

    def fit(self, texts: Sequence[str]) -> Encoder:
        """An encoder that knows the texts' words; a contextual one returns itself."""
        ...

    def reads(self, text: str) -> str:
        """The beginning of a text that makes its row; all of it, where nothing is cut off."""
        ...

    def encode(self, texts: Sequence[str]) -> TextRows:
        """The texts' rows.

        Args:
            texts: n texts, which stay unchanged; equal ones get equal rows, in any order.

        Returns:
            float32 (n, d), dense or CSR: rows of length 1, zero rows for texts without content.
        """
        ...


def text_digest(text: str) -> bytes:
    """The SHA-256 of a text, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def distinct_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """The texts that are worth encoding, each once.

    Args:
        texts: n texts.

    Returns:
        The distinct texts that are not blank, in the order of their first appearance; and (n,),
        the place of each text among them, -1 for a blank one.
    """
    place: dict[str, int] = {}
    places = [place.setdefault(text, len(place)) if text.strip() else -1 for text in texts]
    return list(place), np.array(places, dtype=np.intp)


def spread_rows(rows: Table, places: NDArray[np.intp]) -> Table:
    """Undoes :func:`distinct_texts`: one row per text, zero for a blank one.

    Args:
        rows: float32 (m, d), rows of the distinct texts.
        places: (n,), rows of ``rows`` or -1.

    Returns:
        float32 (n, d).
    """
    # Index -1 is the last row, which is the zero row.
    return np.vstack([rows, np.zeros((1, rows.shape[1]), dtype=np.float32)])[places]
