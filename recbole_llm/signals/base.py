"""What a signal is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import scipy.sparse as sp
from sklearn.preprocessing import normalize

from recbole_llm.factors import Factors, Rows
from recbole_llm.intent import user_intent
from recbole_llm.settings import RunOptions, Words
from recbole_llm.training_data import TrainingData

SomeSignal = TypeVar("SomeSignal", bound="Signal")


class SkippedSignal(Exception):
    """A signal has nothing to say on these data; its message says why, and the work goes on."""


class Signal(Protocol):
    """A frozen dataclass of settings that learns :class:`~recbole_llm.factors.Factors`.

    Attributes:
        starts: settings known to be good on some kind of data; a search tries them first.
        uses_text: whether it reads the items' texts.
        uses_embeddings: whether it reads them encoded.
        completed: whether users and items that it has not seen get their rows from their texts.
        seeded: whether its tables start at random, so that another seed gives others.
    """

    uses_text: ClassVar[bool]
    uses_embeddings: ClassVar[bool]
    completed: ClassVar[bool]
    seeded: ClassVar[bool]
    starts: ClassVar[Sequence[Mapping[str, Any]]]

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

    def fold_in(self, factors: Factors, liked: Rows, weights: sp.csr_matrix) -> Rows:
        """User rows of newcomers from their histories; nothing is learned anew.

        Args:
            factors: the signal as it was fitted; of its users nothing is read.
            liked: (m, s), rows of :meth:`sources`, or item rows of like kind made from words.
            weights: CSR float32 (n_new, m), what each counts in a history, > 0; an interaction of
                mean weight counts 1.

        Returns:
            float32 (n_new, d), rows as of ``factors.users``; zero for an empty history, where
            the signal says something of the user at all.
        """
        ...

    def describe(self, factors: Factors, embeddings: Mapping[str, Rows]) -> Rows | None:
        """Item rows of texts, (n, d), zero where nothing is known of one.

        Args:
            factors: the signal as it was fitted.
            embeddings: encoder's name -> unit rows (n, d_b) of n texts.

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


@runtime_checkable
class InSteps(Protocol):
    """A signal that can be looked at while it learns, so that a poor one is given up early."""

    def fit_in_steps(self, data: TrainingData, run: RunOptions) -> Iterator[Factors]:
        """The tables after every few sweeps; the last are those of :meth:`Signal.fit`."""
        ...


class SingleSignal:
    """A help for signals that stand for themselves alone and are not searched."""

    uses_text: ClassVar[bool] = False
    uses_embeddings: ClassVar[bool] = False
    completed: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    starts: ClassVar[Sequence[Mapping[str, Any]]] = ()
    encoders: Words = ()

    def sources(self, factors: Factors) -> Rows:
        """The item rows."""
        return factors.items

    def describe(self, factors: Factors, embeddings: Mapping[str, Rows]) -> Rows | None:
        """None: it reads no texts."""
        return None

    def settle(self: SomeSignal, data: TrainingData, run: RunOptions) -> SomeSignal:
        """Itself: it finds out nothing."""
        return self

    def variants(self: SomeSignal, name: str, encoders: Sequence[str]) -> dict[str, SomeSignal]:
        """Itself, under its own name."""
        return {name: self}


class TextSignal(SingleSignal):
    """A help for signals that read encoded texts, and whose user rows are directions of intent."""

    uses_text: ClassVar[bool] = True
    uses_embeddings: ClassVar[bool] = True

    def fold_in(self, factors: Factors, liked: Rows, weights: sp.csr_matrix) -> Rows:
        """The direction of what is liked, summed."""
        return user_intent(normalize(weights, norm="l1"), liked)

    def variants(self: SomeSignal, name: str, encoders: Sequence[str]) -> dict[str, SomeSignal]:
        """One signal per encoder, ``name:encoder``."""
        return {
            f"{name}:{encoder}": with_settings(self, {"encoders": (encoder,)})
            for encoder in encoders
        }


def last(steps: Iterator[Factors]) -> Factors:
    """The tables when all is learned."""
    *_, factors = steps
    return factors


def with_settings(signal: SomeSignal, values: Mapping[str, Any]) -> SomeSignal:
    """A copy of a signal with some fields changed."""
    return dataclasses.replace(signal, **values)  # type: ignore[type-var]  # a dataclass, by contract
