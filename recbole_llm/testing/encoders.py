"""The contract of encoders as plain functions, for one's own encoders too.

Each function raises `AssertionError` where an encoder breaks a promise that the rest of the
package builds on; :func:`check_encoder` calls them all::

    def test_my_encoder_keeps_the_contract():
        check_encoder(build("mine", EncoderOptions(progress=False)).fit(SAMPLE_TEXTS))
"""

from __future__ import annotations

import re
import time

import numpy as np
import scipy.sparse as sp

from recbole_llm.encoders.base import Encoder, TextRows
from recbole_llm.factors import Table

#: Texts that share words with one another, in several languages, with what shops write.
SAMPLE_TEXTS: tuple[str, ...] = (
    "A red cotton shirt for men",
    "",
    "Red shirt, cotton, for women",
    "<p>Stainless <b>steel</b> kettle &amp; filter, 1.7 l</p>",
    "Toy Story. Animation Children's Comedy",
    "A red cotton shirt for men",
    "   ",
    "Чайник из нержавеющей стали",
    "不锈钢 电热水壶",
    "Smile 😀👩‍🚀 mug, naïve café",
)

# Rows of one text in two batches differ by the order in which floats are summed.
_TOLERANCE = 1e-5


def check_encoder(encoder: Encoder) -> None:
    """Checks all promises.

    Args:
        encoder: fitted on `SAMPLE_TEXTS`, where it needs fitting.
    """
    check_rows_are_unit_or_zero(encoder)
    check_blank_texts_have_zero_rows(encoder)
    check_no_texts_give_no_rows(encoder)
    check_same_texts_same_rows(encoder)
    check_order_only_permutes_rows(encoder)
    check_duplicates_share_a_row(encoder)
    check_inputs_stay_unchanged(encoder)
    check_odd_texts_are_encoded(encoder)
    check_fingerprint_is_stable(encoder)
    check_fit_returns_an_encoder(encoder)
    check_what_is_read_makes_the_row(encoder)
    if encoder.contextual:
        check_rows_do_not_depend_on_other_texts(encoder)


def check_what_is_read_makes_the_row(encoder: Encoder) -> None:
    """A text's row is that of the beginning that is said to be read."""
    texts = [*SAMPLE_TEXTS, " ".join(SAMPLE_TEXTS * 200)]
    read = [encoder.reads(text) for text in texts]
    for text, part in zip(texts, read, strict=True):
        assert text.startswith(part)
    one, other = (_dense(encoder.encode(part)) for part in (texts, read))
    np.testing.assert_allclose(one, other, atol=_TOLERANCE)


def check_rows_are_unit_or_zero(encoder: Encoder) -> None:
    """Rows are finite float32, one per text, of length 1 or 0."""
    rows = encoder.encode(SAMPLE_TEXTS)
    assert rows.dtype == np.float32, f"rows must be float32, got {rows.dtype}"
    assert rows.shape[0] == len(SAMPLE_TEXTS), f"{len(SAMPLE_TEXTS)} texts, {rows.shape[0]} rows"
    assert isinstance(rows, sp.csr_matrix | np.ndarray), f"dense or CSR, got {type(rows).__name__}"
    lengths = lengths_of(rows)
    wrong = ~np.isclose(lengths, 1, atol=_TOLERANCE) & (lengths != 0)
    assert not wrong.any(), f"row lengths must be 1 or 0, got {lengths[wrong]}"
    assert lengths.any(), "every row is zero"


def check_blank_texts_have_zero_rows(encoder: Encoder) -> None:
    """A blank text has a zero row, and one with words that were fitted has not."""
    lengths = lengths_of(encoder.encode(SAMPLE_TEXTS))
    blank = np.array([not text.strip() for text in SAMPLE_TEXTS])
    assert not lengths[blank].any(), "a blank text must have a zero row"
    assert lengths[~blank].all(), "a text that was fitted must not have a zero row"
    all_blank = encoder.encode(["", " "])
    assert all_blank.shape[0] == 2, "blank texts alone must still get rows"
    assert not lengths_of(all_blank).any(), "blank texts alone must have zero rows"


def check_no_texts_give_no_rows(encoder: Encoder) -> None:
    """No texts give a table without rows, as wide as any other."""
    rows = encoder.encode([])
    width = encoder.encode(SAMPLE_TEXTS[:1]).shape[1]
    assert rows.shape == (0, width), f"no texts must give (0, {width}), got {rows.shape}"


