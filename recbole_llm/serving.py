"""Recommending from saved tables: no RecBole, no data set, no pickle."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from recbole_llm.completion import is_told
from recbole_llm.embedding_cache import default_folder
from recbole_llm.encoders import Encoder, EncoderOptions, NetworkOptions, build
from recbole_llm.errors import DataError, DataWarning, SettingsError, did_you_mean
from recbole_llm.factors import Factors, Index, Mask, Rows, Table, batches, stack_rows
from recbole_llm.item_form import NewItems, read_new_items
from recbole_llm.newcomers import item_rows, told_user_rows, user_rows
from recbole_llm.saved_tables import SavedTables, read_tables
from recbole_llm.scoring import Scorer, entries_on, find_device
from recbole_llm.slices import seeded_rank, top_items
from recbole_llm.text import clean
from recbole_llm.training_data import History, with_ones

# Scores of a batch, and what ranking them takes beside.
_BATCH_BYTES = 1 << 28
# Users whose scores say how alike items are: enough for two digits of a correlation.
_SAMPLED_USERS = 4096
# The likes that what was expected of somebody counts as much as: 1 and 2 are the best of 0 to 4
# on the new users of two validation parts, 1 without a loss for many likes.
_BEFORE = 1.0
#: Who asks without being a user of the data set.
VISITOR = "visitor"


class Recommender:
    """A fitted model, ready to recommend.

    Attributes:
        tables: what it was made of; ``tables.facts`` says where they came from.
    """

    def __init__(self, tables: SavedTables, *, device: str = "auto", n_new_items: int = 0) -> None:
        """Serve some tables.

        Args:
            tables: the model's.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            n_new_items: how many of the last items came after the fit. Of equally good items
                they come last, and no choice of known items leaves them out.
        """
        self.tables = tables
        self._n_fitted = len(tables.item_ids) - n_new_items
        self._device = find_device(device)
        self._scorer = Scorer(tables.blocks, self._device)
        # Ties are broken as in the run's own sliced metrics.
        order = seeded_rank(self._n_fitted, tables.facts["seed"])
        last = torch.arange(self._n_fitted, len(tables.item_ids), dtype=order.dtype)
        self._order = torch.cat([order, last]).to(self._device)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Recommender:
        """Load a checkpoint.

        Args:
            path: RecBole's ``.pth`` file, of which only the ``.tables`` folder beside it is read,
                or that folder.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            DataError: there are no tables, or they are damaged or of another version.
            SettingsError: the device is not there.
        """
        return cls(read_tables(Path(path)), device=device)

    def recommend(
        self,
        users: object,
        k: int = 10,
        *,
        exclude_known: bool = True,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] | None = None,
    ) -> pd.DataFrame:
        """The best items of some users.

        Args:
            users: a user's id, or several, as in the data set's files; numbers will do.
            k: most items of a user.
            exclude_known: leave out what a user had to do with in the training part.
            only: the ids of the only items to rank; None: all.
            exclude: ids of items to leave out.

        Returns:
            A long table ``user_id, item_id, score, rank``: users in the order given, each once,
            and her best item first at rank 1. A user has fewer rows where no more items are left.

        Raises:
            DataError: a user is unknown, or no item of ``only`` is known.
            SettingsError: ``k`` is below 1.
        """
        rows = np.array([self._user_row(user) for user in _as_ids(users)], dtype=np.int64)
        allowed = self._allowed(only, exclude)
        parts = list(self._ranked(rows, k, allowed, exclude_known))
        return pd.concat(parts, ignore_index=True) if parts else _frame([], [], [], [])

    def recommend_for(
        self,
        *,
        user: object = None,
        liked: object = (),
        intent: str | None = None,
        intent_weight: float = 0.5,
        new_items: object = (),
        k: int = 10,
        exclude_known: bool = True,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] | None = None,
    ) -> pd.DataFrame:
        """The best items of somebody who comes with more than the training part knew.

        Args:
            user: a user's id, or several; None: a visitor.
            liked: ids of items that are folded in as if they were interactions, in this order
                and later than what is known of a user; left out of the list like known ones.
            intent: what is wanted, in words.
            intent_weight: what the words count, 0..1, beside the rest that is known of the user.
            new_items: items that are ranked beside the others, a text or the fields of each, as
                :func:`~recbole_llm.item_form.read_new_items` takes them. One without an id is
                called ``new-1``, ….
            k: most items of a user.
            exclude_known: as in :meth:`recommend`.
            only: as in :meth:`recommend`; new items are ranked all the same.
            exclude: as in :meth:`recommend`.

        Returns:
            A table as of :meth:`recommend`. New items that are not among the best ``k`` stand
            below these, with their rank among all that are ranked.

        Raises:
            DataError: a user or item is unknown, the model reads no text, or nothing is known
                of the words.
            SettingsError: nobody is asked for, a text is blank, a new item's id is taken, or a
                number is out of range.
        """
        asked = self.for_newcomers(
            user=user,
            liked=liked,
            intent=intent,
            intent_weight=intent_weight,
            new_items=new_items,
        )
        _check_k(k)
        table = asked.ranking(k, exclude_known=exclude_known, only=only, exclude=exclude)
        return best_and_new(table, k, asked.new_item_ids)

    def for_newcomers(
        self,
        *,
        user: object = None,
        liked: object = (),
        intent: str | None = None,
        intent_weight: float = 0.5,
        new_items: object = (),
    ) -> Recommender:
        """A recommender for the users asked for alone, all items and the new ones.

        Args and errors are those of :meth:`recommend_for`.
        """
        words = _intent_words(intent)
        news = read_new_items(self.tables.item_form, new_items)
        by_name = dict(zip(self._new_names(news), news.texts, strict=True))
        texts = {f"new item `{name}`": text for name, text in by_name.items()}
        if not 0 <= intent_weight <= 1:
            raise SettingsError(f"`intent_weight` must be from 0 to 1, got {intent_weight}")
        users = [] if user is None else _as_ids(user)
        # Who comes back to an item likes it now: of repeats the last one counts.
        latest = dict.fromkeys(reversed(_every_id(liked)))
        likes = [_row(self._item_rows, item, "item") for item in reversed(latest)]
        if not (users or likes or words):
            raise SettingsError("give a user, liked items or an intent")
        if not (likes or words):
            rows = [self._user_row(name) for name in users]
        else:
            rows = [_row(self._user_rows, name, "user") for name in users]
        known, own = self._histories(rows or [0], likes, is_user=bool(rows))
        embedded = self._embed({**words, **texts}) if words or texts else {}
        if words:
            told = told_user_rows(
                self.tables.newcomers, self.tables.blocks, _part(embedded, slice(0, 1))
            )
            own = told if own is None else _mixed(own, told, intent_weight)
        assert own is not None
        added: tuple[Rows | None, ...] = (None,) * len(own)
        if texts:
            of_items = _part(embedded, slice(len(words), None))
            added = item_rows(self.tables.newcomers, self.tables.blocks, of_items, news.attributes)
        blocks = tuple(
            _asked_block(block, users_, items)
            for block, users_, items in zip(self.tables.blocks, own, added, strict=True)
        )
        return self._extended(blocks, users or [VISITOR], known, by_name)

    @property
    def new_item_ids(self) -> tuple[str, ...]:
        """The ids of items that came after the fit."""
        return self.tables.item_ids[self._n_fitted :]

    def ranking(
        self,
        k: int,
        *,
        exclude_known: bool = True,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] | None = None,
    ) -> pd.DataFrame:
        """As :meth:`recommend` for every user; with new items all that are ranked, for places."""
        if self.new_item_ids:
            k = len(self.tables.item_ids)
        return pd.concat(
            self.recommend_all(k, exclude_known=exclude_known, only=only, exclude=exclude),
            ignore_index=True,
        )

    def recommend_all(
        self,
        k: int = 10,
        *,
        exclude_known: bool = True,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """As :meth:`recommend` for every user, in tables of some thousand users each."""
        allowed = self._allowed(only, exclude)
        users = np.arange(1, len(self.tables.user_ids), dtype=np.int64)
        return self._ranked(users, k, allowed, exclude_known)

    def similar_items(self, item: object, k: int = 10) -> pd.DataFrame:
        """The items that suit the same users.

        The likeness of two items is the correlation of their scores over the users (at most 4096,
        drawn by the run's seed). It is the cosine of their fused rows as the users weigh them,
        less what all users share; so it needs no rows, and is the same for dense and sparse
        blocks.

        Args:
            item: an item's id.
            k: most items.

        Returns:
            A table ``item_id, score, rank``, the most alike first; scores are from -1 to 1.

        Raises:
            DataError: the item is unknown, or nothing is known of it.
            SettingsError: ``k`` is below 1.
        """
        row = _row(self._item_rows, str(item), "item")
        likeness = self._correlations(row)
        if not likeness[row]:
            raise DataError(f"nothing is known of item `{item}`: the model scores it alike for all")
        likeness[[0, row]] = -np.inf
        best = self._best(torch.from_numpy(likeness[None, :]).to(self._device), k)[0]
        best = best[best >= 0]
        return pd.DataFrame(
            {
                "item_id": self._item_ids[best],
                "score": likeness[best],
                "rank": np.arange(1, len(best) + 1),
            }
        )

    def titles(self, items: Iterable[object]) -> list[str]:
        """The items' titles, "" where one has none.

        Raises:
            DataError: an item is unknown.
        """
        rows = (_row(self._item_rows, str(item), "item") for item in items)
        return [self.tables.item_titles[row] for row in rows]

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.tables.user_ids) if row}

    @cached_property
    def _mean_user(self) -> tuple[Rows, ...]:
        """What is expected of somebody unknown: the mean row of the users with a history."""
        weights = (self.tables.user_counts > 0).astype(np.float32)
        weights /= max(1, weights.sum())
        return tuple(sp.csr_matrix(weights) @ block.users for block in self.tables.blocks)

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.tables.item_ids) if row}

    @cached_property
    def _item_ids(self) -> np.ndarray:
        return np.array(self.tables.item_ids, dtype=object)

    @cached_property
    def _user_ids(self) -> np.ndarray:
        return np.array(self.tables.user_ids, dtype=object)

    def _user_row(self, user: str) -> int:
        row = _row(self._user_rows, user, "user")
        if not self.tables.user_counts[row]:
            warnings.warn(
                f"user `{user}` has no interaction in the training part; the ranking is made "
                "without any",
                DataWarning,
            )
        return row

    def _histories(
        self, rows: Sequence[int], likes: Sequence[int], *, is_user: bool
    ) -> tuple[sp.csr_matrix, tuple[Rows, ...] | None]:
        """What is left out of the users' lists, and their own rows; None where there are none."""
        tables = self.tables
        blocks, known = tables.blocks, tables.known[rows]
        if not likes:
            return known, tuple(block.users[rows] for block in blocks) if is_user else None
        before = tables.newcomers.history(np.asarray(rows), History(tables.known, tables.age)[rows])
        history = before.then(likes, tables.newcomers.like)
        folded = user_rows(tables.newcomers, blocks, history)
        # Nothing but a few likes says little of somebody: what was expected before counts too.
        expected = [block.users[rows] for block in blocks] if is_user else self._mean_user
        is_new = np.diff(known.indptr) == 0
        weight = is_new * _BEFORE / (_BEFORE + len(likes))
        return with_ones(known) + history.weights, _mixed(folded, expected, weight)

    def _new_names(self, news: NewItems) -> list[str]:
        """What new items are called: by their ids, else by numbers that no item has.

        Raises:
            SettingsError: an id is the data set's, or there twice.
        """
        taken = {*self._item_rows, *news.ids}
        numbers = (f"new-{number}" for number in range(1, len(taken) + len(news.ids) + 1))
        free = (name for name in numbers if name not in taken)
        names = [name or next(free) for name in news.ids]
        for name, times in Counter(names).items():
            if name in self._item_rows or times > 1:
                why = "the model knows it" if name in self._item_rows else "it is there twice"
                raise SettingsError(f"new item `{name}`: {why}; give new items ids of their own")
        return names

    def _extended(
        self,
        blocks: tuple[Factors, ...],
        users: Sequence[str],
        known: sp.csr_matrix,
        news: Mapping[str, str],
    ) -> Recommender:
        """A recommender for these users, with new items, id -> text."""
        tables = dataclasses.replace(
            self.tables,
            blocks=blocks,
            user_ids=(self.tables.user_ids[0], *users),
            item_ids=(*self.tables.item_ids, *news),
            item_titles=(*self.tables.item_titles, *news.values()),
            known=sp.csr_matrix(
                (known.data, known.indices, np.r_[0, known.indptr]),
                shape=(known.shape[0] + 1, known.shape[1] + len(news)),
            ),
        )
        return Recommender(tables, device=str(self._device), n_new_items=len(news))

    @cached_property
    def _encoders(self) -> dict[str, Encoder]:
        """What the model's texts were encoded by.

        Raises:
            DataError: it reads no text, or an encoder is another one now.
        """
        tables = self.tables
        if not tables.newcomers.encoders:
            raise DataError(
                f"the model {tables.facts['model']} encodes no text, so that it cannot take an "
                "intent or a new item; train HybridFusion or TextIntent, with item texts"
            )
        encoders = {}
        for spec, fingerprint in tables.newcomers.encoders.items():
            options = EncoderOptions(
                str(self._device),
                progress=False,
                network=NetworkOptions(**tables.newcomers.network),
                cache=default_folder(),
            )
            tuned = tables.newcomers.tuned.get(spec)
            if tuned is not None and not Path(tuned).is_dir():
                raise DataError(
                    f"there is no folder {tuned}, the encoder that was trained with the model: "
                    "keep it beside the tables"
                )
            made = build(spec if tuned is None else f"bert:{tuned}", options)
            encoders[spec] = made.fit(tables.item_texts)
            if encoders[spec].fingerprint() != fingerprint:
                raise DataError(
                    f"the encoder `{spec}` is not the one that the model was trained with; give "
                    "it back, or train the model again"
                )
        return encoders

    def _embed(self, texts: Mapping[str, str]) -> dict[str, Rows]:
        """Rows of texts by every encoder, and a word on what is not read.

        Args:
            texts: what a text is, for people -> the text.

        Raises:
            DataError: nothing is known of a text.
        """
        said = list(texts.values())
        embedded = {spec: encoder.encode(said) for spec, encoder in self._encoders.items()}
        for place, (what, text) in enumerate(texts.items()):
            reads = [spec for spec, rows in embedded.items() if is_told(rows)[place]]
            deaf = [spec for spec in embedded if spec not in reads]
            if not reads:
                raise DataError(
                    f"{what}: none of its words occurs in the items' texts, and the model reads "
                    f"words alone ({', '.join(deaf)}); use other words, or train with `bert` among "
                    "its encoders"
                )
            if deaf:
                warnings.warn(
                    f"{what}: none of its words occurs in the items' texts, so that the ranking "
                    f"rests on {', '.join(reads)} alone",
                    DataWarning,
                )
            for spec in reads:
                n_words, n_read = len(text.split()), len(self._encoders[spec].reads(text).split())
                if n_read < n_words:
                    warnings.warn(
                        f"{what}: {spec} reads the first {n_read:,} of its {n_words:,} words",
                        DataWarning,
                    )
        return embedded

    def _allowed(
        self, only: Iterable[object] | None, exclude: Iterable[object] | None
    ) -> Mask | None:
        """Which items may be ranked, bool (n_items,); None: all."""
        if only is None and exclude is None:
            return None
        allowed = np.full(len(self.tables.item_ids), only is None)
        allowed[self._n_fitted :] = False
        if only is not None:
            allowed[self._listed(_as_ids(only), "only")] = True
            if not allowed.any():
                raise DataError("`only` holds no known item, so that nothing can be recommended")
        if exclude is not None:
            allowed[self._listed(_as_ids(exclude), "exclude")] = False
        allowed[self._n_fitted :] = True
        return allowed

    def _listed(self, items: Sequence[str], option: str) -> list[int]:
        unknown = [item for item in items if item not in self._item_rows]
        if unknown:
            warnings.warn(
                f"`{option}`: {len(unknown):,} of {len(items):,} items are unknown, the first is "
                f"`{unknown[0]}`{_near(unknown[0], self._item_rows)}",
                DataWarning,
            )
        return [self._item_rows[item] for item in items if item in self._item_rows]

    def _ranked(
        self, users: Index, k: int, allowed: Mask | None, exclude_known: bool
    ) -> Iterator[pd.DataFrame]:
        _check_k(k)
        banned = None if allowed is None else torch.from_numpy(~allowed).to(self._device)
        row_bytes = 24 * len(self.tables.item_ids)
        for rows in batches(len(users), row_bytes=row_bytes, memory_bytes=_BATCH_BYTES):
            part = users[rows]
            scores = self._scorer.scores(torch.from_numpy(part).to(self._device))
            scores[:, 0] = -math.inf
            if banned is not None:
                scores[:, banned] = -math.inf
            if exclude_known:
                scores[entries_on(self._device, self.tables.known[part])] = -math.inf
            best = self._best(scores, k)
            found = best >= 0
            user, place = np.nonzero(found)
            item = best[found]
            values = scores.cpu().numpy()[user, item]
            yield _frame(self._user_ids[part[user]], self._item_ids[item], values, place + 1)

    def _best(self, scores: torch.Tensor, k: int) -> Index:
        _check_k(k)
        return top_items(scores, self._order, min(k, scores.shape[1])).cpu().numpy()

    def _correlations(self, item: int) -> Table:
        """Of an item's scores with every item's, float32 (n_items,); 0 for constant ones."""
        n_users = len(self.tables.user_ids) - 1
        rng = np.random.default_rng(self.tables.facts["seed"])
        users = 1 + rng.permutation(n_users)[:_SAMPLED_USERS]
        n_items = len(self.tables.item_ids)
        total, squares, products = (np.zeros(n_items) for _ in range(3))
        for rows in batches(len(users), row_bytes=24 * n_items, memory_bytes=_BATCH_BYTES):
            part = torch.from_numpy(users[rows]).to(self._device)
            scores = self._scorer.scores(part).cpu().numpy().astype(np.float64)
            total += scores.sum(axis=0)
            squares += np.einsum("ui,ui->i", scores, scores)
            products += scores[:, item] @ scores
        mean = total / len(users)
        variance = squares / len(users) - mean**2
        covariance = products / len(users) - mean * mean[item]
        # What rounding leaves of a constant is no spread.
        spread = np.where(variance > 1e-10 * (1 + mean**2), np.sqrt(np.abs(variance)), np.inf)
        return (covariance / (spread * spread[item])).astype(np.float32)


def best_and_new(table: pd.DataFrame, k: int, new_items: Sequence[str]) -> pd.DataFrame:
    """Of a :meth:`Recommender.ranking` the best k of each user, and new items below them."""
    kept = (table["rank"] <= k) | table["item_id"].isin(new_items)
    return table[kept].reset_index(drop=True)


def _intent_words(intent: str | None) -> dict[str, str]:
    """The intent, cleaned as the data set's texts are, by what it is; empty without one."""
    words = {} if intent is None else {"`intent`": clean(intent)}
    if not all(words.values()):
        raise SettingsError("`intent` is blank; say in words what it is")
    return words


def _part(embedded: Mapping[str, Rows], places: slice) -> dict[str, Rows]:
    return {spec: rows[places] for spec, rows in embedded.items()}


def _mixed(
    own: Sequence[Rows], other: Sequence[Rows], weight: float | NDArray[np.float64]
) -> tuple[Rows, ...]:
    """Each user's rows with others, which are her own or one for all; the latter's share."""

    def mix(mine: Rows, theirs: Rows) -> Rows:
        n = mine.shape[0]
        if theirs.shape[0] < n:
            theirs = theirs[np.zeros(n, dtype=np.int64)]
        share = sp.diags(np.broadcast_to(weight, n))
        return (mine + share @ (theirs - mine)).astype(np.float32)

    return tuple(mix(mine, theirs) for mine, theirs in zip(own, other, strict=True))


def _asked_block(block: Factors, users: Rows, added: Rows | None) -> Factors:
    """A block for some users' rows, with new items' rows below the others."""
    users = stack_rows([0 * users[:1], users])
    none = np.zeros(users.shape[0], dtype=np.float32)
    if added is None:
        return Factors(users, block.items, block.known, none)
    known = np.r_[block.known, np.ones(added.shape[0], dtype=bool)]
    return Factors(users, stack_rows([block.items, added]), known, none)


def _every_id(given: object) -> list[str]:
    """Ids as words; a single one is not taken for its letters."""
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    return list(map(str, several))


def _as_ids(given: object) -> list[str]:
    """Ids as words, each once."""
    return list(dict.fromkeys(_every_id(given)))


def _row(rows: dict[str, int], identifier: str, kind: str) -> int:
    if identifier not in rows:
        raise DataError(
            f"{kind} `{identifier}` is unknown: the model has been trained on "
            f"{len(rows):,} {kind}s without it{_near(identifier, rows)}"
        )
    return rows[identifier]


def _near(identifier: str, known: Iterable[str]) -> str:
    """A suggestion among ids that differ by a letter or two: of millions not all are compared."""
    length = len(identifier)
    start = identifier[:1]
    alike = (i for i in known if abs(len(i) - length) <= 2 and i[:1] == start)
    return did_you_mean(identifier, alike)


def _check_k(k: int) -> None:
    if k < 1:
        raise SettingsError(f"`k` must be at least 1, got {k}")


def _frame(users: object, items: object, scores: object, ranks: object) -> pd.DataFrame:
    return pd.DataFrame({"user_id": users, "item_id": items, "score": scores, "rank": ranks})
