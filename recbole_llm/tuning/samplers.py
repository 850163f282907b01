"""Samplers whose proposals follow from the study's seed, the trial's number and earlier trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.trial import FrozenTrial, TrialState

from recbole_llm.errors import SettingsError
from recbole_llm.tuning.objectives import StudyOptions, best_trial
from recbole_llm.tuning.spaces import Space
from recbole_llm.tuning.trials import tpe

SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc")
PRUNERS = ("median", "halving", "hyperband", "none")


def make_sampler(name: str, seed: int, number: int) -> BaseSampler:
    """A sampler for one trial.

    Args:
        name: one of :data:`SAMPLERS`.
        seed: of the study.
        number: the trial's.

    Raises:
        SettingsError: it needs a library that is not there.
    """
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "qmc":
        return _QMC(seed, number)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=own, deterministic_objective=True)
    if name == "cmaes":
        try:
            import cmaes  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise SettingsError("`sampler`: it needs `cmaes`; run `pip install cmaes`") from error
        return optuna.samplers.CmaEsSampler(seed=own, warn_independent_sampling=False)
    return tpe(own)


class _QMC(optuna.samplers.QMCSampler):
    """The point of the sequence that a trial's number says: Optuna counts the points it gave."""

    def __init__(self, seed: int, number: int) -> None:
        super().__init__(
            scramble=True,
            seed=seed,
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
        )
        self._number = number

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, Any]) -> int:
        return self._number


class SeededByNumber(BaseSampler):
    """A new sampler for each trial; the starts first, then the groups of parameters in turn.

    Parameters of other groups stay as the best trial has them: each trial then needs one signal
    that was not fitted before.
    """

    def __init__(
        self, options: StudyOptions, space: Space, starts: Sequence[Mapping[str, Any]]
    ) -> None:
        self.options, self.space, self.starts = options, space, starts
        self.groups = list(dict.fromkeys(part.group for part in space.values()))
        self._now: BaseSampler = optuna.samplers.RandomSampler(seed=options.seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose the trial's sampler."""
        sampler = make_sampler(self.options.sampler, self.options.seed, trial.number)
        fixed = self._fixed(study, trial.number)
        self._now = PartialFixedSampler(fixed, sampler) if fixed else sampler
        self._now.before_trial(study, trial)

    def _fixed(self, study: optuna.Study, number: int) -> dict[str, Any]:
        if number < len(self.starts):
            return dict(self.starts[number])
        if len(self.groups) < 2:
            return {}
        group = self.groups[number % len(self.groups)]
        best = best_trial(known_trials(study, TrialState.COMPLETE), self.options.objectives)
        values = best.params if best else self.starts[0]
        return {name: values[name] for name, part in self.space.items() if part.group != group}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As of the trial's sampler."""
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Likewise."""
        # Importing RecBole's SINE makes every NaN gradient of the process an error; the Gaussian
        # process's search has some, and goes on from them.
        with torch.autograd.set_detect_anomaly(False):
            return self._now.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Likewise."""
        return self._now.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Likewise."""
        self._now.after_trial(study, trial, state, values)


def make_pruner(options: StudyOptions) -> BasePruner:
    """What gives a poor trial up early."""
    if options.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=10)
    if options.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    if options.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


def known_trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The trials as they were when this process began its own."""
    return study._get_trials(deepcopy=False, states=states or None, use_cache=True)
