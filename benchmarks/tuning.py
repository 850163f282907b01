"""Studies: weight trials a second, trials of `all`, two workers against one, kills, and batches.

python benchmarks/tuning.py --parts weights all jobs kills batches
Each part is kept in benchmarks/results/tuning.json as soon as it is there, and tuning.md is made of
what is kept; every study is the command in a process of its own.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

import command
import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from recbole_llm.evaluation import Metric
from recbole_llm.tuning.weights import CandidateScores

RESULTS = Path(__file__).parent / "results"
TUNE = "import sys; from recbole_llm.cli import recbole_llm_command as c; sys.exit(c())"
DATA = ["--model=HybridFusion", "--dataset=ml-100k", "--show_progress=False"]
METRIC = "ndcg@10"
# Signals of the default model, users and items of ml-100k.
SIGNALS, SHAPE = 8, (943, 1682)


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", TUNE, "tune", *DATA, "--out=out", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def tune(folder, *arguments):
    """Wall seconds of a study, imports included."""
    began = perf_counter()
    if start(folder, *arguments).wait():
        raise RuntimeError(f"tune {arguments} failed in {folder}")
    return perf_counter() - began


def study_in(folder):
    storage = JournalStorage(JournalFileBackend(str(Path(folder) / "out" / "journal.log")))
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def span(trials):
    """Seconds from the first trial's start to the last one's end."""
    began = min(trial.datetime_start for trial in trials)
    return (max(trial.datetime_complete for trial in trials) - began).total_seconds()


def run_of(best, folder):
    record = command.run({"config_files": best, "show_progress": False}, Path(folder))
    return {"valid": record["valid"][METRIC], "test": record["test"][METRIC]}


def weights(args):
    """Trials a second, with Optuna's part of them; a run for each trial, as in HyperTuning."""
    with tempfile.TemporaryDirectory() as folder:
        tune(folder, "--level=weights", f"--trials={args.trials}")
        trials = study_in(folder).trials
        work = sum((t.datetime_complete - t.datetime_start).total_seconds() for t in trials)
        seconds = span(trials)
        runs = []
        for trial in trials[:: max(1, len(trials) // args.runs)][: args.runs]:
            fixed = {name.partition(".")[2]: value for name, value in trial.params.items()}
            values = {"model": "HybridFusion", "dataset": "ml-100k", "fusion_weights": fixed}
            began = perf_counter()
            command.run({**values, "signal_search_trials": 0}, Path(folder))
            runs.append(perf_counter() - began)
        per_second = len(trials) / seconds
        return {
            "trials": len(trials),
            "trials_per_second": per_second,
            "seconds_between_trials": (seconds - work) / len(trials),
            "seconds_of_a_run": float(np.mean(runs)),
            "times_hyper_tuning": per_second * float(np.mean(runs)),
            "best": run_of(Path(folder) / "out" / "best.yaml", folder),
        }


def everything(args):
    """Trials of `all` for each seed, and the tests of what validation chose."""
    found = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            extra = [f"--seed={seed}", f"--jobs={args.jobs}"]
            wall = tune(folder, "--level=all", f"--trials={args.outer}", *extra)
            trials = study_in(folder).trials
            found[str(seed)] = {
                "trials": len(trials),
                "states": {
                    s: sum(t.state.name == s for t in trials)
                    for s in ("COMPLETE", "PRUNED", "FAIL")
                },
                "wall_seconds": wall,
                "trials_seconds": span(trials),
                "first": trials[0].value,
                "best": max(trial.value for trial in trials if trial.state.name == "COMPLETE"),
                **run_of(Path(folder) / "out" / "best.yaml", folder),
                "default_run": command.run(
                    {"model": "HybridFusion", "dataset": "ml-100k", "seed": seed}, Path(folder)
                )["test"][METRIC],
            }
    return found


def jobs(args):
    """Trials a minute of one and of two workers, without the time to start."""
    found = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            extra = ["--sampler=random", f"--jobs={workers}", "--pruner=none"]
            tune(folder, "--level=signals", f"--trials={args.outer}", *extra)
            trials = [t for t in study_in(folder).trials if t.number >= 8]
            found[str(workers)] = len(trials) / span(trials) * 60
    return {"trials_per_minute": found, "ratio": found["2"] / found["1"]}


def kills(args):
    """A study killed at random moments, beside an undisturbed one."""
    rng = random.Random(7)
    study = ["--level=signals", f"--trials={args.outer}", "--signals=als,popularity"]
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as folder:
        tune(whole, *study)
        killed = finished = lost = 0
        while killed < args.kills:
            process = start(folder, *study)
            log = Path(folder) / "out" / "journal.log"
            size = log.stat().st_size if log.is_file() else 0
            while process.poll() is None and (not log.is_file() or log.stat().st_size <= size):
                sleep(0.02)
            sleep(rng.random() * args.kill_within)
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            done = [t for t in study_in(folder).trials if t.state.is_finished()]
            lost += max(0, finished - len(done))
            finished = len(done)
        tune(folder, *study)
        ours, theirs = study_in(folder).trials, study_in(whole).trials
        same = [(t.params, t.values, t.state) for t in ours] == [
            (t.params, t.values, t.state) for t in theirs
        ]
        return {"kills": killed, "trials": len(ours), "lost": lost, "same_trials": same}


def batches(args):
    """Weights a second, by how many are evaluated at once; scores are drawn, in ml-100k's shape."""
    device = torch.device(args.device)
    drawn = torch.Generator().manual_seed(7)
    shape = SIGNALS, *SHAPE
    n_positives = np.full(SHAPE[0], 10)
    scores = CandidateScores(
        torch.rand(shape, generator=drawn).to(device),
        torch.ones(SHAPE, dtype=torch.bool, device=device),
        (torch.rand(SHAPE, generator=drawn) < 0.01).to(device),
        n_positives,
        torch.zeros(SHAPE, dtype=torch.int32, device=device),
    )
    metric = Metric.parse(METRIC)
    tried = np.random.default_rng(7).random((64, SIGNALS))
    found = {}
    for size in (1, 4, 16, 64):
        parts = np.split(tried, len(tried) // size)
        seconds = []
        for _ in range(5):
            began = perf_counter()
            for part in parts:
                scores.evaluate_all(part, metric)
            seconds.append(perf_counter() - began)
        found[str(size)] = len(tried) / min(seconds)
    return {"device": str(device), "weights_per_second": found}


PARTS = {"weights": weights, "all": everything, "jobs": jobs, "kills": kills, "batches": batches}


def table(rows):
    """Rows of one part as Markdown; the first says what the columns are."""
    head, *body = [[cell if isinstance(cell, str) else f"{cell:.5g}" for cell in r] for r in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def of_weights(part):
    head = "trials", "trials a second", "seconds between trials", "seconds of a run"
    head += "times HyperTuning's trials an hour", "best on validation", "its test"
    best = part["best"]
    keys = "trials", "trials_per_second", "seconds_between_trials", "seconds_of_a_run"
    row = [part[key] for key in (*keys, "times_hyper_tuning")] + [best["valid"], best["test"]]
    return table([head, row])


def of_everything(part):
    head = "seed", "trials", "pruned", "seconds", "first on validation", "best trial's"
    head += "best.yaml's", "its test"
    rows = [
        [seed, cell["trials"], cell["states"]["PRUNED"], cell["wall_seconds"]]
        + [cell[key] for key in ("first", "best", "valid", "test", "default_run")]
        for seed, cell in part.items()
        if seed.isdigit()
    ]
    tests, defaults = ([row[place] for row in rows] for place in (-2, -1))
    lines = table([(*head, "the default run's test"), *rows])
    ahead = np.mean(tests) - np.mean(defaults)
    return [*lines, "", f"Means {np.mean(tests):.4f} and {np.mean(defaults):.4f}: {ahead:+.4f}."]


def of_jobs(part):
    each = part["trials_per_minute"]
    head = "trials a minute of one worker", "of two", "ratio"
    return table([head, [each["1"], each["2"], part["ratio"]]])


def of_kills(part):
    head = "kills", "trials", "finished trials lost", "the undisturbed study's trials"
    row = [part["kills"], part["trials"], part["lost"], "yes" if part["same_trials"] else "no"]
    return table([head, row])


def of_batches(part):
    sizes = part["weights_per_second"]
    head = "device", *(f"{size} at once" for size in sizes)
    return table([head, [part["device"], *sizes.values()]])


TITLES = {
    "weights": ("Weights", of_weights),
    "all": ("Signals' settings and weights (`--level all`)", of_everything),
    "jobs": ("Workers at level `signals`", of_jobs),
    "kills": ("Killed at random moments", of_kills),
    "batches": ("Weights a second, by how many one product evaluates", of_batches),
}


def lines_of(kept):
    lines = [
        "# Tuning studies on ml-100k",
        "",
        "2 CPU cores, NDCG@10. HyperTuning's trials are runs: each a process with `fusion_weights`",
        "set and no signal searched.",
    ]
    for name, part in kept.items():
        title, rows_of = TITLES[name]
        lines += ["", f"## {title}", "", *rows_of(part)]
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--trials", type=int, default=300, help="of weights")
    parser.add_argument("--outer", type=int, default=300, help="of the other levels")
    parser.add_argument("--runs", type=int, default=3, help="runs that stand for HyperTuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of the batches")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kill_within", type=float, default=2.0, help="seconds")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "tuning.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    for name in args.parts:
        load = round(os.getloadavg()[0], 1)
        began = perf_counter()
        found = PARTS[name](args)
        seconds = round(perf_counter() - began)
        kept[name] = {**kept.get(name, {}), "load": load, **found, "seconds": seconds}
        file.write_text(json.dumps(kept, indent=1) + "\n")
        (RESULTS / "tuning.md").write_text("\n".join(lines_of(kept)))
        print(name, json.dumps(kept[name]))


if __name__ == "__main__":
    main()
