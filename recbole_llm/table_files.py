"""A user's tables as files: CSV, TSV, Parquet and JSON, read as they are found."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import pandas as pd

from recbole_llm.errors import DataError, did_you_mean

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SAMPLE_CHARACTERS = 65_536


@dataclass(frozen=True)
class Table:
    """A table as read: its columns' names are trimmed and distinct, its values untouched."""

    path: Path
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Reads a table by the suffix of its name.

    Args:
        path: a file of one of `SUFFIXES`, the text ones also with ``.gz``; a ``.parquet`` may be a
            folder of parts.

    Returns:
        The table; texts' values are strings with ``""`` for missing.

    Raises:
        DataError: the file is missing, empty, unreadable, or not what its suffix says.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.name.lower().endswith(".gz")):
        raise DataError(f"{path}: cannot tell the format; known are {' '.join(SUFFIXES)}")
    _check_is_there(path, suffix)
    try:
        if suffix == ".parquet":
            frame, notes = _read_parquet(path)
        elif suffix in (".csv", ".tsv", ".txt"):
            frame, notes = _read_separated(path)
        else:
            frame, notes = _read_json(path)
    # ValueError: pyarrow's errors and pandas' ParserError; EOFError, zlib: a broken .gz.
    except (OSError, ValueError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    return Table(path, *_with_plain_columns(frame, path, notes))


def _check_is_there(path: Path, suffix: str) -> None:
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path} does not exist{did_you_mean(path.name, siblings)}")
    if path.is_dir():
        if suffix != ".parquet":
            raise DataError(f"{path} is a folder, not a file")
    elif path.stat().st_size == 0:
        raise DataError(f"{path} is empty")


