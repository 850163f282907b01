"""`recbole-llm tune` as users type it, on a tiny data set with cold items."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from recbole_llm.cli import recbole_llm_command, run_recbole_command
from recbole_llm.host.tune import beyond_chance
from recbole_llm.signals import SIGNALS

WORDS = ["red", "blue", "green", "shoe", "hat", "lamp", "wood", "steel", "summer", "river"]
QUICK = [
    "--signals=als,item_item,text_intent,popularity",
    "--encoder=lexical",
    "--weight_trials=5",
    "--show_progress=False",
    "--embedding_cache=none",
]


def write_data(folder, name="tiny"):
    """Two tastes that the titles' words tell."""
    rng = np.random.default_rng(0)
    place = folder / name
    place.mkdir(parents=True)
    likes = [np.flatnonzero((np.arange(60) + user) % 2 == 0) for user in range(60)]
    rows = [
        f"u{user}\ti{item}\t{1000 + step}"
        for user in range(60)
        for step, item in enumerate(rng.choice(likes[user], 14, replace=False))
    ]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (place / f"{name}.inter").write_text("\n".join([head, *rows]) + "\n")
    titles = [
        f"i{item}\t{' '.join(rng.choice(WORDS[5 * (item % 2) :][:5], 3))}\t{rng.choice(WORDS)}"
        for item in range(60)
    ]
    head = "item_id:token\ttitle:token_seq\tkind:token_seq"
    (place / f"{name}.item").write_text("\n".join([head, *titles]) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data set, and splits of it with a third of the items or of the users cold."""
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    for cold in ("items", "users"):
        arguments = ["--cold", cold, "--fraction", "0.4", "--seed", "1", "--out", str(root)]
        assert not recbole_llm_command(
            ["split", "--dataset", "tiny", f"--data_path={root}", *arguments]
        )
    return root


@pytest.fixture
def tune(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments, model="HybridFusion", dataset="tiny", settings=QUICK):
        return recbole_llm_command(
            [
                "tune",
                "--model",
                model,
                "--dataset",
                dataset,
                f"--data_path={data}",
                "--out",
                "out",
                *settings,
                *arguments,
            ]
        )

    return command


def study_in(folder, name=None):
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def run_of_best(folder):
    """The record of `run_recbole --config_files=best.yaml`."""
    arguments = ["--config_files=out/best.yaml", "--result_file=r.json", "--show_progress=False"]
    assert run_recbole_command(arguments) == 0
    return json.loads((folder / "r.json").read_text())


@pytest.mark.parametrize("dataset", ["tiny", "tiny-cold-items-1"])
@pytest.mark.parametrize("level", ["weights", "signals", "all"])
def test_best_yaml_is_the_best_trials_model(tune, tmp_path, level, dataset):
    asked = ["--trials=14", "--report_test", "--pick=best"]
    assert tune(f"--level={level}", *asked, dataset=dataset) == 0
    study = study_in(tmp_path / "out")
    assert len(study.trials) == 14
    record = run_of_best(tmp_path)
    assert record["valid"]["ndcg@10"] == pytest.approx(study.best_value, abs=1e-6)
    tested = study.best_trial.user_attrs["test_ndcg@10"]
    assert record["test"]["ndcg@10"] == pytest.approx(tested, abs=1e-6)
    assert study.best_value >= study.trials[0].value > 0


@pytest.mark.parametrize("level", ["weights", "all"])
def test_best_yaml_serves_new_users_as_the_best_trial_did(tune, tmp_path, level):
    asked = ["--trials=14", "--report_test", "--pick=best"]
    assert tune(f"--level={level}", *asked, dataset="tiny-cold-users-1") == 0
    study, record = study_in(tmp_path / "out"), run_of_best(tmp_path)
    assert record["new_users"] == "popularity"
    assert record["valid"]["ndcg@10"] == pytest.approx(study.best_value, abs=1e-6)
    tested = study.best_trial.user_attrs["test_ndcg@10"]
    assert record["test"]["ndcg@10"] == pytest.approx(tested, abs=1e-6)


@pytest.mark.parametrize("level", ["weights", "all"])
def test_where_validation_is_later_histories_fade_as_in_a_run(tune, tmp_path, level):
    split = "{'split': {'LS': 'valid_and_test'}, 'order': 'TO', 'group_by': 'user', 'mode': 'full'}"
    assert tune(f"--level={level}", "--trials=8", "--pick=best", f"--eval_args={split}") == 0
    study = study_in(tmp_path / "out")
    record = run_of_best(tmp_path)
    assert record["signal_settings"]["als"]["history_decay"] is not None
    assert record["valid"]["ndcg@10"] == pytest.approx(study.best_value, abs=1e-6)


@pytest.mark.parametrize("level", ["weights", "signals", "all"])
def test_the_first_trial_is_the_run_without_a_study(tune, data, tmp_path, level):
    settings = [*QUICK, "--signal_search_trials=4"]
    assert tune(f"--level={level}", "--trials=1", settings=settings) == 0
    (trial,) = study_in(tmp_path / "out").trials
    of_best = run_of_best(tmp_path)
    arguments = ["--model=HybridFusion", "--dataset=tiny", f"--data_path={data}", *settings]
    assert run_recbole_command([*arguments, "--result_file=plain.json"]) == 0
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert trial.value == pytest.approx(plain["valid"]["ndcg@10"], abs=1e-6)
    assert of_best["test"] == pytest.approx(plain["test"], abs=1e-6)


def test_the_run_without_a_study_stays_where_no_trial_is_surely_better(tune, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert tune("--level=weights", "--trials=30") == 0
    study = study_in(tmp_path / "out")
    (said,) = [line for line in caplog.messages if "ahead of the run without a study" in line]
    low = float(said.partition("[")[2].partition(",")[0])
    record = run_of_best(tmp_path)
    stays = "no more than chance" in said
    assert stays == (low <= 0)
    expected = study.trials[0].value if stays else study.best_value
    assert record["valid"]["ndcg@10"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("lead", "chosen"), [(0.1, 1), (0.001, 0)])
def test_a_lead_counts_where_its_interval_is_above_0(lead, chosen):
    study = optuna.create_study()
    for value in (0.0, 1.0):
        study.add_trial(optuna.trial.create_trial(value=value))
    of_users = np.random.default_rng(0).random((2, 400)) * 0.3
    of_users[1] += lead

    class Users:
        def confirmed(self, trial):
            return of_users[trial.number].mean(), of_users[trial.number]

    trial, value = beyond_chance(study, study.trials[1], Users())
    assert trial.number == chosen
    assert value == of_users[chosen].mean()


def test_no_test_metric_is_kept_unasked_and_the_space_is_the_searched_fields(
    tune, tmp_path, capsys
):
    assert tune("--level=signals", "--trials=3") == 0
    attributes = {name for trial in study_in(tmp_path / "out").trials for name in trial.user_attrs}
    assert not [name for name in attributes if "test" in name]
    assert tune("--level=signals", "--show_space") == 0
    space = yaml.safe_load(capsys.readouterr().out)
    assert space["als_iterations"] == {"low": 5, "high": 30}
    assert space["item_text_fields"]["choices"][0] == "title,kind"
    assert set(space) == set(study_in(tmp_path / "out").best_params)


def test_no_signal_is_fitted_twice(tune, tmp_path, monkeypatch):
    fitted = []
    fit = SIGNALS["als"].fit_in_steps

    def counted(self, data, run):
        fitted.append(self)
        return fit(self, data, run)

    monkeypatch.setattr(SIGNALS["als"], "fit_in_steps", counted)
    assert tune("--level=signals", "--trials=16") == 0
    assert len(fitted) == len(set(fitted)) > 4
    reported = [trial for trial in study_in(tmp_path / "out").trials if trial.intermediate_values]
    assert reported


def test_warm_against_cold_gives_a_front_and_a_picked_point(tune, tmp_path):
    objectives = ["--objective=ndcg@10", "--objective=cold_ndcg@10", "--objective=index_dims"]
    pick = ["--pick", "cold_ndcg@10 >= 0.9*best"]
    assert tune(*objectives, *pick, "--trials=20", dataset="tiny-cold-items-1") == 0
    study = study_in(tmp_path / "out")
    assert any(name.startswith("cold_weights.") for name in study.trials[0].params)
    best = max(trial.values[1] for trial in study.best_trials)
    record = run_of_best(tmp_path)
    kept = [trial.values[0] for trial in study.best_trials if trial.values[1] >= 0.9 * best]
    assert record["valid"]["ndcg@10"] == pytest.approx(max(kept), abs=1e-6)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Pareto front" in page
    assert 'src="http' not in page
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 1000


def test_a_model_of_recboles_is_tuned_by_its_own_runs(tune, tmp_path):
    (tmp_path / "hyper.test").write_text(
        "learning_rate loguniform -6,-3\nembedding_size choice [8,16]\n"
    )
    settings = ["--space", "hyper.test", "--epochs=3", "--show_progress=False", "--trials=3"]
    assert tune("--report_test", model="BPR", settings=settings) == 0
    study = study_in(tmp_path / "out")
    assert len(study.trials) == 3
    record = run_of_best(tmp_path)
    assert record["model"] == "BPR"
    assert record["valid"]["mrr@10"] == pytest.approx(study.best_value, abs=1e-6)
    assert record["test"]["mrr@10"] == pytest.approx(
        study.best_trial.user_attrs["test_mrr@10"], abs=1e-6
    )


def test_a_tower_is_tuned_by_its_own_runs(tune, tmp_path):
    settings = ["--encoder=lexical", "--epochs=2", "--intent_tower_dimensions=16", *QUICK[3:]]
    assert tune("--trials=3", model="IntentTower", settings=settings) == 0
    study = study_in(tmp_path / "out")
    assert {"learning_rate", "intent_tower_temperature"} <= set(study.best_params)
    assert not {"encoder", "intent_tower_regularization"} & set(study.best_params)
    record = run_of_best(tmp_path)
    assert record["model"] == "IntentTower"
    assert record["valid"]["ndcg@10"] == pytest.approx(study.best_value, abs=1e-6)


def test_a_tower_among_the_signals_is_tuned_as_one(tune, tmp_path):
    signals = ["--signals=als,intent_tower", "--intent_tower_epochs=1"]
    assert tune("--level=signals", "--trials=3", settings=[*signals, *QUICK[1:]]) == 0
    study = study_in(tmp_path / "out")
    assert {"als_factors", "intent_tower_learning_rate"} <= set(study.best_params)
    assert run_of_best(tmp_path)["valid"]["ndcg@10"] > 0


def test_a_report_is_one_file_beside_pngs(tune, tmp_path):
    assert tune("--trials=12") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("Plotly.newPlot") >= 4
    assert 'src="http' not in page
    assert {"history.png", "importances.png", "slices.png", "timeline.png"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


def in_a_process(context, folder, arguments):
    process = context.Process(target=run_as_command, args=(str(folder), arguments))
    process.start()
    return process


def run_as_command(folder, arguments):
    os.chdir(folder)
    sys.exit(recbole_llm_command(arguments))


@pytest.fixture(scope="module")
def context():
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["recbole_llm.cli"])
    return made


def long_study(data, *more):
    command = ["tune", "--model=HybridFusion", "--dataset=tiny", f"--data_path={data}"]
    return [*command, "--out=out", *QUICK, "--level=signals", "--trials=24", *more]


def wait_for_trials(folder, n_trials, process):
    """Until so many trials have begun."""
    file = folder / "out" / "journal.log"
    began = 0
    while began < n_trials and process.is_alive():
        time.sleep(0.02)
        began = file.read_text().count('"worker"') if file.is_file() else 0


def test_killed_again_and_again_it_makes_the_undisturbed_studys_trials(data, tmp_path, context):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = in_a_process(context, tmp_path / "whole", long_study(data))
    folder = tmp_path / "killed"
    for n_trials in (3, 11, 17):
        process = in_a_process(context, folder, long_study(data))
        wait_for_trials(folder, n_trials, process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    process = in_a_process(context, folder, long_study(data))
    for one in (process, whole):
        one.join(180)
        assert one.exitcode == 0
    expected, found = (study_in(tmp_path / name / "out").trials for name in ("whole", "killed"))
    assert [trial.params for trial in found] == [trial.params for trial in expected]
    assert [trial.values for trial in found] == [trial.values for trial in expected]
    assert [trial.state for trial in found] == [trial.state for trial in expected]
    assert len({trial.user_attrs["worker"] for trial in found}) > 1


def test_two_processes_share_a_study(data, tmp_path, context):
    pair = [in_a_process(context, tmp_path, long_study(data)) for _ in range(2)]
    for process in pair:
        process.join(180)
        assert process.exitcode == 0
    trials = study_in(tmp_path / "out").trials
    assert {trial.state.is_finished() for trial in trials} == {True}
    assert 24 <= len(trials) <= 25
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2


def test_jobs_are_processes_on_the_same_study(tune, tmp_path):
    assert tune("--jobs=2", "--trials=400", "--sampler=random") == 0
    trials = study_in(tmp_path / "out").trials
    assert {trial.state.is_finished() for trial in trials} == {True}
    assert 400 <= len(trials) <= 401


def test_ctrl_c_ends_with_the_best_so_far(data, tmp_path, context):
    process = in_a_process(context, tmp_path, long_study(data, "--trials=100000"))
    wait_for_trials(tmp_path, 12, process)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert (tmp_path / "out" / "best.yaml").is_file()
    assert "RUNNING" not in {trial.state.name for trial in study_in(tmp_path / "out").trials}


SPACES = {
    "inverted": "als_factors: {low: 64, high: 8}",
    "empty": "als_factors: {low: 8, high: 8}",
    "unknown": "als_factor: {low: 8, high: 64}",
    "too_low": "als_factors: {low: 0, high: 64}",
    "bad_word": "lightfm_loss: [warp, wrap]",
    "bpr": "learning_rat: {low: 0.1, high: 0.2}",
    "bpr_good": "embedding_size: [8]",
    "failing": "embedding_size: [-1, -2]",
}


@pytest.mark.parametrize(
    ("model", "arguments", "reason"),
    [
        ("HybridFusion", ["--trials=0"], "`trials` must be at least 1, got 0"),
        ("HybridFusion", ["--jobs=0"], "`jobs` must be at least 1"),
        ("HybridFusion", ["--timeout=0"], "`timeout` must be above 0"),
        ("HybridFusion", ["--objective=ndgc@10"], "did you mean `ndcg`"),
        ("HybridFusion", ["--objective=index_dims"], "costs alone"),
        ("HybridFusion", ["--objective=ndcg@10", "--objective=NDCG@10"], "named twice"),
        ("HybridFusion", ["--pick=recall@5 >= 0.9*best"], "`pick` names recall@5"),
        ("HybridFusion", ["--fusion_weights={als:1}"], "`fusion_weights` is set"),
        ("HybridFusion", ["--level=signals", "--space=inverted"], "`als_factors` is inverted"),
        ("HybridFusion", ["--level=signals", "--space=empty"], "`als_factors` is empty"),
        ("HybridFusion", ["--level=signals", "--space=unknown"], "did you mean `als_factors`"),
        ("HybridFusion", ["--level=signals", "--space=too_low"], "must be at least 1, got 0"),
        ("LightFM", ["--space=bad_word"], "did you mean `warp`"),
        ("HybridFusion", ["--level=signals", "--space=nowhere"], "cannot read nowhere"),
        (
            "HybridFusion",
            ["--level=signals", "--space=unknown", "--als_factor=3"],
            "unknown setting `als_factor`",
        ),
        ("HybridFusion", ["--storage=studies.db"], "`storage` must look like"),
        ("HybridFusion", ["--storage=sqlite:////dev/null/s.db"], "`storage`: cannot use sqlite"),
        ("HybridFusion", ["--out=/dev/null/out"], "`out`: cannot write"),
        ("HybridFusoin", [], "did you mean `HybridFusion`"),
        ("ALS", ["--level=weights"], "needs two signals"),
        ("Pop", [], "name a file of ranges with --space"),
        ("BPR", ["--space=bpr"], "did you mean `learning_rate`"),
        ("BPR", ["--space=bpr_good", "--level=all"], "`level` is for models made of signals"),
        ("BPR", ["--space=bpr_good", "--objective=ndcg@7"], "BPR reports no ndcg@7"),
        ("BPR", ["--space=bpr_good", "--embedding_size=4"], "`embedding_size` is set already"),
        ("BPR", ["--space=failing", "--trials=2"], "all trials have failed; the first:"),
    ],
)
def test_bad_input_gets_one_line_and_a_nonzero_exit(
    tune, tmp_path, capsys, model, arguments, reason
):
    for name, text in SPACES.items():
        (tmp_path / name).write_text(text)
    settings = QUICK if model.startswith("Hybrid") else ["--show_progress=False", "--epochs=1"]
    code = tune("--trials=2", *arguments, model=model, settings=settings)
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 1
    assert said[-1].startswith("error: ")
    assert reason in said[-1]


def test_a_study_for_another_model_or_space_is_refused(tune, capsys):
    assert tune("--trials=2", "--study=mine", "--level=signals") == 0
    assert tune("--trials=2", "--study=mine", "--level=all") == 1
    assert "level: signals there, all here" in capsys.readouterr().err
    assert tune("--trials=2", "--study=mine", "--level=signals", "--als_alpha=3") == 1
    assert "settings:" in capsys.readouterr().err


def test_a_files_ranges_hold_for_weights_too(tune, tmp_path):
    (tmp_path / "narrow").write_text(
        "fusion_weights.als: {low: 0.5, high: 1.0}\nfusion_weights.popularity: none\n"
    )
    assert tune("--trials=12", "--space=narrow", "--pick=best") == 0
    study = study_in(tmp_path / "out")
    assert min(trial.params["fusion_weights.als"] for trial in study.trials) >= 0.5
    assert run_of_best(tmp_path)["weights"]["popularity"] == 0
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
