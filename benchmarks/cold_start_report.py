"""The table and the plots of cold_start.py's cells.

python benchmarks/cold_start_report.py
Writes benchmarks/results/cold_start.md, and cold_start-*.png and .svg beside it.
"""

import json
import statistics
from collections import defaultdict

import cold_start
import matplotlib as mpl
import numpy as np
import readme

from recbole_llm.fusion import draw_exposure

mpl.use("Agg")
from matplotlib import pyplot as plt

OUT = cold_start.HERE / "results"
COLUMNS = ("cold", "cold_in_all", "warm", "warm_in_all", "all")
HEADS = ("cold among cold", "cold in all", "warm among warm", "warm in all", "all")
LIGHTFM = ("LightFM", "LightFM without identities")
SIGNALS = ("TF-IDF mean", "BERT mean", "text map of BERT", "text map of words")
SIGNALS += tuple(name for name in cold_start.MODELS if name.startswith("ridge of "))
# Has the interactions of another data set.
AGAIN = "ml-100k-text"
PLOTTED = {
    "HybridFusion": ("#1b6ca8", "o"),
    "flat weights": ("#7fb2d9", "s"),
    "EASE": ("#444444", "^"),
    "LightFM": ("#d1495b", "D"),
    "BERT mean": ("#edae49", "v"),
    "popularity": ("#999999", "x"),
}


def cells():
    """Data set -> model -> seed -> cell, all in the order of the models."""
    found = defaultdict(lambda: defaultdict(dict))
    for name in cold_start.MODELS:
        for file in sorted(cold_start.RESULTS.glob(f"*-{cold_start.slug(name)}.json")):
            if not file.name.startswith("by_count-"):
                cell = json.loads(file.read_text())
                dataset = cell["dataset"].partition("-cold-items-")[0]
                found[dataset][name][cell["seed"]] = cell
    return {dataset: dict(models) for dataset, models in found.items()}


def mean(runs, column, seeds):
    return statistics.mean(runs[seed]["test"][f"{column}_ndcg@10"] for seed in seeds)


def dataset_lines(dataset, models):
    """One data set's table: means over the seeds, with the number of them."""
    best = max(
        (name for name in LIGHTFM if name in models),
        key=lambda name: mean(models[name], "cold", models[name]),
        default=None,
    )
    ours = models.get("HybridFusion", {})
    yield from ("", f"## {dataset}", "")
    yield f"| model | seeds | {' | '.join(HEADS)} | ahead in cold among cold |"
    yield "|---" * (len(HEADS) + 3) + "|"
    for name, runs in models.items():
        values = " | ".join(f"{mean(runs, column, runs):.4f}" for column in COLUMNS)
        both = sorted(runs.keys() & ours.keys())
        ahead = ""
        if both and name != "HybridFusion":
            pairs = [
                ours[s]["test"]["cold_ndcg@10"] - runs[s]["test"]["cold_ndcg@10"] for s in both
            ]
            wins = sum(difference > 0 for difference in pairs)
            ahead = f"{statistics.mean(pairs):+.4f} ({wins} of {len(both)})"
        label = f"**{name}**" if name in ("HybridFusion", best) else name
        yield f"| {label} | {len(runs)} | {values} | {ahead} |"


def ratio(models):
    """HybridFusion's cold among cold over that of the better LightFM, on the seeds of both."""
    found = []
    ours = models.get("HybridFusion", {})
    for name in LIGHTFM:
        seeds = models.get(name, {}).keys() & ours.keys()
        if seeds:
            found.append(mean(ours, "cold", seeds) / mean(models[name], "cold", seeds))
    return min(found, default=float("nan"))


def gate_lines(found):
    """HybridFusion's gate over flat weights, and over what is tuned for warm items alone."""
    yield from ("", "# The gate beside flat weights", "")
    yield (
        "Ratios of test NDCG@10, means over the splits that both have. At one level, the one at "
        "which the validation part is furthest ahead of flat weights where it is least ahead; and "
        "as it is by itself (`cold_exposure: auto`)."
    )
    rows = (
        *(("a level for all columns", "flat weights", column) for column in COLUMNS[1:]),
        ("HybridFusion", "flat weights", "cold_in_all"),
        ("HybridFusion", "flat weights", "all"),
        ("HybridFusion", "tuned for warm", "warm"),
    )
    heads = [f"one level: {head}" for head in HEADS[1:]]
    heads += ["auto: cold in all", "auto: all", "warm among warm, of tuned for warm"]
    yield from ("", f"| data set | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|")
    for dataset, models in found.items():
        values = []
        for ours, theirs, column in rows:
            seeds = models.get(ours, {}).keys() & models.get(theirs, {}).keys()
            over = [mean(models[name], column, seeds) for name in (ours, theirs) if seeds]
            values.append(f"{over[0] / over[1]:.3f} ({len(seeds)})" if seeds else "")
        if any(values):
            yield f"| {dataset} | {' | '.join(values)} |"


