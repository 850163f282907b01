"""What a study looks for, how it goes, and which of its trials is the one to take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from recbole_llm.errors import SettingsError


@dataclass(frozen=True)
class Objective:
    """What is looked for: a metric, or something that a model costs."""

    name: str
    maximise: bool = True

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Optuna's word for it."""
        return "maximize" if self.maximise else "minimize"

    def better(self, value: float, other: float) -> bool:
        """Whether a value is better than another one."""
        return value > other if self.maximise else value < other


@dataclass(frozen=True)
class StudyOptions:
    """How a study goes; no part of its identity but its objectives.

    Attributes:
        name: of the study in its storage.
        storage: an Optuna URL, ``journal:FILE``, or None for memory alone.
        objectives: at least one.
        trials: in all, those of earlier commands included.
        timeout: seconds after which no further trial starts; None: none.
        sampler, pruner: one of :mod:`~recbole_llm.tuning.samplers`.
        seed: of the proposals.
    """

    name: str
    storage: str | None
    objectives: tuple[Objective, ...]
    trials: int
    timeout: float | None = None
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 2020


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have a value, by their numbers."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def best_trial(
    trials: Sequence[FrozenTrial], objectives: Sequence[Objective]
) -> FrozenTrial | None:
    """The trial with the best first objective, the first of equals; None where none has a value."""
    sign = 1 if objectives[0].maximise else -1
    return max(trials, key=lambda trial: sign * trial.values[0], default=None)


def first_failure(study: optuna.Study) -> str | None:
    """Why the first of the failed trials failed; None where none did."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return next((trial.user_attrs.get("reason", "no reason known") for trial in failed), None)


_PICK = re.compile(r"\s*(\S+?)\s*(>=|<=)\s*([0-9.eE+-]+)\s*(\*\s*best)?\s*")


@dataclass(frozen=True)
class Pick:
    """A bound that a point of a Pareto front must keep, such as ``ndcg@10 >= 0.995*best``.

    Attributes:
        place: of the objective that is bounded.
        at_least: whether the bound is a lower one.
        bound: the number.
        of_best: whether it is multiplied by the best value of that objective.
    """

    place: int
    at_least: bool
    bound: float
    of_best: bool

    @classmethod
    def parse(cls, text: str, objectives: Sequence[Objective]) -> Pick:
        """Read ``--pick``.

        Raises:
            SettingsError: it cannot be read, or names no objective.
        """
        match = _PICK.fullmatch(text)
        names = [objective.name for objective in objectives]
        try:
            assert match is not None
            bound = float(match[3])
        except (AssertionError, ValueError):
            raise SettingsError(
                f'`pick` must look like "{names[0]} >= 0.995*best", got {text!r}'
            ) from None
        if match[1].lower() not in names:
            raise SettingsError(
                f"`pick` names {match[1]}, but the objectives are {', '.join(names)}"
            )
        return cls(names.index(match[1].lower()), match[2] == ">=", bound, match[4] is not None)

    def choose(self, study: optuna.Study, objectives: Sequence[Objective]) -> FrozenTrial:
        """Of the front's points within the bound the one that is best by the other objectives.

        Raises:
            SettingsError: no trial keeps the bound.
        """
        front = sorted(study.best_trials, key=lambda trial: trial.number)
        sign = 1 if objectives[self.place].maximise else -1
        best = max(sign * trial.values[self.place] for trial in front) * sign
        bound = self.bound * best if self.of_best else self.bound
        kept = [
            trial
            for trial in front
            if (trial.values[self.place] >= bound) == self.at_least
            or trial.values[self.place] == bound
        ]
        if not kept:
            name = objectives[self.place].name
            raise SettingsError(f"`pick`: no trial keeps {name} within {bound:g}; best is {best:g}")
        order = [place for place in range(len(objectives)) if place != self.place] + [self.place]
        return max(
            kept,
            key=lambda trial: [
                trial.values[place] * (1 if objectives[place].maximise else -1) for place in order
            ],
        )


def choose(
    study: optuna.Study, objectives: Sequence[Objective], pick: Pick | None
) -> FrozenTrial | None:
    """The trial that is put in force; None where none has a value."""
    if pick is not None and complete_trials(study):
        return pick.choose(study, objectives)
    return best_trial(complete_trials(study), objectives)
