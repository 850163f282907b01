"""``recbole-llm recommend`` and ``export``: a saved model's answers for people and files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from recbole_llm.atomic_files import new_folder
from recbole_llm.errors import DataError, DataWarning, SettingsError
from recbole_llm.factors import Factors
from recbole_llm.serving import VISITOR, Recommender, best_and_new
from recbole_llm.table_files import read_table
from recbole_llm.text import read_feature_table
from recbole_llm.vectors import compact_vectors
from recbole_llm.whole_file import whole_file

Writer: TypeAlias = Callable[[Path, Iterable[pd.DataFrame]], tuple[int, int]]

_TITLE_CHARACTERS = 60
# Users by whom an export is compared with the model.
_COMPARED_USERS = 1000


def add_recommend_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``recbole-llm recommend``."""
    _add_common(parser)
    parser.add_argument(
        "--user", action="append", metavar="ID", help="whom to recommend to; may be given again"
    )
    parser.add_argument(
        "--all_users", action="store_true", help="recommend to every user; needs --out"
    )
    parser.add_argument(
        "--liked",
        nargs="+",
        action="extend",
        default=[],
        metavar="ITEM",
        help="ids of items that somebody likes, a user or a visitor, the latest one last",
    )
    parser.add_argument("--intent", metavar="TEXT", help="what is wanted, in words")
    parser.add_argument(
        "--intent_weight",
        type=float,
        metavar="0..1",
        help="what the words count beside the user or the liked items (default: 0.5)",
    )
    parser.add_argument(
        "--new_item",
        action="append",
        default=[],
        metavar="TEXT",
        help="an item that is not in the data, ranked beside the others; may be given again",
    )
    parser.add_argument(
        "--new_items",
        type=Path,
        metavar="FILE",
        help="a table of such items, CSV, TSV, Parquet or JSON lines with the .item file's fields, "
        "or another .item file",
    )
    parser.add_argument("--similar", metavar="ITEM", help="list items that suit the same users")
    parser.add_argument("--k", type=int, default=10, help="length of a list (default: %(default)s)")
    parser.add_argument(
        "--only", type=Path, metavar="FILE", help="rank these items alone; one id a line"
    )
    parser.add_argument(
        "--exclude", type=Path, metavar="FILE", help="leave these items out; one id a line"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write user_id, item_id, score, rank; .csv, .parquet",
    )


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``recbole-llm export``."""
    _add_common(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="gets vectors and ids"
    )
    parser.add_argument(
        "--rank",
        type=int,
        default=256,
        help="most dimensions of a signal that ranks by the history itself or by single words "
        "(default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")


def recommend(args: argparse.Namespace) -> int:
    """Runs ``recbole-llm recommend``.

    Args:
        args: what `add_recommend_arguments`'s parser made.

    Returns:
        The exit code. Errors that a user can mend are raised: the command prints them.
    """
    _check_recommend(args)
    write = None if args.out is None else _writer(args.out)
    with _plain_warnings():
        recommender = Recommender.load(args.checkpoint[0], device=args.device)
        if args.similar is not None:
            lists = {args.similar: recommender.similar_items(args.similar, args.k)}
            _print_lists("item", lists, recommender, as_json=args.json)
            return 0
        only, exclude = _read_ids(args.only, "only"), _read_ids(args.exclude, "exclude")
        if args.liked or args.intent is not None or args.new_item or args.new_items:
            return _recommend_for(args, recommender, write, only=only, exclude=exclude)
        if args.all_users:
            parts = recommender.recommend_all(args.k, only=only, exclude=exclude)
        else:
            parts = iter([recommender.recommend(args.user, args.k, only=only, exclude=exclude)])
        if write is not None:
            _write_out(write, args.out, parts)
            return 0
        table = next(parts)
        lists = {user: table[table["user_id"] == user] for user in dict.fromkeys(args.user)}
        _print_lists("user", lists, recommender, as_json=args.json)
    return 0


def _recommend_for(
    args: argparse.Namespace,
    recommender: Recommender,
    write: Writer | None,
    *,
    only: list[str] | None,
    exclude: list[str] | None,
) -> int:
    """Lists for somebody who comes with more than a user's id."""
    weight = {} if args.intent_weight is None else {"intent_weight": args.intent_weight}
    news = args.new_item
    if args.new_items is not None:
        news = _new_items(args.new_items, recommender.tables.item_form.id_field)
    asked = recommender.for_newcomers(
        user=args.user, liked=args.liked, intent=args.intent, new_items=news, **weight
    )
    ranking = asked.ranking(args.k, only=only, exclude=exclude)
    if write is not None:
        _write_out(write, args.out, iter([best_and_new(ranking, args.k, asked.new_item_ids)]))
    users = asked.tables.user_ids[1:]
    by_user = {user: ranking[ranking["user_id"] == user] for user in users}
    news = {user: _new_item_places(table, asked) for user, table in by_user.items()}
    if write is not None:
        for user, places in news.items():
            for line in _new_item_lines(places):
                print(f"{user}: {line}")  # noqa: T201
        return 0
    about = {
        "liked": dict(zip(args.liked, recommender.titles(args.liked), strict=True)),
        "intent": args.intent,
    }
    lists = {user: table[table["rank"] <= args.k] for user, table in by_user.items()}
    _print_lists("user", lists, asked, as_json=args.json, about=about, news=news)
    return 0


