"""Splits with cold items or users, as plain atomic files that RecBole reads as a data set.

A cold item (user) has no training interaction. The fraction asked for is chosen at random or from
the newest; half of it is cold in validation and the other half in test, so that nothing is tuned
on the test's. The interactions of the rest are drawn 8:1:1.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import yaml
from numpy.typing import ArrayLike, NDArray

from recbole_llm.atomic_files import new_folder
from recbole_llm.errors import DataError, SettingsError
from recbole_llm.table_files import count

Cold: TypeAlias = Literal["items", "users", "both"]
By: TypeAlias = Literal["random", "time"]
Kind: TypeAlias = Literal["items", "users"]
PartLabels: TypeAlias = NDArray[np.int8]

LEFT_OUT, TRAIN, VALID, TEST = -1, 0, 1, 2
PARTS = ("train", "valid", "test")

#: RecBole's settings that drop interactions. It skips them all on files that are split already.
FILTERS = (
    "rm_dup_inter",
    "val_interval",
    "filter_inter_by_user_or_item",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "entity_kg_num_interval",
    "relation_kg_num_interval",
)


@dataclass(frozen=True)
class SplitOptions:
    """What to split, and how.

    Attributes:
        dataset: the source's name.
        out: folder that gets the split's folder.
        cold: what shall be cold.
        fraction: share of the items (users) that are cold, in (0, 1); half of it for each part.
        seed: of the choice of the cold and of the draw of the warm, >= 0.
        by: the cold are drawn, or are the newest (by their first interaction).
    """

    dataset: str
    out: Path
    cold: Cold = "items"
    fraction: float = 0.2
    seed: int = 2020
    by: By = "random"

    @property
    def name(self) -> str:
        """Name of the split as a data set."""
        return f"{self.dataset}-cold-{self.cold}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where the split is written."""
        return self.out / self.name


@dataclass(frozen=True)
class ColdSplit:
    """Which part each interaction belongs to.

    Attributes:
        parts: int8 (n_rows,), `TRAIN`, `VALID` or `TEST`; `LEFT_OUT` where the user is cold in one
            of validation and test and the item in the other.
        cold_rows: bool (n_rows,), whether the item or user has no interaction in training.
        n_kept_in_train: warm rows moved to training, where an item or user would have had none.
    """

    parts: PartLabels
    cold_rows: NDArray[np.bool_]
    n_kept_in_train: int


@dataclass(frozen=True)
class Source:
    """The data set as it stands on disk, and what its filters left of it.

    Attributes:
        files: suffix (``inter``, ``item``, ``user``, …) -> file.
        n_rows: interactions in the file.
        rows: int64 (n_left,), numbers of the interactions left, from 0 and ascending.
        users, items: str (n_left,), their ids.
        times: float64 (n_left,), or None without a time field.
        time_field: its name.
        encoding, field_separator: of the files.
        settings: the data set's own settings, without filters.
        filters: the filters that were in force.
    """

    files: Mapping[str, Path]
    n_rows: int
    rows: NDArray[np.int64]
    users: NDArray[np.object_]
    items: NDArray[np.object_]
    times: NDArray[np.float64] | None
    time_field: str | None
    encoding: str
    field_separator: str
    settings: Mapping[str, Any]
    filters: Mapping[str, Any]


