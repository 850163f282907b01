"""From training data to a fused model: encode, fit, standardise, tune, fuse.

This is the one pipeline of all models; they differ in the signals that they are made of.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from recbole_llm.completion import (
    Features,
    RidgeMap,
    complete,
    complete_users,
    completion_map,
    features_of,
)
from recbole_llm.embedding_cache import EmbeddingCache, default_folder, encode_cached
from recbole_llm.encoders import EncoderOptions, NetworkOptions, build
from recbole_llm.errors import DataError, SettingsError
from recbole_llm.evaluation import JUDGED_USERS, Metric, Validation, evaluate
from recbole_llm.factors import Factors, Mask, Rows, standardise
from recbole_llm.fusion import (
    FUSIONS,
    Evidence,
    Fused,
    Judged,
    Situation,
    exposure_table,
    write_exposure_plot,
)
from recbole_llm.fusion.new_users import POPULARITY
from recbole_llm.model_settings import ModelSettings
from recbole_llm.newcomers import LearnedSignal, Newcomers
from recbole_llm.settings import RunOptions, TextSettings
from recbole_llm.signal_cache import fit_cached
from recbole_llm.signals import Signal, SkippedSignal
from recbole_llm.training_data import TrainingData, without_items
from recbole_llm.tuning.recency import choose_decay
from recbole_llm.tuning.signal_search import search_signal, search_space
from recbole_llm.tuning.weights import select_weights, tune_weights

logger = logging.getLogger(__name__)

# One in so many of the warm items is made cold to find the weights of cold ones.
_FOLDS = 5


@dataclass
class FitReport:
    """What happened while a model was fitted, for the log and the record.

    Attributes:
        metric: the objective, such as ``ndcg@10``; None without validation rows.
        signals: label -> the signal's own validation metric (None without validation rows).
        settings: label -> the signal's settings in force, searched ones included.
        weights: label -> share of the fused score; of warm items' under the warmth gate.
        cold_weights: label -> share of a cold item's score; empty where they are treated alike.
        cold_level: what is added to a cold item's fused z-score; None likewise.
        exposure: what other levels would give, see :class:`~recbole_llm.fusion.Fused`.
        new_users: see :class:`~recbole_llm.fusion.Fused`.
        fused: the fused validation metric; of many users, as of signals', that of a sample.
        seconds: phase -> seconds.
        texts: distinct texts ``encoded`` now, and ``cached`` before.
        trials_per_second: of the weights' tuning; None where nothing was tuned.
    """

    metric: str | None = None
    signals: dict[str, float | None] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    cold_weights: dict[str, float] = field(default_factory=dict)
    cold_level: float | None = None
    exposure: list[dict[str, float | None]] = field(default_factory=list)
    new_users: str = "signals"
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
) -> tuple[tuple[Factors, ...], FitReport, Newcomers]:
    """Fit all signals and fuse them.

    Args:
        data: the training part, without embeddings.
        validation: what settings and weights are chosen by; None: equal weights.
        settings: the model's.
        metric: the objective.
        run: device, seed, progress.
        user_texts: n_users texts of the users' own, or none at all.

    Returns:
        Blocks of tables whose scores add up to the model's, the report, and what it takes to
        give rows to newcomers.

    Raises:
        DataError: no signal has anything to learn from.
        SettingsError: an encoder cannot be had.
    """
    report = FitReport(metric=str(metric) if validation else None)
    source = encode(data, user_texts, settings, run, report)
    with report.timed("signals"):
        fitted = fit_signals(source, validation, settings, metric, run, report)
    with report.timed("tune"):
        fused = fuse(fitted, source, validation, settings, metric, run, report)
        if len(fitted) > 1 and validation is not None:
            report.fused = _judged(fused.blocks, validation, metric, run)
    _log(report, metric)
    _plot(report, metric, settings.fusion.exposure_plot)
    return fused.blocks, report, newcomers_of(fitted, fused, source)


@dataclass(frozen=True, eq=False)
class Source:
    """What signals are fitted on.

    Attributes:
        data: the training part with its texts encoded.
        item_features, user_features: what completion reads, None where nothing is told.
        encoders: encoder -> its fingerprint.
        network: what the encoders' files are taken for and run by.
    """

    data: TrainingData
    item_features: Features | None
    user_features: Features | None
    encoders: Mapping[str, str]
    network: NetworkOptions


def encode(
    data: TrainingData,
    user_texts: tuple[str, ...],
    settings: ModelSettings,
    run: RunOptions,
    report: FitReport,
) -> Source:
    """The data with their texts encoded, where anything reads them.

    Raises:
        SettingsError: an encoder cannot be had.
    """
    encoders: dict[str, str] = {}
    if settings.uses_embeddings:
        with report.timed("encode"):
            data, encoders = _with_embeddings(data, user_texts, settings.text, run, report)
    items, users = None, None
    if data.item_embeddings or data.item_attributes is not None:
        items = features_of(data.item_embeddings, data.item_attributes)
    if data.user_embeddings:
        users = features_of(data.user_embeddings)
    return Source(data, items, users, encoders, network_options(settings.text))


def _with_embeddings(
    data: TrainingData,
    user_texts: tuple[str, ...],
    settings: TextSettings,
    run: RunOptions,
    report: FitReport,
) -> tuple[TrainingData, dict[str, str]]:
    """The data with their texts encoded, and each encoder's fingerprint."""
    (items, users, *variants), fingerprints = encode_texts(
        (data.item_texts, user_texts, *data.item_variants), settings, run, report
    )
    data = dataclasses.replace(
        data, item_embeddings=items, user_embeddings=users, variant_embeddings=tuple(variants)
    )
    return data, fingerprints


