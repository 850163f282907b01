"""Encoders that stand in for BERT in ablations; `fit` alone knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from recbole_llm import encoders
from recbole_llm.encoders import EncoderOptions
from recbole_llm.factors import unit_rows

RowsOf = Callable[[Sequence[str]], np.ndarray]
#: As wide as MiniLM's rows.
DIMENSIONS = 384


@dataclass(frozen=True)
class StandIn:
    """Rows that depend on the text alone.

    Attributes:
        name: as in the setting `encoder`.
        rows_of: the rows of texts that are not blank.
        options: how the run goes.
    """

    name: str
    rows_of: RowsOf
    options: EncoderOptions
    contextual = True

    def fingerprint(self) -> str:
        """Of the kind; there is nothing else."""
        return hashlib.sha256(f"compare {self.name} 1".encode()).hexdigest()

    def fit(self, texts: Sequence[str]) -> StandIn:
        """There is nothing to learn."""
        return self

    def reads(self, text: str) -> str:
        """All of it."""
        return text

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows, float32 (n, `DIMENSIONS`)."""
        rows = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        told = [place for place, text in enumerate(texts) if text.strip()]
        if told:
            rows[told] = self.rows_of([texts[place] for place in told])
        return unit_rows(rows)


def noise(texts: Sequence[str]) -> np.ndarray:
    """A random row for each text, the same for the same text."""
    seeds = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts)
    return np.array(
        [np.random.default_rng(seed).standard_normal(DIMENSIONS) for seed in seeds],
        dtype=np.float32,
    )


def hashed(texts: Sequence[str]) -> np.ndarray:
    """Words and pairs of words, hashed to as many columns."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=DIMENSIONS, ngram_range=(1, 2)).transform(texts).toarray()


def register_all() -> None:
    """Make `encoder: noise` and `encoder: hashing` known in this process."""
    for name, rows_of in (("noise", noise), ("hashing", hashed)):
        encoders.register(name, partial(_stand_in, name, rows_of))


def _stand_in(name: str, rows_of: RowsOf, argument: str | None, options: EncoderOptions) -> StandIn:
    return StandIn(name, rows_of, options)