def cold_split(
    users: ArrayLike,
    items: ArrayLike,
    *,
    cold: Cold,
    fraction: float,
    seed: int,
    times: NDArray[np.float64] | None = None,
) -> ColdSplit:
    """Gives each interaction its part.

    With ``both``, a warm user all of whose items are cold counts as cold too, in the part where
    most of its interactions are, and so does such an item: else it would be cold in both parts.

    Args:
        users: ids (n_rows,).
        items: ids (n_rows,).
        cold: what shall be cold.
        fraction: share of the items (users) that are cold, in (0, 1).
        seed: >= 0; the same interactions in the same order and the same seed give the same parts.
        times: (n_rows,) when each interaction was; given, the newest are cold, the very newest in
            test, and among those equally new the seed decides.

    Returns:
        The parts. Validation and test both hold warm and cold rows.

    Raises:
        SettingsError: ``fraction`` or ``seed`` is not allowed, or nothing warm would be left.
        DataError: the data are too small to split, or a time is no number.
    """
    _check_numbers(fraction, seed)
    if times is not None and not np.isfinite(times).all():
        raise DataError(
            f"{count(int((~np.isfinite(times)).sum()), 'interaction')} without a time: "
            "the newest cannot be told; mend or drop them"
        )
    codes: dict[Kind, NDArray[np.int64]] = {
        "items": pd.factorize(np.asarray(items))[0],
        "users": pd.factorize(np.asarray(users))[0],
    }
    # One stream each, so that the cold items are the same with `items` and with `both`.
    streams: dict[Kind, int] = {"items": 0, "users": 1}
    sides = {
        kind: _choose_cold(
            codes[kind], kind, fraction, np.random.default_rng([seed, stream]), times
        )
        if cold in (kind, "both")
        else np.zeros(codes[kind].max(initial=-1) + 1, dtype=np.int8)
        for kind, stream in streams.items()
    }
    warm = (sides["items"][codes["items"]] == TRAIN) & (sides["users"][codes["users"]] == TRAIN)
    if cold == "both":
        row_sides = {kind: sides[kind][codes[kind]] for kind in streams}
        sides = {
            "items": _side_with_stranded(codes["items"], sides["items"], row_sides["users"], warm),
            "users": _side_with_stranded(codes["users"], sides["users"], row_sides["items"], warm),
        }
    of_item, of_user = sides["items"][codes["items"]], sides["users"][codes["users"]]
    parts = np.maximum(of_item, of_user)
    parts[(of_item > TRAIN) & (of_user > TRAIN) & (of_item != of_user)] = LEFT_OUT
    rng = np.random.default_rng([seed, 2])
    parts[warm], n_kept = _draw_warm(codes["items"][warm], codes["users"][warm], rng)
    _check_parts(parts, warm)
    trained = [np.isin(of, of[parts == TRAIN]) for of in codes.values()]
    return ColdSplit(parts, ~(trained[0] & trained[1]), n_kept)


def _choose_cold(
    codes: NDArray[np.int64],
    kind: Kind,
    fraction: float,
    rng: np.random.Generator,
    times: NDArray[np.float64] | None,
) -> PartLabels:
    """`VALID` or `TEST` for the cold, `TRAIN` for the warm; the test gets the odd one."""
    n = codes.max(initial=-1) + 1
    n_cold = round(fraction * n)
    if n > 1 and n_cold >= n:
        raise SettingsError(
            f"`fraction` {fraction:g} of {n:,} {kind} leaves no warm {kind[:-1]}; use a smaller one"
        )
    if n_cold < 2:
        raise DataError(
            f"too small to split: `fraction` {fraction:g} of {count(n, kind[:-1])} makes "
            f"{n_cold} cold, and validation and test need one each"
        )
    order = rng.permutation(n)
    if times is not None:
        first = np.full(n, np.inf)
        np.minimum.at(first, codes, times)
        order = order[np.argsort(-first[order], kind="stable")]
    side = np.full(n, TRAIN, dtype=np.int8)
    n_test = n_cold - n_cold // 2
    side[order[:n_test]] = TEST
    side[order[n_test:n_cold]] = VALID
    return side


def _side_with_stranded(
    codes: NDArray[np.int64], side: PartLabels, others: PartLabels, warm: NDArray[np.bool_]
) -> PartLabels:
    """Lets those without any warm row be cold, in the part where most of their rows are."""
    n_warm = np.bincount(codes[warm], minlength=len(side))
    n_valid = np.bincount(codes[others == VALID], minlength=len(side))
    n_test = np.bincount(codes[others == TEST], minlength=len(side))
    majority = np.where(n_valid > n_test, VALID, TEST)
    return np.where((side == TRAIN) & (n_warm == 0), majority, side).astype(np.int8)


def _draw_warm(
    items: NDArray[np.int64], users: NDArray[np.int64], rng: np.random.Generator
) -> tuple[PartLabels, int]:
    """8:1:1, but every item and user keeps a row in training; with the number of rows moved."""
    order = rng.permutation(len(items))
    tenth = len(items) // 10
    parts = np.full(len(items), TRAIN, dtype=np.int8)
    parts[order[:tenth]] = VALID
    parts[order[tenth : 2 * tenth]] = TEST
    for codes in (items, users):
        untrained = order[~np.isin(codes[order], codes[parts == TRAIN])]
        _, first = np.unique(codes[untrained], return_index=True)
        parts[untrained[first]] = TRAIN
    return parts, 2 * tenth - int((parts != TRAIN).sum())


def _check_parts(parts: PartLabels, warm: NDArray[np.bool_]) -> None:
    """Both parts need warm and cold rows, else a figure would be missing from every report."""
    missing = [
        f"{words} interaction in {PARTS[part]}"
        for part in (VALID, TEST)
        for words, rows in (("warm", warm), ("cold", ~warm))
        if not (rows & (parts == part)).any()
    ]
    if missing:
        raise DataError(f"too small to split: there would be no {', no '.join(missing)}")


