"""Studies that outlive a process: Optuna's, on any of its storages, alone or together.

A trial's proposal follows from the study's seed, the trial's number and what was finished before
it; so a study that was killed and goes on makes the trials of one that was not. A trial whose
process is gone is put back in the queue under its own number.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import optuna
import psutil
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState

from recbole_llm.errors import RecboleLLMError, SettingsError, one_line
from recbole_llm.tuning.spaces import Space, suggest
from recbole_llm.tuning.trials import quiet, tpe

logger = logging.getLogger(__name__)

JOURNAL = "journal:"
SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc")
PRUNERS = ("median", "halving", "hyperband", "none")
# What a trial of a process that is gone is known by: host, process and when that began.
_WORKER = "worker"
_IDENTITY = "recbole_llm"
_HEARTBEAT_SECONDS = 10
_FIRST_BEAT_SECONDS = 1
_STALE_SECONDS = 60
_LOCK_SECONDS = 60
# A trial that has just been taken from the queue still names the process that ran it before.
_SETTLED = timedelta(seconds=2)


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
        sampler, pruner: one of :data:`SAMPLERS` and :data:`PRUNERS`.
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


@dataclass(frozen=True)
class Outcome:
    """What a trial has shown.

    Attributes:
        values: of the objectives, in their order.
        attributes: what is kept with the trial, fit for JSON.
    """

    values: tuple[float, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


# Called with the number of a step and the first objective's value so far; raises to give up.
Watch = Callable[[int, float], None]


class Work(Protocol):
    """What a study's trials do.

    Attributes:
        space: what is searched.
        starts: values of every parameter that are tried first.
    """

    space: Space
    starts: Sequence[Mapping[str, Any]]

    def __call__(
        self, values: Mapping[str, Any], watch: Watch | None, best: FrozenTrial | None
    ) -> Outcome:
        """Try some values; what it raises fails the trial, and the study goes on.

        Args:
            values: parameter -> value.
            watch: for intermediate values; None where nothing can be pruned.
            best: the best trial so far.
        """
        ...


def open_study(options: StudyOptions, identity: Mapping[str, Any]) -> optuna.Study:
    """Make a study, or go on with one of the same identity.

    Args:
        options: where it is, what it looks for.
        identity: what its trials depend on, fit for JSON: data set, model, space, ….

    Raises:
        SettingsError: the storage cannot be used, or has a study of this name for something else.
    """
    directions = [objective.direction for objective in options.objectives]
    facts = json.loads(json.dumps(identity)) | {
        "objectives": [objective.name for objective in options.objectives]
    }
    with _opening(options.storage), _storage_errors(options.storage), _calm():
        study = optuna.create_study(
            storage=_open_storage(options.storage),
            study_name=options.name,
            directions=directions,
            load_if_exists=True,
            pruner=_pruner(options),
        )
        stored = study.user_attrs.get(_IDENTITY)
        if stored is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(_IDENTITY, facts)
            return study
    if stored is None:
        raise SettingsError(
            f"`study`: {options.name} in {options.storage} was not made by recbole-llm tune; "
            "choose another --study"
        )
    differences = [
        f"{key}: {_short(stored.get(key))} there, {_short(facts.get(key))} here"
        for key in dict.fromkeys([*facts, *stored])
        if stored.get(key) != facts.get(key)
    ]
    if differences:
        raise SettingsError(
            f"`study`: {options.name} in {options.storage} is another study "
            f"({'; '.join(differences)}); choose another --study"
        )
    return study


def space_facts(space: Space) -> dict[str, str]:
    """A space as it is compared with a stored one."""
    return {name: distribution_to_json(part.distribution) for name, part in space.items()}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 120 else f"{text[:117]}…"


class _OwnedLock(BaseJournalFileLock):
    """A lock that says whose it is: that of a killed process is taken over at once.

    Optuna's own is waited for half a minute, since it does not say who made it; this one is too,
    where its owner runs on another machine.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def acquire(self) -> bool:
        seen, since = "", time.monotonic()
        while True:
            try:
                os.symlink(_worker(), self.path)
                return True
            except FileExistsError:
                pass
            try:
                owner = os.readlink(self.path)
            except FileNotFoundError:
                continue
            if owner != seen:
                seen, since = owner, time.monotonic()
            if _is_gone(owner) or time.monotonic() - since > _STALE_SECONDS:
                self.release()
            else:
                time.sleep(0.001)

    def release(self) -> None:
        Path(self.path).unlink(missing_ok=True)


