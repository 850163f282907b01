"""A user's own tables (CSV, TSV, Parquet, JSON) become a data set that RecBole reads.

`import_data` reads the tables, finds out which column is what, drops the rows that cannot be used,
mends the values (`recbole_llm.atomic_files`), writes ``OUT/NAME/NAME.inter``, ``.item``, ``.user``
and ``NAME.yaml``, and reports in plain lines what it took, dropped and wrote. Nothing is guessed in
silence: each guess is in the report and has an option that overrules it.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import pandas as pd
import yaml

from recbole_llm.atomic_files import (
    MAX_TEXT_CHARACTERS,
    FieldType,
    clean_white_space,
    format_numbers,
    mend_texts,
    mend_tokens,
    new_folder,
    safe_field_names,
    write_atomic_file,
)
from recbole_llm.column_values import (
    Times,
    are_dates,
    column_called,
    feature_type,
    plain_name,
    to_ids,
    to_numbers,
    to_strings,
    to_texts,
    to_times,
)
from recbole_llm.errors import DataError, SettingsError, did_you_mean
from recbole_llm.table_files import Table, count, read_table
from recbole_llm.text import FeatureTable, text_fields

FeatureKind: TypeAlias = Literal["item", "user"]

USER_FIELD, ITEM_FIELD, RATING_FIELD, TIME_FIELD = "user_id", "item_id", "rating", "timestamp"

#: RecBole makes a column of this name itself.
RESERVED_FIELDS = (USER_FIELD, ITEM_FIELD, RATING_FIELD, TIME_FIELD, "label")

# fmt: off
# Well-known column names, compared without case, blanks and signs; the first one present wins.
USER_NAMES = (
    "userid", "user", "uid", "customerid", "customer", "custid", "clientid", "client", "memberid",
    "member", "reviewerid", "visitorid", "visitor", "accountid", "account", "personid",
    "fullvisitorid", "userpseudoid", "sessionid", "session",
)
ITEM_NAMES = (
    "itemid", "item", "iid", "productid", "product", "movieid", "movie", "asin", "parentasin",
    "sku", "articleid", "article", "bookid", "isbn", "book", "trackid", "track", "songid", "song",
    "artistid", "artist", "videoid", "video", "newsid", "gameid", "game", "appid", "recipeid",
    "businessid", "placeid", "venueid", "poiid", "courseid", "contentid", "goodsid", "stockcode",
)
TIME_NAMES = (
    "timestamp", "timestampms", "unixtimestamp", "unixtime", "unixreviewtime", "eventtimestamp",
    "eventtime", "datetime", "time", "date", "ts", "createdat", "invoicedate", "orderdate",
    "purchasedate", "eventdate", "reviewdate", "reviewtime", "day",
)
RATING_NAMES = (
    "rating", "ratings", "stars", "star", "score", "overall", "rate",
)
BEHAVIOUR_NAMES = (
    "behaviour", "behavior", "behaviourtype", "behaviortype", "event", "eventtype", "eventname",
    "action", "actiontype", "interaction", "interactiontype", "type",
)
# fmt: on


@dataclass(frozen=True)
class ImportOptions:
    """What to import, and where to.

    Attributes:
        interactions: table of who had to do with what.
        name: name of the data set and of its files.
        out: folder that gets the folder ``name``.
        items: table of the items, or None.
        users: table of the users, or None.
        user_col, item_col: columns of ``interactions``; None: guessed.
        time_col, rating_col, behaviour_col: the same; ``""``: there is none.
        item_id_col: column of ``items``; None: guessed.
        user_id_col: column of ``users``; None: guessed.
        time_format: how times are written, as for ``strptime``; None: found out.
        overwrite: replace an existing data set of this name.
    """

    interactions: Path
    name: str
    out: Path = Path("dataset")
    items: Path | None = None
    users: Path | None = None
    user_col: str | None = None
    item_col: str | None = None
    time_col: str | None = None
    rating_col: str | None = None
    behaviour_col: str | None = None
    item_id_col: str | None = None
    user_id_col: str | None = None
    time_format: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ImportReport:
    """What was done.

    Attributes:
        folder: the data set's folder.
        files: names of the files in it.
        n_interactions: rows of ``.inter``.
        n_users: distinct users in ``.inter``.
        n_items: distinct items in ``.inter``.
        lines: the report for people, the next command last.
    """

    folder: Path
    files: tuple[str, ...]
    n_interactions: int
    n_users: int
    n_items: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """The column that plays a part, and whether the user named it."""

    name: str
    given: bool

    def __str__(self) -> str:
        return f"`{self.name}` ({'given' if self.given else 'guessed'})"


def import_data(options: ImportOptions) -> ImportReport:
    """Makes a RecBole data set from tables.

    Args:
        options: what and where to.

    Returns:
        What was read, dropped, mended and written.

    Raises:
        SettingsError: an option's value cannot be used.
        DataError: a table cannot be used, or the folder cannot be written.
    """
    target = _target_folder(options)
    interactions = _interactions(options)
    tables = {"inter": interactions}
    lines = list(interactions.lines)
    sources: tuple[tuple[FeatureKind, Path | None, str | None, tuple[str, ...]], ...] = (
        ("item", options.items, options.item_id_col, ITEM_NAMES),
        ("user", options.users, options.user_id_col, USER_NAMES),
    )
    new_items: Overlap | None = None
    for kind, path, given, well_known in sources:
        if path is None:
            continue
        known = (plain_name(interactions.id_columns[kind]), *well_known, "id")
        taken = [name for table in tables.values() for name in table.types]
        tables[kind] = _features(path, kind=kind, given=given, known=known, taken=taken)
        lines += tables[kind].lines
        overlap = Overlap.of(interactions, tables[kind], kind)
        lines += _coverage(overlap, interactions, tables[kind], kind, path)
        if kind == "item":
            new_items = overlap
            lines += _new_items(overlap, options)
    if "item" not in tables:
        lines.append(_note("no --items: the items have no text"))
    elif not _text_fields(tables["item"]):
        lines.append(_note(f"no column of {options.items} holds text"))
    files = _write(target, tables, new_items, options)
    lines.append(f"{'wrote':7}{target / files[0]}, {', '.join(files[1:])}")
    lines.append(f"{'next':7}{_next_command(options)}")
    return ImportReport(
        folder=target,
        files=files,
        n_interactions=len(interactions.values),
        n_users=interactions.values[USER_FIELD].nunique(),
        n_items=interactions.values[ITEM_FIELD].nunique(),
        lines=tuple(lines),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``recbole-llm import``.

    Args:
        parser: the subcommand's parser.
    """
    formats = "CSV, TSV, Parquet or JSON (.csv .tsv .txt .jsonl .json .ndjson, .gz too)"
    parser.add_argument(
        "--interactions", required=True, type=Path, metavar="FILE", help=f"who used what: {formats}"
    )
    parser.add_argument("--items", type=Path, metavar="FILE", help="the items and their text")
    parser.add_argument("--users", type=Path, metavar="FILE", help="the users")
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument(
        "--out", type=Path, default=Path("dataset"), metavar="FOLDER", help="(default: dataset)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of this name")
    columns = parser.add_argument_group("columns", "guessed from well-known names if not given")
    for option, meaning in (
        ("user_col", "user id in the interactions"),
        ("item_col", "item id in the interactions"),
        ("time_col", "time in the interactions; empty (--time_col=): none"),
        ("rating_col", "rating in the interactions; empty: none"),
        ("behaviour_col", "kind of event (view, buy, ...) in the interactions; empty: none"),
        ("item_id_col", "item id in the items"),
        ("user_id_col", "user id in the users"),
    ):
        columns.add_argument(f"--{option}", metavar="COLUMN", help=meaning)
    columns.add_argument(
        "--time_format", metavar="FORMAT", help="how times are written, such as %%d/%%m/%%Y %%H:%%M"
    )


