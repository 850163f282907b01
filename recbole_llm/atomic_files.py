r"""RecBole's atomic files: values that its reader gives back unchanged, and writing them safely.

RecBole reads an atomic file with ``pd.read_csv(delimiter="\t", engine="python")`` and all other
options at their defaults. Four things follow, and each has its rule here:

- a tab or a line break inside a value would begin a new field or row: control characters, line
  separators and lone surrogates become one blank;
- a value that *begins* with ``"`` would swallow everything up to the next one: it gets a ``'``
  before it (quotes further inside are plain characters to the reader and stay);
- a value that is, as a whole, a word for "missing" (``NA``, ``null``, ``None``, ...) would vanish:
  a token gets a ``_`` after it, a text becomes empty;
- a field of more than 131,072 characters is an error in Python's ``csv``: texts are cut before.

The escapes need no memory of other values, and two different values stay different (``NA`` becomes
``NA_`` and ``NA_`` becomes ``NA__``), so an id is mended alike in every file. They are not
idempotent: mend what comes from outside, never what was read from an atomic file.
"""

from __future__ import annotations

import csv
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from recbole_llm.errors import DataError

FieldType: TypeAlias = Literal["token", "token_seq", "float"]

#: What pandas takes as missing by default (a test compares the list with the installed pandas').
# fmt: off
MISSING_WORDS = frozenset((
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
))
# fmt: on

#: A token of this name would take the place of RecBole's padding row.
PADDING_TOKEN = "[PAD]"

#: The csv module refuses 131,072 characters and more; a guard may add one.
MAX_TEXT_CHARACTERS = 100_000

_NOT_WRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_READ_AS_QUOTED = re.compile(r"'*\"")
_RESERVED_TOKEN = re.compile(
    "(?:" + "|".join(map(re.escape, sorted(MISSING_WORDS | {PADDING_TOKEN}))) + ")_*"
)


def clean_white_space(values: pd.Series) -> pd.Series:
    """Makes each value one trimmed line: what RecBole's format cannot hold becomes a blank.

    Args:
        values: strings, ``""`` for missing.

    Returns:
        Strings with the same index.
    """
    return _map_distinct(values, lambda value: _NOT_WRITABLE.sub(" ", value).strip())


def mend_tokens(values: pd.Series) -> pd.Series:
    """Makes ids and categories safe to write, one-to-one up to white space at the ends.

    Args:
        values: strings, ``""`` for missing.

    Returns:
        Strings with the same index; missing stays ``""``.
    """
    return _map_distinct(values, _mend_token)


def mend_texts(values: pd.Series) -> pd.Series:
    """Makes texts safe to write; a text that says "missing" (``N/A``, ``null``) becomes empty.

    Args:
        values: strings, ``""`` for missing.

    Returns:
        Strings with the same index, of at most `MAX_TEXT_CHARACTERS` characters (and a guard).
    """
    return _map_distinct(values, _mend_text)


def format_numbers(values: pd.Series) -> pd.Series:
    """Writes numbers, whole ones without ``.0``, so that ids and seconds look as people expect.

    Args:
        values: float64; NaN and the infinities are missing.

    Returns:
        Strings with the same index, ``""`` for missing.
    """
    numbers = values.to_numpy(dtype=np.float64)
    finite = np.isfinite(numbers)
    known = numbers[finite]
    # Beyond 2**53 a float64 no longer tells neighbouring integers apart.
    whole = bool(np.all((known == np.rint(known)) & (np.abs(known) < 2**53)))
    texts = np.full(len(numbers), "", dtype=object)
    texts[finite] = pd.Series(known.astype(np.int64) if whole else known).astype(str).to_numpy()
    return pd.Series(texts, index=values.index, dtype=object)


def safe_field_names(
    names: Iterable[str], *, taken: Iterable[str] = (), prefix: str = ""
) -> dict[str, str]:
    """Turns column names into field names of letters, digits and underscores.

    RecBole keeps one type per field name for all files together, so names must differ between
    files too: pass the other files' names as ``taken``.

    Args:
        names: distinct column names.
        taken: field names that are used already.
        prefix: goes before a name that is taken (``item_``), before a number is tried.

    Returns:
        Column name -> field name, distinct and none of ``taken``.
    """
    elsewhere = frozenset(taken)
    used = set(elsewhere)
    fields: dict[str, str] = {}
    for name in names:
        wished = re.sub(r"\W+", "_", name).strip("_") or "column"
        if wished in elsewhere:
            wished = f"{prefix}{wished}"
        field, number = wished, 1
        while field in used:
            number += 1
            field = f"{wished}_{number}"
        used.add(field)
        fields[name] = field
    return fields


def write_atomic_file(path: Path, table: pd.DataFrame, types: Mapping[str, FieldType]) -> None:
    """Writes one atomic file: a head line ``field:type``, then the rows as they are.

    Args:
        path: the file, overwritten.
        table: mended strings; the columns are field names.
        types: the type of every column.
    """
    table.to_csv(
        path,
        sep="\t",
        index=False,
        header=[f"{field}:{types[field]}" for field in table.columns],
        # Mended values need no quoting; a tab that slipped through is an error here, not a
        # broken file.
        quoting=csv.QUOTE_NONE,
        lineterminator="\n",
        encoding="utf-8",
    )


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a folder to fill, which becomes ``target`` only if the block succeeds.

    Args:
        target: where the folder shall stand; parents are made.
        overwrite: take the place of an existing ``target``, after success.

    Yields:
        A hidden folder beside ``target``: same file system, so that the move is atomic.

    Raises:
        DataError: ``target`` exists and ``overwrite`` is false.
    """
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists; choose another name, or replace it with --overwrite")
    # A link's aim is replaced, not the link.
    place = target.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{place.name}.{secrets.token_hex(4)}"
    filling, former = place.with_name(f"{stem}.new"), place.with_name(f"{stem}.old")
    filling.mkdir()
    try:
        yield filling
        if place.exists():
            os.replace(place, former)
        try:
            os.replace(filling, place)
        except OSError:
            if former.exists():
                os.replace(former, place)
            raise
    finally:
        shutil.rmtree(filling, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def _mend_token(value: str) -> str:
    token = _guard_quote(_NOT_WRITABLE.sub(" ", value).strip())
    return f"{token}_" if _RESERVED_TOKEN.fullmatch(token) else token


def _mend_text(value: str) -> str:
    text = _NOT_WRITABLE.sub(" ", value).strip()[:MAX_TEXT_CHARACTERS].rstrip()
    return "" if text in MISSING_WORDS else _guard_quote(text)


def _guard_quote(value: str) -> str:
    """``"a`` -> ``'"a``, ``'"a`` -> ``''"a``: the second keeps the first one-to-one."""
    return f"'{value}" if _READ_AS_QUOTED.match(value) else value


def _map_distinct(values: pd.Series, change: Callable[[str], str]) -> pd.Series:
    """Applies ``change`` once per distinct value: ids repeat, so this is fast on long columns."""
    # Not by pandas' factorize, which takes strings that differ after a NUL for one.
    changed = {value: change(value) for value in set(values)}
    return pd.Series([changed[value] for value in values], index=values.index, dtype=object)