def encode_texts(
    kinds: Sequence[tuple[str, ...]], settings: TextSettings, run: RunOptions, report: FitReport
) -> tuple[list[dict[str, Rows]], dict[str, str]]:
    """Texts by all encoders, from the cache where they are in it.

    Args:
        kinds: the items' texts, which an encoder learns its words from, and any others.
        settings: the encoders and their cache.
        run: device and progress.
        report: counts the texts.

    Returns:
        Encoder's name -> unit rows for each of ``kinds``, empty where none has a text, and
        encoder's name -> fingerprint, empty where no item has one.

    Raises:
        SettingsError: an encoder cannot be had.
    """
    cache = open_cache(settings.embedding_cache)
    options = encoder_options(settings, run)
    rows: list[dict[str, Rows]] = [{} for _ in kinds]
    fingerprints: dict[str, str] = {}
    item_texts = kinds[0]
    for spec in settings.encoder:
        encoder = build(spec, options)
        if not any(item_texts):
            continue
        encoder = encoder.fit(item_texts)
        fingerprints[spec] = encoder.fingerprint()
        for texts, by_encoder in zip(kinds, rows, strict=True):
            if any(texts):
                by_encoder[spec], counts = encode_cached(encoder, texts, cache)
                report.texts["encoded"] += counts.encoded
                report.texts["cached"] += counts.cached
    logger.info(
        f"texts: {sum(map(bool, item_texts)):,} of {max(0, len(item_texts) - 1):,} items have "
        f"one; {report.texts['encoded']:,} encoded, {report.texts['cached']:,} from the cache"
    )
    return rows, fingerprints


def network_options(settings: TextSettings) -> NetworkOptions:
    """What the settings say of the networks."""
    return NetworkOptions(
        settings.encoder_kind,
        settings.encoder_pooling,
        settings.encoder_backend,
        settings.encoder_quantize,
    )


def encoder_options(settings: TextSettings, run: RunOptions) -> EncoderOptions:
    """How the encoders of a run go."""
    cache = open_cache(settings.embedding_cache)
    return EncoderOptions(
        run.device,
        settings.encoder_batch_size,
        run.progress,
        network_options(settings),
        None if cache is None else cache.folder,
    )