def run(args: argparse.Namespace) -> int:
    """Runs ``recbole-llm import`` and prints its report.

    Args:
        args: what `add_arguments`'s parser made.

    Returns:
        The exit code. Errors that a user can mend are raised: the command prints them.
    """
    names = ImportOptions.__dataclass_fields__
    report = import_data(ImportOptions(**{name: getattr(args, name) for name in names}))
    for line in report.lines:
        print(line)  # noqa: T201 - the report is this command's output
    return 0


# --- finding columns


def _column(
    table: Table, given: str | None, known: Iterable[str], *, option: str, role: str
) -> Column:
    """The column of a part that must be there."""
    found = _optional_column(table, given, known, option=option)
    if found is None:
        names = list(table.frame.columns)
        hint = "; is the first line data?" if all(map(_looks_like_data, names)) else ""
        raise DataError(
            f"{table.path}: no column is known to hold the {role}; "
            f"name it with --{option} (columns: {', '.join(names)}){hint}"
        )
    return found


def _optional_column(
    table: Table, given: str | None, known: Iterable[str], *, option: str, but: Collection[str] = ()
) -> Column | None:
    names = list(table.frame.columns)
    if given:
        if given not in names:
            raise SettingsError(
                f"--{option}: {table.path} has no column `{given}`"
                f"{did_you_mean(given, names)} (columns: {', '.join(names)})"
            )
        return Column(given, given=True)
    if given == "":
        return None
    found = column_called(known, [name for name in names if name not in but])
    return None if found is None else Column(found, given=False)