@contextmanager
def _storage_errors(url: str | None) -> Iterator[None]:
    """A storage's many errors as one line that names it."""
    try:
        yield
    except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = getattr(cause, "orig", None) or cause or error
        raise SettingsError(f"`storage`: cannot use {url}: {one_line(reason)}") from error


@contextmanager
def _opening(url: str | None) -> Iterator[None]:
    """What a storage raises that is not there, none, or of another version."""
    try:
        yield
    except RecboleLLMError:
        raise
    except ImportError as error:
        raise SettingsError(f"`storage`: {url} needs `{error.name}`; install it") from error
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise SettingsError(f"`storage`: cannot use {url}: {one_line(error)}") from error


def _open_storage(url: str | None) -> BaseStorage:
    if url is None:
        return InMemoryStorage()
    if url.startswith(JOURNAL):
        file = Path(url.removeprefix(JOURNAL))
        if not file.parent.is_dir():
            raise SettingsError(f"`storage`: there is no folder {file.parent}")
        if file.is_file() and not os.access(file, os.W_OK):
            raise SettingsError(f"`storage`: cannot write {file}")
        return JournalStorage(JournalFileBackend(str(file), _OwnedLock(f"{file}.lock")))
    if "://" not in url:
        raise SettingsError(
            f"`storage` must look like sqlite:///studies.db, journal:FILE or another of Optuna's "
            f"URLs, got {url!r}"
        )
    is_sqlite = url.startswith("sqlite")
    _refuse_foreign(url)
    storage = RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}} if is_sqlite else None,
        heartbeat_interval=_HEARTBEAT_SECONDS,
        grace_period=_STALE_SECONDS,
    )
    if is_sqlite:
        _write_ahead(storage)
    return storage


def _refuse_foreign(url: str) -> None:
    """A database of something else does not get Optuna's tables."""
    engine = sqlalchemy.create_engine(url)
    try:
        tables = sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if tables and "studies" not in tables:
        raise SettingsError(
            f"`storage`: {url} is a database of something else (it has {', '.join(tables[:3])})"
        )


