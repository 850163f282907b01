"""New items: HybridFusion against its peers, its own parts and its ablations, on cold splits.

python benchmarks/cold_start.py --data_path DATA --datasets ml-100k-text amazon-scientific \
    ml-latest-small-text citeulike-a
Each cell (data set, split seed, model) is one run of the command in a process of its own, and one
file in benchmarks/results/cold_start/, so that a stopped benchmark goes on with the same command.
`benchmarks/cold_start_report.py` makes the table and the plots of them.
"""

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import command
import places

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cold_start"
DROPOUT_NET = [str(HERE / "dropout_net.py")]
COLD = {"valid_metric": "cold_NDCG@10"}
# RecBole's models know nothing of cold items: their settings are chosen on warm ones.
WARM = {"valid_metric": "warm_NDCG@10"}
FITS = 20
LIGHTFM = {**COLD, "item_features": True, "searched_signals": "lightfm"}
SIGNALS = ("als", "lightfm", "item_item", "text_intent", "text_map", "popularity")


def only(*signals, **others):
    return ("HybridFusion", [{"signals": ",".join(signals), **others}])


# Name -> model and the settings of which the best on validation counts.
MODELS = {
    "Random": ("Random", [{}]),
    "popularity": only("popularity"),
    "ItemKNN": ("ItemKNN", [{"k": k, **WARM} for k in (50, 100, 250)]),
    "BPR": ("BPR", [{"learning_rate": rate, **WARM} for rate in (0.001, 0.003)]),
    "EASE": ("EASE", [{"reg_weight": w, **WARM} for w in (50, 100, 250, 500, 1000, 2000)]),
    "LightFM": ("LightFM", [{**LIGHTFM, "signal_search_trials": FITS}]),
    "LightFM without identities": (
        "LightFM",
        [{**LIGHTFM, "signal_search_trials": FITS, "item_identities": False}],
    ),
    "TF-IDF mean": ("TextIntent", [{"encoder": "lexical"}]),
    "BERT mean": ("TextIntent", [{"encoder": "bert"}]),
    "DropoutNet": only(
        "dropout_net", searched_signals="dropout_net", signal_search_trials=FITS, **COLD
    ),
    "ridge of BERT to ALS": only("als", encoder="bert"),
    "ridge of both to ALS": only("als"),
    "ridge of both to LightFM": only("lightfm"),
    "ridge of both to item-item": only("item_item", item_item_text_weight=0),
    "ridge of both to item-item with texts": only("item_item"),
    "text map of BERT": only("text_map", encoder="bert"),
    "text map of words": only("text_map", encoder="lexical"),
    "HybridFusion": ("HybridFusion", [{}]),
    "flat weights": ("HybridFusion", [{"fusion": "weighted_sum"}]),
    # At the level of `balanced_level`; made after the two above.
    "a level for all columns": ("HybridFusion", [{}]),
    "tuned for warm": (
        "HybridFusion",
        [{"fusion": "weighted_sum", "valid_metric": "warm_NDCG@10"}],
    ),
    "no texts in item-item": ("HybridFusion", [{"item_item_text_weight": 0}]),
    "no text map": only(*(name for name in SIGNALS if name != "text_map")),
    "no completion": ("HybridFusion", [{"completion": False}]),
    "no attributes": ("HybridFusion", [{"item_attribute_fields": "[]"}]),
    "BERT only": ("HybridFusion", [{"encoder": "bert"}]),
    "words only": ("HybridFusion", [{"encoder": "lexical"}]),
    "shuffled texts": ("HybridFusion", [{}]),
}
# These search their settings within a run.
SEARCHED = {
    "LightFM": "lightfm",
    "LightFM without identities": "lightfm",
    "DropoutNet": "dropout_net",
}


def slug(name):
    return name.lower().replace(" ", "_")


def cell_file(dataset, seed, name):
    return RESULTS / f"{dataset}-{seed}-{slug(name)}.json"


def make_split(args, dataset, seed, cold):
    """The folder of a cold split, made where it is not there."""
    return places.cold_split(dataset, args.data_path, args.work / "splits", seed, cold)


def split(args, dataset, seed):
    """The cold split, and its copy whose items have each other's texts."""
    folder = make_split(args, dataset, seed, "items")
    places.shuffled(folder, args.work / "shuffled" / folder.name, seed)