def _looks_like_data(name: str) -> bool:
    return not re.search(r"[^\W\d_]{2}", name)


# --- the three tables


@dataclass(frozen=True)
class Field:
    """A column on its way into an atomic file: its field name, its type, its raw values."""

    name: str
    kind: FieldType
    values: pd.Series


@dataclass(frozen=True)
class Unusable:
    """A reason to drop rows: which ones, and the column to show an example from."""

    why: str
    rows: pd.Series
    example: pd.Series | None = None


@dataclass(frozen=True)
class AtomicTable:
    """A mended table, ready to be written.

    Attributes:
        values: strings; columns are field names.
        types: field name -> type.
        lines: the report's lines about it.
        id_columns: kind of id -> name of the column that it came from.
    """

    values: pd.DataFrame
    types: Mapping[str, FieldType]
    lines: tuple[str, ...]
    id_columns: Mapping[str, str]


def _interactions(options: ImportOptions) -> AtomicTable:
    table = read_table(options.interactions)
    frame = table.frame
    roles, notes = _roles(table, options)
    shown = {role: str(column) for role, column in roles.items()}
    users, items = (to_ids(frame[roles[role].name]) for role in ("user", "item"))
    fields = [Field(USER_FIELD, "token", users), Field(ITEM_FIELD, "token", items)]
    unusable = [
        Unusable("without a user id", users == ""),
        Unusable("without an item id", items == ""),
    ]
    if "rating" in roles:
        raw = frame[roles["rating"].name]
        ratings = to_numbers(raw)
        fields.append(Field(RATING_FIELD, "float", ratings))
        unusable.append(Unusable("without a rating that is a number", ratings.isna(), raw))
    if "time" in roles:
        raw = frame[roles["time"].name]
        times = _readable_times(raw, options)
        shown["time"] += f", {times.written}"
        notes = [*notes, *times.notes]
        fields.append(Field(TIME_FIELD, "float", times.seconds))
        unusable.append(Unusable("without a readable time", times.seconds.isna(), raw))
    further, further_notes = _further_fields(frame, roles)
    kept, dropped = _usable_rows(unusable)
    if not kept.any():
        raise DataError(f"{table.path}: no row is left; {'; '.join(dropped)}")
    values, types, mending_notes = _mended([*fields, *further], kept)
    repeats = int(values.duplicated().sum())
    if repeats:
        mending_notes.append(
            f"{count(repeats, 'row')} repeating another exactly: kept, since repeats are data"
        )
    n_users, n_items = (values[name].nunique() for name in (USER_FIELD, ITEM_FIELD))
    lines = [
        _read_line(table, "; ".join(f"{role}: {text}" for role, text in shown.items())),
        *map(_note, [*table.notes, *notes]),
        *dropped,
        f"{'kept':7}{count(len(values), 'interaction')} of {count(n_users, 'user')} "
        f"with {count(n_items, 'item')}",
        *map(_note, [*further_notes, *mending_notes]),
    ]
    id_columns = {role: roles[role].name for role in ("user", "item")}
    return AtomicTable(values, types, tuple(lines), id_columns)


