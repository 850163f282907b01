"""What a fusion rule is, and what it is fitted on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import scipy.sparse as sp

from recbole_llm.evaluation import Metric, Validation
from recbole_llm.factors import Factors, Mask
from recbole_llm.settings import RunOptions

Weights: TypeAlias = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Situation:
    """What the signals say at some time, and what the users wanted after it.

    Attributes:
        factors: label -> standardised signal with completed rows.
        known: CSR (n_users, n_items), the interactions that the signals learned from.
        wanted: CSR of that shape, those to be found; None where nothing is known of them.
        hidden: CSR of that shape, those that are not ranked; None: ``known``.
    """

    factors: Mapping[str, Factors]
    known: sp.csr_matrix
    wanted: sp.csr_matrix | None
    hidden: sp.csr_matrix | None = None

    @property
    def cold(self) -> Mask:
        """Items without an interaction of which some signal knows, bool (n_items,)."""
        told = np.logical_or.reduce([factors.known for factors in self.factors.values()])
        return told & (np.bincount(self.known.indices, minlength=self.known.shape[1]) == 0)

    def judged(self, slice_name: str = "") -> list[Judged]:
        """The signals and what they are judged by on a slice; none where it has no user."""
        if self.wanted is None:
            return []
        validation = Validation.of(self.known, self.wanted, slice_name)
        if validation and self.hidden is not None:
            validation = dataclasses.replace(validation, known=self.hidden)
        return [Judged(self.factors, validation)] if validation else []


@dataclass(frozen=True, eq=False)
class Judged:
    """Signals and the users that they are judged by."""

    factors: Mapping[str, Factors]
    validation: Validation

    def of(self, labels: Sequence[str]) -> Judged:
        """Some of the signals alone."""
        return Judged({label: self.factors[label] for label in labels}, self.validation)


class Tune(Protocol):
    """Weights that are good for all of some judged sets of the same signals."""

    def __call__(self, sets: Sequence[Judged]) -> Weights:
        """Shares that sum to 1, none where there is nothing to tune by.

        Args:
            sets: what is looked at; each counts the same.
        """
        ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a rule is fitted on.

    Attributes:
        now: the signals as they are served, with the validation part as what is wanted.
        as_if_cold: the signals that learned without some of the warm items, which are completed
            like cold ones; what is wanted are these items' training interactions. None where no
            item can be completed. Slow: the signals are fitted anew.
        tune: the tuner of weights, for a set large enough that the best of many trials counts.
        select: a tuner for few and small sets, see
            :func:`~recbole_llm.tuning.weights.select_weights`.
        metric: the objective.
        run: device, seed.
        weights: label -> weight of every signal where the user fixed them; None: to be tuned.
        cold_weights: label -> what a cold item's z-score is multiplied by, likewise.
        new_users: by what users without history are served: ``signals``, ``popularity``, or
            ``auto``, what validates better.
    """

    now: Situation
    as_if_cold: Callable[[], Situation | None]
    tune: Tune
    select: Tune
    metric: Metric
    run: RunOptions
    weights: Weights | None = None
    cold_weights: Weights | None = None
    new_users: str = "auto"

    def tuned(self, slice_name: str = "") -> Weights:
        """Every signal's weight, as fixed, as tuned on a slice of the validation part, or equal."""
        if self.weights is not None:
            return self.weights
        return or_equal(self.tune(self.now.judged(slice_name)), self.now.factors)


@dataclass(frozen=True, eq=False)
class Fused:
    """A fused model.

    Attributes:
        blocks: tables whose scores add up to the fused ones.
        weights: label -> share of the score (of a warm item's, where it makes a difference).
        cold_weights: the same for cold items; empty where they are treated alike.
        cold_level: what is added to a cold item's fused z-score; None likewise.
        exposure: what other levels would give, by increasing level: ``level``, ``cold_share`` of
            the top k, and the metric on ``all``, ``warm_in_all``, ``cold_in_all`` (None where
            nobody wants such items).
        cold_gains: label -> what a cold item's z-score is multiplied by; empty: ``weights``.
        new_users: by what users without history are served, ``signals`` or ``popularity``.
    """

    blocks: tuple[Factors, ...]
    weights: Weights
    cold_weights: Weights = field(default_factory=dict)
    cold_level: float | None = None
    exposure: Sequence[Mapping[str, float | None]] = ()
    cold_gains: Weights = field(default_factory=dict)
    new_users: str = "signals"


def or_equal(weights: Weights, labels: Collection[str]) -> Weights:
    """The weights of all labels, equal ones where none were tuned."""
    return {label: weights.get(label, 1 / len(labels)) for label in labels}


class Fusion(Protocol):
    """A rule by which standardised signals become one model."""

    def fit(self, evidence: Evidence, cold_exposure: str) -> Fused:
        """Choose the rule's parameters and fuse the tables.

        May scale a table as wide as there are items in place, since it can fill the memory.
        """
        ...
