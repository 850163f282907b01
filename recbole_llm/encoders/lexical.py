"""Exact words: TF-IDF rows of single words and pairs of neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from recbole_llm.encoders.base import EncoderOptions, text_digest
from recbole_llm.errors import SettingsError
from recbole_llm.text import MARKED_SCRIPTS, UNSPACED_SCRIPTS

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

# Words of two letters and more, as in scikit-learn. A character of a script without blanks is a
# word by itself (pairs of them are then the usual terms), and vowel signs belong to their word.
_WORD = (
    rf"[{UNSPACED_SCRIPTS}]"
    rf"|(?:[^\W{UNSPACED_SCRIPTS}]|[{MARKED_SCRIPTS}]){{2,}}"
)
# Which rows come out: whoever changes the terms or their weights changes this.
_RECIPE = "lexical 1: words, pairs in 2 texts, lower case, no accents, sublinear tf, l2"


def build_lexical(argument: str | None, options: EncoderOptions) -> LexicalEncoder:
    """The factory of ``lexical``.

    Args:
        argument: None; there is nothing to choose.
        options: how the run goes.

    Returns:
        An encoder that must be fitted before it encodes.

    Raises:
        SettingsError: an argument was given.
    """
    if argument is not None:
        raise SettingsError(f"`encoder`: `lexical` takes no argument, got `lexical:{argument}`")
    return LexicalEncoder(options)


@dataclass(frozen=True, eq=False)
class LexicalEncoder:
    """Sparse rows over the words of the texts that it was fitted on.

    A word is a term wherever it occurs; a pair of neighbouring words only if two texts have it,
    since a pair that one text has alone says nothing about any other. There is no list of stop
    words, which would be English: the weights do it for all languages.

    Attributes:
        options: how the run goes.
        fitted: what was learned, None before ``fit``.
    """

    options: EncoderOptions
    fitted: _Terms | None = None

    name = "lexical"
    contextual = False

    def fingerprint(self) -> str:
        """64 hex digits of the recipe and of the texts that it was fitted on, in any order."""
        texts = "" if self.fitted is None else self.fitted.texts_sha256
        return hashlib.sha256(f"{_RECIPE}\n{texts}".encode()).hexdigest()

    def fit(self, texts: Sequence[str]) -> LexicalEncoder:
        """A copy that knows the words of some texts; blank ones do not count.

        Args:
            texts: the texts to learn terms and weights from.

        Returns:
            The fitted encoder; this one stays as it is.
        """
        return replace(self, fitted=_learn_terms([text for text in texts if text.strip()]))

    def reads(self, text: str) -> str:
        """All of it."""
        return text

    def encode(self, texts: Sequence[str]) -> sp.csr_matrix:
        """The texts' rows over the known terms.

        Args:
            texts: n texts.

        Returns:
            CSR float32 (n, number of terms), rows of length 1; a zero row for a text without a
            known word. One column of zeros where no text of ``fit`` had a word.

        Raises:
            ValueError: it was not fitted.
        """
        if self.fitted is None:
            raise ValueError("the lexical encoder knows no words yet; call fit(texts) first")
        counter, weights = self.fitted.counter, self.fitted.weights
        if counter is None or weights is None:
            return sp.csr_matrix((len(texts), 1), dtype=np.float32)
        if not texts:
            return sp.csr_matrix((0, len(counter.vocabulary)), dtype=np.float32)
        return sp.csr_matrix(weights.transform(counter.transform(texts)))


@dataclass(frozen=True, eq=False)
class _Terms:
    """What `LexicalEncoder` learns; counter and weights are None where there is no word."""

    texts_sha256: str
    counter: CountVectorizer | None
    weights: TfidfTransformer | None


def _learn_terms(texts: list[str]) -> _Terms:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    def counter(vocabulary: list[str] | None) -> CountVectorizer:
        return CountVectorizer(
            strip_accents="unicode",
            token_pattern=_WORD,
            ngram_range=(1, 2),
            vocabulary=vocabulary,
            dtype=np.float32,
        )

    # Sorted: the rows do not depend on the order of the texts.
    texts_sha256 = hashlib.sha256(b"".join(sorted(map(text_digest, texts)))).hexdigest()
    analyze = counter(None).build_analyzer()
    if not any(analyze(text) for text in texts):
        return _Terms(texts_sha256, None, None)
    all_terms = counter(None)
    counts = all_terms.fit_transform(texts)
    names = all_terms.get_feature_names_out()
    is_word = np.array([" " not in name for name in names])
    kept = is_word | (counts.getnnz(axis=0) >= 2)
    weights = TfidfTransformer(sublinear_tf=True).fit(counts[:, kept])
    return _Terms(texts_sha256, counter(names[kept].tolist()), weights)