def _roles(table: Table, options: ImportOptions) -> tuple[dict[str, Column], list[str]]:
    """Finds the interactions' user, item and, where there are any, time, rating and behaviour."""
    roles = {
        "user": _column(table, options.user_col, USER_NAMES, option="user_col", role="user id"),
        "item": _column(table, options.item_col, ITEM_NAMES, option="item_col", role="item id"),
    }
    for role, given, known in (
        ("time", options.time_col, TIME_NAMES),
        ("rating", options.rating_col, RATING_NAMES),
        ("behaviour", options.behaviour_col, BEHAVIOUR_NAMES),
    ):
        taken = {column.name for column in roles.values()}
        found = _optional_column(table, given, known, option=f"{role}_col", but=taken)
        if found is not None:
            roles[role] = found
    notes = []
    if "time" not in roles and options.time_col is None:
        taken = {column.name for column in roles.values()}
        dates = [name for name in table.frame if name not in taken and are_dates(table.frame[name])]
        if len(dates) == 1:
            roles["time"] = Column(dates[0], given=False)
        elif dates:
            notes.append(f"dates stand in {_quoted(dates)}: --time_col names the time")
    named: dict[str, str] = {}
    for role, column in roles.items():
        other = named.setdefault(column.name, role)
        if other != role:
            raise SettingsError(
                f"column `{column.name}` cannot be both {other} and {role}; "
                f"name another with --{other}_col or --{role}_col"
            )
    rating = roles.get("rating")
    if rating is None or to_numbers(table.frame[rating.name]).notna().any():
        return roles, notes
    if rating.given:
        raise DataError(
            f"{table.path}: column `{rating.name}` holds no number; "
            "give another with --rating_col, or --rating_col= for none"
        )
    del roles["rating"]
    return roles, [*notes, f"`{rating.name}` holds no number, so it is not taken as the rating"]


def _readable_times(values: pd.Series, options: ImportOptions) -> Times:
    times = to_times(values, options.time_format)
    if times.seconds.notna().any():
        return times
    example = next(filter(None, to_strings(values)), "")
    raise DataError(
        f"{options.interactions}: no value of column `{values.name}` is a time "
        f"(first: `{example}`); say how it is written with --time_format, "
        "give another column with --time_col, or --time_col= for none"
    )


def _further_fields(
    frame: pd.DataFrame, roles: Mapping[str, Column]
) -> tuple[list[Field], list[str]]:
    """What else of the interactions RecBole can use: the behaviour and all numbers."""
    used = {column.name for column in roles.values()}
    others = [name for name in frame if name not in used]
    numeric = [name for name in others if feature_type(frame[name], name) == "float"]
    behaviour = [roles["behaviour"].name] if "behaviour" in roles else []
    names = safe_field_names([*behaviour, *numeric], taken=RESERVED_FIELDS, prefix="inter_")
    notes = []
    if names:
        written = ", ".join(_renamed(column, name) for column, name in names.items())
        notes.append(f"written with each interaction: {written}")
    left_out = [name for name in others if name not in numeric]
    if left_out:
        notes.append(f"left out, since not numbers: {_quoted(left_out)}")
    fields = [
        Field(name, "float" if column in numeric else "token", frame[column])
        for column, name in names.items()
    ]
    return fields, notes


