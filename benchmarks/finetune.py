"""The trained towers against their peers: cold items, ratings and clicks, and how fast they learn.

python benchmarks/finetune.py --data_path DATA --parts cold ratings clicks
Each cell (part, data set, seed, model) is one process and one file in benchmarks/results/finetune/,
so that a stopped benchmark goes on with the same command; `finetune.md` there is made of them. Of
several settings the one that validates best counts, and each one's value stands in the cell.
"""

import argparse
import json
import tempfile
from pathlib import Path

import command
from cold_start import make_split

RESULTS = Path(__file__).parent / "results" / "finetune"
COLD_SETS = ("amazon-scientific", "ml-latest-small-text", "citeulike-a")
RATES = (1e-5, 3e-5, 1e-4)

FROZEN = [{}, {"learning_rate": 0.002}]
TUNED = [{"finetune_learning_rate": rate, "epochs": 8} for rate in RATES]
COLD = {
    "text map": ("HybridFusion", [{"signals": "text_map"}]),
    "frozen": ("IntentTower", FROZEN),
    "frozen, mean": ("IntentTower", [{"user_tower": "mean"}]),
    "frozen, no identities": ("IntentTower", [{"intent_tower_identities": False}]),
    "last_n": ("IntentTower", [{"finetune": "last_n", **tuned} for tuned in TUNED]),
    "lora": ("IntentTower", [{"finetune": "lora", **tuned} for tuned in TUNED]),
    "full": ("IntentTower", [{"finetune": "full", **tuned} for tuned in TUNED[:2]]),
    "LightFM": ("LightFM", [{"item_features": True, "searched_signals": "lightfm"}]),
    "HybridFusion": ("HybridFusion", [{}]),
    "HybridFusion with the tower": (
        "HybridFusion",
        [
            {
                "signals": "als,lightfm,item_item,text_intent,text_map,popularity,intent_tower",
            }
        ],
    ),
}
LABELED = {"eval_args": "{'mode': 'labeled'}", "train_neg_sample_args": "None"}
# RecBole's models give chances, so they get ml-100k's ratings as its YAML has them, 0 for 1 star
# and 1 for 5; what they are off by is mapped back to stars.
SCALED = {**LABELED, "metrics": "['RMSE', 'MAE']", "valid_metric": "RMSE", "LABEL_FIELD": "rating"}
STARS = 4
CLICKED = {"threshold": "{'rating': 4}", "normalize_all": False}
CLICKS = {**LABELED, **CLICKED, "metrics": "['AUC', 'LogLoss']", "valid_metric": "AUC"}
MODELS = {
    "cold": COLD,
    "ratings": {
        "IntentTower": (
            "IntentTower",
            [{"loss": "mse", "learning_rate": rate} for rate in (0.001, 0.002, 0.005)],
        ),
        **{name: (name, [SCALED]) for name in ("FM", "DeepFM")},
    },
    "clicks": {
        "IntentTower": (
            "IntentTower",
            [{"loss": "bce", **CLICKED, "learning_rate": rate} for rate in (0.001, 0.002, 0.005)],
        ),
        **{name: (name, [CLICKS]) for name in ("FM", "DeepFM", "DCN")},
    },
}
# Of each part: the metric that chooses, whether more of it is better, and what is shown.
MEASURES = {
    "cold": ("cold_ndcg@10", True, ("cold_ndcg@10", "warm_ndcg@10", "all_ndcg@10")),
    "ratings": ("rmse", False, ("rmse", "mae")),
    "clicks": ("auc", True, ("auc", "logloss")),
}


def cell(part, dataset, seed, name, args):
    """The run of a model whose settings validate best, and what all of them gave."""
    file = RESULTS / f"{part}-{dataset}-{seed}-{name.replace(' ', '_').replace(',', '')}.json"
    if file.is_file():
        return json.loads(file.read_text())
    model, grid = MODELS[part][name]
    metric, more, _ = MEASURES[part]
    runs = []
    for settings in grid:
        with tempfile.TemporaryDirectory() as folder:
            values = {"model": model, "dataset": dataset, "seed": seed, **settings}
            if part == "cold":
                values |= {"cold_eval": True, "valid_metric": "cold_NDCG@10"}
                values["data_path"] = args.work / "splits"
                values["dataset"] = make_split(args, dataset, seed, "items").name
            record = command.run(values, Path(folder))
        runs.append({"settings": settings, **{k: record[k] for k in ("valid", "test")}})
        if part == "ratings" and model != "IntentTower":
            for kind in ("valid", "test"):
                runs[-1][kind] = {key: STARS * off for key, off in record[kind].items()}
        runs[-1] |= {key: record[key] for key in ("wall_seconds", "peak_memory_mb")}
    best = (max if more else min)(runs, key=lambda run: run["valid"][metric])
    found = {"best": best, "runs": runs}
    file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def lines(part, dataset, seed, cells):
    """A table of one part and data set."""
    _, _, shown = MEASURES[part]
    yield from ("", f"## {part}: {dataset}, seed {seed}", "")
    yield f"| model | chosen | {' | '.join(f'test {name}' for name in shown)} | seconds |"
    yield "|---" * (len(shown) + 3) + "|"
    for name, found in cells.items():
        best = found["best"]
        chosen = ", ".join(f"{key} {value}" for key, value in best["settings"].items())
        values = " | ".join(f"{best['test'].get(metric, float('nan')):.4f}" for metric in shown)
        yield f"| {name} | {chosen} | {values} | {best['wall_seconds']:.0f} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_path", type=lambda path: Path(path).resolve())
    parser.add_argument("--work", type=Path, default=Path("finetune_work").resolve())
    parser.add_argument("--parts", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--datasets", nargs="+", help="of the cold part", default=COLD_SETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020])
    parser.add_argument("--models", nargs="+", help="of those of a part")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = [
        "# The trained towers",
        "",
        "Of several settings the best on validation; 2 CPU cores.",
    ]
    for part in args.parts:
        for dataset in args.datasets if part == "cold" else ["ml-100k"]:
            for seed in args.seeds:
                names = [n for n in MODELS[part] if args.models is None or n in args.models]
                cells = {name: cell(part, dataset, seed, name, args) for name in names}
                report += lines(part, dataset, seed, cells)
                (RESULTS / "finetune.md").write_text("\n".join(report) + "\n")
    print("\n".join(report))


if __name__ == "__main__":
    main()
