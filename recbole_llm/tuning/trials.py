"""One way to run an Optuna study: seeded, quiet, with known starts and a bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from tqdm import tqdm

from recbole_llm.settings import Search

Trial = dict[str, Any]


def maximise(
    objective: Callable[[Trial], float],
    space: Mapping[str, tuple[type, Search]],
    *,
    starts: Sequence[Mapping[str, Any]],
    n_trials: int,
    seed: int,
    title: str,
    progress: bool,
) -> optuna.Study:
    """Try settings: the starts first, then what Optuna's TPE proposes.

    Args:
        objective: what to maximise, of a parameter -> value mapping.
        space: parameter -> (int, float or str, where it is searched).
        starts: settings to try first, as far as the number of trials goes.
        n_trials: how many are tried in all.
        seed: of the sampler.
        title: of the progress bar.
        progress: whether to show the bar.

    Returns:
        The study; the first of equal trials is its best.
    """

    def suggest(trial: optuna.Trial) -> float:
        return objective({name: _suggest(trial, name, *where) for name, where in space.items()})

    verbosity = optuna.logging.get_verbosity()
    # Of a trial that Ctrl-C ends, Optuna would warn with a traceback.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        # multivariate: the parameters count by their ratios, so they are searched jointly.
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for start in starts[:n_trials]:
            study.enqueue_trial(dict(start))
        with tqdm(total=n_trials, desc=title, disable=not progress, leave=False) as bar:
            study.optimize(suggest, n_trials=n_trials, callbacks=[lambda *_: bar.update() or None])
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study


def _suggest(trial: optuna.Trial, name: str, kind: type, search: Search) -> Any:
    if search.choices:
        return trial.suggest_categorical(name, search.choices)
    suggest = trial.suggest_int if kind is int else trial.suggest_float
    return suggest(name, kind(search.low), kind(search.high), log=search.log)
