"""From training data to a fused model: encode, fit, standardise, tune, concatenate.

This is the one pipeline of all models; they differ in the signals that they are made of.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from recbole_llm.embedding_cache import EmbeddingCache, default_folder, encode_cached
from recbole_llm.encoders import EncoderOptions, build
from recbole_llm.errors import DataError
from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import Factors, Rows, standardise
from recbole_llm.fusion import FUSIONS
from recbole_llm.model_settings import ModelSettings
from recbole_llm.settings import RunOptions, TextSettings
from recbole_llm.signals import Signal, SkippedSignal
from recbole_llm.training_data import TrainingData
from recbole_llm.tuning.signal_search import search_signal, search_space
from recbole_llm.tuning.weights import tune_weights

logger = logging.getLogger(__name__)


@dataclass
class FitReport:
    """What happened while a model was fitted, for the log and the record.

    Attributes:
        metric: the objective, such as ``ndcg@10``; None without validation rows.
        signals: label -> the signal's own validation metric (None without validation rows).
        settings: label -> the signal's settings in force, searched ones included.
        weights: label -> share of the fused score.
        fused: the fused validation metric on the users that the weights were tuned on.
        seconds: phase -> seconds.
        texts: distinct texts ``encoded`` now, and ``cached`` before.
        trials_per_second: of the weights' tuning; None where nothing was tuned.
    """

    metric: str | None = None
    signals: dict[str, float | None] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    fused: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=lambda: {"encoded": 0, "cached": 0})
    trials_per_second: float | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that a block takes to a phase."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - start


def fit_model(
    data: TrainingData,
    validation: Validation | None,
    settings: ModelSettings,
    metric: Metric,
    run: RunOptions,
    *,
    user_texts: tuple[str, ...] = (),
) -> tuple[tuple[Factors, ...], FitReport]:
    """Fit all signals and fuse them.

    Args:
        data: the training part, without embeddings.
        validation: what settings and weights are chosen by; None: equal weights.
        settings: the model's.
        metric: the objective.
        run: device, seed, progress.
        user_texts: n_users texts of the users' own, or none at all.

    Returns:
        Blocks of tables whose scores add up to the model's, and the report.

    Raises:
        DataError: no signal has anything to learn from.
        SettingsError: an encoder cannot be had.
    """
    report = FitReport(metric=str(metric) if validation else None)
    if settings.uses_embeddings:
        with report.timed("encode"):
            data = _with_embeddings(data, user_texts, settings.text, run, report)
    with report.timed("signals"):
        factors = _fit_signals(data, validation, settings, metric, run, report)
    with report.timed("tune"):
        blocks = _fuse(factors, validation, settings, metric, run, report)
    return blocks, report


def _with_embeddings(
    data: TrainingData,
    user_texts: tuple[str, ...],
    settings: TextSettings,
    run: RunOptions,
    report: FitReport,
) -> TrainingData:
    cache = _open_cache(settings.embedding_cache)
    options = EncoderOptions(run.device, settings.encoder_batch_size, run.progress)
    items: dict[str, Rows] = {}
    users: dict[str, Rows] = {}
    for spec in settings.encoder:
        encoder = build(spec, options)
        if not any(data.item_texts):
            continue
        encoder = encoder.fit(data.item_texts)
        for texts, rows in ((data.item_texts, items), (user_texts, users)):
            if any(texts):
                rows[spec], counts = encode_cached(encoder, texts, cache)
                report.texts["encoded"] += counts.encoded
                report.texts["cached"] += counts.cached
    with_text = sum(map(bool, data.item_texts))
    logger.info(
        f"texts: {with_text:,} of {data.n_items - 1:,} items have one; "
        f"{report.texts['encoded']:,} encoded, {report.texts['cached']:,} from the cache"
    )
    return dataclasses.replace(data, item_embeddings=items, user_embeddings=users)


def _open_cache(setting: str | None) -> EmbeddingCache | None:
    if setting is None:
        return None
    return EmbeddingCache(default_folder() if setting == "default" else Path(setting).expanduser())


def _fit_signals(
    data: TrainingData,
    validation: Validation | None,
    settings: ModelSettings,
    metric: Metric,
    run: RunOptions,
    report: FitReport,
) -> dict[str, Factors]:
    fitted: dict[str, Factors] = {}
    skipped: dict[str, str] = {}
    for name, configured in settings.signals.items():
        fixed = settings.fixed[name]
        for label, signal in configured.variants(name, settings.text.encoder).items():
            start = perf_counter()
            try:
                signal, factors, searched = _fit_one(
                    label, signal, data, validation, settings, metric, run, fixed
                )
            except SkippedSignal as reason:
                skipped[label] = str(reason)
                logger.warning(f"{label}: left out, {reason}")
                continue
            fitted[label] = factors
            value = evaluate([factors], validation, metric, run.device) if validation else None
            report.signals[label] = value
            report.settings[label] = dataclasses.asdict(signal)  # type: ignore[call-overload]
            alone = f"alone {metric} {value:.4f} on the validation split" if value else "fitted"
            logger.info(f"{label}: {alone}{searched} [{perf_counter() - start:.1f}s]")
    if not fitted:
        raise DataError("nothing to learn from: " + "; ".join(dict.fromkeys(skipped.values())))
    return fitted


def _fit_one(
    label: str,
    signal: Signal,
    data: TrainingData,
    validation: Validation | None,
    settings: ModelSettings,
    metric: Metric,
    run: RunOptions,
    fixed: frozenset[str],
) -> tuple[Signal, Factors, str]:
    n_trials = settings.search.signal_search_trials
    space = search_space(signal, fixed)
    if validation is None or not n_trials or not space:
        return signal, standardise(signal.fit(data, run)), ""
    found = search_signal(
        label, signal, data, validation, metric, run, n_trials=n_trials, fixed=fixed
    )
    chosen = ", ".join(f"{name} {getattr(found.signal, name):.4g}" for name in space)
    return found.signal, found.factors, f", best of {n_trials} settings ({chosen})"


def _fuse(
    factors: Mapping[str, Factors],
    validation: Validation | None,
    settings: ModelSettings,
    metric: Metric,
    run: RunOptions,
    report: FitReport,
) -> tuple[Factors, ...]:
    fusion = FUSIONS[settings.fusion.fusion]
    parameters = fusion.starts(list(factors))[0]
    if len(factors) > 1 and validation is None:
        logger.info("no validation rows: the signals count equally")
    elif len(factors) > 1 and settings.fusion.weight_trials:
        assert validation is not None
        tuned = tune_weights(
            factors,
            validation,
            fusion,
            metric,
            run,
            n_trials=settings.fusion.weight_trials,
            memory_gb=settings.fusion.tuning_memory_gb,
        )
        parameters = tuned.parameters
        report.trials_per_second = tuned.trials_per_second
    blocks = fusion.fuse(parameters, list(factors.values()))
    report.weights = dict(fusion.weights(parameters))
    if len(factors) > 1 and validation is not None:
        report.fused = evaluate(blocks, validation, metric, run.device)
        _log_shares(report, metric)
    return blocks


def _log_shares(report: FitReport, metric: Metric) -> None:
    best = max(report.signals, key=lambda label: report.signals[label] or 0.0)
    shares = ", ".join(f"{label} {weight:.2f}" for label, weight in report.weights.items())
    logger.info(f"weights: {shares}")
    logger.info(
        f"fused: {metric} {report.fused:.4f} on the validation split; "
        f"the best signal alone, {best}, has {report.signals[best]:.4f}"
    )
