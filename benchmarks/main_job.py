"""The main job against EASE, SLIM and ALS, all tuned on validation, on the same splits.

python benchmarks/main_job.py --dataset ml-100k --seeds 2020 2021 2022 2023 2024
Writes benchmarks/results/main_job-DATASET.md and .json. Every run is a fresh process. Models that
`--models` leaves out keep the rows that they have there for the same seeds.
"""

import argparse
import json
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

import command
from scipy.stats import t as student

RESULTS = Path(__file__).parent / "results"
METRIC = "ndcg@10"
COLD = "HybridFusion, cold cache"
# ALS and HybridFusion search by themselves; the peers' settings are chosen on validation, too.
GRIDS = {
    "HybridFusion": [{}],
    "ALS": [{}],
    "EASE": [{"reg_weight": value} for value in (50, 100, 250, 500, 1000, 2000)],
    "SLIMElastic": [{}, {"alpha": 0.5}, {"alpha": 0.1, "l1_ratio": 0.05}],
}


def record(model, settings, args, seed, cache):
    """One run in a fresh process: its `result_file`, and the wall time with all imports."""
    with tempfile.TemporaryDirectory() as folder:
        values = {"model": model, "dataset": args.dataset, "seed": seed, **settings}
        values |= {"data_path": args.data_path} if args.data_path else {}
        values |= {"embedding_cache": cache} if model == "HybridFusion" else {}
        return {**command.run(values, Path(folder)), "chosen": settings}


def best(model, args, seed, cache):
    """The settings of a model's grid that validate best."""
    runs = [record(model, settings, args, seed, cache) for settings in GRIDS[model]]
    return max(runs, key=lambda run: run["valid"][METRIC])


def interval(differences):
    """Mean and 95 % interval of paired differences, by Student's t."""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.4f}"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = student.ppf(0.975, len(differences) - 1) * error
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def table(args, rows, cold):
    values = {model: [run["test"][METRIC] for run in runs] for model, runs in rows.items()}
    lines = [
        f"# Test NDCG@10 on {args.dataset}",
        "",
        f"RecBole's default split, full ranking, 2 CPU cores, torch {version('torch')}. EASE and "
        "SLIMElastic: the best of "
        f"{len(GRIDS['EASE'])} and {len(GRIDS['SLIMElastic'])} settings on validation; ALS "
        "searches 16 by itself, and so does HybridFusion. Seconds are the wall time of one "
        "process, imports included, with warm cache; the last column is paired over the seeds, "
        "with its 95 % interval.",
        "",
        f"| model | {' | '.join(map(str, args.seeds))} | mean | seconds | peak MB | "
        "HybridFusion ahead by |",
        "|---" * (len(args.seeds) + 5) + "|",
    ]
    for model, runs in rows.items():
        cells = [f"{value:.4f}" for value in (*values[model], statistics.mean(values[model]))]
        ahead = [a - b for a, b in zip(values["HybridFusion"], values[model], strict=True)]
        seconds, memory = (
            statistics.mean(run[key] for run in runs) for key in ("wall_seconds", "peak_memory_mb")
        )
        last = "" if model == "HybridFusion" else interval(ahead)
        lines.append(f"| {model} | {' | '.join(cells)} | {seconds:.1f} | {memory:.0f} | {last} |")
    hybrid = rows["HybridFusion"][0]
    lines += [
        "",
        f"HybridFusion from a cold cache: {cold['wall_seconds']:.1f} s, of which encoding "
        f"{cold['texts']['encoded']:,} texts {cold['seconds']['encode']:.1f} s; with a warm one "
        f"{hybrid['wall_seconds']:.1f} s. Tuning: {hybrid['trials_per_second']:.0f} trials a "
        "second.",
    ]
    return lines


KEPT = ("seed", "chosen", "valid", "test", "signals", "weights", "seconds", "wall_seconds")
KEPT += ("texts", "peak_memory_mb", "trials_per_second")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", type=lambda path: Path(path).resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020])
    parser.add_argument("--models", nargs="+", default=list(GRIDS), choices=GRIDS)
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    name = RESULTS / f"main_job-{args.dataset}"
    kept = name.with_suffix(".json")
    earlier = json.loads(kept.read_text()) if args.models != list(GRIDS) and kept.is_file() else {}
    rows = {
        model: runs
        for model, runs in earlier.items()
        if [run["seed"] for run in runs] == args.seeds or model == COLD
    }
    with tempfile.TemporaryDirectory() as cache:
        if "HybridFusion" in args.models:
            rows[COLD] = [record("HybridFusion", {}, args, args.seeds[0], cache)]
        for model in args.models:
            runs = [best(model, args, seed, cache) for seed in args.seeds]
            rows[model] = [{key: run[key] for key in KEPT} for run in runs]
    ordered = {model: rows[model] for model in GRIDS if model in rows}
    lines = table(args, ordered, rows[COLD][0])
    summary = {**ordered, COLD: [{key: run[key] for key in KEPT} for run in rows[COLD]]}
    name.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    name.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
