"""A study within a run: in memory, quiet, with known starts and a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from tqdm import tqdm

from recbole_llm.tuning.spaces import Space, suggest

Trial = dict[str, Any]


def maximise(
    objective: Callable[[Trial], float],
    space: Space,
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
        space: what is searched.
        starts: settings to try first, as far as the number of trials goes.
        n_trials: how many are tried in all.
        seed: of the sampler.
        title: of the progress bar.
        progress: whether to show the bar.

    Returns:
        The study; the first of equal trials is its best.
    """
    with quiet():
        study = optuna.create_study(direction="maximize", sampler=tpe(seed))
        for start in starts[:n_trials]:
            study.enqueue_trial(dict(start))
        with tqdm(total=n_trials, desc=title, disable=not progress, leave=False) as bar:
            study.optimize(
                lambda trial: objective(suggest(trial, space)),
                n_trials=n_trials,
                callbacks=[lambda *_: bar.update() or None],
            )
    return study


def tpe(seed: int) -> optuna.samplers.TPESampler:
    """Optuna's TPE; weights count by their ratios, so parameters are searched jointly."""
    with quiet():
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log: of a trial that Ctrl-C ends it would warn with a traceback."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
