"""The trained towers against their peers: cold items, ratings and clicks, and how fast they learn.

python benchmarks/finetune.py --data_path DATA --parts cold ratings cold_ratings clicks throughput
Each cell (part, data set, seed, model) is one file in benchmarks/results/finetune/, so that a
stopped benchmark goes on with the same command; `finetune.md` there and two tables of the README
are made of all of them. Of several settings the one that validates best counts, and each one's
value stands in the cell.
Biased MF and SVD++ are scikit-surprise's: pip install scikit-surprise==1.1.5.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import command
import numpy as np
import pandas as pd
import readme
from cold_start import FITS, LIGHTFM, OURS, make_split

RESULTS = Path(__file__).parent / "results" / "finetune"
COLD_SETS = ("amazon-scientific", "ml-latest-small-text", "citeulike-a", "ml-100k")

SLOW = {"learning_rate": 0.002}
NO_IDENTITIES = {"intent_tower_identities": False}
FROZEN = [{}, SLOW, NO_IDENTITIES]
TUNED = [
    {"finetune_learning_rate": 1e-4, "epochs": 5},
    {"finetune_learning_rate": 3e-4, **SLOW, "finetune_head_epochs": 1, "epochs": 6},
]
COLD = {
    "text map": ("HybridFusion", [{"signals": "text_map"}]),
    "frozen": ("IntentTower", FROZEN),
    "frozen, mean": ("IntentTower", [{"user_tower": "mean"}]),
    "frozen, no identities": ("IntentTower", [NO_IDENTITIES]),
    "last_n": ("IntentTower", [{"finetune": "last_n", **tuned} for tuned in TUNED]),
    # Small matrices that start from nothing take greater steps than pretrained ones.
    "lora": (
        "IntentTower",
        [{"finetune": "lora", "finetune_learning_rate": 1e-3, "epochs": 4}],
    ),
    "full": ("IntentTower", [{"finetune": "full", "finetune_learning_rate": 3e-5, "epochs": 3}]),
    "LightFM": (
        "LightFM",
        [
            {**LIGHTFM, "signal_search_trials": FITS, "item_identities": identities}
            for identities in (True, False)
        ],
    ),
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
# and 1 for 5; what they are off by is mapped back to stars. The YAML's threshold would make clicks
# of the ratings.
SCALED = {**LABELED, "metrics": "['RMSE', 'MAE']", "valid_metric": "RMSE"}
SCALED |= {"LABEL_FIELD": "rating", "threshold": "None"}
STARS = 4
CLICKED = {"threshold": "{'rating': 4}", "normalize_all": False}
CLICKS = {**LABELED, **CLICKED, "metrics": "['AUC', 'LogLoss']", "valid_metric": "AUC"}
VALUE_RATES = (0.001, 0.002, 0.005)
BIASES = ("bias only", [{"damping": damping} for damping in (2, 5, 10, 25)])
FACTORS = [{}, *({"n_factors": d, "n_epochs": 40, "reg_all": 0.1} for d in (20, 50))]
RATED = ("IntentTower", [{"loss": "mse", "learning_rate": rate} for rate in VALUE_RATES])
# Rates of the towers where the encoder learns ratings, after one pass of the head.
RATED_TUNED = [
    {"loss": "mse", "learning_rate": 0.002, "finetune": "last_n", "finetune_head_epochs": 1}
]
MODELS = {
    "cold": COLD,
    "ratings": {
        "HybridFusion": ("HybridFusion", [{"task": "ratings"}]),
        "IntentTower": RATED,
        "IntentTower, last_n": ("IntentTower", RATED_TUNED),
        "bias only": BIASES,
        "biased MF": ("SVD", FACTORS),
        "SVD++": ("SVDpp", FACTORS[:2]),
        **{name: (name, [SCALED]) for name in ("FM", "DeepFM")},
    },
    "cold_ratings": {"IntentTower": RATED, "bias only": BIASES},
    "clicks": {
        "HybridFusion": ("HybridFusion", [{"task": "clicks", **CLICKED}]),
        "IntentTower": (
            "IntentTower",
            [{"loss": "bce", **CLICKED, "learning_rate": rate} for rate in VALUE_RATES],
        ),
        **{name: (name, [CLICKS]) for name in ("FM", "DeepFM", "DCN")},
    },
    "throughput": {
        "frozen": ("throughput", [{}]),
        "frozen, ratings": ("throughput", [{"loss": "mse"}]),
        "last_n: 2": ("throughput", [{"finetune": "last_n"}]),
    },
}
# Of each part: the metric that chooses, whether more of it is better, and what is shown.
MEASURES = {
    "cold": ("cold_ndcg@10", True, ("cold_ndcg@10", "warm_ndcg@10", "all_ndcg@10")),
    "ratings": ("rmse", False, ("rmse", "mae")),
    "cold_ratings": ("cold_rmse", False, ("cold_rmse", "cold_mae", "rmse")),
    "clicks": ("auc", True, ("auc", "logloss")),
    "throughput": (
        "rows_a_second",
        True,
        ("rows_a_second", "items_a_second", "share_of_bare", "share_with_refresh"),
    ),
}
SURPRISE = ("SVD", "SVDpp")


def prepared(model, dataset, seed, settings, folder):
    """RecBole's parts, the model and its trainer, as a run makes them, in this process."""
    from recbole.utils import get_model, get_trainer, init_seed

    import recbole_llm  # noqa: F401  # registers the models
    from recbole_llm.host.config import prepare
    from recbole_llm.host.run import load_parts, read_config

    values = {"seed": seed, "show_progress": False, "checkpoint_dir": str(folder), **settings}
    config = read_config(model, dataset, [], values)
    init_seed(seed, config["reproducibility"])
    prepare(config)
    parts = load_parts(config)
    made = get_model(model)(config, parts[0]._dataset)
    return parts, made, get_trainer(config["MODEL_TYPE"], model)(config, made)


