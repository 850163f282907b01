"""What a signal is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import normalize

from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import Factors, Mask, Rows
from recbole_llm.intent import user_intent
from recbole_llm.settings import RunOptions, Words, setting
from recbole_llm.training_data import History, TrainingData

_HELD_OUT = 0.1
_VALIDATION_USERS = 2000
_METRIC = Metric("ndcg", 10)
# More epochs go on helping warm items while cold ones stand still: the last epoch counts whose
# value is as good as the best within the noise of the held-out items.
_AS_GOOD = 0.98

SomeSignal = TypeVar("SomeSignal", bound="Signal")


class SkippedSignal(Exception):
    """A signal has nothing to say on these data; its message says why, and the work goes on."""


class Signal(Protocol):
    """A frozen dataclass of settings that learns :class:`~recbole_llm.factors.Factors`.

    Attributes:
        starts: settings known to be good on some kind of data; a search tries them first.
        completed: whether users and items that it has not seen get their rows from their texts.
        seeded: whether its tables start at random, so that another seed gives others.
    """

    completed: ClassVar[bool]
    seeded: ClassVar[bool]
    starts: ClassVar[Sequence[Mapping[str, Any]]]

    @property
    def uses_text(self) -> bool:
        """Whether it reads the items' texts."""
        ...

    @property
    def uses_embeddings(self) -> bool:
        """Whether it reads them encoded."""
        ...

    @property
    def uses_attributes(self) -> bool:
        """Whether it reads the items' categories and numbers."""
        ...

    @property
    def encoders(self) -> Words:
        """The encoders whose embeddings it reads."""
        ...

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Learn the tables from the training part.

        Must be repeatable for one ``run.seed``, leave ``data`` as it is, and give finite tables
        whose row 0 is zero.

        Raises:
            SkippedSignal: the data lack what the signal needs.
        """
        ...

    def sources(self, factors: Factors) -> Rows:
        """What each item adds to the row of a user who has it, (n_items, s): its row, mostly."""
        ...

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Rows:
        """User rows of newcomers from their histories; nothing is learned anew.

        Args:
            factors: the signal as it was fitted; of its users nothing is read.
            liked: (m, s), rows of :meth:`sources`, or item rows of like kind made from words.
            history: of n_new users over the m rows.

        Returns:
            float32 (n_new, d), rows as of ``factors.users``; zero for an empty history, where
            the signal says something of the user at all.
        """
        ...

    def describe(
        self,
        factors: Factors,
        embeddings: Mapping[str, Rows],
        attributes: sp.csr_matrix | None = None,
    ) -> Rows | None:
        """Item rows of texts and attributes, (n, d), zero where nothing is known of one.

        Args:
            factors: the signal as it was fitted.
            embeddings: encoder's name -> unit rows (n, d_b) of n texts.
            attributes: CSR (n, d), unit rows of the same items' attributes, zero where nothing
                is known; None: of none.

        Returns:
            None where the signal does not read texts itself.
        """
        ...

    def settle(self: SomeSignal, data: TrainingData, run: RunOptions) -> SomeSignal:
        """The settings with what :meth:`fit` would find out from the data by itself fixed.

        Raises:
            SkippedSignal: the data lack what the signal needs.
        """
        ...

    def variants(self: SomeSignal, name: str, encoders: Sequence[str]) -> dict[str, SomeSignal]:
        """The signals that these settings stand for: label -> signal (one per encoder, say)."""
        ...


# After each of a fit's steps what makes the tables; they are those of the step until the next.
Steps: TypeAlias = Iterator[Callable[[], Factors]]


@runtime_checkable
class InSteps(Protocol):
    """A signal that can be looked at while it learns, so that a poor one is given up early."""

    def fit_in_steps(self, data: TrainingData, run: RunOptions) -> Steps:
        """Learn a few sweeps more with each step; the last tables are those of ``fit``."""
        ...


def decay_setting() -> Any:
    """Declare ``history_decay``, the field of a signal whose user rows may forget."""
    return setting(
        None,
        "What a history's item counts beside the next later one, where there is an order; none: "
        "tuned where validation is later than training, else 1.",
        above=0.0,
        at_most=1.0,
    )


def folded_in(
    signal: SomeSignal,
    data: TrainingData,
    items: Rows,
    known: Mask,
    extra: Mapping[str, Rows] | None = None,
) -> Factors:
    """Tables of learned item rows, whose users are those of :meth:`Signal.fold_in`.

    Args:
        signal: the settings.
        data: of the users' histories.
        items: (n_items, d), as :meth:`~recbole_llm.factors.Factors.of` takes them.
        known: bool (n_items,), the rows that the signal has learned.
        extra: what it keeps beside its tables.
    """
    tables = Factors.of(np.zeros((0, 0), dtype=np.float32), items, known, extra)
    users = signal.fold_in(tables, signal.sources(tables), data.history)
    return dataclasses.replace(tables, users=users, offset=np.zeros(data.n_users, np.float32))


def by_recency(signal: SomeSignal, factors: Factors, data: TrainingData) -> Factors:
    """The tables with user rows folded in anew, where ``history_decay`` says that they forget.

    Nothing is learned anew. Without a decay below 1, or an order, the rows stay as learned.

    Args:
        signal: with ``history_decay``, in (0, 1] or None.
        factors: the signal as it was fitted.
        data: what it was fitted on.
    """
    decay = getattr(signal, "history_decay", None)
    if decay is None or decay == 1 or data.age is None:
        return factors
    rows = signal.fold_in(factors, signal.sources(factors), data.history)
    return dataclasses.replace(factors, users=rows)


class SingleSignal:
    """A help for signals that stand for themselves alone and are not searched."""

    completed: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    starts: ClassVar[Sequence[Mapping[str, Any]]] = ()
    encoders: Words = ()

    @property
    def uses_text(self) -> bool:
        """False: it reads none."""
        return False

    @property
    def uses_embeddings(self) -> bool:
        """False: it reads none."""
        return False

    @property
    def uses_attributes(self) -> bool:
        """False: it reads none."""
        return False

    def sources(self, factors: Factors) -> Rows:
        """The item rows."""
        return factors.items

    def describe(
        self,
        factors: Factors,
        embeddings: Mapping[str, Rows],
        attributes: sp.csr_matrix | None = None,
    ) -> Rows | None:
        """None: it reads no texts."""
        return None

    def settle(self: SomeSignal, data: TrainingData, run: RunOptions) -> SomeSignal:
        """Itself: it finds out nothing."""
        return self

    def variants(self: SomeSignal, name: str, encoders: Sequence[str]) -> dict[str, SomeSignal]:
        """Itself, under its own name."""
        return {name: self}


class TextSignal(SingleSignal):
    """A help for signals that read encoded texts, and whose user rows are directions of intent.

    Attributes:
        history_decay: see :func:`decay_setting`.
        user_text_weight: what a user's own text counts beside her history.
    """

    uses_text: ClassVar[bool] = True
    uses_embeddings: ClassVar[bool] = True
    history_decay: float | None
    user_text_weight: float

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Rows:
        """The direction of what is liked, summed, and of what the users say of themselves."""
        own = None
        if all(name in history.own_texts for name in self.encoders):
            own = self.describe(factors, history.own_texts)
        return user_intent(
            normalize(history.decayed(self.history_decay or 1.0), norm="l1"),
            liked,
            user_embeddings=own,
            user_text_weight=self.user_text_weight,
        )

    def variants(self: SomeSignal, name: str, encoders: Sequence[str]) -> dict[str, SomeSignal]:
        """One signal per encoder, ``name:encoder``."""
        return {
            f"{name}:{encoder}": with_settings(self, {"encoders": (encoder,)})
            for encoder in encoders
        }


def held_out_items(history: sp.csr_matrix, seed: int) -> Mask:
    """A seeded tenth of the items that occur in histories, bool (n_items,)."""
    warm = np.unique(history.indices)
    shuffled = np.random.default_rng(seed).permutation(warm)
    held = np.zeros(history.shape[1], dtype=bool)
    held[shuffled[: round(_HELD_OUT * len(warm))]] = True
    return held


def last_good_epoch(
    run_epoch: Callable[[], Factors], validation: Validation, run: RunOptions, *, most: int
) -> int:
    """The last epoch after which held-out items are ranked well, at least 1.

    Args:
        run_epoch: trains for one epoch more and gives the tables.
        validation: what the tables are judged by.
        run: device and seed.
        most: epochs that are tried.
    """
    validation = validation.sample(_VALIDATION_USERS, seed=run.seed)
    best_value, last_epoch = -1.0, 1
    for epoch in range(1, most + 1):
        value = evaluate([run_epoch()], validation, _METRIC, run.device)
        if value < _AS_GOOD * best_value:
            break
        best_value, last_epoch = max(best_value, value), epoch
    return last_epoch


def last(steps: Steps) -> Factors:
    """The tables when all is learned."""
    *_, tables = steps
    return tables()


def with_settings(signal: SomeSignal, values: Mapping[str, Any]) -> SomeSignal:
    """A copy of a signal with some fields changed."""
    return dataclasses.replace(signal, **values)  # type: ignore[type-var]  # a dataclass, by contract
