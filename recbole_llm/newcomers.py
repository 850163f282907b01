"""Newcomers: rows in the fused tables for users and items that came after the fit.

A user with a history, a user who says what she wants, an item with a text: each becomes one more
row of the blocks, and nothing else in serving changes. Nothing is learned anew: a signal folds a
history in, and what is said in words becomes an item row as a cold item's text does. A user who
says what she wants is one who likes the item that her words describe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from recbole_llm.completion import Features, RidgeMap, features_of, is_told
from recbole_llm.errors import DataError
from recbole_llm.factors import (
    Factors,
    Index,
    Mask,
    Rows,
    Table,
    batches,
    fused_items,
    fused_users,
    stack_rows,
    standardise,
)
from recbole_llm.signals import SIGNALS, Signal
from recbole_llm.training_data import History
from recbole_llm.values import Expectation

# What making rows takes at once.
_BATCH_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class LearnedSignal:
    """What is kept of a fitted signal.

    Attributes:
        name: its key in ``SIGNALS``.
        settings: its fields.
        items: its item rows before weighing, completed ones included; None where they fill the
            memory (a table as wide as there are items): they are then its block's, which are the
            same but for ``gain``.
        learned: bool (n_items,), the rows that were not completed: moments run over these.
        extra: what the signal keeps beside its tables.
        ridge: the map from texts to item rows; None where it has none, or reads texts itself.
        told_ridge: the same from texts and attributes; None where no attributes are read.
        gain: what a warm item's z-score is multiplied by.
        cold_gain: the same for a cold item's.
        side: what of the histories it reads, of :data:`~recbole_llm.values.SIDES`; "": all.
    """

    name: str
    settings: Mapping[str, Any]
    items: Rows | None
    learned: Mask
    extra: Mapping[str, Rows]
    ridge: RidgeMap | None
    told_ridge: RidgeMap | None
    gain: float
    cold_gain: float
    side: str = ""

    @classmethod
    def of(
        cls,
        signal: Signal,
        factors: Factors,
        learned: Mask,
        ridge: RidgeMap | None,
        told_ridge: RidgeMap | None,
        *,
        gain: float,
        cold_gain: float,
        side: str = "",
    ) -> LearnedSignal:
        """Of a signal, its completed tables, and which of their rows were learned."""
        is_wide = factors.is_sparse and not sp.issparse(factors.items)
        return cls(
            next(name for name, kind in SIGNALS.items() if type(signal) is kind),
            dataclasses.asdict(signal),  # type: ignore[call-overload]  # a dataclass, by contract
            None if is_wide else factors.items,
            learned,
            factors.extra,
            ridge,
            told_ridge,
            gain,
            cold_gain,
            side,
        )

    @property
    def stands_apart(self) -> bool:
        """Whether it has a block of its own."""
        return self.items is None or sp.issparse(self.items)

    def signal(self) -> Signal:
        """The signal itself.

        Raises:
            DataError: nothing of its name is registered.
        """
        if self.name not in SIGNALS:
            raise DataError(
                f"the model has a signal `{self.name}` that is not registered; import what "
                "registers it, or train the model without it"
            )
        return SIGNALS[self.name](**self.settings)


@dataclass(frozen=True, eq=False)
class Newcomers:
    """What it takes to give rows to newcomers; plain arrays and words, fit to be stored.

    Attributes:
        signals: those that the blocks are made of, in their order.
        level: what is added to a cold item's score.
        encoders: what texts are encoded by -> its fingerprint; empty where no text is read.
        own_texts: encoder's name -> unit rows (n_users, d) of what the users say of themselves;
            empty where no such text is read.
        tuned: encoder's name -> the folder of its weights, where these were trained with the model:
            its name beside the tables in what is stored, its path in what was read from there.
        expectation: what tells the sides of histories apart; None where no signal reads one.
        network: what the encoders' files were taken for and run by, as
            :class:`~recbole_llm.encoders.NetworkOptions` has it.
    """

    signals: tuple[LearnedSignal, ...]
    level: float
    encoders: Mapping[str, str]
    own_texts: Mapping[str, Rows] = field(default_factory=dict)
    tuned: Mapping[str, str] = field(default_factory=dict)
    expectation: Expectation | None = None
    network: Mapping[str, str] = field(default_factory=dict)

    @property
    def like(self) -> float:
        """What a visitor's like counts."""
        return 1.0 if self.expectation is None else self.expectation.like

    def history(self, users: Index, history: History) -> History:
        """A history of users of the data set, with what they say of themselves."""
        return dataclasses.replace(
            history, own_texts={name: rows[users] for name, rows in self.own_texts.items()}
        )


def user_rows(
    newcomers: Newcomers, blocks: Sequence[Factors], history: History
) -> tuple[Rows, ...]:
    """Rows of users with histories, one table for each block.

    Args:
        newcomers: of the model.
        blocks: the model's.
        history: of n users over the n_items items.
    """
    items = np.unique(history.weights.indices)
    parts = {"": history[:, items]}
    if newcomers.expectation is not None:
        for side in newcomers.expectation.sizes:
            parts[side] = newcomers.expectation.side(history, side)[:, items]

    def fold_in(signal: Signal, factors: Factors, kept: LearnedSignal) -> Rows:
        return signal.fold_in(factors, signal.sources(factors)[items], parts[kept.side])

    return _user_rows(newcomers, blocks, history.weights.shape[0], fold_in)


