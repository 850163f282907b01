"""Studies: resumable, repeatable, and fit for several processes; no model in sight."""

import os
import sqlite3
import subprocess
import sys

import optuna
import pytest
import torch
from optuna.storages.journal._storage import JournalStorageReplayResult
from optuna.trial import TrialState

from recbole_llm.errors import SettingsError
from recbole_llm.settings import Search
from recbole_llm.tuning import samplers, storages
from recbole_llm.tuning.objectives import Objective, Pick, StudyOptions, choose, first_failure
from recbole_llm.tuning.spaces import Parameter
from recbole_llm.tuning.study import Outcome, open_study, run_study

NDCG, DIMS = Objective("ndcg@10"), Objective("index_dims", maximise=False)
SPACE = {
    "als_factors": Parameter(int, Search(8, 256, log=True), "als"),
    "als_alpha": Parameter(float, Search(0.5, 50.0, log=True), "als"),
    "lightfm_loss": Parameter(str, Search(choices=("warp", "bpr")), "lightfm"),
}


class Toy:
    """Its best is at 100 factors, alpha 5, warp."""

    space = SPACE
    starts = ({"als_factors": 64, "als_alpha": 2.0, "lightfm_loss": "bpr"},)

    def __init__(self, stop_at=None, fail=lambda values: False):
        self.stop_at, self.fail = stop_at, fail
        self.tried = []

    def __call__(self, values, watch, best):
        self.tried.append(values)
        if len(self.tried) == self.stop_at:
            raise KeyboardInterrupt
        if self.fail(values):
            raise ValueError("no luck\nat all")
        value = -abs(values["als_factors"] - 100) / 100 - abs(values["als_alpha"] - 5) / 5
        return Outcome((value + (values["lightfm_loss"] == "warp"),))


def options(storage=None, **changes):
    return StudyOptions(
        **{"name": "s", "storage": storage, "objectives": (NDCG,), "trials": 14} | changes
    )


def run(opts, work=None, identity=None):
    study = open_study(opts, identity or {"model": "Toy"})
    work = work or Toy()
    return study, run_study(study, work, opts)


def facts(study):
    return [(trial.number, trial.params, trial.values) for trial in study.trials]


@pytest.fixture(params=["journal:{}/s.log", "sqlite:///{}/s.db"], ids=["journal", "sqlite"])
def storage(request, tmp_path):
    return request.param.format(tmp_path)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_study_that_goes_on_makes_the_trials_of_one_that_was_not_stopped(sampler, tmp_path):
    whole, _ = run(options(sampler=sampler))
    url = f"journal:{tmp_path}/s.log"
    for trials in (5, 6, 14):
        part, _ = run(options(url, sampler=sampler, trials=trials))
    assert facts(part) == facts(whole)
    assert len({tuple(trial.params.values()) for trial in whole.trials}) > 6


def test_a_host_that_looks_for_nan_gradients_does_not_stop_a_gaussian_process():
    alone, _ = run(options(sampler="gp"))
    with torch.autograd.set_detect_anomaly(True):
        beside, _ = run(options(sampler="gp"))
        assert torch.is_anomaly_enabled()
    assert [trial.params for trial in beside.trials] == [trial.params for trial in alone.trials]


def test_another_seed_makes_other_trials():
    assert facts(run(options(seed=1))[0])[1:] != facts(run(options(seed=2))[0])[1:]


def test_ctrl_c_puts_the_trial_back_and_ends_with_the_best_so_far(storage):
    whole, _ = run(options())
    study, ended = run(options(storage), Toy(stop_at=5))
    assert not ended
    assert study.trials[4].state == TrialState.WAITING
    assert choose(study, (NDCG,), None).number in range(4)
    study, ended = run(options(storage))
    assert ended
    assert facts(study) == facts(whole)


def test_ctrl_c_while_a_journal_is_read_leaves_no_trial_running(tmp_path, monkeypatch):
    replay = JournalStorageReplayResult._apply_create_trial
    seen = []

    def stopped(self, log):
        seen.append(log)
        if len(seen) == 6:
            raise KeyboardInterrupt
        replay(self, log)

    monkeypatch.setattr(JournalStorageReplayResult, "_apply_create_trial", stopped)
    opts = options(f"journal:{tmp_path}/s.log")
    study, ended = run(opts)
    assert not ended
    states = [TrialState.COMPLETE] * 5 + [TrialState.WAITING]
    assert [trial.state for trial in study.trials] == states
    assert [trial.state for trial in open_study(opts, {"model": "Toy"}).trials] == states
    again, _ = run(opts)
    assert facts(again) == facts(run(options())[0])


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from test_study import Toy, options, run
class Killed(Toy):
    def __call__(self, *args):
        if len(self.tried) == 3:
            os.kill(os.getpid(), 9)
        return super().__call__(*args)