def _write_ahead(storage: RDBStorage) -> None:
    """A commit waits for no disk: a fast trial has a dozen, each ten times as long as its work.

    A killed process loses nothing by it; a power failure may lose the last trials.
    """

    def set_up(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(storage.engine, "connect", set_up)
    storage.engine.dispose()


@contextmanager
def _calm() -> Iterator[None]:
    """Without Optuna's log and its warnings of what is done here on purpose."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        # A trial that is run again reports its first steps again.
        warnings.filterwarnings("ignore", message="The reported value is ignored")
        yield


def _pruner(options: StudyOptions) -> BasePruner:
    if options.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=10)
    if options.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    if options.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


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


class _SeededByNumber(BaseSampler):
    """A new sampler for each trial; the starts first, then the groups of parameters in turn.

    Parameters of other groups stay as the best trial has them: each trial then needs one signal
    that was not fitted before.
    """

    def __init__(self, options: StudyOptions, work: Work) -> None:
        self.options, self.work = options, work
        self.groups = list(dict.fromkeys(part.group for part in work.space.values()))
        self._now: BaseSampler = optuna.samplers.RandomSampler(seed=options.seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        sampler = make_sampler(self.options.sampler, self.options.seed, trial.number)
        fixed = self._fixed(study, trial.number)
        self._now = PartialFixedSampler(fixed, sampler) if fixed else sampler
        self._now.before_trial(study, trial)

    def _fixed(self, study: optuna.Study, number: int) -> dict[str, Any]:
        if number < len(self.work.starts):
            return dict(self.work.starts[number])
        if len(self.groups) < 2:
            return {}
        group = self.groups[number % len(self.groups)]
        best = best_trial(_known_trials(study, TrialState.COMPLETE), self.options.objectives)
        values = best.params if best else self.work.starts[0]
        return {name: values[name] for name, part in self.work.space.items() if part.group != group}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._now.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._now.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._now.after_trial(study, trial, state, values)


def run_study(
    study: optuna.Study,
    work: Work,
    options: StudyOptions,
    after: Callable[[FrozenTrial], None] = lambda _: None,
) -> bool:
    """Run trials until there are enough; other processes may do so on the same study.

    Args:
        study: of :func:`open_study`.
        work: what a trial does.
        options: the study's.
        after: sees each trial of this process when it is finished.

    Returns:
        Whether it came to its end; False where Ctrl-C stopped it.
    """
    until = math.inf if options.timeout is None else time.monotonic() + options.timeout
    with _storage_errors(options.storage), _calm(), _beating(study._storage) as beat:
        study.sampler = _SeededByNumber(options, work)
        try:
            while time.monotonic() < until:
                queued = _queue_the_dead(study)
                # Two processes may both start the last one: one more is no harm.
                if not queued and len(_known_trials(study)) >= options.trials:
                    break
                trial = _ask(study, work.space, options, queued=queued)
                beat(trial._trial_id)
                after(_run(study, trial, work, options))
        except KeyboardInterrupt:
            for own in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if own.user_attrs.get(_WORKER) == _worker():
                    _requeue(study, own._trial_id)
            return False
    return True


@contextmanager
def _beating(storage: BaseStorage) -> Iterator[Callable[[int], None]]:
    """Say again and again that a trial is alive, where the storage keeps such heartbeats.

    One thread for all trials: Optuna's own is one for each, and a fast trial would be all start.

    Yields:
        What is called with the trial that begins.
    """
    current: list[int] = []
    ended = threading.Event()

    def beat() -> None:
        assert isinstance(storage, BaseHeartbeat)
        beaten, at = -1, 0.0
        while not ended.wait(_FIRST_BEAT_SECONDS):
            trial_id = current[-1] if current else -1
            if trial_id >= 0 and (trial_id != beaten or time.monotonic() - at > _HEARTBEAT_SECONDS):
                storage.record_heartbeat(trial_id)
                beaten, at = trial_id, time.monotonic()

    thread = threading.Thread(target=beat, daemon=True)
    if is_heartbeat_enabled(storage):
        thread.start()
    try:
        yield current.append
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def _run(
    study: optuna.Study, trial: optuna.Trial, work: Work, options: StudyOptions
) -> FrozenTrial:
    """One trial; a failure is told with its reason, and ends no study."""

    def watch(step: int, value: float) -> None:
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    values: tuple[float, ...] | None = None
    reason = None
    state = TrialState.COMPLETE
    try:
        parameters = suggest(trial, work.space)
        best = best_trial(_known_trials(study, TrialState.COMPLETE), options.objectives)
        # Optuna prunes by one objective alone.
        can_prune = len(options.objectives) == 1 and options.pruner != "none"
        outcome = work(parameters, watch if can_prune else None, best)
        values = outcome.values
        for name, value in outcome.attributes.items():
            trial.set_user_attr(name, value)
        if not all(map(math.isfinite, values)):
            reason = f"its value is no number: {values}"
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    # Whatever a library raises is the trial's and no other's; the storage's own goes on.
    except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
        raise
    except Exception as error:
        logger.debug("the trial's own error:", exc_info=True)
        reason = f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, RecboleLLMError):
            reason = one_line(error)
    if reason is not None:
        trial.set_user_attr("reason", reason)
        state, values = TrialState.FAIL, None
        logger.warning(f"trial {trial.number} failed: {reason}")
    # A process that was taken for dead may come second.
    return study.tell(trial, values, state, skip_if_finished=True)


def _worker() -> str:
    started = psutil.Process().create_time()
    return f"{socket.gethostname()}:{os.getpid()}:{started:.0f}"


def _is_gone(worker: str) -> bool:
    """Whether a process of this machine has ended; of others nothing is known."""
    host, pid, started = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != started
    except psutil.NoSuchProcess:
        return True


def _queue_the_dead(study: optuna.Study) -> bool:
    """Put trials of dead processes back in the queue; whether there is one to take from it."""
    # As in Optuna's `ask`: what others have finished is read once for each trial.
    study._thread_local.cached_all_trials = None
    trials = _known_trials(study)
    heartbeats: BaseHeartbeat | None = None
    if is_heartbeat_enabled(study._storage):
        assert isinstance(study._storage, BaseHeartbeat)
        heartbeats = study._storage
    stale = set(heartbeats._get_stale_trial_ids(study._study_id)) if heartbeats else set()
    queued = False
    for trial in trials:
        if trial.state == TrialState.WAITING:
            queued = True
        elif trial.state == TrialState.RUNNING and (
            trial._trial_id in stale or _is_gone(trial.user_attrs.get(_WORKER, "::"))
        ):
            age = datetime.now() - (trial.datetime_start or datetime.min)
            if timedelta() <= age < _SETTLED:
                time.sleep((_SETTLED - age).total_seconds())
                return _queue_the_dead(study)
            queued |= _requeue(study, trial._trial_id)
    return queued


def _known_trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The trials as they were when this process began its own."""
    return study._get_trials(deepcopy=False, states=states or None, use_cache=True)


def _requeue(study: optuna.Study, trial_id: int) -> bool:
    """Put a trial back in the queue under its number; False where it was finished meanwhile."""
    try:
        return study._storage.set_trial_state_values(trial_id, TrialState.WAITING)
    except UpdateFinishedTrialError:
        return False


def _ask(study: optuna.Study, space: Space, options: StudyOptions, *, queued: bool) -> optuna.Trial:
    """Take a trial from the queue, or make one that says from the first who runs it.

    Optuna's own ``ask`` would leave a moment in which a killed process has a trial without a name.
    """
    attributes = {_WORKER: _worker()}
    trial_id = study._pop_waiting_trial_id() if queued else None
    if trial_id is not None:
        study._storage.set_trial_user_attr(trial_id, _WORKER, attributes[_WORKER])
        return optuna.Trial(study, trial_id)
    values: dict[str, Any] = {}
    # CMA-ES keeps its state with the trial, which must be there before.
    if _is_alone(study) and options.sampler != "cmaes":
        # One write for all parameters: each by itself costs more than a fast trial's work.
        values = _proposal(study, space)
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=values,
        distributions={name: space[name].distribution for name in values},
        user_attrs=attributes,
    )
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template))