def _usable_rows(unusable: Sequence[Unusable]) -> tuple[pd.Series, list[str]]:
    """Which rows are kept, and a line for each reason; a row counts for its first reason."""
    kept = pd.Series(True, index=unusable[0].rows.index)
    lines = []
    for reason in unusable:
        lost = kept & reason.rows
        kept &= ~reason.rows
        if not lost.any():
            continue
        example = ""
        if reason.example is not None:
            row = int(lost.to_numpy().argmax())
            value = clean_white_space(to_strings(reason.example.iloc[[row]])).iloc[0]
            example = f" (first: `{value[:40]}`, row {row + 1:,})"
        lines.append(f"dropped {count(int(lost.sum()), 'row')} {reason.why}{example}")
    return kept, lines


def _features(
    path: Path,
    *,
    kind: FeatureKind,
    given: str | None,
    known: Iterable[str],
    taken: Iterable[str],
) -> AtomicTable:
    """Reads and mends the table of the items or of the users.

    Args:
        path: the table.
        kind: which of the two.
        given: the id's column, None: guessed.
        known: well-known names of the id's column, the best first.
        taken: field names of other files.
    """
    table = read_table(path)
    column = _column(table, given, known, option=f"{kind}_id_col", role=f"{kind} id")
    ids = to_ids(table.frame[column.name])
    kept, dropped = _usable_rows(
        [
            Unusable(f"without an id of the {kind}", ids == ""),
            Unusable("with an id seen before (the first is kept)", ids.duplicated()),
        ]
    )
    if not kept.any():
        raise DataError(f"{path}: the id's column `{column.name}` is empty")
    frame = table.frame[kept].drop(columns=column.name)
    kinds = {name: feature_type(frame[name], name) for name in frame}
    empty = [name for name, found in kinds.items() if found is None]
    names = safe_field_names(
        [name for name, found in kinds.items() if found is not None],
        taken={*RESERVED_FIELDS, *taken},
        prefix=f"{kind}_",
    )
    fields = [Field(f"{kind}_id", "token", ids)]
    fields += [
        Field(names[name], found, table.frame[name])
        for name, found in kinds.items()
        if found is not None
    ]
    values, types, notes = _mended(fields, kept)
    written = (f"{_renamed(name, field)} ({types[field]})" for name, field in names.items())
    lines = [
        _read_line(table, f"{kind} id: {column}"),
        *map(_note, table.notes),
        *dropped,
        f"{'kept':7}{count(len(values), kind)}: {', '.join(written) or 'the ids alone'}",
        *([_note(f"left out, since empty: {_quoted(empty)}")] if empty else []),
        *map(_note, notes),
    ]
    return AtomicTable(values, types, tuple(lines), {kind: column.name})


def _mended(
    fields: Sequence[Field], rows: pd.Series
) -> tuple[pd.DataFrame, dict[str, FieldType], list[str]]:
    """Mends the fields in the chosen rows, each by its type, and notes what was changed."""
    mend = {"token": _mended_tokens, "token_seq": _mended_texts, "float": _mended_numbers}
    written: dict[str, pd.Series] = {}
    notes: list[str] = []
    for field in fields:
        written[field.name], more = mend[field.kind](field.values[rows], field.name)
        notes += more
    types = {field.name: field.kind for field in fields}
    return pd.DataFrame(written), types, notes


def _mended_tokens(values: pd.Series, name: str) -> tuple[pd.Series, list[str]]:
    plain = clean_white_space(to_strings(values))
    tokens = mend_tokens(plain)
    changed = pd.DataFrame({"plain": plain, "token": tokens})[plain != tokens].drop_duplicates()
    if changed.empty:
        return tokens, []
    shown = [f"`{row.plain}` as `{row.token}`" for row in changed.head(3).itertuples()]
    dots = ", ..." if len(changed) > 3 else ""
    why = "which RecBole would read as something else"
    return tokens, [f"{name}: {count(len(changed), 'value')} {why}: wrote {', '.join(shown)}{dots}"]


def _mended_texts(values: pd.Series, name: str) -> tuple[pd.Series, list[str]]:
    plain = to_texts(values)
    notes = []
    texts = mend_texts(plain)
    emptied = plain[(plain != "") & (texts == "")]
    if len(emptied):
        notes.append(
            f"{name}: {count(len(emptied), 'value')} such as `{emptied.iloc[0]}` taken as missing"
        )
    n_cut = int((plain.str.len() > MAX_TEXT_CHARACTERS).sum())
    if n_cut:
        notes.append(f"{name}: {count(n_cut, 'text')} cut to {MAX_TEXT_CHARACTERS:,} characters")
    return texts, notes


