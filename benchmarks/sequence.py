"""What comes next: HybridFusion and IntentSequence against sequential and general peers.

python benchmarks/sequence.py --data_path DATA --datasets ml-100k amazon-scientific \
    ml-latest-small-text online-retail
Leave-one-out by order, full ranking. A cell (data set, seed, model) is a file in
benchmarks/results/sequence/, so that a stopped benchmark goes on with the same command, and
results/sequence.md is made of what is there. Every model has `--fits` settings, its authors' first,
and `--minutes` for all of them together; the first seed's best on validation, by either rule, are
fitted on the others. All models read the same order: the ranks of the file's own times, since
RecBole's float32 rounds them. Sequential models read 50 items of a history, or as many as 95 % of
the users have: most of a step would be padding, and fewer epochs fit into the time.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
from pathlib import Path

import command
import numpy as np
import places
import readme

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sequence"
RULES = ("masked", "ranked")
SPLIT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
RATES = {"learning_rate": (0.001, 0.0005, 0.002)}
SOFTMAX = {"train_neg_sample_args": None, "loss_type": "CE"}
BLOCKS = {"hidden_dropout_prob": (0.5, 0.2), "n_layers": (2, 1), "hidden_size": (64, 128)}
# Name -> model, what all its fits have, and what they differ in, the authors' values first.
MODELS = {
    "HybridFusion": ("HybridFusion", {}, {}),
    "IntentSequence": (
        "IntentSequence",
        {},
        {**RATES, "sequence_dropout": (0.2, 0.4), "sequence_dimensions": (64, 128)},
    ),
    "Pop": ("Pop", {}, {}),
    "ItemKNN": ("ItemKNN", {}, {"k": (100, 50, 250, 500), "shrink": (0.0, 10.0, 100.0)}),
    "EASE": ("EASE", {}, {"reg_weight": (250, 20, 50, 100, 150, 400, 500, 750, 1000, 2000)}),
    "SLIMElastic": (
        "SLIMElastic",
        {},
        {"alpha": (0.2, 0.05, 0.1, 0.5, 1.0), "l1_ratio": (0.02, 0.1)},
    ),
    "ALS": ("ALS", {"signal_search_trials": 10}, {}),
    "LightFM": ("LightFM", {"signal_search_trials": 10, "searched_signals": "lightfm"}, {}),
    "BPR": ("BPR", {}, {**RATES, "embedding_size": (64, 128)}),
    "FPMC": ("FPMC", {}, {**RATES, "embedding_size": (64, 128)}),
    "GRU4Rec": ("GRU4Rec", SOFTMAX, {**RATES, "dropout_prob": (0.3, 0.1), "num_layers": (1, 2)}),
    "SASRec": ("SASRec", SOFTMAX, {**RATES, **BLOCKS}),
    "BERT4Rec": ("BERT4Rec", SOFTMAX, {**RATES, **BLOCKS, "hidden_dropout_prob": (0.2, 0.5)}),
    "FDSA": ("FDSA", SOFTMAX, {**RATES, **BLOCKS}),
}
# On nearly the same data, most of them with seen items ranked: model, users, NDCG@10, Recall@10.
PUBLISHED = {
    "amazon-scientific": [
        ("SASRec", 8442, 0.080, 0.131),
        ("UniSRec", 8442, 0.086, 0.126),
        ("RecFormer", 8442, 0.103, 0.145),
        ("LEARN", 8442, 0.106, 0.159),
    ]
}


def place(args, dataset):
    """The folder of a data set that says the order alone, made where it is not there."""
    source = places.source_of(dataset, args.data_path)
    # RecBole reads its bundled ml-100k by that name, whatever `data_path` says.
    return places.ordered(source, args.work / f"{dataset}-ordered")


def first_text_field(folder):
    head = (folder / f"{folder.name}.item").read_text().partition("\n")[0].split("\t")
    return next(field.partition(":")[0] for field in head if field.endswith(":token_seq"))


def history_length(folder):
    users = places.read_atomic(folder / f"{folder.name}.inter")["user_id"]
    return min(50, int(np.ceil(users.value_counts().quantile(0.95))))


def tries(name, fits):
    """A model's settings, its authors' first, the others drawn from all there are."""
    _, _, space = MODELS[name]
    every = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return every[:1] + random.Random(name).sample(every[1:], min(fits, len(every)) - 1)


def fit(args, folder, seed, name, settings, seconds):
    model, fixed, _ = MODELS[name]
    values = {"model": model, "dataset": folder.name, "data_path": str(folder.parent)}
    values |= {"seed": seed, "eval_args": SPLIT, "show_progress": False, "topk": [10]}
    values |= {"valid_metric": "NDCG@10", "seconds": seconds, "state": "WARNING"}
    values |= {"MAX_ITEM_LIST_LENGTH": history_length(folder)}
    values |= {**fixed, **settings}
    if name == "FDSA":
        field = first_text_field(folder)
        values["selected_features"] = [field]
        values["load_col"] = {
            "inter": ["user_id", "item_id", "order"],
            "item": ["item_id", field],
        }
    with tempfile.TemporaryDirectory() as place_of_run:
        found = command.run(values, Path(place_of_run), [str(HERE / "sequence_fit.py")])
    return {"settings": settings, **found}


def best_of(fits, rule):
    return max(fits, key=lambda fit: fit["valid"][rule]["ndcg@10"])


def cell_file(dataset, seed, name):
    return RESULTS / f"{dataset}-{seed}-{name}.json"


def fill(args, dataset, seed, name):
    """Make a cell, if it is not there."""
    file = cell_file(dataset, seed, name)
    if file.is_file():
        return
    folder = place(args, dataset)
    settings = tries(name, args.fits)
    if seed != args.seeds[0]:
        first = json.loads(cell_file(dataset, args.seeds[0], name).read_text())
        settings = [first["best"][rule]["settings"] for rule in RULES]
        settings = settings[: 1 + (settings[0] != settings[1])]
    left, fits = 60.0 * args.minutes, []
    for values in settings:
        fits.append(fit(args, folder, seed, name, values, left))
        left -= fits[-1]["seconds"]
        if left <= 0:
            break
    best = {rule: best_of(fits, rule) for rule in RULES}
    cell = {
        "fits": len(fits),
        "wanted_fits": len(settings),
        "was_cut": fits[-1]["was_cut"],
        "seconds": sum(fit["seconds"] for fit in fits),
        "best": {
            rule: {
                **{key: best[rule][key] for key in ("settings", "seconds", "epochs", "folds_in")},
                "excludes_seen": best[rule]["excludes_seen"],
                "valid": best[rule]["valid"][rule],
                "test": best[rule]["test"][rule],
                "places": best[rule]["places"][RULES.index(rule)],
            }
            for rule in RULES
        },
    }
    file.write_text(json.dumps(cell) + "\n")
    values = " ".join(f"{rule} {best[rule]['test'][rule]}" for rule in RULES)
    print(f"{dataset} {seed} {name}: {values} [{cell['seconds']:.0f}s]", flush=True)


def gains(places):
    places = np.array(places)
    return (places <= 10) / np.log2(places + 1)


def mean_ndcg(places):
    """NDCG@10 of one wanted item for each user, seeds averaged."""
    return np.mean([gains(row).mean() for row in places])


def ahead(pairs):
    """Mean difference of NDCG@10 and its 95 % bootstrap interval over users, seeds averaged.

    Args:
        pairs: our places and theirs, one pair for each seed.
    """
    pairs = list(pairs)
    if len({len(row) for pair in pairs for row in pair}) > 1:
        raise SystemExit("cells of one data set rank for different users; make them anew")
    differences = np.mean([gains(ours) - gains(theirs) for ours, theirs in pairs], axis=0)
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{differences.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def cells():
    """Data set -> model -> its cells by seed, in the order of the models."""
    found = {}
    for name in MODELS:
        for file in sorted(RESULTS.glob(f"*-{name}.json")):
            of_dataset = found.setdefault(file.stem.rsplit("-", 2)[0], {})
            of_dataset.setdefault(name, []).append(json.loads(file.read_text()))
    return dict(sorted(found.items()))


def lines_of(dataset, rule, models):
    """A table of one rule."""
    heads = ("model", "seeds", "NDCG@10", "Recall@10", "HybridFusion ahead by", "fits")
    yield from (f"## {dataset}, seen items {rule}", "")
    yield f"| {' | '.join(heads)} | seconds of a fit |"
    yield "|---" * 7 + "|"
    ours = [cell["best"][rule]["places"] for cell in models.get("HybridFusion", [])]
    for name, parts in models.items():
        bests = [part["best"][rule] for part in parts]
        found = [best["places"] for best in bests]
        difference = ""
        if name != "HybridFusion" and ours:
            # By the first seeds, where one has more of them.
            difference = ahead(zip(ours, found, strict=False))
        first = parts[0]
        fits = f"{first['fits']} of {first['wanted_fits']}" + (", cut" if first["was_cut"] else "")
        seconds = statistics.mean(best["seconds"] for best in bests)
        note = " (leaves out what is in the history)" * bests[0]["excludes_seen"]
        yield row_of(name + note, found, difference, fits, f"{seconds:.0f}")
    for name, of_users, ndcg, recall in PUBLISHED.get(dataset, ()):
        yield f"| {name}, published, {of_users:,} users | | {ndcg:.3f} | {recall:.3f} | | | |"
    yield ""


def row_of(name, places, *others):
    """A line of the table: measures of one wanted item for each user, seeds averaged."""
    ndcg = mean_ndcg(places)
    recall = np.mean([(np.array(row) <= 10).mean() for row in places])
    return f"| {name} | {len(places)} | {ndcg:.4f} | {recall:.4f} | {' | '.join(others)} |"


def times_of(models):
    """How long the whole hybrid trains, beside SASRec until its best epoch."""
    if not {"HybridFusion", "SASRec"} <= models.keys():
        return []
    ours, theirs = (models[name][0]["best"]["masked"] for name in ("HybridFusion", "SASRec"))
    best = max(theirs["epochs"], key=lambda epoch: epoch[1])[0]
    n_users = len(ours["places"])
    return [
        f"{n_users:,} users. HybridFusion trains {ours['seconds']:.0f} s, all of it; SASRec "
        f"{best:.0f} s until the best epoch of its chosen fit: {ours['seconds'] / best:.2f}.",
        "",
    ]


def report_lines(found):
    yield from ("# What comes next, leave-one-out", "")
    for dataset, models in found.items():
        for rule in RULES:
            yield from lines_of(dataset, rule, models)
        yield from times_of(models)


def readme_lines(found):
    """HybridFusion beside the peer that is best on the test part itself, seen items masked."""
    yield "| data set | seeds | HybridFusion | best peer | ahead by [95 %] |"
    yield "|---|---|---|---|---|"
    for dataset, models in found.items():
        places = {
            name: [cell["best"]["masked"]["places"] for cell in parts]
            for name, parts in models.items()
        }
        ours = places.pop("HybridFusion", None)
        places.pop("IntentSequence", None)
        if not (ours and places):
            continue
        ndcg = {name: mean_ndcg(rows) for name, rows in places.items()}
        best = max(ndcg, key=ndcg.__getitem__)
        yield (
            f"| {dataset} | {len(ours)} | {mean_ndcg(ours):.3f} | {best} {ndcg[best]:.3f} | "
            f"{ahead(zip(ours, places[best], strict=False))} |"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--datasets", nargs="+", default=["ml-100k"])
    parser.add_argument("--data_path", type=lambda path: Path(path).resolve())
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    parser.add_argument("--fits", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=20.0, help="of a cell, all its fits")
    parser.add_argument("--work", type=lambda path: Path(path).resolve(), default=HERE / "work")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for dataset in args.datasets:
            for name in args.models:
                fill(args, dataset, seed, name)
    found = cells()
    (RESULTS.parent / "sequence.md").write_text("\n".join(report_lines(found)))
    readme.write_table("sequence", readme_lines(found))


if __name__ == "__main__":
    main()