def check_same_texts_same_rows(encoder: Encoder) -> None:
    """Encoding twice gives equal rows, bit for bit."""
    first, second = (_dense(encoder.encode(SAMPLE_TEXTS)) for _ in range(2))
    assert np.array_equal(first, second), "encoding twice must give the same rows"


def check_order_only_permutes_rows(encoder: Encoder) -> None:
    """Another order of texts gives the same rows in that order."""
    order = np.random.default_rng(0).permutation(len(SAMPLE_TEXTS))
    rows = _dense(encoder.encode(SAMPLE_TEXTS))
    permuted = _dense(encoder.encode([SAMPLE_TEXTS[place] for place in order]))
    np.testing.assert_allclose(permuted, rows[order], atol=_TOLERANCE)


def check_duplicates_share_a_row(encoder: Encoder) -> None:
    """Equal texts have equal rows, bit for bit."""
    text = SAMPLE_TEXTS[0]
    rows = _dense(encoder.encode([text, SAMPLE_TEXTS[4], text]))
    assert np.array_equal(rows[0], rows[2]), "equal texts must have equal rows"
    assert not np.array_equal(rows[0], rows[1]), "different texts must have different rows"


def check_rows_do_not_depend_on_other_texts(encoder: Encoder) -> None:
    """A contextual encoder gives a text alone the row that it has among others."""
    rows = _dense(encoder.encode(SAMPLE_TEXTS))
    alone = np.vstack([_dense(encoder.encode([text])) for text in SAMPLE_TEXTS])
    np.testing.assert_allclose(alone, rows, atol=_TOLERANCE)


def check_inputs_stay_unchanged(encoder: Encoder) -> None:
    """Neither the list of texts nor rows that were handed out change later."""
    texts = list(SAMPLE_TEXTS)
    rows = encoder.encode(texts)
    before = _dense(rows).copy()
    encoder.fit(texts)
    encoder.encode(texts[::-1])
    assert texts == list(SAMPLE_TEXTS), "the list of texts was changed"
    assert np.array_equal(_dense(rows), before), "rows that were handed out were changed"


def check_odd_texts_are_encoded(encoder: Encoder, *, most_seconds: float = 10.0) -> None:
    """HTML, emoji, signs, unknown scripts and 10,000 words are encoded, the last in time."""
    odd = [
        "<div onclick='x'>&lt;b&gt;</div>",
        "😀👩‍🚀🏳️‍🌈",
        "!!! ??? ...",
        "ᚠᛇᚻ ༀ ꙮ",
        "x" * 20_000,
        " ".join(f"word{number}" for number in range(10_000)),
    ]
    start = time.perf_counter()
    lengths = lengths_of(encoder.encode(odd))
    seconds = time.perf_counter() - start
    assert np.isfinite(lengths).all(), "odd texts must have finite rows"
    assert np.all(np.isclose(lengths, 1, atol=_TOLERANCE) | (lengths == 0)), lengths
    assert seconds < most_seconds, f"{len(odd)} odd texts took {seconds:.1f} s"


def check_fingerprint_is_stable(encoder: Encoder) -> None:
    """The fingerprint is 64 hex digits and stays the same while the encoder works."""
    before = encoder.fingerprint()
    encoder.encode(SAMPLE_TEXTS)
    assert re.fullmatch("[0-9a-f]{64}", before), f"64 hex digits, got {before!r}"
    assert encoder.fingerprint() == before, "encoding must not change the fingerprint"


def check_fingerprints_differ(*encoders: Encoder) -> None:
    """Encoders with other settings, weights or fitted texts have other fingerprints.

    Args:
        *encoders: no two of them alike.
    """
    fingerprints = [encoder.fingerprint() for encoder in encoders]
    assert len(set(fingerprints)) == len(encoders), f"two alike of {fingerprints}"


def check_fit_returns_an_encoder(encoder: Encoder) -> None:
    """``fit`` returns an encoder and leaves this one as it was."""
    before = encoder.fingerprint()
    fitted = encoder.fit(["other words altogether"])
    assert isinstance(fitted, Encoder), f"fit must return an encoder, got {fitted!r}"
    assert encoder.fingerprint() == before, "fit must not change the encoder"
    if encoder.contextual:
        assert fitted.fingerprint() == before, "fitting must not change a contextual encoder"


def _dense(rows: TextRows) -> Table:
    return rows if isinstance(rows, np.ndarray) else rows.toarray()


def lengths_of(rows: TextRows) -> Table:
    """Lengths of rows, dense or sparse, (n,)."""
    return np.linalg.norm(_dense(rows), axis=1)
