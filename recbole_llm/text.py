"""Text of items and users, read from RecBole's atomic files apart from RecBole.

RecBole turns a ``token_seq`` column into padded index matrices and a missing word list into NaN;
an encoder needs the words as they were written. So the ``.item`` and ``.user`` files are read here
once more, as plain text: no quoting, and nothing means "missing" but an empty value.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recbole_llm.errors import DataError, SettingsError, did_you_mean

#: RecBole's padding id: row 0 of every table, never an item or a user.
PADDING_ID = "[PAD]"

FIELD_TYPES = ("token", "token_seq", "float", "float_seq")

# Ranges for a character class. Scripts without blanks between words, where two characters can be
# a title; and scripts whose vowels are marks, which Python's ``\w`` does not count as letters.
UNSPACED_SCRIPTS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
MARKED_SCRIPTS = "\u0900-\u109f\u1780-\u17ff"

_SAMPLE = 1000

# "<NA>" is among the words that mean nothing too: it goes with the tags.
_NO_TEXT = frozenset({"nan", "none", "null", "n/a", "na"})

_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b[^>]*>.*?(?:</\1\s*>|\Z)", re.I | re.S)
# A tag needs a well-formed list of attributes, so that "a <b and c> d" stays what it is.
_ATTRIBUTES = r"""(?:\s+[\w:.@-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?"""
# These stand inside words ("H<sub>2</sub>O"): no blank takes their place.
_INLINE_TAG = re.compile(
    rf"</?(?:a|abbr|b|code|em|font|i|mark|s|small|span|strong|sub|sup|tt|u){_ATTRIBUTES}>", re.I
)
_TAG = re.compile(rf"</?[a-z][\w:.-]*{_ATTRIBUTES}>|<!doctype[^>]*>", re.I)
# Soft hyphens, word joiners and marks of direction; the joiners that build emoji stay.
_INVISIBLE = re.compile("[\xad\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
# Lone surrogates too: no tokenizer can encode them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ud800-\udfff]")

_LETTERS = re.compile(
    rf"[^\W\d_]{{3,}}|[{UNSPACED_SCRIPTS}{MARKED_SCRIPTS}\uac00-\ud7af]{{2,}}",
)
_CODE = re.compile(r"[\x21-\x7e]*[0-9][\x21-\x7e]*")
_LOCATOR = re.compile(
    r"[a-z][a-z0-9+.-]*://\S*|www\.\S+|[^\s@]+@[^\s@]+\.[^\s@]+"
    r"|(?:\.{0,2}/|~/|[a-z]:\\)\S*|\S+\.(?:bmp|gif|html?|jpe?g|png|svg|tiff?|webp)(?:\?\S*)?"
    r"|[\w-]+(?:\.[\w-]+)*\.(?:com|edu|gov|io|net|org)(?:/\S*)?",
    re.I,
)
_FLAGS = frozenset({"true", "false", "yes"})


@dataclass(frozen=True)
class FeatureTable:
    """An ``.item`` or ``.user`` file as it is written.

    Attributes:
        path: where it was read from, for messages.
        id_field: the field that names the row.
        ids: the distinct ids, in the order of the file.
        columns: every other field -> its values, one for each of ``ids``; ``""`` is missing.
        types: every other field -> its atomic type, one of `FIELD_TYPES`.
    """

    path: Path
    id_field: str
    ids: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    types: Mapping[str, str]


def read_feature_table(
    path: Path | str, *, id_field: str, field_separator: str = "\t", encoding: str = "utf-8"
) -> FeatureTable:
    """Reads one of RecBole's feature files as plain text.

    Quotes are characters like any other, and the words "NA", "null" and "None" stay words. Of
    rows with the same id the first is kept, as RecBole does.

    Args:
        path: the ``.item`` or ``.user`` file.
        id_field: name of the id field, RecBole's ``ITEM_ID_FIELD`` or ``USER_ID_FIELD``.
        field_separator: RecBole's setting of that name.
        encoding: RecBole's setting of that name.

    Returns:
        The rows with their ids.

    Raises:
        DataError: there is no such file, its head line is not ``name:type`` throughout, it has no
            ``id_field``, a line has another number of fields than the head, or the bytes are not
            in ``encoding``.
    """
    path = Path(path)
    lines = _read_lines(path, encoding)
    names, types = parse_head(path, lines[0], field_separator)
    if id_field not in names:
        raise DataError(
            f"{path} has no field `{id_field}`; it has: {', '.join(names)}"
            f"{did_you_mean(id_field, names)}"
        )
    rows = _split_rows(path, lines, field_separator, len(names))
    values = tuple(zip(*rows, strict=True)) or ((),) * len(names)
    columns = dict(zip(names, values, strict=True))
    del types[id_field]
    ids = columns.pop(id_field)
    first: dict[str, int] = {}
    for row, identifier in enumerate(ids):
        first.setdefault(identifier, row)
    return FeatureTable(
        path=path,
        id_field=id_field,
        ids=tuple(first),
        columns={
            name: tuple(column[row] for row in first.values()) for name, column in columns.items()
        },
        types=types,
    )


def clean(text: str) -> str:
    """One line of readable text: no HTML, no control characters, single blanks, NFKC.

    Emoji and all languages are kept. A value that says as a whole that there is none ("NaN",
    "null", "N/A", in any case) is no text.

    Args:
        text: a value of a field.

    Returns:
        The text, ``""`` where there is none.
    """
    # Twice: shops export "&amp;amp;". Before the tags, which may be escaped as a whole.
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if "<" in text:
        text = _TAG.sub(" ", _INLINE_TAG.sub("", _HIDDEN.sub(" ", text)))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    text = " ".join(_CONTROL.sub(" ", text).split())
    return "" if text.lower() in _NO_TEXT else text


def text_fields(table: FeatureTable) -> tuple[str, ...]:
    """The fields that hold words for a reader, in the order of the file.

    A value counts as text if one of its words is a run of at least three letters, and is neither
    a code with digits, nor an address, a path or the name of a picture, nor "true" or "yes". A
    ``token`` or ``token_seq`` field is text if half of its values are; up to 1000 are looked at.

    Args:
        table: an ``.item`` or ``.user`` file.

    Returns:
        Names of fields, perhaps none.
    """
    return tuple(
        field
        for field, values in table.columns.items()
        if table.types[field] in ("token", "token_seq") and _is_text_like(values)
    )


def categorical_fields(table: FeatureTable) -> tuple[str, ...]:
    """The fields whose values many rows share, in the order of the file.

    A ``token`` field is categorical if it has at least two distinct values, and at most half as
    many as rows that have one. For a ``token_seq`` field (genres) the same holds for its words,
    and nine in ten of them must be in more than one row, which no field of sentences or names is.

    Args:
        table: an ``.item`` or ``.user`` file.

    Returns:
        Names of fields, perhaps none.
    """
    return tuple(
        field
        for field, values in table.columns.items()
        if (table.types[field] == "token" and _repeats([{v} for v in values if v], shared=0.0))
        or (
            table.types[field] == "token_seq"
            and _repeats([set(v.split()) for v in values if v.strip()], shared=0.9)
        )
    )


def attribute_fields(table: FeatureTable) -> tuple[str, ...]:
    """The fields of categories or of numbers, at least two of them, in the order of the file.

    Args:
        table: an ``.item`` or ``.user`` file.

    Returns:
        Names of fields, perhaps none.
    """
    categorical = categorical_fields(table)
    return tuple(
        field
        for field, values in table.columns.items()
        if field in categorical or (table.types[field] == "float" and len(set(values) - {""}) > 1)
    )


def compose(
    table: FeatureTable,
    fields: Sequence[str],
    ids: Sequence[str],
    *,
    setting: str = "item_text_fields",
) -> list[str]:
    """One text for each id: the values of some fields as short sentences.

    Args:
        table: an ``.item`` or ``.user`` file.
        fields: names of fields, in the order in which they shall be read.
        ids: ids in any order, known or not.
        setting: the user's setting that ``fields`` come from, for the message.

    Returns:
        One text per id; ``""`` for the padding id, for an id that the table does not have, and
        for one without any value.

    Raises:
        SettingsError: the table has no such field.
    """
    return [join_sentences(values) for values in values_of(table, fields, ids, setting=setting)]


def values_of(
    table: FeatureTable,
    fields: Sequence[str],
    ids: Sequence[str],
    *,
    setting: str = "item_text_fields",
) -> list[list[str]]:
    """The values that :func:`compose` makes texts of, cleaned: one list for each id.

    ``""`` where a field has none; an empty list for the padding id and for an unknown one.
    """
    for field in fields:
        if field not in table.columns:
            raise SettingsError(
                f"`{setting}`: {table.path} has no field `{field}`; it has: "
                f"{', '.join(table.columns)}{did_you_mean(field, table.columns)}"
            )
    columns = [table.columns[field] for field in fields]
    row_of = {identifier: row for row, identifier in enumerate(table.ids)}
    row_of.pop(PADDING_ID, None)
    rows = [row_of.get(identifier) for identifier in ids]
    return [[] if row is None else [clean(column[row]) for column in columns] for row in rows]


def title_field(fields: Sequence[str]) -> str:
    """The one of some fields that is called a title or a name, else the first."""
    return next(f for word in ("title", "name", "") for f in fields if word in f.lower())


def _read_lines(path: Path, encoding: str) -> list[str]:
    try:
        # Lines end at \n alone: a value may hold what Python else takes for the end of a line.
        with path.open(encoding=encoding, newline="\n") as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; texts are read from this file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not in {encoding} (byte {error.start}); convert it or set `encoding`"
        ) from None
    return [line.removesuffix("\r") for line in content.removeprefix("\ufeff").split("\n")]


def parse_head(path: Path, head: str, separator: str) -> tuple[list[str], dict[str, str]]:
    """Reads the head line of an atomic file.

    Args:
        path: the file, for messages.
        head: its first line.
        separator: RecBole's `field_separator`.

    Returns:
        Field names in order, and the type of each.

    Raises:
        DataError: a field is not ``name:type``, or is there twice.
    """
    names: list[str] = []
    types: dict[str, str] = {}
    for field in head.split(separator):
        name, _, kind = field.partition(":")
        if not name or kind not in FIELD_TYPES or name in types:
            raise DataError(
                f"{path}, line 1: `{field}` must be a new name and a type of "
                f"{', '.join(FIELD_TYPES)}, as in `title:token_seq`; fields are divided by "
                f"{separator!r} (`field_separator`)"
            )
        names.append(name)
        types[name] = kind
    return names, types


def _split_rows(path: Path, lines: list[str], separator: str, n_fields: int) -> list[list[str]]:
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        row = line.split(separator)
        if len(row) != n_fields:
            raise DataError(
                f"{path}, line {number} has {len(row)} fields, the head line has {n_fields}; "
                f"take {separator!r} and line breaks out of the values, or add what is missing"
            )
        rows.append(row)
    return rows


def _is_text_like(values: Sequence[str]) -> bool:
    filled = [value for value in values if value.strip()]
    # Evenly spread, since files are often sorted: the head would not speak for the rest.
    sample = [clean(value) for value in filled[:: len(filled) // _SAMPLE + 1]]
    texts = [value for value in sample if value]
    readable = sum(any(map(_is_word, text.split())) for text in texts)
    return bool(texts) and 2 * readable >= len(texts)


def _is_word(word: str) -> bool:
    return (
        _LETTERS.search(word) is not None
        and _CODE.fullmatch(word) is None
        and _LOCATOR.fullmatch(word) is None
        and word.lower() not in _FLAGS
    )


def _repeats(values: list[set[str]], *, shared: float) -> bool:
    """Whether few distinct members make up many rows, a part of them being in several rows."""
    n_rows = Counter(member for members in values for member in members)
    in_several = sum(count > 1 for count in n_rows.values())
    return 2 <= len(n_rows) <= len(values) / 2 and in_several >= shared * len(n_rows)


def join_sentences(values: Sequence[str]) -> str:
    """The values that are not empty as short sentences."""
    *leading, last = [value for value in values if value] or [""]
    # "Who?" and "Wait..." end a sentence already.
    ended = [value if value[-1] in ".!?…。！？:;" else f"{value}." for value in leading]
    return " ".join([*ended, last])
