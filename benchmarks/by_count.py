"""NDCG@10 by an item's number of training interactions, for the plot of cold_start.py's cells.

python benchmarks/by_count.py --data_path DATA --datasets ml-100k-text
Runs the settings that a cell of the first seed chose once more, loads the checkpoint by RecBole's
own `load_data_and_model`, and ranks by its own `full_sort_topk`: the same for every model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cold_start
import numpy as np

from recbole_llm.evaluation import Metric  # importing the package registers its models

NAMES = ("popularity", "EASE", "LightFM", "BERT mean", "flat weights", "HybridFusion")
EDGES = (0, 1, 4, 11, 31, 101)
K = 10


def measure(checkpoint):
    """NDCG@10 of the test items of each bucket, among all items, and the number of users."""
    from recbole.quick_start import load_data_and_model
    from recbole.utils.case_study import full_sort_topk

    _, model, _, train, _, test = load_data_and_model(checkpoint)
    counts = np.bincount(train.dataset[train.dataset.iid_field].numpy(), minlength=model.n_items)
    bucket = np.searchsorted(EDGES, counts, side="right") - 1
    users = test.dataset[test.dataset.uid_field].numpy()
    items = test.dataset[test.dataset.iid_field].numpy()
    wanted = {}
    for user, item in zip(users, items, strict=True):
        wanted.setdefault(user, set()).add(item)
    metric = Metric("ndcg", K)
    values = [[] for _ in EDGES]
    asked = np.array(sorted(wanted))
    model.eval()
    for part in np.array_split(asked, max(1, len(asked) // 200)):
        _, tops = full_sort_topk(part, model, test, k=K, device=model.device)
        for user, top in zip(part, tops.cpu().numpy(), strict=True):
            hit = np.array([item in wanted[user] for item in top])
            of = np.bincount(bucket[list(wanted[user])], minlength=len(EDGES))
            for b in np.flatnonzero(of):
                found = hit & (bucket[top] == b)
                values[b].append(metric.per_user(found[None, :], of[[b]])[0])
    return {
        "from": list(EDGES),
        "ndcg@10": [float(np.mean(v)) if v else None for v in values],
        "users": [len(v) for v in values],
    }


def main():
    parser = argparse.ArgumentParser()
    cold_start.add_place(parser)
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=cold_start.MODELS)
    args = parser.parse_args()
    for dataset in args.datasets:
        for name in args.models:
            seed = args.seeds[0]
            cell = cold_start.cell_file(dataset, seed, name)
            out = cell.with_name(f"by_count-{cell.name}")
            if out.is_file() or not cell.is_file():
                continue
            chosen = json.loads(cell.read_text())["chosen"]
            with tempfile.TemporaryDirectory() as folder:
                cold_start.run_once(args, dataset, seed, name, chosen, Path(folder))
                (checkpoint,) = Path(folder).glob("saved/*.pth")
                arguments = [sys.executable, __file__, "--measure", str(checkpoint)]
                done = subprocess.run(
                    arguments, cwd=folder, check=True, capture_output=True, text=True
                )
            out.write_text(done.stdout.splitlines()[-1] + "\n")
            print(dataset, name, done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        result = measure(sys.argv[2])
        print(json.dumps(result))
    else:
        main()
