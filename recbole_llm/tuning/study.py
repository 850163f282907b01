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
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, get_storage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.trial import FrozenTrial, TrialState

from recbole_llm.errors import RecboleLLMError, SettingsError, one_line
from recbole_llm.tuning.objectives import StudyOptions, best_trial
from recbole_llm.tuning.samplers import SeededByNumber, known_trials, make_pruner
from recbole_llm.tuning.spaces import Space, suggest
from recbole_llm.tuning.storages import (
    HEARTBEAT_SECONDS,
    is_gone,
    open_storage,
    opening,
    storage_errors,
    worker,
)
from recbole_llm.tuning.trials import quiet

logger = logging.getLogger(__name__)

# What a trial of a process that is gone is known by: host, process and when that began.
_WORKER = "worker"
_IDENTITY = "recbole_llm"
_FIRST_BEAT_SECONDS = 1
# A trial that has just been taken from the queue still names the process that ran it before.
_SETTLED = timedelta(seconds=2)


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
    with opening(options.storage), storage_errors(options.storage), _calm():
        study = optuna.create_study(
            storage=open_storage(options.storage),
            study_name=options.name,
            directions=directions,
            load_if_exists=True,
            pruner=make_pruner(options),
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


@contextmanager
def _calm() -> Iterator[None]:
    """Without Optuna's log and its warnings of what is done here on purpose."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        # A trial that is run again reports its first steps again.
        warnings.filterwarnings("ignore", message="The reported value is ignored")
        yield


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
    with storage_errors(options.storage), _calm(), _beating(study._storage) as beat:
        study.sampler = SeededByNumber(options, work.space, work.starts)
        try:
            while time.monotonic() < until:
                queued = _queue_the_dead(study)
                # Two processes may both start the last one: one more is no harm.
                if not queued and len(known_trials(study)) >= options.trials:
                    break
                trial = _ask(study, work.space, options, queued=queued)
                beat(trial._trial_id)
                after(_run(study, trial, work, options))
        except KeyboardInterrupt:
            if options.storage is not None:
                # It may have come while the storage took in what is new: all is read again.
                study._storage = get_storage(open_storage(options.storage))
                study._thread_local.cached_all_trials = None
            for own in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if own.user_attrs.get(_WORKER) == worker():
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
            if trial_id >= 0 and (trial_id != beaten or time.monotonic() - at > HEARTBEAT_SECONDS):
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
        best = best_trial(known_trials(study, TrialState.COMPLETE), options.objectives)
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


def _queue_the_dead(study: optuna.Study) -> bool:
    """Put trials of dead processes back in the queue; whether there is one to take from it."""
    # As in Optuna's `ask`: what others have finished is read once for each trial.
    study._thread_local.cached_all_trials = None
    trials = known_trials(study)
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
            trial._trial_id in stale or is_gone(trial.user_attrs.get(_WORKER, "::"))
        ):
            age = datetime.now() - (trial.datetime_start or datetime.min)
            if timedelta() <= age < _SETTLED:
                time.sleep((_SETTLED - age).total_seconds())
                return _queue_the_dead(study)
            queued |= _requeue(study, trial._trial_id)
    return queued


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
    attributes = {_WORKER: worker()}
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
    own = worker()
    latest = known_trials(study)[-9:]
    workers = {trial.user_attrs.get(_WORKER, own) for trial in latest}
    return all(worker == own or is_gone(worker) for worker in workers)


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
    trial.number = len(known_trials(study))
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
