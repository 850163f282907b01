"""The main job against EASE, SLIM and tuned ALS, on the same splits.

python benchmarks/main_job.py --dataset ml-100k --seeds 2020 2021 2022 2023 2024
Writes benchmarks/results/main_job-DATASET.md and .json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODELS = ("HybridFusion", "ALS", "EASE", "SLIMElastic")


def record(model, dataset, seed, data_path):
    """One run in a fresh process: the record of its `result_file`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        arguments = [f"--model={model}", f"--dataset={dataset}", f"--seed={seed}"]
        arguments += [f"--data_path={data_path}"] if data_path else []
        arguments += [f"--result_file={file}", "--show_progress=False"]
        subprocess.run(
            [sys.executable, "-m", "recbole_llm.cli", *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return json.loads(file.read_text())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", type=lambda path: Path(path).resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    args = parser.parse_args()
    rows = {
        model: [record(model, args.dataset, seed, args.data_path) for seed in args.seeds]
        for model in args.models
    }
    lines = [
        f"# Test NDCG@10 on {args.dataset}",
        "",
        f"RecBole's default split, full ranking, 2 CPU cores, torch {version('torch')}.",
        "",
        "| model | " + " | ".join(map(str, args.seeds)) + " | mean | seconds (mean) |",
        "|---" * (len(args.seeds) + 3) + "|",
    ]
    for model, records in rows.items():
        values = [one["test"]["ndcg@10"] for one in records]
        seconds = statistics.mean(one["seconds"]["total"] for one in records)
        cells = [f"{value:.4f}" for value in (*values, statistics.mean(values))]
        lines.append(f"| {model} | {' | '.join(cells)} | {seconds:.1f} |")
    RESULTS.mkdir(exist_ok=True)
    kept = ("seed", "valid", "test", "signals", "weights", "seconds", "texts", "peak_memory_mb")
    summary = {
        model: [{key: one[key] for key in kept} for one in records]
        for model, records in rows.items()
    }
    name = RESULTS / f"main_job-{args.dataset}"
    name.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    name.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
