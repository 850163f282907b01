"""What HybridFusion takes the first time: nothing is cached. Run it with nothing else beside it.

python benchmarks/first_run.py --data_path DATA --datasets citeulike-a
The first seed's cold split of a data set is a file in benchmarks/results/first_run/, which
cold_start_report.py shows.
"""

import json
import os
import tempfile
from pathlib import Path

import cold_start
import command

RESULTS = cold_start.HERE / "results" / "first_run"


def measure(args, dataset):
    """The seconds of each phase, and the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "model": "HybridFusion",
            "dataset": f"{dataset}-cold-items-{args.seeds[0]}",
            "data_path": args.work / "splits",
            "seed": args.seeds[0],
            "cold_eval": True,
            "show_progress": False,
        }
        empty = {**os.environ, "XDG_CACHE_HOME": str(Path(folder) / "cache")}
        record = command.run(values, Path(folder), environment=empty)
    kept = ("dataset", "seed", "texts", "seconds", "wall_seconds", "peak_memory_mb", "versions")
    return {key: record[key] for key in kept} | {"cores": os.cpu_count()}


def main():
    args = cold_start.options(RESULTS)
    for dataset in args.datasets:
        cold_start.make_split(args, dataset, args.seeds[0], "items")
        found = measure(args, dataset)
        (RESULTS / f"{dataset}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(dataset, f"{found['wall_seconds']:.0f} s", f"{found['peak_memory_mb']:.0f} MB")


if __name__ == "__main__":
    main()