def _mended_numbers(values: pd.Series, name: str) -> tuple[pd.Series, list[str]]:
    numbers = to_numbers(values)
    n_gaps = int(numbers.isna().sum())
    notes = [f"{name}: {count(n_gaps, 'row')} without a number, left empty"] if n_gaps else []
    return format_numbers(numbers), notes


@dataclass(frozen=True)
class Overlap:
    """How the ids of the interactions and of a table of features meet.

    Attributes:
        n_used: ids that have interactions.
        bare: those of them that have no features.
        idle: ids that have features alone.
    """

    n_used: int
    bare: pd.Index
    idle: pd.Index

    @classmethod
    def of(cls, interactions: AtomicTable, features: AtomicTable, kind: str) -> Overlap:
        """Of two tables that name the kind's ids alike."""
        used = pd.Index(interactions.values[f"{kind}_id"].unique())
        described = pd.Index(features.values[f"{kind}_id"])
        return cls(len(used), used.difference(described), described.difference(used))

    @property
    def are_idle_ranked(self) -> bool:
        """Whether items that nobody has used yet are ranked, too.

        Not where they are the most: encoding their texts would be most of a run.
        """
        return len(self.idle) <= self.n_used


def _coverage(
    overlap: Overlap, interactions: AtomicTable, features: AtomicTable, kind: str, path: Path
) -> list[str]:
    """What the report says of how the ids of the two tables meet.

    Raises:
        DataError: they do not meet at all.
    """
    bare, idle = overlap.bare, overlap.idle
    if len(bare) == overlap.n_used:
        first = interactions.values[f"{kind}_id"].iloc[0]
        raise DataError(
            f"no {kind} of the interactions (first: `{first}`) is in {path}, column "
            f"`{features.id_columns[kind]}` (first: `{features.values[f'{kind}_id'].iloc[0]}`); "
            f"name the column of the same ids with --{kind}_id_col"
        )
    lines = []
    if len(bare):
        lacking = "text" if kind == "item" else "features"
        lines.append(
            _note(
                f"{count(len(bare), kind)} without a row in {path.name} "
                f"(first: `{bare[0]}`): kept, without {lacking}"
            )
        )
    if len(idle):
        lines.append(_note(f"{count(len(idle), kind)} of {path.name} without an interaction"))
    return lines


def _new_items(overlap: Overlap, options: ImportOptions) -> list[str]:
    """What becomes of the items without an interaction."""
    settings = f"`item: [{ITEM_FIELD}]` in {options.name}.yaml"
    if not len(overlap.idle):
        return []
    if overlap.are_idle_ranked:
        return [_note(f"items without an interaction are ranked, too, as new ones: {settings}")]
    return [_note(f"items without an interaction are left out; uncomment {settings} to rank them")]


# --- writing


def _target_folder(options: ImportOptions) -> Path:
    """The data set's folder, checked before the long work."""
    if not re.fullmatch(r"\w[\w.-]*", options.name):
        raise SettingsError(
            f"--name must be a folder's name of letters, digits, `_-.`; got {options.name!r}"
        )
    target = options.out / options.name
    own = {f"{options.name}.{suffix}" for suffix in ("inter", "item", "user", "yaml")}
    if not target.exists():
        return target
    if not options.overwrite:
        raise SettingsError(f"{target} exists; choose another --name, or give --overwrite")
    foreign = sorted({path.name for path in target.iterdir()} - own) if target.is_dir() else ["it"]
    if foreign:
        raise SettingsError(
            f"--overwrite replaces {target} as a whole, and {foreign[0]} is no file of ours; "
            "move it away or choose another --name"
        )
    return target