def run_once(args, dataset, seed, name, settings, folder):
    """One run in a fresh process that writes into a folder: its `result_file`."""
    model, _ = MODELS[name]
    values = {
        "model": model,
        "dataset": f"{dataset}-cold-items-{seed}",
        "data_path": args.work / ("shuffled" if name == "shuffled texts" else "splits"),
        "seed": seed,
        "cold_eval": True,
        "topk": "[10,20]",
        "show_progress": False,
    }
    values |= {"signal_cache": args.work / "signals"} if model in OURS else {}
    values |= settings
    program = DROPOUT_NET if name == "DropoutNet" else command.RUN
    return {**command.run(values, folder, program), "chosen": settings}


def record(args, dataset, seed, name, settings):
    """:func:`run_once`, of which nothing else is kept."""
    with tempfile.TemporaryDirectory() as folder:
        return run_once(args, dataset, seed, name, settings, Path(folder))


OURS = ("HybridFusion", "LightFM", "TextIntent")
KEPT = ("dataset", "seed", "chosen", "valid", "test", "signals", "signal_settings", "weights")
KEPT += ("cold_weights", "cold_level", "exposure", "seconds", "wall_seconds", "peak_memory_mb")


def balanced_level(dataset, seed):
    """The level at which the gate is furthest ahead of flat weights where it is least ahead.

    By the validation part: its metric on all, warm and cold items, all of them ranked.
    """
    gate, flat = (
        json.loads(cell_file(dataset, seed, name).read_text())
        for name in ("HybridFusion", "flat weights")
    )
    columns = ("all", "warm_in_all", "cold_in_all")
    # Flat weights may leave cold items nothing at all.
    theirs = {column: max(flat["valid"][f"{column}_ndcg@10"], 1e-4) for column in columns}
    best = max(
        gate["exposure"],
        key=lambda point: min((point[column] or 0) / theirs[column] for column in columns),
    )
    return best["level"]


def tries(args, dataset, seed, name):
    """The settings of which the best on validation counts: the first seed's best on the others."""
    if name == "a level for all columns":
        return [{"cold_exposure": balanced_level(dataset, seed)}]
    if seed == args.seeds[0]:
        return MODELS[name][1]
    searched = json.loads(cell_file(dataset, args.seeds[0], name).read_text())
    if name not in SEARCHED:
        return [searched["chosen"]]
    label = SEARCHED[name]
    found = searched["signal_settings"][label].items()
    fixed = {
        key if key.startswith("item_") else f"{label}_{key}": value
        for key, value in found
        if key != "encoders"
    }
    return [{**MODELS[name][1][0], **fixed, "signal_search_trials": 0}]


def chosen_by(settings):
    """The metric that settings are compared by: what the run validates by."""
    return settings.get("valid_metric", "NDCG@10").lower()


def fill(args, dataset, seed, name):
    """Make a cell, if it is not there."""
    file = cell_file(dataset, seed, name)
    if file.is_file():
        return
    settings = tries(args, dataset, seed, name)
    runs = [record(args, dataset, seed, name, values) for values in settings]
    best = max(runs, key=lambda run: run["valid"][chosen_by(run["chosen"])])
    file.write_text(json.dumps({key: best[key] for key in KEPT}, indent=1) + "\n")
    test = best["test"]
    columns = [f"{part}_ndcg@10" for part in ("all", "warm_in_all", "cold_in_all", "warm", "cold")]
    values = " ".join(f"{test[column]:.4f}" for column in columns)
    print(f"{dataset} {seed} {name}: {values} [{best['wall_seconds']:.0f}s]", flush=True)


def add_place(parser):
    """The options that say which cells there are, and where."""
    parser.add_argument("--datasets", nargs="+", default=["ml-100k"])
    parser.add_argument("--data_path", type=lambda path: Path(path).resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    parser.add_argument(
        "--work",
        type=lambda path: Path(path).resolve(),
        default=HERE / "work",
        help="gets splits and fitted signals",
    )


def options(results, **defaults):
    """The options of a benchmark of such cells alone; the folder of its results is there then."""
    parser = argparse.ArgumentParser()
    add_place(parser)
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    results.mkdir(parents=True, exist_ok=True)
    return args


def main():
    parser = argparse.ArgumentParser()
    add_place(parser)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--jobs", type=int, default=1, help="cells that are made at once")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for dataset in args.datasets:
            split(args, dataset, seed)
        cells = [(args, dataset, seed, name) for dataset in args.datasets for name in args.models]
        with ThreadPoolExecutor(args.jobs) as pool:
            for done in [pool.submit(fill, *cell) for cell in cells]:
                done.result()


if __name__ == "__main__":
    main()