def fold_ins():
    """Data set -> its runs with new users."""
    found = defaultdict(list)
    for file in sorted((OUT / "cold_users").glob("*.json")):
        found[file.stem.rpartition("-")[0]].append(json.loads(file.read_text()))
    return found


def without_history(runs, name):
    """NDCG@10 of a new user of whom nothing is known, seeds averaged."""
    return statistics.mean(run["test"][name]["new_user_ndcg@10"] for run in runs)


def folded_in(runs, name):
    """NDCG@10 of what a new user has not told, for each number of told items, seeds averaged."""
    return np.mean([run["fold_in"][name] for run in runs], axis=0)


def fold_in_lines(found):
    if found:
        yield from ("", "# New users, test NDCG@10", "")
        yield (
            "20 % of the users have no training interaction. Without history, all their items are "
            "to be found; folded in: 1, 3 or 5 of them are told, and all but five are to be found."
        )
        yield from ("", "| data set | seeds | model | without history | 0 folded in | 1 | 3 | 5 |")
        yield "|---" * 8 + "|"
    for dataset, runs in found.items():
        for name in ("HybridFusion", "popularity"):
            values = (without_history(runs, name), *folded_in(runs, name))
            values = " | ".join(f"{value:.4f}" for value in values)
            yield f"| {dataset} | {len(runs)} | {name} | {values} |"


def fold_in_plot(found):
    if not found:
        return
    figure, axes = plt.subplots(
        1, len(found), figsize=(4.2 * len(found), 3.6), squeeze=False, constrained_layout=True
    )
    for axis, (dataset, runs) in zip(axes[0], found.items(), strict=True):
        liked = runs[0]["fold_in"]["liked"]
        for name in ("HybridFusion", "popularity"):
            colour, marker = PLOTTED[name]
            axis.plot(liked, folded_in(runs, name), color=colour, marker=marker, label=name)
        axis.set_title(dataset)
        axis.set_xlabel("items folded in")
        axis.set_xticks(liked)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel("test NDCG@10 of the rest")
    save(figure, "cold_users-fold_in")


def by_count_plot():
    files = {
        (dataset, name): cold_start.RESULTS
        / f"by_count-{dataset}-2020-{cold_start.slug(name)}.json"
        for dataset in cells()
        for name in PLOTTED
    }
    found = {key: json.loads(file.read_text()) for key, file in files.items() if file.is_file()}
    datasets = sorted({dataset for dataset, _ in found})
    if not datasets:
        return
    figure, axes = plt.subplots(
        1, len(datasets), figsize=(4.2 * len(datasets), 3.6), squeeze=False, constrained_layout=True
    )
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for name, (colour, marker) in PLOTTED.items():
            if (dataset, name) in found:
                result = found[dataset, name]
                values = [np.nan if value is None else value for value in result["ndcg@10"]]
                axis.plot(values, color=colour, marker=marker, label=name)
        starts = result["from"]
        ends = [*(f"–{following - 1}" for following in starts[1:]), "+"]
        labels = ["cold", *(f"{a}{b}" for a, b in zip(starts[1:], ends[1:], strict=True))]
        axis.set_xticks(range(len(labels)), labels)
        axis.set_title(dataset)
        axis.set_xlabel("training interactions of the item")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test NDCG@10, ranked among all")
    axes[0][-1].legend(frameon=False, fontsize=8)
    save(figure, "cold_start-by_count")


def exposure_plot():
    found = {
        dataset: models["HybridFusion"][min(models["HybridFusion"])]
        for dataset, models in cells().items()
        if "HybridFusion" in models
    }
    figure, axes = plt.subplots(
        1, len(found), figsize=(4.2 * len(found), 3.6), squeeze=False, constrained_layout=True
    )
    for axis, (dataset, cell) in zip(axes[0], found.items(), strict=True):
        drawn = draw_exposure(axis, cell["exposure"], cell["cold_level"])
        axis.set_title(dataset)
        axis.set_xlabel("warm items among all, NDCG@10")
        figure.colorbar(drawn, ax=axis, label="overall NDCG@10")
    axes[0][0].set_ylabel("cold items among all, NDCG@10 (validation)")
    save(figure, "cold_start-exposure")