def open_cache(setting: str | None) -> EmbeddingCache | None:
    """What the setting `embedding_cache` names."""
    if setting is None:
        return None
    return EmbeddingCache(default_folder() if setting == "default" else Path(setting).expanduser())


@dataclass(frozen=True, eq=False)
class Fitted:
    """A signal's z-scores for all users and items.

    Attributes:
        signal: with the settings in force.
        factors: standardised, completed.
        learned: bool (n_items,), the item rows that were not completed.
        ridge: what gives rows to newcomers' texts; None where nothing does.
        told_ridge: what gives rows to texts with attributes; None where no attributes are read.
        side: what of the histories it was fitted on; "": all.
    """

    signal: Signal
    factors: Factors
    learned: Mask
    ridge: RidgeMap | None
    told_ridge: RidgeMap | None = None
    side: str = ""


def fit_signals(
    source: Source,
    validation: Validation | None,
    settings: ModelSettings,
    metric: Metric,
    run: RunOptions,
    report: FitReport,
) -> dict[str, Fitted]:
    """Fit every signal that the settings name, with the best settings where they are searched.

    Returns:
        Label -> signal; what has nothing to say on these data is left out.

    Raises:
        DataError: no signal has anything to learn from.
    """
    data = source.data
    fitted: dict[str, Fitted] = {}
    skipped: dict[str, str] = {}
    is_later = validation is not None and validation.is_later
    for label, signal in settings.variants(is_later=is_later).items():
        start = perf_counter()
        try:
            signal, factors, searched = _fit_one(
                label, signal, data, validation, settings, metric, run
            )
            signal, factors = choose_decay(signal, factors, data, validation, metric, run)
        except SkippedSignal as reason:
            skipped[label] = str(reason)
            logger.warning(f"{label}: left out, {reason}")
            continue
        fitted[label] = for_all(signal, factors, source, settings, run)
        factors = fitted[label].factors
        value = _judged([factors], validation, metric, run) if validation else None
        report.signals[label] = value
        report.settings[label] = dataclasses.asdict(signal)  # type: ignore[call-overload]
        alone = f"alone {metric} {value:.4f} on the validation split" if value else "fitted"
        decay = report.settings[label].get("history_decay")
        if decay is not None:
            in_force = "" if data.age is not None else " (off: there is no order)"
            searched += f", history_decay {decay:g}{in_force}"
        logger.info(f"{label}: {alone}{searched} [{perf_counter() - start:.1f}s]")
    if not fitted:
        raise DataError("nothing to learn from: " + "; ".join(dict.fromkeys(skipped.values())))
    return fitted


def _judged(
    blocks: Sequence[Factors], validation: Validation, metric: Metric, run: RunOptions
) -> float:
    """The metric for the report; what is chosen by validation is chosen elsewhere."""
    sample = validation.sample(JUDGED_USERS, seed=run.seed)
    return evaluate(blocks, sample, metric, run.device)


def _fit_one(
    label: str,
    signal: Signal,
    data: TrainingData,
    validation: Validation | None,
    settings: ModelSettings,
    metric: Metric,
    run: RunOptions,
) -> tuple[Signal, Factors, str]:
    n_trials = settings.search.signal_search_trials
    name, _, _ = label.partition(":")
    fixed = settings.fixed[name]
    searched = name in settings.search.searched_signals
    space = search_space(signal, fixed) if searched else {}
    if validation is None or not n_trials or not space:
        return *fit_cached(signal, data, run), ""
    found = search_signal(
        label, signal, data, validation, metric, run, n_trials=n_trials, fixed=fixed
    )
    chosen = ", ".join(f"{name} {_short(getattr(found.signal, name))}" for name in space)
    return found.signal, found.factors, f", best of {n_trials} settings ({chosen})"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def for_all(
    signal: Signal,
    factors: Factors,
    source: Source,
    settings: ModelSettings,
    run: RunOptions,
    *,
    newcomers: bool = True,
) -> Fitted:
    """A signal's z-scores, with rows for the users and items that it has not seen.

    Without ``newcomers`` it has no ridge for them where that would take another regression.
    """
    if not (signal.completed and settings.completes):
        return Fitted(signal, standardise(factors), factors.known, None)
    data, features = source.data, source.item_features
    user_counts = np.diff(data.interactions.indptr).astype(np.int64)
    factors = standardise(complete_users(factors, user_counts, source.user_features, seed=run.seed))
    ridge = None
    if features is not None:
        ridge = completion_map(factors, features, data.item_counts, seed=run.seed)
    if features is None or ridge is None:
        return Fitted(signal, factors, factors.known, None)
    completed = complete(factors, ridge, features)
    if features.attributes is None:
        return Fitted(signal, completed, factors.known, ridge)
    of_words = _of_words(factors, data, ridge.penalty, run) if newcomers else None
    return Fitted(signal, completed, factors.known, of_words, ridge)