def _new_items(file: Path, id_field: str) -> pd.DataFrame:
    """A table of new items, or RecBole's own kind of file."""
    if file.suffix != ".item":
        return read_table(file).frame
    table = read_feature_table(file, id_field=id_field)
    return pd.DataFrame({id_field: table.ids, **table.columns})


def _new_item_places(ranking: pd.DataFrame, asked: Recommender) -> list[dict[str, Any]]:
    """Where new items stand among all items that are ranked for a user."""
    rows = ranking[ranking["item_id"].isin(asked.new_item_ids)].sort_values("item_id")
    return [
        {
            "item_id": item,
            "text": asked.titles([item])[0],
            "rank": int(rank),
            "of": len(ranking),
            "score": float(score),
        }
        for item, rank, score in zip(rows["item_id"], rows["rank"], rows["score"], strict=True)
    ]


def _new_item_lines(places: Iterable[dict[str, Any]]) -> Iterator[str]:
    for place in places:
        yield (
            f"{place['item_id']}, {_shortened(place['text'])}: rank {place['rank']:,} of "
            f"{place['of']:,}, score {place['score']:.4f}"
        )


def export(args: argparse.Namespace) -> int:
    """Runs ``recbole-llm export``.

    Args:
        args: what `add_export_arguments`'s parser made.

    Returns:
        The exit code. Errors that a user can mend are raised: the command prints them.
    """
    _check_checkpoint(args)
    if args.rank < 1:
        raise SettingsError(f"`--rank` must be at least 1, got {args.rank}")
    model = Recommender.load(args.checkpoint[0], device=args.device)
    tables = model.tables
    with _writing(args.out), new_folder(args.out, overwrite=args.overwrite) as folder:
        vectors = compact_vectors(tables.blocks, rank=args.rank, seed=tables.facts["seed"])
        agreement = _agreement(model, vectors, args.device)
        for name, rows, ids in (
            ("user", vectors.users, tables.user_ids),
            ("item", vectors.items, tables.item_ids),
        ):
            np.save(folder / f"{name}_vectors.npy", rows[1:], allow_pickle=False)
            lines = "".join(f"{identifier}\n" for identifier in ids[1:])
            (folder / f"{name}_ids.txt").write_text(lines, encoding="utf-8")
        truncated = sum(block.is_sparse for block in tables.blocks)
        facts = {
            **{name: tables.facts[name] for name in ("model", "dataset", "seed")},
            "metric": "inner product",
            "dimensions": vectors.users.shape[1],
            "rank": args.rank if truncated else None,
            "top_10_agreement": agreement,
        }
        (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for line in _export_lines(args, vectors, truncated, agreement):
        print(line)  # noqa: T201 - the report is this command's output
    return 0


def _export_lines(
    args: argparse.Namespace, vectors: Factors, truncated: int, agreement: float
) -> Iterator[str]:
    yield (
        f"wrote {args.out}: vectors of {vectors.n_users - 1:,} users and {vectors.n_items - 1:,} "
        f"items, {vectors.users.shape[1]:,} dimensions, for inner products"
    )
    if truncated:
        yield (
            f"{truncated} of the model's blocks have sparse user rows and no short vectors: "
            f"approximated by {args.rank} dimensions each (--rank)"
        )
    yield f"{agreement:.1%} of the model's top 10 are in the vectors' top 10, known items left out"


def _agreement(model: Recommender, vectors: Factors, device: str) -> float:
    """The share of the model's recommendations that the vectors make too, for a sample of users.

    Items that the model finds equally good may come out in another order, which counts as lost.
    """
    exported = Recommender(dataclasses.replace(model.tables, blocks=(vectors,)), device=device)
    ids = model.tables.user_ids[1:]
    rng = np.random.default_rng(model.tables.facts["seed"])
    users = [ids[row] for row in rng.permutation(len(ids))[:_COMPARED_USERS]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # a user without history counts here too
        pairs = model.recommend(users)[["user_id", "item_id"]]
        others = exported.recommend(users)[["user_id", "item_id"]]
    return len(pairs.merge(others)) / max(1, len(pairs))


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a .pth file of run_recbole, or the .tables folder beside it, which alone is read",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)"
    )


def _check_checkpoint(args: argparse.Namespace) -> None:
    if len(args.checkpoint) > 1:
        # A pattern of the shell's, most likely.
        raise SettingsError(
            f"`--checkpoint` takes one path, got {len(args.checkpoint)}: "
            f"{', '.join(map(str, args.checkpoint[:3]))}"
        )


def _check_recommend(args: argparse.Namespace) -> None:
    _check_checkpoint(args)
    somebody = args.user is not None or bool(args.liked) or args.intent is not None
    if args.new_item and args.new_items:
        raise SettingsError("`--new_item` goes without `--new_items`; write it into the table")
    if (args.new_item or args.new_items) and not somebody:
        raise SettingsError(
            "new items are ranked for somebody: give `--user`, `--liked` or `--intent`, too"
        )
    if sum([somebody, args.all_users, args.similar is not None]) != 1:
        raise SettingsError(
            "give one of `--user ID` (or `--liked ITEM`, `--intent TEXT`), `--all_users` and "
            "`--similar ITEM`"
        )
    if args.intent_weight is not None and args.intent is None:
        raise SettingsError("`--intent_weight` goes with `--intent TEXT`")
    if args.all_users and args.out is None:
        raise SettingsError("`--all_users` needs `--out FILE.parquet` or `--out FILE.csv`")
    if args.out is not None and (args.similar is not None or args.json):
        raise SettingsError("`--out` goes without `--similar` and without `--json`")
    if args.similar is not None and (args.only or args.exclude):
        raise SettingsError("`--only` and `--exclude` do not go with `--similar`")
    if args.k < 1:
        raise SettingsError(f"`--k` must be at least 1, got {args.k}")


def _read_ids(file: Path | None, option: str) -> list[str] | None:
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise DataError(f"`--{option}`: cannot read {file}: {reason}") from error
    return [line.strip() for line in lines if line.strip()]


def _print_lists(
    kind: str,
    lists: dict[str, pd.DataFrame],
    recommender: Recommender,
    *,
    as_json: bool,
    about: Mapping[str, Any] | None = None,
    news: Mapping[str, list[dict[str, Any]]] | None = None,
) -> None:
    """Ranked items of users, or of items, as a table or as JSON.

    Args:
        kind: ``user`` or ``item``.
        lists: owner -> ranked items.
        recommender: what made them.
        as_json: whether a program reads it.
        about: what else is known of the users: ``liked``, ``intent``.
        news: owner -> where new items stand.
    """
    said_of_all = {key: value for key, value in (about or {}).items() if value}
    answers = [
        {
            kind: owner,
            "title": recommender.titles([owner])[0] if kind == "item" else None,
            **said_of_all,
            "new_items": (news or {}).get(owner) or None,
            "items": [
                {"rank": int(rank), "item_id": item, "title": title, "score": float(score)}
                for rank, item, title, score in zip(
                    table["rank"],
                    table["item_id"],
                    recommender.titles(table["item_id"]),
                    table["score"],
                    strict=True,
                )
            ],
        }
        for owner, table in lists.items()
    ]
    if as_json:
        said = [{key: v for key, v in answer.items() if v is not None} for answer in answers]
        print(json.dumps(said, indent=2, ensure_ascii=False))  # noqa: T201
        return
    for answer in answers:
        print("\n".join(_table_lines(kind, answer)))  # noqa: T201


def _table_lines(kind: str, answer: dict[str, Any]) -> Iterator[str]:
    yield _head(kind, answer)
    rows = [("rank", "item", "title", "score")]
    for item in answer["items"]:
        title = _shortened(item["title"])
        rows.append((str(item["rank"]), item["item_id"], title, f"{item['score']:.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for rank, identifier, title, score in rows:
        yield (
            f"{rank:>{widths[0]}}  {identifier:<{widths[1]}}  {title:<{widths[2]}}  "
            f"{score:>{widths[3]}}"
        )
    if not answer["items"]:
        yield "no items are left to recommend"
    yield from _new_item_lines(answer["new_items"] or ())


def _head(kind: str, answer: dict[str, Any]) -> str:
    owner = answer[kind]
    parts = [owner if owner == VISITOR else f"{kind} {owner}"]
    if answer["title"]:
        parts.append(answer["title"])
    if answer.get("liked"):
        parts.append("liked " + "; ".join(title or item for item, title in answer["liked"].items()))
    if answer.get("intent"):
        parts.append(f"wants “{_shortened(answer['intent'])}”")
    return ": ".join([parts[0], ", ".join(parts[1:])] if parts[1:] else parts)


def _shortened(title: str) -> str:
    return title if len(title) <= _TITLE_CHARACTERS else f"{title[: _TITLE_CHARACTERS - 1]}…"


def _write_out(write: Writer, out: Path, parts: Iterable[pd.DataFrame]) -> None:
    n_rows, n_users = write(out, parts)
    print(f"wrote {out}: {n_rows:,} rows for {n_users:,} users")  # noqa: T201


def _writer(out: Path) -> Writer:
    """What writes a table to a file of that ending."""
    writers = {".csv": _write_csv, ".parquet": _write_parquet}
    if out.suffix not in writers:
        raise SettingsError(f"`--out` must end in {' or '.join(writers)}, got {out}")
    if not out.parent.is_dir():
        raise SettingsError(f"`--out`: there is no folder {out.parent}")
    return writers[out.suffix]


def _write_csv(out: Path, parts: Iterable[pd.DataFrame]) -> tuple[int, int]:
    counts = (0, 0)
    with (
        _writing(out),
        whole_file(out) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as file,
    ):
        for part in parts:
            part.to_csv(file, index=False, header=counts == (0, 0), lineterminator="\n")
            counts = _added(counts, part)
    return counts


def _write_parquet(out: Path, parts: Iterable[pd.DataFrame]) -> tuple[int, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"user_id": pa.string(), "item_id": pa.string(), "score": pa.float32()}
    schema = pa.schema({**types, "rank": pa.int32()})
    counts = (0, 0)
    with (
        _writing(out),
        whole_file(out) as unfinished,
        pq.ParquetWriter(unfinished, schema) as file,
    ):
        for part in parts:
            file.write_table(pa.Table.from_pandas(part, schema=schema, preserve_index=False))
            counts = _added(counts, part)
    return counts


def _added(counts: tuple[int, int], part: pd.DataFrame) -> tuple[int, int]:
    return counts[0] + len(part), counts[1] + part["user_id"].nunique()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"`--out`: cannot write {out}: {error.strerror or error}") from error


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our warnings as one line each, as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = lambda message, *_: print(  # noqa: T201
            f"warning: {message}", file=sys.stderr
        )
        yield
