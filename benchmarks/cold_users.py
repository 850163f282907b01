"""New users: HybridFusion against popularity, without history and with 1, 3, 5 items folded in.

python benchmarks/cold_users.py --data_path DATA --datasets ml-100k-text amazon-scientific
A cell (data set, split seed) is a file in benchmarks/results/cold_users/. A fifth of the users has
no training interaction. Of each of the test's, five random items are what she tells of herself and
the rest is to be found; users of fewer than six items are left out. The plot and the table:
`benchmarks/cold_start_report.py`.
"""

import json
import tempfile
import warnings
from pathlib import Path

import cold_start
import command
import numpy as np
import pandas as pd

from recbole_llm.evaluation import Metric
from recbole_llm.serving import Recommender

RESULTS = cold_start.HERE / "results" / "cold_users"
LIKED = (0, 1, 3, 5)
K = 10
NDCG = Metric("ndcg", K)
# Data sets whose users have words of their own.
USER_TEXT = {"ml-100k-text": "age,gender,occupation", "ml-100k": "age,gender,occupation"}


def ndcg(lists, wanted):
    hits = np.zeros((len(lists), K), dtype=bool)
    for row, (user, items) in zip(hits, lists.items(), strict=True):
        row[: len(items)] = [item in wanted[user] for item in items]
    n_wanted = np.array([len(wanted[user]) for user in lists])
    return float(NDCG.per_user(hits, n_wanted).mean())


def fold_in(checkpoint, split, seed):
    """NDCG@10 of the rest of the cold users' items, by the number of items folded in."""
    train, test = (
        pd.read_csv(split / f"{split.name}.{part}.inter", sep="\t", dtype=str)
        for part in ("train", "test")
    )
    user, item = (next(c for c in test if c.startswith(f"{k}_id")) for k in ("user", "item"))
    cold = test[~test[user].isin(train[user])].drop_duplicates([user, item])
    popular = list(train[item].value_counts().index)
    rng = np.random.default_rng(seed)
    told, wanted = {}, {}
    for name, rows in cold.groupby(user):
        items = rng.permutation(rows[item].to_numpy())
        if len(items) > max(LIKED):
            told[name], wanted[name] = items[: max(LIKED)], set(items[max(LIKED) :])
    model = Recommender.load(checkpoint)
    warnings.simplefilter("ignore")  # of each user it would say that she is new
    result = {"users": len(told), "liked": list(LIKED), "HybridFusion": [], "popularity": []}
    for n in LIKED:
        ours, theirs = {}, {}
        for name, items in told.items():
            liked = items[:n]
            table = model.recommend_for(liked=liked, k=K) if n else model.recommend([name], k=K)
            ours[name] = list(table["item_id"])
            theirs[name] = [i for i in popular if i not in set(liked)][:K]
        result["HybridFusion"].append(ndcg(ours, wanted))
        result["popularity"].append(ndcg(theirs, wanted))
    return result


def fill(args, dataset, seed):
    out = RESULTS / f"{dataset}-{seed}.json"
    if out.is_file():
        return
    name = f"{dataset}-cold-users-{seed}"
    split = args.work / "splits" / name
    cold_start.make_split(args, dataset, seed, "users")
    records = {}
    text = {"user_text_fields": USER_TEXT[dataset]} if dataset in USER_TEXT else {}
    for model, settings in (("HybridFusion", text), ("popularity", {"signals": "popularity"})):
        with tempfile.TemporaryDirectory() as folder:
            values = {
                "model": "HybridFusion",
                "dataset": name,
                "data_path": split.parent,
                "seed": seed,
                "cold_eval": True,
                "show_progress": False,
                "signal_cache": args.work / "signals",
                **settings,
            }
            test = command.run(values, Path(folder))["test"]
            records[model] = {k: v for k, v in test.items() if k.endswith("ndcg@10")}
            if model == "HybridFusion":
                (checkpoint,) = Path(folder).glob("saved/*.pth")
                curve = fold_in(checkpoint, split, seed)
    out.write_text(json.dumps({"test": records, "fold_in": curve}, indent=1) + "\n")
    print(dataset, seed, records["HybridFusion"]["new_user_ndcg@10"], end=" ")
    print(records["popularity"]["new_user_ndcg@10"], curve, flush=True)


def main():
    args = cold_start.options(RESULTS)
    for seed in args.seeds:
        for dataset in args.datasets:
            fill(args, dataset, seed)


if __name__ == "__main__":
    main()