def triples(part):
    """Users, items and ratings of one of RecBole's parts."""
    rows = part._dataset.inter_feat
    return tuple(rows[field].numpy() for field in ("user_id", "item_id", "rating"))


def biases(train, damping, n_sweeps=20):
    """The mean, and damped biases of users and items, each the others' mean rest."""
    (users, items, ratings), of_users, of_items = train, *np.zeros((2, 1 << 17))
    mean = ratings.mean(dtype=float)
    for _ in range(n_sweeps):
        for names, own, other in (
            (items, of_items, of_users[users]),
            (users, of_users, of_items[items]),
        ):
            counts, sums = (
                np.bincount(names, weights, len(own)) for weights in (None, ratings - mean - other)
            )
            own[:] = sums / (counts + damping)
    return lambda users, items: mean + of_users[users] + of_items[items]


def factors(kind, train, seed, settings):
    """What one of scikit-surprise's models makes of users and items."""
    import surprise

    frame = pd.DataFrame(dict(zip(("user", "item", "rating"), train, strict=True)))
    data = surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=(1, 5)))
    model = getattr(surprise, kind)(random_state=seed, **settings).fit(data.build_full_trainset())
    return lambda users, items: np.array([model.predict(*pair).est for pair in zip(users, items)])  # noqa: B905


def rated(model, dataset, seed, settings, folder, place):
    """Errors on the validation and the test part, in stars; those of cold items apart."""
    own = {**place, **(settings if model == "IntentTower" else {"loss": "mse"})}
    parts, tower, trainer = prepared("IntentTower", dataset, seed, own, folder)
    train = triples(parts[0])
    if model == "IntentTower":
        trainer.fit(*parts[:2])
        trainer.evaluate(parts[2], load_best_model=True)
    elif model == "bias only":
        predict = biases(train, **settings)
    else:
        predict = factors(model, train, seed, settings)
    is_cold, found = np.bincount(train[1], minlength=1 << 17) == 0, {}
    for kind, part in zip(("valid", "test"), parts[1:], strict=True):
        users, items, ratings = triples(part)
        if model == "IntentTower":
            predicted = tower.predict(part._dataset.inter_feat).detach().numpy()
        else:
            predicted = predict(users, items).clip(1, 5)
        off, cold = predicted - ratings, is_cold[items]
        found[kind] = {"rmse": float((off**2).mean() ** 0.5), "mae": float(abs(off).mean())}
        if cold.any():
            found[kind] |= {
                "cold_rmse": float((off[cold] ** 2).mean() ** 0.5),
                "cold_mae": float(abs(off[cold]).mean()),
            }
    return found