# --- filters on files that are split already


def filters_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The filters among these settings that may drop an interaction.

    Args:
        settings: flat keys and values, as in RecBole's ``Config``.
    """
    return {
        name: settings[name]
        for name in FILTERS
        if settings.get(name) not in (None, False) and not _takes_all(settings[name])
    }


def _takes_all(value: Any) -> bool:
    return str(value).replace(" ", "") == "[0,inf)"


def check_no_filters(given: Mapping[str, Any], *, strict: bool) -> list[str]:
    """Reports the filters that a user set for files that are split already.

    Args:
        given: the user's settings, as in ``config.external_config_dict``.
        strict: each is an error, as it is for our own models; otherwise a warning.

    Returns:
        One warning for each filter that is let through.

    Raises:
        SettingsError: a filter is set and ``strict``.
    """
    names = list(filters_in(given))
    reason = "RecBole skips every filter on files that `benchmark_filename` names"
    if names and strict:
        raise SettingsError(
            f"{', '.join(f'`{name}`' for name in names)}: {reason}; leave it out, and filter when "
            "the split is made (`recbole-llm split`)"
        )
    return [f"`{name}` is ignored: {reason}" for name in names]


# --- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``recbole-llm split``; RecBole's settings (``--key=value``) come besides.

    Args:
        parser: the subcommand's parser.
    """
    default = SplitOptions("", Path())
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument(
        "--data_path", metavar="FOLDER", help="holds the data set's folder (default: dataset/)"
    )
    parser.add_argument(
        "--cold", choices=get_args(Cold), default=default.cold, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--fraction",
        type=float,
        default=default.fraction,
        help="share of the items (users) that are cold, half in validation and half in test "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="(default: %(default)s)")
    parser.add_argument(
        "--by",
        choices=get_args(By),
        default=default.by,
        help="draw the cold, or take the newest, the very newest for test (default: %(default)s)",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="gets the split's folder"
    )
    parser.epilog = (
        "RecBole's settings of the data, filters among them, go in as --key=value (such as "
        '--user_inter_num_interval="[5,inf)") or in --config_files="a.yaml b.yaml".'
    )


def check_options(options: SplitOptions) -> None:
    """Checks, before the long work, what can be checked without the data.

    Raises:
        SettingsError: a number is not allowed, or the split's place is taken.
    """
    _check_numbers(options.fraction, options.seed)
    if options.folder.exists():
        raise SettingsError(
            f"{options.folder} exists; remove it, or choose another --out or --seed"
        )


def _check_numbers(fraction: float, seed: int) -> None:
    if not 0 < fraction < 1:
        raise SettingsError(f"`fraction` must be between 0 and 1, both excluded, got {fraction}")
    if seed < 0:
        raise SettingsError(f"`seed` must be 0 or more, got {seed}")