def _write(
    target: Path,
    tables: Mapping[str, AtomicTable],
    new_items: Overlap | None,
    options: ImportOptions,
) -> tuple[str, ...]:
    files = {f"{options.name}.{suffix}": table for suffix, table in tables.items()}
    settings = f"{options.name}.yaml"
    try:
        with new_folder(target, overwrite=options.overwrite) as folder:
            for name, table in files.items():
                write_atomic_file(folder / name, table.values, table.types)
            (folder / settings).write_text(_settings(tables, new_items, options), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
    return (*files, settings)


def _settings(
    tables: Mapping[str, AtomicTable], new_items: Overlap | None, options: ImportOptions
) -> str:
    """The data set's YAML: RecBole's own keys and the fields that hold text."""
    types = tables["inter"].types
    entries = [
        ("USER_ID_FIELD", USER_FIELD, "who"),
        ("ITEM_ID_FIELD", ITEM_FIELD, "what"),
        *([("RATING_FIELD", RATING_FIELD, "how much")] if RATING_FIELD in types else []),
        *(
            [("TIME_FIELD", TIME_FIELD, "when: seconds since 1970, UTC")]
            if TIME_FIELD in types
            else []
        ),
    ]
    lines = [
        f"# {options.name}: made by `recbole-llm import`",
        "load_col:  # what RecBole loads; texts are read apart from it",
        f"  inter: {_yaml_list(types)}",
        *_new_items_settings(new_items),
        *(f"{key}: {value}  # {meaning}" for key, value, meaning in entries),
    ]
    further = [name for name in types if name not in (USER_FIELD, ITEM_FIELD, TIME_FIELD)]
    if further:
        choice = f"  # or {', '.join(further[1:])}" if further[1:] else ""
        lines += [
            "# uncomment to let an interaction count by more than being there:",
            f"# interaction_weight_field: {further[0]}{choice}",
        ]
    for kind in ("item", "user"):
        if kind in tables:
            lines += _text_settings(kind, tables[kind])
    return "\n".join(lines) + "\n"


def _new_items_settings(overlap: Overlap | None) -> list[str]:
    """RecBole knows the items of what it loads, and drops interactions with any others."""
    if overlap is None or not len(overlap.idle):
        return []
    mark = "" if overlap.are_idle_ranked else "# "
    lines = [f"{mark}  item: [{ITEM_FIELD}]  # items without an interaction are ranked, too"]
    if len(overlap.bare):
        lines.append(
            f"{mark}filter_inter_by_user_or_item: false  # some items have no row of theirs"
        )
    return lines


def _text_settings(kind: str, table: AtomicTable) -> list[str]:
    fields = _text_fields(table)
    if not fields:
        return []
    if kind == "user":
        hint = "uncomment to let what is known about a user count"
        return [f"# user_text_fields: {_yaml_list(fields)}  # {hint}"]
    return [f"item_text_fields: {_yaml_list(fields)}  # what the encoders read, in this order"]


def _text_fields(table: AtomicTable) -> tuple[str, ...]:
    """The fields that the models take for text, categories in words among them."""
    id_field, *fields = table.types
    return text_fields(
        FeatureTable(
            path=Path(),
            id_field=id_field,
            ids=tuple(table.values[id_field]),
            columns={name: tuple(table.values[name]) for name in fields},
            types={name: table.types[name] for name in fields},
        )
    )


def _yaml_list(names: Iterable[str]) -> str:
    """``[user_id, item_id]``; a field called ``no`` or ``2020`` gets its quotes."""
    flow = yaml.safe_dump(list(names), default_flow_style=True, width=10**6, allow_unicode=True)
    return flow.strip()


def _next_command(options: ImportOptions) -> str:
    data_path = shlex.quote(f"{options.out}/")
    return f"run_recbole --model=HybridFusion --dataset={options.name} --data_path={data_path}"


# --- words of the report


def _read_line(table: Table, columns: str) -> str:
    return f"{'read':7}{table.path}: {count(len(table.frame), 'row')} ({columns})"


def _note(text: str) -> str:
    return f"{'note':7}{text}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _renamed(column: str, name: str) -> str:
    return f"`{name}`" if column == name else f"`{column}` as `{name}`"