run(options({storage!r}), Killed())
"""


def test_a_killed_process_loses_no_trial_and_its_own_keeps_its_number(storage):
    whole, _ = run(options())
    code = KILLED.format(tests=os.path.dirname(__file__), storage=storage)
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    work = Toy()
    study, _ = run(options(storage), work)
    assert facts(study) == facts(whole)
    assert len(work.tried) == 14 - 6  # what was finished is not run again
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_trial_of_a_machine_that_fell_silent_is_run_again(tmp_path):
    opts = options(f"sqlite:///{tmp_path}/s.db", trials=2)
    study = open_study(opts, {"model": "Toy"})
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING, user_attrs={"worker": "elsewhere:1:1"}
    )
    trial_id = study._storage.create_new_trial(study._study_id, template)
    study._storage.record_heartbeat(trial_id)
    run(opts)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "COMPLETE"]
    with sqlite3.connect(tmp_path / "s.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
        database.execute("UPDATE trials SET datetime_start = '2020-01-01 00:00:00'")
    run(opts)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]


def test_a_failing_trial_is_recorded_with_its_reason_and_ends_nothing():
    study, ended = run(options(), Toy(fail=lambda values: values["lightfm_loss"] == "bpr"))
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert ended
    assert 0 < len(failed) < 14
    assert failed[0].user_attrs["reason"] == "ValueError: no luck at all"
    assert choose(study, (NDCG,), None).params["lightfm_loss"] == "warp"


def test_where_all_fail_the_first_reason_is_known():
    study, _ = run(options(trials=3), Toy(fail=lambda values: True))
    assert choose(study, (NDCG,), None) is None
    assert first_failure(study) == "ValueError: no luck at all"


def test_a_value_that_is_no_number_fails_the_trial():
    class Nan(Toy):
        def __call__(self, *args):
            return Outcome((float("nan"),))

    study, _ = run(options(trials=2), Nan())
    assert "no number" in first_failure(study)


def test_a_trial_changes_one_signal_of_the_best():
    study, _ = run(options(trials=30))
    groups = {"als": ("als_factors", "als_alpha"), "lightfm": ("lightfm_loss",)}
    for trial in study.trials[1:]:
        before = [other for other in study.trials[: trial.number]]
        best = max(before, key=lambda other: other.value).params
        other = groups["als" if trial.number % 2 else "lightfm"]
        assert {name: best[name] for name in other} == {name: trial.params[name] for name in other}


def test_poor_trials_are_given_up():
    class InSteps(Toy):
        def __call__(self, values, watch, best):
            outcome = super().__call__(values, watch, best)
            for step in range(3):
                watch(step, outcome.values[0])
            return outcome

    study, _ = run(options(trials=40, sampler="random"), InSteps())
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert pruned
    assert max(trial.value for trial in pruned) < choose(study, (NDCG,), None).value
    study, _ = run(options(trials=40, sampler="random", pruner="none"), Toy())
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_point_of_the_front_is_picked():
    class Costly(Toy):
        def __call__(self, values, watch, best):
            (value,) = super().__call__(values, watch, best).values
            return Outcome((value + 10, float(values["als_factors"])))

    both = (NDCG, DIMS)
    # A Gaussian process proposes other trials on other processors.
    study, _ = run(options(trials=150, objectives=both, sampler="random"), Costly())
    best = choose(study, both, None)
    assert best.values[0] == max(trial.values[0] for trial in study.trials)
    picked = choose(study, both, Pick.parse("ndcg@10 >= 0.95*best", both))
    kept = [trial for trial in study.trials if trial.values[0] >= 0.95 * best.values[0]]
    assert picked.values[1] == min(trial.values[1] for trial in kept) < best.values[1]
    narrow = choose(study, both, Pick.parse("index_dims <= 64", both))
    assert narrow.values[1] <= 64
    with pytest.raises(SettingsError, match="no trial keeps"):
        choose(study, both, Pick.parse("ndcg@10 >= 99", both))


@pytest.mark.parametrize("text", ["ndcg@10", "ndcg@10 >= best", "recall@10 >= 0.9*best"])
def test_a_pick_that_cannot_be_read_is_refused(text):
    with pytest.raises(SettingsError, match="`pick`"):
        Pick.parse(text, (NDCG, DIMS))


def test_another_study_of_the_name_is_refused_with_what_differs(storage):
    run(options(storage, trials=2), identity={"model": "Toy", "dataset": "ml-100k 12"})
    with pytest.raises(SettingsError, match="dataset: ml-100k 12 there, ml-100k 34 here"):
        run(options(storage), identity={"model": "Toy", "dataset": "ml-100k 34"})
    with pytest.raises(SettingsError, match="objectives"):
        run(
            options(storage, objectives=(NDCG, DIMS)),
            identity={"model": "Toy", "dataset": "ml-100k 12"},
        )


def test_a_study_of_somebody_elses_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=url, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(SettingsError, match="not made by recbole-llm tune"):
        run(options(url))


def make_other_database(folder):
    with sqlite3.connect(folder / "s.db") as database:
        database.execute("CREATE TABLE customers (name TEXT)")


def make_no_database(folder):
    (folder / "s.db").write_text("hello " * 1000)


def make_no_journal(folder):
    (folder / "s.log").write_text("hello\nworld\n")


@pytest.mark.parametrize(
    ("make", "url", "reason"),
    [
        (make_other_database, "sqlite:///{}/s.db", "database of something else .it has customers"),
        (make_no_database, "sqlite:///{}/s.db", "not a database"),
        (make_no_journal, "journal:{}/s.log", "cannot use journal"),
        (None, "journal:{}/nowhere/s.log", "there is no folder"),
        (None, "sqlite:///{}/nowhere/s.db", "unable to open"),
        (None, "studies.db", "must look like"),
        (None, "postgresql+nodriver://localhost/x", "`storage`"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named(tmp_path, make, url, reason):
    if make:
        make(tmp_path)
    with pytest.raises(SettingsError, match=reason):
        run(options(url.format(tmp_path)))


def test_a_locked_database_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "_LOCK_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path}/s.db"
    run(options(url, trials=1))
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(SettingsError, match="database is locked"):
            run(options(url, trials=2))
    finally:
        other.close()


def test_a_sampler_without_its_library_is_said():
    try:
        import cmaes  # noqa: F401
    except ImportError:
        with pytest.raises(SettingsError, match="pip install cmaes"):
            samplers.make_sampler("cmaes", 1, 1)