def write_split(options: SplitOptions, source: Source) -> tuple[str, ...]:
    """Splits a data set and writes the parts, its other files and its settings.

    The parts hold the source's own lines, byte for byte.

    Args:
        options: how.
        source: what its filters left.

    Returns:
        The report for people, the next command last.

    Raises:
        SettingsError: an option does not fit the data.
        DataError: the data cannot be split, or the folder cannot be written.
    """
    check_options(options)
    if options.by == "time" and source.times is None:
        raise SettingsError(
            f"`--by time` needs times, and {source.files['inter']} has no field "
            f"`{source.time_field}` that is loaded; set `TIME_FIELD` and `load_col`"
        )
    split = cold_split(
        source.users,
        source.items,
        cold=options.cold,
        fraction=options.fraction,
        seed=options.seed,
        times=source.times if options.by == "time" else None,
    )
    facts = [*_source_lines(source), *_split_lines(split, source, options)]
    labels = np.full(source.n_rows, LEFT_OUT, dtype=np.int8)
    labels[source.rows] = split.parts
    try:
        with new_folder(options.folder) as folder:
            files = [folder / f"{options.name}.{part}.inter" for part in PARTS]
            _write_parts(source, labels, files)
            for suffix, file in source.files.items():
                if suffix != "inter":
                    shutil.copyfile(file, folder / f"{options.name}.{suffix}")
            settings = _settings(options, source, facts)
            (folder / f"{options.name}.yaml").write_text(settings, encoding="utf-8")
            prefix = f"{options.name}."
            written = sorted(path.name.removeprefix(prefix) for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{options.folder} cannot be written: {error.strerror or error}") from error
    command = f"run_recbole --dataset={options.name} --data_path={shlex.quote(str(options.out))}"
    return (
        *facts,
        f"{'wrote':7}{options.folder / options.name}.{{{','.join(written)}}}",
        f"{'next':7}{command} --model=HybridFusion",
    )


def _write_parts(source: Source, labels: PartLabels, files: Iterable[Path]) -> None:
    """Deals the lines out; ``labels`` has one for each interaction of the file."""
    # As RecBole's reader splits lines; bytes that are no text are none of our business here.
    how: Any = {"encoding": source.encoding, "errors": "surrogateescape", "newline": ""}
    with ExitStack() as stack:
        outs: list[IO[str]] = [stack.enter_context(file.open("w", **how)) for file in files]
        lines = _lines(stack.enter_context(source.files["inter"].open(**how)), source)
        head = next(lines)
        for out in outs:
            out.write(head)
        n_lines = 0
        for n_lines, line in enumerate(lines, start=1):
            if n_lines <= len(labels) and labels[n_lines - 1] != LEFT_OUT:
                outs[labels[n_lines - 1]].write(line)
    if n_lines != len(labels):
        raise DataError(
            f"{source.files['inter']} has {n_lines:,} lines below its head, and RecBole reads "
            f'{len(labels):,} interactions: a value starts with `"`; mend it'
        )


def _lines(file: IO[str], source: Source) -> Iterator[str]:
    """The lines that RecBole takes for one: all but the blank ones, each with its end."""
    for line in file:
        if line.strip() or source.field_separator in line:
            yield line if line.endswith(("\n", "\r")) else f"{line}\n"


# --- words


def _source_lines(source: Source) -> list[str]:
    lines = [f"{'read':7}{source.files['inter'].name}: {count(source.n_rows, 'interaction')}"]
    n_filtered = source.n_rows - len(source.rows)
    filters = ", ".join(f"{name}={value!r}" for name, value in source.filters.items())
    lines.append(f"{'filter':7}{n_filtered:,} dropped; {filters or 'none is set'}")
    return lines


def _split_lines(split: ColdSplit, source: Source, options: SplitOptions) -> list[str]:
    trained = {
        kind: set(ids[split.parts == TRAIN])
        for kind, ids in (("item", source.items), ("user", source.users))
    }
    lines = []
    cold = {}
    for part, name in enumerate(PARTS):
        rows = split.parts == part
        ids = {"item": set(source.items[rows]), "user": set(source.users[rows])}
        cold[name] = {kind: ids[kind] - trained[kind] for kind in ids}
        line = f"{name:7}{count(int(rows.sum()), 'interaction')}"
        if part == TRAIN:
            line += "".join(f", {count(len(ids[kind]), kind)}" for kind in ("user", "item"))
        else:
            line += f": {(rows & ~split.cold_rows).sum():,} warm, "
            line += f"{(rows & split.cold_rows).sum():,} of "
            line += " or ".join(
                count(len(cold[name][kind]), f"cold {kind}")
                for kind in ("item", "user")
                if cold[name][kind]
            )
        lines.append(line)
    if split.n_kept_in_train:
        lines.append(
            f"{'note':7}{count(split.n_kept_in_train, 'warm interaction')} of validation and test "
            "went back to train, where its item or user had none"
        )
    n_left_out = int((split.parts == LEFT_OUT).sum())
    if n_left_out:
        lines.append(
            f"{'note':7}{count(n_left_out, 'interaction')} left out: the user is cold in one of "
            "validation and test, the item in the other"
        )
    if options.cold != "both":
        other = "user" if options.cold == "items" else "item"
        stranded = cold["valid"][other] | cold["test"][other]
        if stranded:
            lines.append(
                f"{'note':7}{count(len(stranded), other)} with cold {options.cold} only: "
                "cold as well, though not chosen"
            )
    return lines


class _PlainDumper(yaml.SafeDumper):
    """Tuples, which the command line makes of ``(0,5)``, as lists."""


_PlainDumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def _settings(options: SplitOptions, source: Source, facts: Iterable[str]) -> str:
    """The split's YAML: how it was made, the parts, and what belongs to the source's columns."""
    how = f"--fraction {options.fraction:g} --seed {options.seed} --by {options.by}"
    by = "" if options.by == "random" else f"; newest by `{source.time_field}`"
    head = [
        f"{options.name}: made by `recbole-llm split --dataset {options.dataset} "
        f"--cold {options.cold} {how}`{by}",
        *facts,
        "RecBole skips every filter on such files: what they drop is dropped already.",
    ]
    settings = {"benchmark_filename": list(PARTS), **source.settings}
    body = yaml.dump(
        settings,
        Dumper=_PlainDumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=1000,
    )
    return "".join(f"# {line}\n" for line in head) + body