def _with_plain_columns(
    frame: pd.DataFrame, path: Path, notes: list[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Trims the columns' names; a column without one (a written index) says nothing: left out."""
    names = [str(name).strip() for name in frame.columns]
    named = [bool(name) and not re.fullmatch(r"Unnamed: \d+", name) for name in names]
    if not all(named):
        notes = [*notes, "a column without a name was left out"]
    frame = frame.loc[:, named]
    frame.columns = [name for name, keep in zip(names, named, strict=True) if keep]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{path} has the column `{twice[0]}` twice; rename one of them")
    if frame.empty:
        raise DataError(f"{path} has no rows")
    return frame.reset_index(drop=True), tuple(notes)


def _read_parquet(path: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        import pyarrow  # noqa: F401 - asked here, since pandas hides why it cannot be used
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs a pyarrow that works here; {first_line(error)}"
        ) from error
    # Nullable types: an id column with a gap would become float and lose digits above 2**53.
    frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    named_index = any(name is not None for name in frame.index.names)
    return (frame.reset_index() if named_index else frame), []


def _read_json(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Reads one object a line, or one array of objects."""
    encoding, notes = _encoding(path)
    with _open_text(path, encoding) as file:
        start = file.read(SAMPLE_CHARACTERS).lstrip()
        file.seek(0)
        lines = _json_lines(file, path)
        records = json.load(file) if start.startswith("[") else list(lines)
    wrong = next((record for record in records if not isinstance(record, dict)), None)
    if wrong is not None:
        raise DataError(f'{path} must hold objects such as {{"user": 1}}, got {str(wrong)[:40]}')
    # dtype=object: pandas would turn whole numbers with a gap into floats.
    return pd.DataFrame(records, dtype=object), notes


def _json_lines(file: IO[str], path: Path) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number} is not JSON: {error.msg}") from error


def _read_separated(path: Path) -> tuple[pd.DataFrame, list[str]]:
    encoding, notes = _encoding(path)
    with _open_text(path, encoding) as file:
        sample = file.read(SAMPLE_CHARACTERS)
    separator = _separator(sample)
    if separator != ("\t" if ".tsv" in path.suffixes else ","):
        notes.append(f"columns are separated by {SEPARATORS[separator]}")
    try:
        frame, more = _read_rows(path, encoding, separator, csv.QUOTE_MINIMAL)
        quotes_are_text = separator == "\t" and _has_swallowed_lines(frame)
    except pd.errors.ParserError as error:
        if "EOF inside string" not in str(error):
            raise
        quotes_are_text = True
    if quotes_are_text:
        frame, more = _read_rows(path, encoding, separator, csv.QUOTE_NONE)
        more = ['a `"` is opened and never closed: quotes were read as plain characters', *more]
    return frame, [*notes, *more]


def _has_swallowed_lines(frame: pd.DataFrame) -> bool:
    """Whether a stray quote took whole lines into one value; nobody writes tabs and line breaks."""
    return any(
        bool((frame[name].str.contains("\t", regex=False) & frame[name].str.contains("\n")).any())
        for name in frame.columns
    )


def _read_rows(
    path: Path, encoding: str, separator: str, quoting: Literal[0, 3]
) -> tuple[pd.DataFrame, list[str]]:
    """Reads the rows with pandas, and more patiently where some have more fields than the head."""
    with _open_text(path, encoding) as file:
        rows = (row for row in csv.reader(file, delimiter=separator, quoting=quoting) if row)
        head = next(rows, None)
        if head is None:
            raise DataError(f"{path} is empty")
    options: dict[str, Any] = {"header": 0, "names": range(len(head)), "dtype": str}
    try:
        with _open_text(path, encoding) as file:
            frame = pd.read_csv(
                file, sep=separator, quoting=quoting, na_filter=False, low_memory=False, **options
            )
        # pandas takes surplus fields of the first row for row names.
        if isinstance(frame.index, pd.RangeIndex):
            frame.columns = pd.Index(head)
            return frame, []
    except pd.errors.ParserError as error:
        if "Expected" not in str(error):
            raise
    return _read_uneven_rows(path, encoding, separator, quoting)


def _read_uneven_rows(
    path: Path, encoding: str, separator: str, quoting: Literal[0, 3]
) -> tuple[pd.DataFrame, list[str]]:
    with _open_text(path, encoding) as file:
        head, *rows = (row for row in csv.reader(file, delimiter=separator, quoting=quoting) if row)
    width = len(head)
    notes = []
    # R writes row names without a name for their column.
    if all(len(row) == width + 1 and row[-1].strip() for row in rows):
        notes.append("the first column, which has no name, was left out")
        rows = [row[1:] for row in rows]
    even = [
        row[:width] + [""] * (width - len(row))
        for row in rows
        if not any(map(str.strip, row[width:]))
    ]
    if len(even) < len(rows):
        dropped = count(len(rows) - len(even), "row")
        notes.append(f"dropped {dropped} with more fields than the head's {width}")
    return pd.DataFrame(even, columns=head, dtype=object), notes


def _separator(sample: str) -> str:
    """The separator under which the most rows are as wide as the first, wider before narrower."""
    whole_lines = sample[: sample.rfind("\n") + 1] or sample
    best, best_fit = ",", (0.0, 1)
    for separator in SEPARATORS:
        reader = csv.reader(io.StringIO(whole_lines), delimiter=separator)
        widths = [len(row) for row in reader if row][:100]
        if not widths or widths[0] == 1:
            continue
        fit = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
        if fit > best_fit:
            best, best_fit = separator, fit
    return best


def _open_bytes(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        # typeshed does not call a GzipFile an IO[bytes], though it can do all that is asked here.
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _open_text(path: Path, encoding: str) -> IO[str]:
    # `replace` matters only to UTF-8 that `_encoding` found broken in places.
    return io.TextIOWrapper(_open_bytes(path), encoding, errors="replace", newline="")


def _encoding(path: Path) -> tuple[str, list[str]]:
    """UTF-8 where the file is, else what fits better: broken UTF-8, or Windows' Western letters."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _open_bytes(path) as file:
        start = file.read(8192)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16", []
        if b"\0" in start:
            raise DataError(f"{path} is not a text file")
        file.seek(0)
        try:
            while block := file.read(2**20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            file.seek(0)
            content = file.read()
        else:
            return "utf-8-sig", []
    text = content.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    if sum(not character.isascii() for character in text) > 2 * broken:
        return "utf-8-sig", [f"not UTF-8 in places: {count(broken, 'byte')} replaced"]
    try:
        content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is neither UTF-8 nor Windows-1252 text; save it as UTF-8"
        ) from error
    return "cp1252", ["not UTF-8: read as Windows-1252 (Western European)"]


def count(number: int, noun: str) -> str:
    """A number and its noun: ``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
