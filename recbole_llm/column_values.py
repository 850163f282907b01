"""What the columns of a user's tables hold: strings, numbers, ids, times, lists, categories."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.atomic_files import MISSING_WORDS, FieldType, clean_white_space
from recbole_llm.errors import SettingsError
from recbole_llm.table_files import first_line

# fmt: off
# Columns of such a name hold text, also where each value is a single word ("Alien").
TEXT_NAMES = frozenset((
    "title", "name", "productname", "itemname", "description", "desc", "summary", "text",
    "overview", "plot", "abstract", "content", "about", "bio", "genre", "genres", "category",
    "categories", "tag", "tags", "keywords", "features",
))
# fmt: on

SAMPLE_ROWS = 1000

# A column of few, short, repeated values is a category, even where they have several words.
CATEGORY_MAX_SHARE, CATEGORY_MAX_CHARACTERS = 0.2, 40
# `Action|Comedy`: a bar without blanks around it, in at least this share of the values.
LIST_MIN_SHARE = 0.1


def to_strings(values: pd.Series) -> pd.Series:
    """Writes any column as strings.

    Args:
        values: any type; lists and dicts become their words.

    Returns:
        Strings with the same index, ``""`` for missing; whole numbers have no ``.0``.
    """
    if pd.api.types.is_float_dtype(values.dtype):
        return _floats_to_strings(values)
    categories = isinstance(values.dtype, pd.CategoricalDtype)
    if categories or values.dtype == object or pd.api.types.is_string_dtype(values.dtype):
        objects = values.astype(object)
        if pd.api.types.infer_dtype(objects, skipna=True) == "string":
            return objects.fillna("")
        return objects.map(_one_string).astype(object)
    return values.astype(object).where(values.notna(), "").astype(str).astype(object)


def _floats_to_strings(values: pd.Series) -> pd.Series:
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    texts = pd.Series(numbers, index=values.index).astype(str).astype(object)
    whole = np.isfinite(numbers) & (numbers == np.rint(numbers)) & (np.abs(numbers) < 2**63)
    texts[whole] = numbers[whole].astype(np.int64).astype(str)
    texts[np.isnan(numbers)] = ""
    return texts


def _one_string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return " ".join(filter(None, map(_one_string, value)))
    if value is None or pd.isna(value):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def to_texts(values: pd.Series) -> pd.Series:
    """Writes any column as texts.

    Args:
        values: any type.

    Returns:
        Strings of single blanks with the same index, ``""`` for missing; lists become their words.
    """
    plain = clean_white_space(to_strings(values))
    if is_list_column(values, plain):
        plain = clean_white_space(plain.map(words_of_list))
    return plain


def to_numbers(values: pd.Series) -> pd.Series:
    """Reads a column as numbers.

    Args:
        values: any type.

    Returns:
        float64 with the same index; NaN where there is no finite number.
    """
    if not pd.api.types.is_numeric_dtype(values.dtype):
        values = pd.to_numeric(to_strings(values), errors="coerce")
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return pd.Series(np.where(np.isfinite(numbers), numbers, np.nan), index=values.index)


def to_ids(values: pd.Series) -> pd.Series:
    """Reads a column as ids, not yet mended.

    Args:
        values: any type.

    Returns:
        Trimmed strings with the same index, ``""`` for missing. ``42.0`` becomes ``42`` where the
        whole column is numbers of this kind, as pandas writes whole numbers with a gap among them.
    """
    ids = clean_white_space(to_strings(values))
    distinct = pd.Series(ids.unique())
    filled = distinct[distinct != ""]
    if filled.str.endswith(".0").any() and filled.str.fullmatch(r"-?\d+(?:\.0)?").all():
        return ids.str.removesuffix(".0")
    return ids


@dataclass(frozen=True)
class Times:
    """Unix seconds (float64, NaN where unreadable), and how they were written."""

    seconds: pd.Series
    written: str
    notes: tuple[str, ...] = ()


def to_times(values: pd.Series, time_format: str | None = None) -> Times:
    """Reads times, however they are written.

    Args:
        values: dates, numbers or strings. Times without a zone are taken as UTC.
        time_format: as for ``strptime``; None: found out.

    Returns:
        Seconds since 1970; numbers too small to be Unix time (an order, a year) stay as they are.
    """
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return Times(_unix_seconds(pd.to_datetime(values, utc=True)), "dates")
    strings = clean_white_space(to_strings(values))
    sample = strings[strings != ""].head(SAMPLE_ROWS)
    if time_format is None:
        time_format = _compact_format(sample)
    if time_format is not None:
        return Times(_parse(strings, time_format), f"dates as {time_format}")
    if len(sample) and to_numbers(sample).notna().mean() > 0.5:
        return _from_numbers(to_numbers(values))
    return _from_dates(strings, sample)


def are_dates(values: pd.Series) -> bool:
    """Whether a column holds dates that are written as words, all of its first ones in one way."""
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return True
    sample = clean_white_space(to_strings(values.dropna().head(SAMPLE_ROWS)))
    sample = sample[sample != ""]
    if sample.empty or to_numbers(sample).notna().any():
        return False
    return any(_parse(sample, written).notna().all() for written in _date_formats(sample.head(1)))


def _compact_format(sample: pd.Series) -> str | None:
    """Dates without signs are whole numbers too: 20240131 is no Unix time of August 1970."""
    for digits, time_format in ((8, "%Y%m%d"), (14, "%Y%m%d%H%M%S")):
        written = sample.str.fullmatch(rf"(?:19|20)\d{{{digits - 2}}}")
        if len(sample) and written.all() and _parse(sample, time_format).notna().all():
            return time_format
    return None


def _from_numbers(numbers: pd.Series) -> Times:
    size = float(numbers.abs().median())
    # Seconds reach 1e11 in the year 5138, milliseconds reached it in 1973; and so on by 1000.
    for limit, divisor, unit in (
        (1e8, 1, "numbers, taken as they are"),
        (1e11, 1, "Unix seconds"),
        (1e14, 1e3, "Unix milliseconds"),
        (1e17, 1e6, "Unix microseconds"),
    ):
        if size < limit:
            return Times(numbers / divisor, unit)
    return Times(numbers / 1e9, "Unix nanoseconds")


def _date_formats(sample: pd.Series) -> list[str]:
    """How dates may be written: ISO, and as some of them are, the day first or the month."""
    with warnings.catch_warnings():
        # pandas warns that a day above 12 cannot be a month: that is why both are tried.
        warnings.simplefilter("ignore", UserWarning)
        guessed = [
            pd.tseries.api.guess_datetime_format(text, dayfirst=day_first)
            for day_first in (False, True)
            for text in sample
        ]
    return list(dict.fromkeys(["ISO8601", *filter(None, guessed)]))


def _from_dates(strings: pd.Series, sample: pd.Series) -> Times:
    formats = _date_formats(sample.head(100))
    parsed = {time_format: _parse(strings, time_format) for time_format in formats}
    best = max(formats, key=lambda time_format: int(parsed[time_format].notna().sum()))
    seconds = parsed[best]
    left = seconds.isna() & (strings != "")
    if left.any():
        seconds = seconds.where(~left, _parse(strings[left], "mixed").reindex(seconds.index))
    if best == "ISO8601":
        return Times(seconds, "ISO dates")
    other = best.replace("%m", "%?").replace("%d", "%m").replace("%?", "%d")
    notes: tuple[str, ...] = ()
    if (
        other != best
        and other in parsed
        and parsed[other].notna().sum() == parsed[best].notna().sum()
    ):
        notes = (f"day and month could be the other way round; if so, --time_format '{other}'",)
    return Times(seconds, f"dates as {best}", notes)


def _parse(strings: pd.Series, time_format: str) -> pd.Series:
    """Parses each distinct string once."""
    codes, distinct = pd.factorize(strings.to_numpy(dtype=object))
    try:
        times = pd.to_datetime(pd.Series(distinct), format=time_format, errors="coerce", utc=True)
    except ValueError as error:
        raise SettingsError(f"--time_format {time_format!r}: {first_line(error)}") from error
    seconds = _unix_seconds(times).to_numpy()
    return pd.Series(seconds[codes], index=strings.index)


def _unix_seconds(times: pd.Series) -> pd.Series:
    return (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)


def feature_type(values: pd.Series, name: str) -> FieldType | None:
    """Finds out what a column holds.

    Args:
        values: any type.
        name: the column's name.

    Returns:
        ``float`` for numbers, ``token`` for single words and for few repeated short values,
        ``token_seq`` for texts and lists; None for an empty column.
    """
    strings = clean_white_space(to_strings(values))
    missing = (strings == "") | strings.isin(MISSING_WORDS)
    filled = strings[~missing]
    if filled.empty:
        return None
    if is_list_column(values, filled):
        return "token_seq"
    if to_numbers(filled).notna().all() or pd.api.types.is_bool_dtype(values.dtype):
        return "token" if _are_codes(filled) else "float"
    if plain_name(name) in TEXT_NAMES:
        return "token_seq"
    if not filled.str.contains(" ", regex=False).any():
        return "token"
    repeated = filled.nunique() <= CATEGORY_MAX_SHARE * len(filled)
    return (
        "token" if repeated and filled.str.len().max() <= CATEGORY_MAX_CHARACTERS else "token_seq"
    )


def column_called(known: Iterable[str], columns: Sequence[str]) -> str | None:
    """The column with the best of some plain names; of columns that are alike the first."""
    plain = {plain_name(column): column for column in reversed(columns)}
    return next((plain[name] for name in known if name in plain), None)


def plain_name(name: str) -> str:
    """A column's name without case, blanks and signs."""
    return re.sub(r"[\W_]", "", name).lower()


def is_list_column(values: pd.Series, strings: pd.Series) -> bool:
    """Whether a column holds lists: as such, or written as ``["a", "b"]`` or ``a|b``."""
    if values.dtype == object and any(
        isinstance(value, (list, tuple, dict, np.ndarray)) for value in values
    ):
        return True
    filled = strings[strings != ""]
    if (filled.str.startswith("[") & filled.str.endswith("]")).all():
        return True
    return bool(filled.str.contains(r"\S\|\S").mean() >= LIST_MIN_SHARE)


def _are_codes(strings: pd.Series) -> bool:
    """Whether digits are a code (``00123``, a long barcode), which a number would spoil."""
    return bool(strings.str.contains(r"^-?0\d|^\d{16}").any())


def words_of_list(text: str) -> str:
    """``["Sci-Fi", "Drama"]`` in JSON or Python, or ``Sci-Fi|Drama`` -> its words."""
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return _one_string(parse(text))
            # literal_eval raises the last three on what is no literal, or nested too deeply.
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return re.sub(r"(?<=\S)\|(?=\S)", " ", text)