def save(figure, name):
    figure.savefig(OUT / f"{name}.png", dpi=120)
    # Without a date and random ids the file is the same each time.
    with mpl.rc_context({"svg.hashsalt": "cold_start"}):
        figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def cost_lines():
    """What `cold_cost.py` has measured."""
    files = sorted((OUT / "cold_cost").glob("*.json"))
    if files:
        yield from ("", "# The cold evaluation beside RecBole's plain one, seconds", "")
        yield "Of the same model's test part, in turns."
        yield from ("", "| data set | test rows | plain | cold, times plain |", "|---|---|---|---|")
    for file in files:
        cell = json.loads(file.read_text())
        facts = (cell["dataset"], f"{cell['rows']:,}", f"{cell['plain_seconds']:.2f}")
        yield f"| {' | '.join(facts)} | {cell['ratio']:.2f} |"


def first_run_lines():
    """What `first_run.py` has measured."""
    files = sorted((OUT / "first_run").glob("*.json"))
    if files:
        yield from ("", "# HybridFusion's first run on a cold split, nothing cached", "")
        yield "| data set | texts encoded | cores | minutes | of which encoding | peak memory, GB |"
        yield "|---|---|---|---|---|---|"
    for file in files:
        cell = json.loads(file.read_text())
        minutes = [cell["wall_seconds"] / 60, cell["seconds"]["encode"] / 60]
        facts = (file.stem, f"{cell['texts']['encoded']:,}", str(cell["cores"]))
        facts += (*(f"{value:.1f}" for value in minutes), f"{cell['peak_memory_mb'] / 1024:.1f}")
        yield f"| {' | '.join(facts)} |"


def report_lines(found):
    ratios = {dataset: ratio(models) for dataset, models in found.items()}
    known = [value for name, value in ratios.items() if value == value and name != AGAIN]
    yield from ("# New items: cold splits, test NDCG@10", "")
    yield (
        "20 % of the items have no training interaction; half of them are cold in validation, half "
        "in test. Means over the split's seeds, whose number stands beside. Cold among cold: the "
        "test's cold items ranked among each other; in all: among all items. LightFM and "
        f"DropoutNet: {cold_start.FITS} settings searched on the cold validation items of the "
        "first seed; EASE, ItemKNN and BPR: a small grid on its warm ones; the other seeds keep "
        "what was found. All that read texts read the items' genres and years too, where the data "
        "have them (the films); TF-IDF and BERT means do not. The last column: what HybridFusion "
        "is ahead by, paired over the seeds, and in how many of them."
    )
    yield ""
    yield (
        "Cold among cold, HybridFusion over the better LightFM: "
        + ", ".join(f"{dataset} {value:.2f}" for dataset, value in ratios.items() if value == value)
        + (f"; geometric mean {statistics.geometric_mean(known):.2f}" if known else "")
        + f" ({AGAIN} aside)."
    )
    for dataset, models in found.items():
        yield from dataset_lines(dataset, models)
    yield from gate_lines(found)
    yield from fold_in_lines(fold_ins())
    yield from cost_lines()
    yield from first_run_lines()


def readme_lines(found):
    """Cold among cold: HybridFusion beside the better LightFM and the best signal by itself."""
    yield "| data set | splits | LightFM | best signal by itself | flat weights | HybridFusion |"
    yield "|---|---|---|---|---|---|"
    for dataset, models in found.items():
        ours = models.get("HybridFusion", {})
        # Of all models on the same splits.
        values = {
            name: mean(runs, "cold", ours)
            for name, runs in models.items()
            if ours and runs.keys() >= ours.keys()
        }
        if not values.keys() & {*LIGHTFM}:
            continue
        lightfm = max(values[name] for name in LIGHTFM if name in values)
        signals = [(values[name], name) for name in SIGNALS if name in values]
        best = "{1} {0:.3f}".format(*max(signals)) if signals else ""
        flat = f"{values['flat weights']:.3f}" if "flat weights" in values else ""
        yield (
            f"| {dataset} | {len(ours)} | {lightfm:.3f} | {best} | {flat} | "
            f"{values['HybridFusion']:.3f} |"
        )


def new_user_lines(found):
    """New users beside popularity: of whom nothing is known, and one liked item."""
    yield "| data set | splits | popularity | HybridFusion | popularity, 1 liked | HybridFusion |"
    yield "|---|---|---|---|---|---|"
    for dataset, runs in found.items():
        once = runs[0]["fold_in"]["liked"].index(1)
        values = [
            (without_history(runs, name), folded_in(runs, name)[once])
            for name in ("popularity", "HybridFusion")
        ]
        flat = " | ".join(f"{value:.3f}" for pair in zip(*values, strict=True) for value in pair)
        yield f"| {dataset} | {len(runs)} | {flat} |"


def main():
    found = cells()
    text = "\n".join(report_lines(found)) + "\n"
    (OUT / "cold_start.md").write_text(text)
    print(text)
    readme.write_table("cold_start", readme_lines(found))
    users = fold_ins()
    readme.write_table("new_users", new_user_lines(users))
    fold_in_plot(users)
    by_count_plot()
    exposure_plot()


if __name__ == "__main__":
    main()
