"""citeulike-a by the protocol of ColdRec: Recall@20 and NDCG@20 of cold items among all cold ones.

python benchmarks/cold_rec.py --data_path DATA --seeds 2020 2021 2022 2023 2024
20 % of the items are cold, half of them in validation and half in test; the rest is split 8:1:1.
Here, unlike in `cold_start.py`, the cold items of both parts are candidates. Published there, on
titles and abstracts: DropoutNet .227, CLCRec .230, GAR .245, ALDI .269, LLM-InS .334 to .360
(Recall@20). A cell (a seed) is a file in benchmarks/results/cold_rec/, with the run's seconds and
memory from a cold signal cache.
"""

import json
import statistics
import tempfile
from pathlib import Path

import cold_start
import numpy as np
import pandas as pd

from recbole_llm.evaluation import Metric
from recbole_llm.serving import Recommender

RESULTS = cold_start.HERE / "results" / "cold_rec"
K = 20


def evaluate(checkpoint, split):
    """Recall@20 and NDCG@20 of the test's cold items."""
    train, valid, test = (
        pd.read_csv(split / f"{split.name}.{part}.inter", sep="\t", dtype=str).iloc[:, :2]
        for part in ("train", "valid", "test")
    )
    for part in (train, valid, test):
        part.columns = ["user", "item"]
    warm = set(train["item"])
    cold = sorted({*valid["item"], *test["item"]} - warm)
    seen = valid[~valid["item"].isin(warm)].groupby("user")["item"].agg(set)
    wanted = test[~test["item"].isin(warm)].groupby("user")["item"].agg(set)
    model = Recommender.load(checkpoint)
    longest = K + max(map(len, seen))
    lists = model.recommend(list(wanted.index), k=longest, only=cold)
    hits = np.zeros((len(wanted), K), dtype=bool)
    tables = lists.groupby("user_id", sort=False)["item_id"]
    for row, user in zip(hits, wanted.index, strict=True):
        known = seen.get(user, set())
        top = [item for item in tables.get_group(user) if item not in known][:K]
        row[: len(top)] = [item in wanted[user] for item in top]
    n_wanted = wanted.map(len).to_numpy()
    values = {name: Metric(name, K).per_user(hits, n_wanted) for name in ("recall", "ndcg")}
    return {"users": len(hits)} | {f"{k}@{K}": float(v.mean()) for k, v in values.items()}


def main():
    seeds = [2020, 2021, 2022, 2023, 2024]
    args = cold_start.options(RESULTS, datasets=["citeulike-a"], seeds=seeds)
    found = []
    for dataset in args.datasets:
        for seed in args.seeds:
            out = RESULTS / f"{dataset}-{seed}.json"
            if not out.is_file():
                split = cold_start.make_split(args, dataset, seed, "items")
                with tempfile.TemporaryDirectory() as folder:
                    run = cold_start.run_once(
                        args, dataset, seed, "HybridFusion", {"signal_cache": "none"}, Path(folder)
                    )
                    (checkpoint,) = Path(folder).glob("saved/*.pth")
                    result = evaluate(checkpoint, split)
                result |= {key: run[key] for key in ("wall_seconds", "peak_memory_mb", "seconds")}
                out.write_text(json.dumps(result, indent=1) + "\n")
            found.append(json.loads(out.read_text()))
            print(dataset, seed, found[-1], flush=True)
    for metric in ("recall@20", "ndcg@20"):
        print(metric, statistics.mean(result[metric] for result in found))


if __name__ == "__main__":
    main()