def throughput(dataset, seed, settings, folder):
    """Rows and items that an epoch learns from in a second; beside a bare loop of transformers."""
    (train, *_), model, trainer = prepared("IntentTower", dataset, seed, settings, folder)
    rows, training = train._dataset.inter_feat, trainer._training
    text = model.tower.text
    number = 0 if text is None else text.settings.head_epochs
    items = rows["item_id"].numpy()

    def epoch():
        training.run_epoch(number, items, lambda step: model.calculate_loss(rows[step]))

    whole = seconds(epoch)
    found = {"rows_a_second": len(rows) / whole}
    if text is not None:
        distinct = np.unique(items)
        steps = whole - seconds(model.tower.refresh)
        bare = seconds(lambda: bare_loop(text, distinct))
        found["items_a_second"] = len(distinct) / whole
        found |= {"share_of_bare": bare / steps, "share_with_refresh": bare / whole}
    return {"valid": found, "test": found}


def bare_loop(text, items):
    """An epoch of steps of the same items and layers by transformers and torch alone."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(text.network[0]._modules["model"].config._name_or_path)
    model.requires_grad_(False)
    for layer in model.encoder.layer[-text.settings.last_n :]:
        layer.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    model.train()
    order = np.random.default_rng(0).permutation(items)
    for start in range(0, len(order), text.settings.batch_items):
        step = order[start : start + text.settings.batch_items]
        tokens = sorted((text.tokens[place] for place in text.places[0, step]), key=len)
        for first in range(0, len(tokens), 64):
            part = [torch.from_numpy(ids).long() for ids in tokens[first : first + 64]]
            ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            mask = (ids > 0).long()
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            pooled.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def seconds(work, n_times=3):
    """The median time of some calls, after one that warms up."""
    times = []
    for _ in range(n_times + 1):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return median(times[1:])


def run_of(part, model, dataset, seed, settings, args, folder):
    """What one setting of a model gives, on the validation and the test part."""
    if part == "throughput":
        return throughput(dataset, seed, settings, folder)
    place = {}
    if part.startswith("cold"):
        split = make_split(args, dataset, seed, "items")
        dataset, place = split.name, {"data_path": str(split.parent)}
    if part == "cold_ratings" or model in (*SURPRISE, "bias only"):
        return rated(model, dataset, seed, settings, folder, place)
    values = {"model": model, "dataset": dataset, "seed": seed, **place, **settings}
    if part == "cold":
        values |= {"cold_eval": True, "show_progress": False}
        # Whether items are cold is known to HybridFusion: it validates by all of them.
        values |= {"signal_cache": args.work / "signals"} if model in OURS else {}
        values |= {} if model == "HybridFusion" else {"valid_metric": "cold_NDCG@10"}
    record = command.run(values, folder)
    found = {key: record[key] for key in ("valid", "test", "peak_memory_mb")}
    if "LABEL_FIELD" in settings:  # SCALED
        for kind in ("valid", "test"):
            found[kind] = {key: STARS * off for key, off in found[kind].items()}
    return found


def cell(part, dataset, seed, name, args):
    """Write the run of a model whose settings validate best, and what all of them gave."""
    file = RESULTS / f"{part}-{dataset}-{seed}-{name.translate({32: '_', 44: '', 58: ''})}.json"
    model, grid = MODELS[part][name]
    metric, more, _ = MEASURES[part]
    if file.is_file():
        return
    if model in SURPRISE and importlib.util.find_spec("surprise") is None:
        print(f"{name}: left out, pip install scikit-surprise==1.1.5")
        return
    made = {"part": part, "dataset": dataset, "seed": seed}
    # An ablation is one of the settings that another row chooses from.
    there = [
        run
        for other in cells()
        if made.items() <= other.items() and MODELS[part][other["name"]][0] == model
        for run in other["runs"]
    ]
    runs = []
    for settings in grid:
        same = [run for run in there if run["settings"] == settings]
        if same:
            runs += same[:1]
            continue
        start = perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = run_of(part, model, dataset, seed, settings, args, Path(folder))
        runs.append({"settings": settings, **found, "wall_seconds": perf_counter() - start})
    best = (max if more else min)(runs, key=lambda run: run["valid"][metric])
    file.write_text(json.dumps({**made, "name": name, "best": best, "runs": runs}, indent=1) + "\n")


def cells():
    """All that there are."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]