def with_histories(
    newcomers: Newcomers, blocks: Sequence[Factors], users: Index, history: History
) -> tuple[Factors, ...]:
    """The blocks with the rows of some users made anew; items and all else stay as they are.

    Args:
        newcomers: of the model.
        blocks: the model's.
        users: int64 (n,), ascending.
        history: what each of them is known by now.
    """
    history = newcomers.history(users, history)
    row_bytes = 64 * sum(b.users.shape[1] for b in blocks if not b.is_sparse)
    parts = [
        user_rows(newcomers, blocks, history[np.arange(part.start, part.stop)])
        for part in batches(len(users), row_bytes=row_bytes, memory_bytes=_BATCH_BYTES)
    ]
    place = np.arange(blocks[0].n_users)
    place[users] = blocks[0].n_users + np.arange(len(users))
    return tuple(
        dataclasses.replace(block, users=stack_rows([block.users, *rows])[place])
        for block, rows in zip(blocks, zip(*parts, strict=True), strict=True)
    )


def told_user_rows(
    newcomers: Newcomers, blocks: Sequence[Factors], embeddings: Mapping[str, Rows]
) -> tuple[Rows, ...]:
    """Rows of users who say what they want, one table for each block.

    Args:
        newcomers: of the model.
        blocks: the model's.
        embeddings: encoder's name -> unit rows (n, d) of what n users say.
    """
    n = _n_rows(embeddings)
    history = History(sp.identity(n, dtype=np.float32, format="csr"))

    def fold_in(signal: Signal, factors: Factors, kept: LearnedSignal) -> Rows:
        sources = signal.sources(factors)
        wanted = _zeros(sources, n)
        # Words give item rows; where users are made of something else they say nothing.
        if sources is factors.items and kept.side != "disliked":
            wanted, _ = _described(kept, signal, factors, embeddings)
        return signal.fold_in(factors, wanted, history)

    return _user_rows(newcomers, blocks, n, fold_in)


def item_rows(
    newcomers: Newcomers,
    blocks: Sequence[Factors],
    embeddings: Mapping[str, Rows],
    attributes: sp.csr_matrix | None = None,
) -> tuple[Rows, ...]:
    """Rows of new items, scored as cold ones are, one table for each block.

    Args:
        newcomers: of the model.
        blocks: the model's.
        embeddings: encoder's name -> unit rows (n, d) of the items' texts.
        attributes: their unit rows CSR (n, d), zero where nothing is known; None: of none.
    """
    n = _n_rows(embeddings)
    described, gains = [], []
    for kept, signal, factors in _signals(newcomers, blocks):
        rows, known = _described(kept, signal, factors, embeddings, attributes)
        kind = sp.csr_matrix if kept.stands_apart else np.zeros
        described.append(dataclasses.replace(factors, users=kind((0, 0)), items=rows, known=known))
        gains.append(np.full(n, kept.cold_gain, dtype=np.float32))
    return fused_items(described, gains, np.full(n, newcomers.level, dtype=np.float32))


def _user_rows(
    newcomers: Newcomers,
    blocks: Sequence[Factors],
    n: int,
    fold_in: Callable[[Signal, Factors, LearnedSignal], Rows],
) -> tuple[Rows, ...]:
    standard = []
    for kept, signal, factors in _signals(newcomers, blocks):
        rows = fold_in(signal, factors, kept)
        users = stack_rows([0 * rows[:1], rows])  # row 0 is padding
        z_scores = standardise(
            dataclasses.replace(factors, users=users, offset=np.zeros(n + 1, dtype=np.float32))
        )
        if kept.items is None:
            # The block's rows are `gain` times the signal's, and z-scores undo any such factor but
            # for its sign.
            gain = np.float32(kept.gain)
            z_scores = dataclasses.replace(
                z_scores, users=z_scores.users * abs(gain), offset=z_scores.offset * np.sign(gain)
            )
        standard.append(z_scores)
    return tuple(rows[1:] for rows in fused_users(standard, n + 1))


def _signals(
    newcomers: Newcomers, blocks: Sequence[Factors]
) -> Iterator[tuple[LearnedSignal, Signal, Factors]]:
    """Each signal with its tables, but for its users."""
    apart = iter(blocks[1:])
    none = np.zeros(0, dtype=np.float32)
    for kept in newcomers.signals:
        block = next(apart) if kept.stands_apart else None
        items = kept.items
        if items is None:
            assert block is not None
            items = block.items
        yield (
            kept,
            kept.signal(),
            Factors(none[:, None], items, kept.learned, none, kept.extra),
        )


def _described(
    kept: LearnedSignal,
    signal: Signal,
    factors: Factors,
    embeddings: Mapping[str, Rows],
    attributes: sp.csr_matrix | None = None,
) -> tuple[Rows, Mask]:
    """A signal's item rows of texts and attributes, and of which it knows something."""
    rows = signal.describe(factors, embeddings, attributes)
    if rows is not None:
        return rows, is_told(rows)
    n = _n_rows(embeddings)
    if kept.ridge is None:
        return _zeros(factors.items, n), np.zeros(n, dtype=bool)
    texts = features_of(embeddings)
    rows = _along_basis(kept.ridge, texts)
    if attributes is not None and kept.told_ridge is not None:
        told = is_told(attributes)
        rows[told] = _along_basis(kept.told_ridge, features_of(embeddings, attributes)[told])
    return sp.csr_matrix(rows) if sp.issparse(factors.items) else rows, texts.described


def _along_basis(ridge: RidgeMap, features: Features) -> Table:
    """Rows of the signal's own width."""
    rows = ridge.apply(features)
    return rows if ridge.basis is None else rows @ ridge.basis


def _zeros(like: Rows, n: int) -> Rows:
    """Rows of zeros of a table's kind and width."""
    return 0 * like[np.zeros(n, dtype=np.int64)]


def _n_rows(embeddings: Mapping[str, Rows]) -> int:
    return int(next(iter(embeddings.values())).shape[0])
