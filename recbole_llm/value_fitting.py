"""Clicks and ratings from training data: the signals and their sides, weighed by a regression."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from recbole_llm.calibration import calibration_error
from recbole_llm.completion import bias_map
from recbole_llm.evaluation import Metric, Validation
from recbole_llm.factors import Factors, Table, gated
from recbole_llm.fitting import (
    FitReport,
    Fitted,
    Source,
    encode,
    fit_signals,
    for_all,
    listed,
    newcomers_of,
)
from recbole_llm.fusion import Fused
from recbole_llm.model_settings import ModelSettings
from recbole_llm.newcomers import Newcomers
from recbole_llm.scoring import Scorer
from recbole_llm.settings import RunOptions
from recbole_llm.signal_cache import fit_cached
from recbole_llm.signals import SkippedSignal
from recbole_llm.training_data import TrainingData
from recbole_llm.values import (
    Expectation,
    Labelled,
    PairFeatures,
    Prediction,
    ValueScale,
    ValueTask,
    best_penalty,
    damped_biases,
    fit_regression,
    held_out_values,
)

logger = logging.getLogger(__name__)

# What signals' settings are searched by.
_SEARCHED_BY = Metric("ndcg", 10)


def fit_values(
    data: TrainingData,
    validation: Validation | None,
    task: ValueTask,
    settings: ModelSettings,
    run: RunOptions,
    *,
    user_texts: tuple[str, ...] = (),
) -> tuple[tuple[Factors, ...], FitReport, Newcomers, Prediction]:
    """Fit all signals, and make clicks or ratings of their scores by a regression.

    Each signal is fitted on all interactions, and again on those that count more than was expected
    of the user and the item, and on those that count less: having a thing is not liking it.

    Args:
        data: the training part, without embeddings.
        validation: what the signals' own settings are searched by, as rankings.
        task: what is predicted.
        settings: the model's.
        run: device, seed, progress.
        user_texts: n_users texts of the users' own, or none at all.

    Returns:
        As :func:`fit_model`, and what makes predictions of the scores.

    Raises:
        DataError: no signal has anything to learn from.
        SettingsError: an encoder cannot be had.
    """
    report = FitReport(metric=str(_SEARCHED_BY) if validation else None)
    source = encode(data, user_texts, settings, run, report)
    with report.timed("signals"):
        fitted = fit_signals(source, validation, settings, _SEARCHED_BY, run, report)
        expectation = Expectation.of(source.data.history)
        fitted |= _of_sides(fitted, source, expectation, settings, run)
    with report.timed("tune"):
        fused, prediction = regress(fitted, source, task, run)
    report.weights = dict(fused.weights)
    logger.info(f"weights: {listed(report.weights)}")
    newcomers = dataclasses.replace(newcomers_of(fitted, fused, source), expectation=expectation)
    return fused.blocks, report, newcomers, prediction


def _of_sides(
    fitted: Mapping[str, Fitted],
    source: Source,
    expectation: Expectation,
    settings: ModelSettings,
    run: RunOptions,
) -> dict[str, Fitted]:
    """The signals once more on what users liked and on what they did not, ``LABEL:SIDE``."""
    found: dict[str, Fitted] = {}
    for side in expectation.sizes:
        start = perf_counter()
        part = dataclasses.replace(source, data=expectation.side_of(source.data, side))
        for label, of_all in fitted.items():
            try:
                _, factors = fit_cached(of_all.signal, part.data, run)
            except SkippedSignal:
                continue
            again = for_all(of_all.signal, factors, part, settings, run)
            found[f"{label}:{side}"] = dataclasses.replace(again, side=side)
        logger.info(
            f"fitted again on the {part.data.interactions.nnz:,} interactions that are {side} "
            f"[{perf_counter() - start:.1f}s]"
        )
    return found


def regress(
    fitted: Mapping[str, Fitted], source: Source, task: ValueTask, run: RunOptions
) -> tuple[Fused, Prediction]:
    """Weigh the signals and biases by a regression on the validation rows.

    The blocks score by all but what a user adds to each of her items.
    """
    scale = ValueScale.of(task.train.values)
    of_users, of_items = damped_biases(
        task.train.users,
        task.train.items,
        (task.train.values - scale.mean) / scale.spread,
        task.shape,
    )
    ridge = bias_map(source.item_features, of_items.astype(np.float32), source.data.item_counts)
    if source.item_features is not None and ridge is not None:
        cold = source.item_features.described & ~source.data.warm_items
        of_items[cold] = ridge.apply(source.item_features[cold])[:, 0]
    signals = [part.factors for part in fitted.values()]
    rows = task.valid
    pairs = PairFeatures(_scores(signals, rows, run), of_users[rows.users], of_items[rows.items])
    is_clicks = task.is_clicks
    penalty, held_out = best_penalty(pairs, rows.values, scale, is_clicks=is_clicks, seed=run.seed)
    biases = held_out_values(
        dataclasses.replace(pairs, z_scores=pairs.z_scores[:, :0]),
        rows.values,
        scale,
        is_clicks=is_clicks,
        penalty=penalty,
        seed=run.seed,
    )
    for what, values in (("biases alone", biases), ("with all signals", held_out)):
        logger.info(f"folds of the validation part, {what}: {_errors(values, rows, task)}")
    found = fit_regression(pairs, rows.values, scale, is_clicks=is_clicks, penalty=penalty)
    constant = (found.of_item * of_items).astype(np.float32)
    constant[0] = 0
    gains = [np.full(task.shape[1], gain, dtype=np.float32) for gain in found.gains]
    weights = dict(zip(fitted, found.gains.tolist(), strict=True))
    user_terms = found.intercept + found.of_user * of_users
    return (
        Fused(gated(signals, gains, constant), weights),
        Prediction(is_clicks, user_terms, scale),
    )


def _scores(signals: Sequence[Factors], rows: Labelled, run: RunOptions) -> Table:
    """The signals' scores of n pairs, (n, n_signals)."""
    users, items = (torch.from_numpy(part).to(run.device) for part in (rows.users, rows.items))
    return np.stack(
        [Scorer([part], run.device).pairs(users, items).cpu().numpy() for part in signals], axis=1
    )


def _errors(found: NDArray[np.float64], rows: Labelled, task: ValueTask) -> str:
    """How far predictions are off, for the log."""
    if task.is_clicks:
        error = calibration_error(found, rows.values)
        loss = log_loss(rows.values, found, labels=[0, 1])
        return f"logloss {loss:.4f}, calibration error {error:.4f}"
    off = found - rows.values
    return f"rmse {np.sqrt(np.square(off).mean()):.4f}, mae {np.abs(off).mean():.4f}"