def _of_words(
    factors: Factors, data: TrainingData, penalty: float, run: RunOptions
) -> RidgeMap | None:
    """The ridge of newcomers that come without attributes.

    Beside these a word that says the same counts for little.
    """
    if not data.item_embeddings:
        return None
    texts = features_of(data.item_embeddings)
    return completion_map(factors, texts, data.item_counts, seed=run.seed, penalty=penalty)


def _as_if_cold(
    fitted: Mapping[str, Fitted], source: Source, settings: ModelSettings, run: RunOptions
) -> Situation | None:
    """The signals as they would be if a fifth of the warm items that are described were new."""
    if source.item_features is None:
        return None
    start = perf_counter()
    data = source.data
    members = np.flatnonzero(data.warm_items & source.item_features.described)
    fold = np.random.default_rng(run.seed).permutation(members)[: len(members) // _FOLDS]
    held = np.zeros(data.n_items, dtype=bool)
    held[fold] = True
    rest = dataclasses.replace(source, data=without_items(data, held))
    factors = {}
    for label, part in fitted.items():
        try:
            _, again = fit_cached(part.signal, rest.data, run)
            completed = for_all(part.signal, again, rest, settings, run, newcomers=False)
            factors[label] = completed.factors
        except SkippedSignal:
            return None
    logger.info(
        f"fitted again as if {len(fold):,} warm items were cold [{perf_counter() - start:.1f}s]"
    )
    return Situation(factors, rest.data.binary, without_items(data, ~held).binary)


def fuse(
    fitted: Mapping[str, Fitted],
    source: Source,
    validation: Validation | None,
    settings: ModelSettings,
    metric: Metric,
    run: RunOptions,
    report: FitReport,
) -> Fused:
    """Put the signals together by the fusion rule, with the weights that are set or tuned.

    A table as wide as there are items is scaled in place.
    """

    def to_weigh(sets: Sequence[Judged]) -> bool:
        return bool(sets and len(sets[0].factors) > 1 and settings.fusion.weight_trials)

    def tune(sets: Sequence[Judged]) -> Mapping[str, float]:
        if not to_weigh(sets):
            return {}
        tuned = tune_weights(
            sets,
            objective,
            run,
            n_trials=settings.fusion.weight_trials,
            memory_gb=settings.fusion.tuning_memory_gb,
        )
        report.trials_per_second = tuned.trials_per_second
        return tuned.weights

    def select(sets: Sequence[Judged]) -> Mapping[str, float]:
        if not to_weigh(sets):
            return {}
        return select_weights(sets, objective, run, memory_gb=settings.fusion.tuning_memory_gb)

    objective = dataclasses.replace(metric, slice_name="")
    fusion = settings.fusion
    if len(fitted) > 1 and validation is None and fusion.fusion_weights is None:
        logger.info("no validation rows: the signals count equally")
    factors = {label: part.factors for label, part in fitted.items()}
    evidence = Evidence(
        Situation(factors, source.data.binary, validation and validation.positives),
        lambda: _as_if_cold(fitted, source, settings, run),
        tune,
        select,
        objective,
        run,
        _fixed("fusion_weights", fusion.fusion_weights, factors),
        _fixed("cold_weights", fusion.cold_weights, factors),
        fusion.new_users,
    )
    # A signal by itself stays as it is: there is nothing to weigh.
    rule = FUSIONS[fusion.fusion if len(factors) > 1 else "weighted_sum"]
    fused = rule.fit(evidence, fusion.cold_exposure)
    report.weights = dict(fused.weights)
    report.cold_weights = dict(fused.cold_weights)
    report.cold_level = fused.cold_level
    report.exposure = [dict(point) for point in fused.exposure]
    report.new_users = fused.new_users
    return fused


def model_of(
    label: str,
    signal: Signal,
    factors: Factors,
    source: Source,
    settings: ModelSettings,
    run: RunOptions,
) -> tuple[tuple[Factors, ...], Newcomers]:
    """A single fitted signal as :func:`fit_model` gives it: blocks, and what newcomers take."""
    fitted = {label: for_all(signal, factors, source, settings, run)}
    fused = fuse(fitted, source, None, settings, Metric("ndcg", 10), run, FitReport())
    return fused.blocks, newcomers_of(fitted, fused, source)


def _fixed(
    key: str, given: Mapping[str, float] | None, labels: Collection[str]
) -> dict[str, float] | None:
    """Every signal's weight as the user fixed it; None where it is to be tuned, or by itself.

    Raises:
        SettingsError: they leave nothing.
    """
    if given is None or len(labels) == 1:
        return None
    weights = {label: given.get(label, 0.0) for label in labels}
    if not any(weights.values()):
        raise SettingsError(f"`{key}` gives no weight to any of {', '.join(labels)}")
    return weights


def newcomers_of(fitted: Mapping[str, Fitted], fused: Fused, source: Source) -> Newcomers:
    """What it takes to give rows to newcomers of a fused model."""
    cold_gains = fused.cold_gains or fused.weights
    signals = (
        LearnedSignal.of(
            part.signal,
            part.factors,
            part.learned,
            part.ridge,
            part.told_ridge,
            gain=fused.weights[label],
            cold_gain=cold_gains.get(label, 0.0),
            side=part.side,
        )
        for label, part in fitted.items()
    )
    in_blocks = tuple(signal for signal in signals if signal.gain or signal.cold_gain)
    own_texts = source.data.user_embeddings
    return Newcomers(
        in_blocks,
        fused.cold_level or 0.0,
        source.encoders,
        own_texts,
        network=dataclasses.asdict(source.network),
    )


def _log(report: FitReport, metric: Metric) -> None:
    if len(report.weights) > 1:
        logger.info(f"weights: {listed(report.weights)}")
    if report.cold_level is not None:
        logger.info(f"weights of cold items: {listed(report.cold_weights)}")
        for line in exposure_table(report.exposure, report.cold_level, metric):
            logger.info(line)
    if report.new_users == POPULARITY:
        logger.info("users without history are served by popularity")
    if report.fused is not None:
        best = max(report.signals, key=lambda label: report.signals[label] or 0.0)
        logger.info(
            f"fused: {metric} {report.fused:.4f} on the validation split; "
            f"the best signal alone, {best}, has {report.signals[best]:.4f}"
        )


def _plot(report: FitReport, metric: Metric, file: str | None) -> None:
    if file is None:
        return
    if report.cold_level is None or not any(p["cold_in_all"] for p in report.exposure):
        logger.warning("`exposure_plot`: no cold item is wanted, so that there is nothing to plot")
        return
    write_exposure_plot(report.exposure, report.cold_level, str(metric), file)
    logger.info(f"cold_exposure: plotted in {file}")


def listed(weights: Mapping[str, float]) -> str:
    """The weights in one line, for the log."""
    return ", ".join(f"{label} {weight:.2f}" for label, weight in weights.items())