def _is_alone(study: optuna.Study) -> bool:
    """Whether no other process works on the study, so that the next trial's number is known."""
    own = _worker()
    latest = _known_trials(study)[-9:]
    workers = {trial.user_attrs.get(_WORKER, own) for trial in latest}
    return all(worker == own or _is_gone(worker) for worker in workers)


class _WithoutNotes:
    """A storage that keeps no notes of a trial that it does not have yet."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Nothing: TPE notes here what it says anyway."""


def _proposal(study: optuna.Study, space: Space) -> dict[str, Any]:
    """What the sampler proposes for the next trial, as Optuna's trials ask it."""
    trial = optuna.trial.create_trial(state=TrialState.RUNNING)
    trial.number = len(_known_trials(study))
    sampler = study.sampler
    study = copy.copy(study)
    study._storage = _WithoutNotes(study._storage)  # type: ignore[assignment]  # it is one to read
    sampler.before_trial(study, trial)
    relative: dict[str, Any] | None = None
    values: dict[str, Any] = {}
    for name, parameter in space.items():
        if relative is None:
            found = sampler.infer_relative_search_space(study, trial)
            relative = sampler.sample_relative(study, trial, found)
        if name in relative:
            values[name] = relative[name]
        else:
            values[name] = sampler.sample_independent(study, trial, name, parameter.distribution)
    return values


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
