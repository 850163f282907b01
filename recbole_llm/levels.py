"""What a trial of a study does at each level: what it changes, what is fitted for it, its value.

- ``weights``: the signals are fitted once, and a trial ranks by a weighted sum of their scores;
- ``signals``: a trial changes the signals' settings, their weights stay;
- ``all``: a trial changes the signals' settings, and they are weighed anew for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from recbole_llm.encoders import build
from recbole_llm.errors import DataError, SettingsError
from recbole_llm.evaluation import (
    Metric,
    Validation,
    evaluate,
    evaluate_users,
    is_positive,
    masked_scores,
)
from recbole_llm.factors import Factors, standardise
from recbole_llm.fitting import (
    FitReport,
    Fitted,
    Source,
    encode,
    encoder_options,
    fit_signals,
    for_all,
    fuse,
)
from recbole_llm.fusion import Fused, Judged, Situation
from recbole_llm.fusion.new_users import POPULARITY, served_by_popularity, with_popularity
from recbole_llm.model_settings import ModelSettings, model_keys, read_model_settings
from recbole_llm.scoring import Scorer
from recbole_llm.settings import RunOptions
from recbole_llm.signal_cache import fit_cached, is_cached
from recbole_llm.signals import Signal, SkippedSignal
from recbole_llm.training_data import TrainingData
from recbole_llm.tuning.objectives import Objective
from recbole_llm.tuning.recency import choose_decay
from recbole_llm.tuning.spaces import Parameter, Space, nested, weight_space
from recbole_llm.tuning.study import Outcome, Watch
from recbole_llm.tuning.weights import CandidateScores, collect_candidates, refine_weights

LEVELS = ("weights", "signals", "all")
COSTS = ("encode_seconds", "index_dims")
# Batches of weights that an outer trial of `all` looks at.
_ROUNDS = 5
# Settings of each signal whose tables are at hand; older ones come from the signal cache.
_KEPT = 3
# Texts whose encoding is timed.
_TIMED_TEXTS = 64
# Scores of users that intermediate values are made of: 64 MB.
_WATCHED_SCORES = 1 << 24
# Weights of cold items are tuned where at least so much of what is wanted is cold.
_ENOUGH_COLD = 0.01


@dataclass(frozen=True, eq=False)
class Bench:
    """The data of a study, and how its trials are judged.

    Attributes:
        load: the training part and the users' texts as some settings read them.
        valid: CSR (n_users, n_items), what is wanted in the validation part.
        is_later: whether the validation part is later than the training part.
        test: likewise of the test part, for a report alone; None where nobody asked.
        signal_names: the signals that the model is made of; None where the user chooses them.
        given: the user's flat settings.
        objectives: metrics, and of :data:`COSTS`.
        run: device, seed, signal cache.
    """

    load: Callable[[ModelSettings], tuple[TrainingData, tuple[str, ...]]]
    valid: sp.csr_matrix
    is_later: bool
    test: sp.csr_matrix | None
    signal_names: Sequence[str] | None
    given: Mapping[str, Any]
    objectives: Sequence[Objective]
    run: RunOptions

    @property
    def metrics(self) -> dict[str, Metric]:
        """The objectives that are metrics, by name."""
        names = (objective.name for objective in self.objectives)
        return {name: Metric.parse(name) for name in names if name not in COSTS}

    @property
    def metric(self) -> Metric:
        """What signals and weights are tuned by inside a trial: the first metric."""
        return next(iter(self.metrics.values()))

    def settings(self, values: Mapping[str, Any]) -> ModelSettings:
        """The model's settings with a trial's values in place of the user's.

        Raises:
            SettingsError: a value is not allowed.
        """
        return read_model_settings(self.signal_names, {**self.given, **nested(values)})

    def validation(self, known: sp.csr_matrix, metric: Metric) -> Validation:
        """What a metric is measured on.

        Raises:
            SettingsError: nobody wants anything there.
        """
        validation = _judged_by(known, self.valid, metric, "validation")
        return dataclasses.replace(validation, is_later=self.is_later)


def _judged_by(
    known: sp.csr_matrix, wanted: sp.csr_matrix, metric: Metric, part: str
) -> Validation:
    validation = Validation.of(known, wanted, metric.slice_name)
    if validation is None:
        raise SettingsError(
            f"`objective`: the {part} part has no user for {metric}; choose another one"
        )
    return validation


class _Level:
    """What the levels share: texts are read once, signals fitted once."""

    space: Space
    starts: Sequence[Mapping[str, Any]]
    #: Settings that hold for all trials beside the user's.
    fixed: Mapping[str, Any]

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._sources: dict[Any, Source] = {}
        self._fitted: dict[str, dict[Any, Fitted]] = {}
        self._encode_seconds: dict[Any, float] = {}

    def source(self, settings: ModelSettings) -> Source:
        """The data as some settings read and encode their texts."""
        key = settings.text
        if key not in self._sources:
            data, user_texts = self.bench.load(settings)
            self._sources[key] = encode(data, user_texts, settings, self.bench.run, FitReport())
        return self._sources[key]

    def fitted(
        self, settings: ModelSettings, watch: Watch | None, weights: Mapping[str, float]
    ) -> dict[str, Fitted]:
        """Every signal of some settings, those of earlier trials as they were.

        Args:
            settings: the model's, nothing in them is searched.
            watch: sees the objective, with a signal's tables so far, while one is fitted.
            weights: what the signals count in that.
        """
        source = self.source(settings)
        found: dict[str, Fitted] = {}
        to_fit: dict[str, Signal] = {}
        variants = settings.variants(is_later=self.bench.is_later)
        for label, signal in variants.items():
            kept = self._fitted.setdefault(label, {})
            key = (signal, settings.text)
            if key in kept:
                kept[key] = kept.pop(key)  # used last, dropped last
                found[label] = kept[key]
            else:
                to_fit[label] = signal
        # What is on disk comes first, so that what a step shows does not depend on what this
        # process has at hand: a study that goes on would otherwise give up other trials.
        data, metric, run = source.data, self.bench.metric, self.bench.run
        validation = self.bench.validation(data.binary, metric)
        in_cache = {label for label, signal in to_fit.items() if is_cached(signal, data, run)}
        steps = 0
        for label in sorted(to_fit, key=lambda label: label not in in_cache):
            signal = to_fit[label]
            look = None
            if watch is not None and run.signal_cache is not None and label not in in_cache:
                look, steps = self._look(label, found, settings, watch, weights, steps)
            try:
                settled, factors = fit_cached(signal, data, run, look)
            except SkippedSignal:
                continue
            settled, factors = choose_decay(settled, factors, data, validation, metric, run)
            found[label] = for_all(settled, factors, source, settings, run, newcomers=False)
            kept = self._fitted[label]
            kept[signal, settings.text] = found[label]
            while len(kept) > _KEPT:
                del kept[next(iter(kept))]
        labels = [label for label in variants if label in found]
        if not labels:
            raise DataError("no signal has anything to learn from")
        return {label: found[label] for label in labels}

    def fitted_by_a_run(self, settings: ModelSettings) -> dict[str, Fitted]:
        """Every signal as a run with these settings would search and fit it."""
        source, metric, run = self.source(settings), self.bench.metric, self.bench.run
        validation = self.bench.validation(source.data.binary, metric)
        return fit_signals(source, validation, settings, metric, run, FitReport())

    def _look(
        self,
        label: str,
        found: Mapping[str, Fitted],
        settings: ModelSettings,
        watch: Watch,
        weights: Mapping[str, float],
        first_step: int,
    ) -> tuple[Callable[[int, Factors], None], int]:
        """What sees a signal's tables, with those that are fitted before it beside them."""
        others = {other: part.factors for other, part in found.items()}
        source, metric, run = self.source(settings), self.bench.metric, self.bench.run
        users = max(1, _WATCHED_SCORES // source.data.n_items)
        validation = self.bench.validation(source.data.binary, metric).sample(users, seed=run.seed)
        rest = _weighted_scores(others, weights, validation, run.device)
        share = weights.get(label, 0.0) or 1.0

        def look(step: int, factors: Factors) -> None:
            scores = _weighted_scores(
                {label: standardise(factors)}, {label: share}, validation, run.device
            )
            watch(first_step + step, _metric_of(scores + rest, validation, metric))

        return look, first_step + 100

    def values(self, blocks: Sequence[Factors], settings: ModelSettings) -> tuple[float, ...]:
        """The objectives of a fused model, by full ranking."""
        known = self.source(settings).data.binary
        found: dict[str, float] = {}
        for name, metric in self.bench.metrics.items():
            validation = self.bench.validation(known, metric)
            found[name] = evaluate(blocks, validation, metric, self.bench.run.device)
        found["index_dims"] = float(sum(block.items.shape[1] for block in blocks))
        if any(objective.name == "encode_seconds" for objective in self.bench.objectives):
            found["encode_seconds"] = self.encode_seconds(settings)
        return tuple(found[objective.name] for objective in self.bench.objectives)

    def encode_seconds(self, settings: ModelSettings) -> float:
        """How long the items' texts take to encode, from a sample of them and no cache."""
        texts = [text for text in self.source(settings).data.item_texts if text]
        total = 0.0
        for spec in settings.text.encoder if settings.uses_embeddings and texts else ():
            key = (spec, settings.text.item_text_fields)
            if key not in self._encode_seconds:
                run = self.bench.run
                options = encoder_options(settings.text, dataclasses.replace(run, progress=False))
                encoder = build(spec, options).fit(texts)
                sample = texts[:: max(1, len(texts) // _TIMED_TEXTS)]
                encoder.encode(sample[:1])  # what is loaded once is no part of it
                start = perf_counter()
                encoder.encode(sample)
                self._encode_seconds[key] = (perf_counter() - start) * len(texts) / len(sample)
            total += self._encode_seconds[key]
        return total

    def tested(self, blocks: Sequence[Factors], settings: ModelSettings) -> dict[str, float]:
        """The metrics on the test part where the user asked for them."""
        if self.bench.test is None:
            return {}
        known = (self.source(settings).data.binary + self.bench.valid).astype(bool)
        known = known.astype(np.float32).tocsr()
        return {
            f"test_{name}": evaluate(
                blocks,
                _judged_by(known, self.bench.test, metric, "test"),
                metric,
                self.bench.run.device,
            )
            for name, metric in self.bench.metrics.items()
        }

    def fuse(self, fitted: Mapping[str, Fitted], settings: ModelSettings) -> Fused:
        """The fused model; the kept tables stay as they are."""
        whole = {label: _unshared(part) for label, part in fitted.items()}
        source, metric, run = self.source(settings), self.bench.metric, self.bench.run
        validation = Validation.of(source.data.binary, self.bench.valid)
        return fuse(whole, source, validation, settings, metric, run, FitReport())

    def confirmed(self, trial: FrozenTrial) -> tuple[float, NDArray[np.float64]]:
        """A trial as a run with its settings will have it.

        Returns:
            The first objective, and the first metric of each user of the validation part.
        """
        settings = self.bench.settings({**self.fixed, **self.settings_of(trial)})
        fused = self.fuse(self.fitted(settings, None, {}), settings)
        metric, run = self.bench.metric, self.bench.run
        validation = self.bench.validation(self.source(settings).data.binary, metric)
        users = evaluate_users(fused.blocks, validation, metric, run.device)
        return self.values(fused.blocks, settings)[0], users

    def settings_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """The settings that a run needs to be a trial's model, beside the user's."""
        settings = nested(trial.params) | trial.user_attrs.get("settings", {})
        return {**self.fixed, **settings}


def _unshared(part: Fitted) -> Fitted:
    """A signal whose item table may be scaled in place: fusing does so with a wide one."""
    if not part.factors.is_sparse or sp.issparse(part.factors.items):
        return part
    factors = dataclasses.replace(part.factors, items=part.factors.items.copy(order="K"))
    return dataclasses.replace(part, factors=factors)


def _weighted_scores(
    factors: Mapping[str, Factors],
    weights: Mapping[str, float],
    validation: Validation,
    device: str,
) -> torch.Tensor:
    """The users' weighted sums of scores, -inf where an item is known or no candidate."""
    total: torch.Tensor | float = 0.0
    for label, part in factors.items():
        if not weights.get(label):
            continue
        batches = [scores for _, scores in masked_scores(Scorer([part], device), validation)]
        total = total + weights[label] * torch.cat(batches)
    return torch.as_tensor(total, dtype=torch.float32, device=torch.device(device))


def _metric_of(scores: torch.Tensor, validation: Validation, metric: Metric) -> float:
    top = torch.topk(scores, min(metric.k, scores.shape[1]), dim=1).indices.cpu().numpy()
    hits = is_positive(validation.positives, validation.users, top)
    return float(metric.per_user(hits, validation.n_positives).mean())


def _found(fused: Fused) -> dict[str, Any]:
    """A fused model's parameters as settings that fix them."""
    if len(fused.weights) < 2:
        return {}
    settings: dict[str, Any] = {"fusion_weights": dict(fused.weights)}
    settings["new_users"] = fused.new_users
    if fused.cold_level is not None:
        settings["cold_weights"] = dict(fused.cold_gains)
        settings["cold_exposure"] = repr(fused.cold_level)
    return settings


class WeightsLevel(_Level):
    """The signals as a run would fit them; a trial weighs them."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        settings = bench.settings({})
        self._parts = self.fitted_by_a_run(settings)
        if len(self._parts) < 2:
            raise SettingsError("`level`: weights needs two signals at least; use signals")
        self.fixed = _searched(bench, settings, self._parts)
        self._settings = bench.settings(self.fixed)
        base = self.fuse(self._parts, settings)
        source, labels = self.source(settings), list(self._parts)
        factors = {label: part.factors for label, part in self._parts.items()}
        self.fixed["new_users"] = base.new_users
        now = Situation(factors, source.data.binary, bench.valid)
        if base.new_users == POPULARITY:
            now = served_by_popularity(now, base.weights[POPULARITY])
        self._cold = now.cold
        gated = base.cold_level is not None
        told = [label for label in labels if gated and factors[label].known[self._cold].any()]
        wanted = bench.valid[:, np.flatnonzero(self._cold)].nnz / max(1, bench.valid.nnz)
        self._told = told if wanted >= _ENOUGH_COLD else []
        if gated and not self._told:
            found = _found(base)
            self.fixed = {**self.fixed, **{k: found[k] for k in ("cold_weights", "cold_exposure")}}
        self.space = weight_space(labels, self._told)
        self.starts = self._make_starts(base, labels)
        self._factors = now.factors
        self._scores = {
            name: self._collect(bench.valid, source.data.binary, metric, base)
            for name, metric in bench.metrics.items()
        }
        self._tests: dict[str, CandidateScores] = {}
        if bench.test is not None:
            known = (source.data.binary + bench.valid).astype(bool).astype(np.float32).tocsr()
            self._tests = {
                f"test_{name}": self._collect(bench.test, known, metric, base)
                for name, metric in bench.metrics.items()
            }

    def _collect(
        self, wanted: sp.csr_matrix, known: sp.csr_matrix, metric: Metric, base: Fused
    ) -> CandidateScores:
        memory = self._settings.fusion.tuning_memory_gb
        validation = _judged_by(known, wanted, metric, "evaluated")
        judged = Judged(self._factors, validation)
        (scores,) = collect_candidates([judged], metric, self.bench.run, memory, exact=True)
        if base.cold_level is None:
            return scores
        labels = list(self._factors)
        chosen = [labels.index(label) for label in self._told] if self._told else None
        fixed = [base.cold_gains.get(label, 0.0) for label in labels]
        return scores.by_warmth(self._cold, chosen, fixed, base.cold_level)

    def _make_starts(self, base: Fused, labels: Sequence[str]) -> list[dict[str, float]]:
        """What a run tunes by itself, equal weights, and each signal alone."""
        largest = max(base.weights.values())
        cold = {
            f"cold_weights.{label}": min(2.0, base.cold_gains.get(label, 0.0))
            for label in self._told
        }
        if self._told:
            cold["cold_exposure"] = float(np.clip(base.cold_level or 0.0, -3.0, 3.0))
        return [
            {f"fusion_weights.{label}": value for label, value in weights.items()} | cold
            for weights in (
                {label: base.weights[label] / largest for label in labels},
                dict.fromkeys(labels, 1.0),
                *({other: float(other == label) for other in labels} for label in labels),
            )
        ]

    def __call__(
        self, values: Mapping[str, Any], watch: Watch | None, best: FrozenTrial | None
    ) -> Outcome:
        """Rank by the weighted sum."""
        shares = self._shares(values)
        weights = list(shares.values())
        if self._told:
            weights += [values.get(f"cold_weights.{label}", 0.0) for label in self._told]
            weights.append(values.get("cold_exposure", 0.0))
        elif next(iter(self._scores.values())).scores.shape[0] > len(weights):
            weights.append(1.0)
        found = {
            name: self._scores[name].evaluate(weights, metric)
            for name, metric in self.bench.metrics.items()
        }
        if any(objective.name in COSTS for objective in self.bench.objectives):
            used = [part for label, part in self._factors.items() if shares[label]]
            found["index_dims"] = float(1 + sum(1 + part.items.shape[1] for part in used))
            found["encode_seconds"] = self.encode_seconds(self._settings)
        tested = {
            name: scores.evaluate(weights, Metric.parse(name.removeprefix("test_")))
            for name, scores in self._tests.items()
        }
        return Outcome(tuple(found[objective.name] for objective in self.bench.objectives), tested)

    def _shares(self, values: Mapping[str, Any]) -> Mapping[str, float]:
        weights = {label: values.get(f"fusion_weights.{label}", 0.0) for label in self._parts}
        total = sum(weights.values())
        if not total:
            return dict.fromkeys(weights, 1 / len(weights))
        shares = {label: weight / total for label, weight in weights.items()}
        return with_popularity(shares) if self.fixed["new_users"] == POPULARITY else shares

    def settings_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """The settings that a run needs to be a trial's model, beside the user's."""
        settings = {**self.fixed, **nested(trial.params)}
        settings["fusion_weights"] = self._shares(trial.params)
        if self._told:
            settings["cold_exposure"] = repr(trial.params.get("cold_exposure", 0.0))
            settings.setdefault("cold_weights", dict.fromkeys(self._told, 0.0))
        return settings


def _searched(bench: Bench, settings: ModelSettings, parts: Mapping[str, Fitted]) -> dict[str, Any]:
    """What a run's own search has found, as settings that fix it."""
    found: dict[str, Any] = {}
    names = [name for name in settings.search.searched_signals if name in settings.signals]
    if not settings.search.signal_search_trials:
        return found
    for name in names:
        own = [part.signal for label, part in parts.items() if label.partition(":")[0] == name]
        if len(own) > 1:  # one for each encoder, with settings of its own: a run finds them again
            return {}
        found |= {
            key.name: getattr(signal, key.field)
            for signal in own
            for key in model_keys(bench.signal_names)
            if key.section == name and key.search is not None and key.search.in_runs
        }
    return {"signal_search_trials": 0, **found}


class SignalsLevel(_Level):
    """A trial changes the signals' settings.

    The first trial is the run as it would be without a study, its search of settings included.
    Weights are those that the user fixed, else those of that run; with ``reweighs`` every other
    trial tunes them anew, from the best trial's.
    """

    def __init__(self, bench: Bench, space: Space, *, reweighs: bool) -> None:
        super().__init__(bench)
        self.space = space
        self.reweighs = reweighs
        settings = bench.settings({})
        parts = self.fitted_by_a_run(settings)
        self.fixed = {"signal_search_trials": 0, **_searched(bench, settings, parts)}
        self.starts = _signal_starts(space, bench.settings(self.fixed))
        self._weights = dict(self.fuse(parts, settings).weights)

    def __call__(
        self, values: Mapping[str, Any], watch: Watch | None, best: FrozenTrial | None
    ) -> Outcome:
        """Fit what was not fitted before, weigh, and rank by the fused tables."""
        settings = self.bench.settings({**self.fixed, **values})
        weights = self._weights
        if self.reweighs and best is not None:
            weights = best.user_attrs.get("settings", {}).get("fusion_weights", weights)
        parts = self.fitted(settings, watch, weights)
        if len(parts) > 1:
            # The first trial is what a run would be: others are compared with it.
            if self.reweighs and values != self.starts[0]:
                weights = self._reweighed(parts, settings, weights)
            kept = {label: weights.get(label, 0.0) for label in parts}
            if not any(kept.values()):
                kept = dict.fromkeys(parts, 1 / len(parts))
            fusion = dataclasses.replace(settings.fusion, fusion_weights=kept)
            settings = dataclasses.replace(settings, fusion=fusion)
        fused = self.fuse(parts, settings)
        attributes: dict[str, Any] = dict(self.tested(fused.blocks, settings))
        attributes["settings"] = _found(fused)
        return Outcome(self.values(fused.blocks, settings), attributes)

    def _reweighed(
        self, parts: Mapping[str, Fitted], settings: ModelSettings, start: Mapping[str, float]
    ) -> dict[str, float]:
        factors = {label: part.factors for label, part in parts.items()}
        now = Situation(factors, self.source(settings).data.binary, self.bench.valid)
        slice_name = "warm" if settings.fusion.fusion == "warmth_gate" else ""
        metric = dataclasses.replace(self.bench.metric, slice_name="")
        candidates = collect_candidates(
            now.judged(slice_name), metric, self.bench.run, settings.fusion.tuning_memory_gb
        )
        return refine_weights(
            candidates, metric, start, list(parts), rounds=_ROUNDS, seed=self.bench.run.seed
        )


def _signal_starts(space: Space, settings: ModelSettings) -> list[dict[str, Any]]:
    """The settings as they are, then with what is known to be good of each signal."""
    here = {name: within(parameter, _current(name, settings)) for name, parameter in space.items()}
    starts = [here]
    for name, signal in settings.signals.items():
        for start in signal.starts:
            values = {f"{name}_{field}": value for field, value in start.items()}
            known = {key: value for key, value in values.items() if key in space}
            tried = here | {key: within(space[key], value) for key, value in known.items()}
            if tried not in starts:
                starts.append(tried)
    return starts


def _current(name: str, settings: ModelSettings) -> Any:
    """The value of a flat setting."""
    for section, prefix in (
        *((signal, f"{label}_") for label, signal in settings.signals.items()),
        *((part, "") for part in (settings.text, settings.fusion, settings.search)),
    ):
        for field in dataclasses.fields(section):  # type: ignore[arg-type]  # dataclasses, all
            if "doc" in field.metadata and (field.metadata["key"] or prefix + field.name) == name:
                return getattr(section, field.name)
    return None


def within(parameter: Parameter, value: Any) -> Any:
    """The nearest value that a parameter may have."""
    where = parameter.where
    if where.choices:
        words = ",".join(value) if isinstance(value, tuple) else value
        same = [choice for choice in where.choices if choice == words]
        return same[0] if same else where.choices[0]
    clipped = min(max(float(value), where.low), where.high)
    if where.step:
        clipped = where.low + round((clipped - where.low) / where.step) * where.step
    return round(clipped) if parameter.kind is int else clipped