def report_lines(found):
    """A table of each part, data set and seed."""
    yield "# The trained towers"
    yield "\nOf several settings the best on validation; 2 CPU cores. Ratings are in stars, 1 to 5."
    for part, (_, _, shown) in MEASURES.items():
        of_part = [one for one in found if one["part"] == part]
        for dataset, seed in sorted({(one["dataset"], one["seed"]) for one in of_part}):
            yield f"\n## {part}: {dataset}, seed {seed}\n"
            yield f"| model | chosen | {' | '.join(f'test {name}' for name in shown)} | seconds |"
            yield "|---" * (len(shown) + 3) + "|"
            here = [one for one in of_part if (one["dataset"], one["seed"]) == (dataset, seed)]
            for one in sorted(here, key=lambda one: list(MODELS[part]).index(one["name"])):
                best = one["best"]
                chosen = ", ".join(f"{key} {value}" for key, value in best["settings"].items())
                values = (best["test"].get(metric) for metric in shown)
                texts = ["" if v is None else f"{v:,.0f}" if v > 99 else f"{v:.4f}" for v in values]
                yield f"| {one['name']} | {chosen} | {' | '.join(texts)} | " + (
                    f"{best['wall_seconds']:.0f} |"
                )


def mean_of(found, part, name, metric, dataset="ml-100k"):
    """A test metric, the mean over the seeds; None where there is none."""
    values = [
        one["best"]["test"].get(metric)
        for one in found
        if (one["part"], one["name"], one["dataset"]) == (part, name, dataset)
    ]
    return fmean(values) if values and None not in values else None


def row_of(name, values, best=()):
    """A line of a table; values that are the best of their column stand out."""
    texts = ("–" if value is None else f"{value:.3f}"[value < 1 :] for value in values)
    marked = (f"**{t}**" if value in best else t for t, value in zip(texts, values, strict=True))
    return f"| {name} | {' | '.join(marked)} |"


def cold_lines(found):
    """NDCG@10 of cold items among cold ones."""
    shown = [name for name in COLD if name not in ("frozen, mean", "frozen, no identities", "full")]
    yield f"| data set | {' | '.join(shown)} |"
    yield "|---" * (len(shown) + 1) + "|"
    for dataset in COLD_SETS:
        metric = MEASURES["cold"][0]
        yield row_of(dataset, [mean_of(found, "cold", name, metric, dataset) for name in shown])


def value_lines(found):
    """Ratings and clicks of ml-100k."""
    columns = [("ratings", "rmse"), ("ratings", "mae"), ("clicks", "auc"), ("clicks", "logloss")]
    names = [
        "bias only",
        "biased MF",
        "SVD++",
        "FM",
        "DeepFM",
        "DCN",
        "IntentTower",
        "HybridFusion",
    ]
    values = {name: [mean_of(found, part, name, m) for part, m in columns] for name in names}
    best = [
        (max if metric == "auc" else min)(row[at] for row in values.values() if row[at] is not None)
        for at, (_, metric) in enumerate(columns)
    ]
    yield "| | test RMSE | test MAE | test AUC | test LogLoss |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in values.items():
        yield row_of(name, row, best)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_path", type=lambda path: Path(path).resolve())
    parser.add_argument("--work", type=Path, default=Path(__file__).parent.resolve() / "work")
    parser.add_argument("--parts", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--datasets", nargs="+", help="of the cold part", default=COLD_SETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020])
    parser.add_argument("--models", nargs="+", help="of those of a part")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        for dataset in args.datasets if part == "cold" else ["ml-100k"]:
            for seed in args.seeds:
                for name in MODELS[part]:
                    if args.models is None or name in args.models:
                        cell(part, dataset, seed, name, args)
    found = cells()
    report = "\n".join(report_lines(found))
    (RESULTS / "finetune.md").write_text(report + "\n")
    readme.write_table("towers", cold_lines(found))
    readme.write_table("values", value_lines(found))
    print(report)


if __name__ == "__main__":
    main()
