"""REPORT.md and the README's table, made of the cells alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import readme
from benchmarks.compare import grid, paired, report_costs
from benchmarks.compare.cells import FORMAT, ROOT, CompareError
from benchmarks.compare.collected import Collected, Key, first_seed, mean_ndcg, mean_of
from benchmarks.compare.markdown import machine_line, number, paragraph, seconds, table

TITLES = {
    "random": "RecBole's random split (8:1:1)",
    "leave_one_out": "Leave-one-out by order",
    "cold_items": "Cold items, ranked among cold ones",
    "cold_users": "Cold users",
}
#: Beside a protocol's title, what its figures cannot say of themselves.
_REMARKS = {
    "cold_users": "Users of whom nothing is known: HybridFusion serves them by popularity unless "
    "its signals are better, so that no more than a tie is to be expected. What their first likes "
    "bring, and what they say of themselves, is in benchmarks/results/cold_start.md."
}
_RULES = (
    "HybridFusion's fits are all that it trains: settings of its ALS and its SLIM, searched within "
    "one run, and one each of LightFM and two text maps; weighing is in its time, and where more "
    "than 5 % of the items are cold one more fit of each, as if others were",
    "EASE by users is EASE's closed form, solved over users instead of over items: the same "
    "scores, and more fits within the cap where the items are many",
    "one evaluator for all: full ranking, seen items masked, ties broken by a seeded order",
    "differences are HybridFusion's NDCG@10 less the other's, paired over seeds and users: 95 % "
    "bootstrap intervals (seeds and users drawn), p of a sign-flip test, Holm's correction over "
    "all comparisons of a protocol. **win**: the interval is above zero and p below .05; "
    "**loss**: the interval is below zero; else open",
)


def write(folder: Path) -> list[str]:
    """Write the report with its figures; for the full suite's folder the README's table, too.

    Returns:
        What to say.
    """
    try:
        from benchmarks.compare import figures
    except ImportError as error:
        raise CompareError(
            "the report's figures need `matplotlib`; run `pip install -e .[benchmark]`, and "
            "then the same command with --report"
        ) from error
    collected = Collected.read(folder)
    is_main = folder == ROOT / "benchmarks" / "results" / grid.SUITES["full"].folder
    target = ROOT / "benchmarks" / "REPORT.md" if is_main else folder / "REPORT.md"
    drawn = figures.draw(collected, folder)
    target.write_text(text_of(collected, folder, target.parent))
    said = [f"{target.name}: {sum(1 for _ in collected.all_cells())} cells, {len(drawn)} figures"]
    if collected.others:
        said.append(f"{collected.others} files of other versions are kept and not mixed in")
    if is_main:
        readme.write_table("compare", readme_lines(collected))
        said.append("README.md: its table")
    return said


def text_of(collected: Collected, folder: Path, target: Path) -> str:
    """The report's text.

    Args:
        collected: the cells.
        folder: theirs.
        target: the folder that the report is in, from which figures are linked.
    """
    prefix = Path(os.path.relpath(folder.parent, target), folder.name).as_posix()
    sections = [
        _head(collected),
        _short(collected),
        *(
            section
            for protocol in grid.PROTOCOLS
            if any(p == protocol for p, _ in collected.cells)
            for section in _protocol(collected, protocol, prefix)
        ),
        _ablations(collected),
        report_costs.lines_of(collected, prefix),
        _holes(collected),
        _hours(collected),
    ]
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def interval(difference: Any) -> str:
    """A difference with its interval."""
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def percent(difference: Any) -> str:
    """A difference by the other's value."""
    return "" if math.isnan(difference.relative) else f"{100 * difference.relative:+.1f} %"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _verdict(word: str) -> str:
    return f"**{word}**" if word in ("win", "loss") else word


def _head(collected: Collected) -> Iterator[str]:
    cells = list(collected.all_cells())
    days = sorted({cell["date"] for cell in cells} | {c["date"] for c in collected.failed})
    machines = sorted({machine_line(cell["machine"]) for cell in cells if "costs" not in cell})
    libraries = dict.fromkeys(
        f"{name} {version}" for cell in cells for name, version in cell["libraries"].items()
    )
    hours = sum(c.get("wall_seconds", c.get("total_seconds", 0)) for c in cells) / 3600
    budgets = sorted({(c["budget"]["fits"], c["budget"]["minutes"]) for c in cells if "fits" in c})
    yield from ("# HybridFusion and classic collaborative filtering", "")
    yield from paragraph(
        "Made of the cells in `results/` by `python -m benchmarks.compare --report`: no number is "
        "typed by hand."
    )
    points = [
        f"recbole_llm {collected.version}, format {FORMAT}, {days[0]} to {days[-1]}, {hours:.1f} "
        f"hours of work in {len(cells)} cells",
        *(f"machine: {name}" for name in machines),
        ", ".join(libraries),
        *(
            f"each model: {fits} fits on validation within {minutes:g} minutes, on the first seed; "
            "its best settings are fitted again on the other seeds"
            for fits, minutes in budgets
        ),
        *_RULES,
    ]
    for point in points:
        yield from paragraph(f"- {point}", "  ")
    yield ""


def _summary_rows(collected: Collected) -> Iterator[list[str]]:
    for key in collected.cells:
        best = collected.best_classic(key)
        if best is None:
            continue
        difference, _, word = collected.comparisons[key][best]
        yield [
            key[1] if key[0] == "random" else f"{key[1]}, {key[0].replace('_', ' ')}",
            f"{best} {mean_ndcg(collected, key, best):.4f}",
            f"{mean_ndcg(collected, key, grid.OURS):.4f}",
            interval(difference),
            percent(difference),
            str(difference.n_seeds),
            _verdict(word),
        ]


_SUMMARY = (
    "data set",
    "best classic, NDCG@10",
    "HybridFusion",
    "ahead by [95 %]",
    "by its value",
    "seeds",
    "",
)


def readme_lines(collected: Collected) -> list[str]:
    """The README's part: beside the classic model that is best on the test part, and the count."""
    return [*table(_SUMMARY, _summary_rows(collected)), *_verdicts(collected)]


def _short(collected: Collected) -> Iterator[str]:
    yield from ("## In short", "")
    yield from paragraph(
        "Against the classic model (interactions alone) that is best on the test part itself:"
    )
    yield from readme_lines(collected)
    yield from _speed(collected)


def _verdicts(collected: Collected) -> Iterator[str]:
    """How many comparisons were won, and which were not."""
    verdicts = [
        (f"{name} on {key[1]} ({key[0].replace('_', ' ')}, {interval(difference)})", word)
        for key, found in collected.comparisons.items()
        for name, (difference, _, word) in found.items()
        if name in grid.MODELS
    ]
    counts = {w: sum(word == w for _, word in verdicts) for w in ("win", "loss", "open")}
    yield from paragraph(
        f"All comparisons: {counts['win']} won, {counts['loss']} lost, {counts['open']} open."
    )
    for wanted, title in (("loss", "Lost"), ("open", "Open")):
        named = [told for told, word in verdicts if word == wanted]
        if named:
            yield from paragraph(f"{title}: {'; '.join(named)}.")


def _speed(collected: Collected) -> Iterator[str]:
    for (protocol, dataset), models in collected.cells.items():
        if protocol == "random" and {grid.OURS, "LightGCN"} <= models.keys():
            ours = mean_of(first_seed(models[grid.OURS]), "tuning_seconds")
            until, alone = _until_best(next(iter(models["LightGCN"].values())))
            yield from paragraph(
                f"{dataset}: HybridFusion's run, its tuning included, takes "
                f"{seconds(ours)} s; LightGCN's fits up to its best take {seconds(until)} s "
                f"(ratio {ours / until:.2f}), that one alone {seconds(alone)} s "
                f"(ratio {ours / alone:.2f})."
            )


def _until_best(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of all fits up to the best one, and of that one."""
    values = [fit.get("valid", -1.0) for fit in cell["fits"]]
    place = values.index(max(values))
    spent = [fit["seconds"] for fit in cell["fits"]]
    return sum(spent[: place + 1]), spent[place]


def _protocol(collected: Collected, protocol: str, prefix: str) -> Iterator[Iterator[str]]:
    yield iter((f"## {TITLES[protocol]}", ""))
    if protocol in _REMARKS:
        yield paragraph(_REMARKS[protocol])
    yield iter((f"![]({prefix}-forest-{protocol}.png)", ""))
    for key in collected.cells:
        if key[0] == protocol and collected.models(key):
            yield _quality(collected, key)
            yield _beyond(collected, key)
            yield _spent(collected, key)
    yield iter(
        (f"![]({prefix}-cost-{protocol}.png)", "", f"![]({prefix}-warmth-{protocol}.png)", "")
    )


def _label(name: str) -> str:
    return f"**{name}**" if name == grid.OURS else name


def _quality(collected: Collected, key: Key) -> Iterator[str]:
    part = grid.PROTOCOLS[key[0]].slice_name
    models = collected.models(key)
    facts = next(iter(next(iter(models.values())).values()))
    yield f"### {key[1]}"
    yield ""
    yield from paragraph(
        f"{facts['n_users']:,} users, {facts['n_items']:,} items, "
        f"{facts['n_train']:,} training interactions."
    )
    names = [f"{m}@{k}" for k in (10, 20) for m in ("ndcg", "recall", "mrr", "hit")]
    if part != "all":
        names = ["ndcg@10", "recall@10"]
    head = ("model", "seeds", *names, "HybridFusion ahead by [95 %]", "p, corrected", "", "fits")
    rows = []
    for name in sorted(models, key=lambda name: -mean_ndcg(collected, key, name)):
        runs = models[name]
        found = collected.comparisons[key].get(name)
        rows.append(
            [
                _label(name),
                len(runs),
                *(mean_of(runs, "test", f"{part}_{metric}") for metric in names),
                *(_compared(*found) if found else ("", "", "")),
                _fits(runs),
            ]
        )
    yield from table(head, rows)


def _compared(difference: paired.Difference, p: float, word: str) -> tuple[str, str, str]:
    return interval(difference), _p(p), _verdict(word)


def _fits(runs: Mapping[int, Mapping[str, Any]]) -> str:
    """The first seed's fits, and whether the cap cut any off."""
    cell = next(iter(runs.values()))
    entry = grid.MODELS[cell["model"]]
    if entry.searches:
        n_searched = len(entry.searches) * max(1, grid.search_trials(entry, cell["budget"]["fits"]))
        return f"{n_searched + entry.n_own} in one run"
    ended = [fit for fit in cell["fits"] if "failed" not in fit]
    cut = sum(_is_cut(fit) for run in runs.values() for fit in run["fits"])
    text = f"{len(ended)} of {cell['wanted_fits']}"
    return f"{text}, {cut} cut off" if cut else text


def _is_cut(fit: Mapping[str, Any]) -> bool:
    return bool(fit.get("was_cut")) or "failed" in fit


def _beyond(collected: Collected, key: Key) -> Iterator[str]:
    models = collected.models(key)
    columns = ("coverage@10", "gini@10", "popularity@10")
    slices = ("warm_ndcg@10", "cold_ndcg@10", "cold_in_all_ndcg@10")
    titles = (
        *("coverage@10", "Gini@10", "mean popularity@10"),
        *("NDCG@10 warm among warm", "cold among cold", "cold among all"),
    )
    rows = [
        [
            _label(name),
            *(number(mean_of(runs, "test", c), 1 if "pop" in c else 4) for c in columns),
            *(mean_of(runs, "test", column) for column in slices),
        ]
        for name, runs in models.items()
    ]
    yield from table(("model", *titles), rows)


def _spent(collected: Collected, key: Key) -> Iterator[str]:
    head = (
        *("model", "tuning s", "s of the best fit", "of which encoding", "users scored a second"),
        *("peak MB", "model MB"),
    )
    rows = []
    for name, runs in collected.models(key).items():
        first = first_seed(runs)
        rows.append(
            [
                _label(name),
                seconds(mean_of(first, "tuning_seconds")),
                seconds(mean_of(runs, "seconds", "fit")),
                seconds(mean_of(first, "seconds", "encode")),
                f"{mean_of(runs, 'users_per_second'):,.0f}",
                f"{mean_of(runs, 'peak_memory_mb'):,.0f}",
                f"{mean_of(runs, 'model_bytes') / 2**20:,.1f}",
            ]
        )
    yield from table(head, rows)
    yield from paragraph(
        "Tuning: all fits of the first seed, each a process that reads the data and ranks both "
        "parts; imports, which all share, aside. Texts are encoded once for all models, by the "
        "one that needs them first."
    )


def _ablations(collected: Collected) -> Iterator[str]:
    keys = [key for key in collected.cells if collected.ablations(key)]
    if not keys:
        return
    yield from ("## Ablations", "")
    yield from paragraph(
        "What HybridFusion is worth without a part, its ALS settings kept: a win says that the "
        "part helps."
    )
    for key in keys:
        yield f"### {key[1]}, {key[0].replace('_', ' ')}"
        yield ""
        rows: list[list[Any]] = []
        if ours := collected.cells[key].get(grid.OURS):
            value = mean_ndcg(collected, key, grid.OURS)
            rows.append([_label(grid.OURS), len(ours), value, "", "", ""])
        names = [*collected.ablations(key)]
        names += ["popularity"] if "popularity" in collected.cells[key] else []
        for name in names:
            found = collected.comparisons[key].get(name)
            label = "popularity alone" if name == "popularity" else name
            value = mean_ndcg(collected, key, name)
            tail = _compared(*found) if found else ("", "", "")
            rows.append([label, len(collected.cells[key][name]), value, *tail])
        yield from table(
            ("", "seeds", "NDCG@10", "the whole ahead by [95 %]", "p, corrected", ""), rows
        )


def _holes(collected: Collected) -> Iterator[str]:
    failed = collected.failed + [cell for cell in collected.costs if "failed" in cell]
    cut = [
        cell
        for key in collected.cells
        for runs in collected.cells[key].values()
        for cell in runs.values()
        if len(cell["fits"]) < cell["wanted_fits"] or any(map(_is_cut, cell["fits"]))
    ]
    yield from ("## Holes", "")
    if not failed and not cut and not collected.others:
        yield "None: every cell came to its end."
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in failed:
        where = cell.get("model") or f"costs, {cell['costs']}"
        place = (
            f"{cell['size']:,} interactions"
            if "costs" in cell
            else f"{cell['dataset']} {cell['protocol']} {cell['seed']}"
        )
        reasons.setdefault((where, cell["failed"]), []).append(place)
    for (where, reason), places in reasons.items():
        yield f"- {where}: {reason} ({', '.join(places)})"
    for cell in cut:
        ended = sum("failed" not in fit for fit in cell["fits"])
        epochs = sum(bool(fit.get("was_cut")) for fit in cell["fits"])
        early = f", {epochs} of them before their early stopping" if epochs else ""
        yield from paragraph(
            f"- {cell['model']} on {cell['dataset']} {cell['protocol']} {cell['seed']}: the cap of "
            f"{cell['budget']['minutes']:g} minutes left {ended} of {cell['wanted_fits']} fits"
            f"{early}",
            "  ",
        )
    if collected.others:
        yield f"- {collected.others} files of other versions are kept and not mixed in"
    yield ""


def _hours(collected: Collected) -> Iterator[str]:
    """What all models would take on all data sets, without a cap."""
    full = grid.SUITES["full"]
    sizes = {
        name: cell["n_train"]
        for (protocol, name), models in collected.cells.items()
        if protocol == "random"
        for runs in models.values()
        for cell in runs.values()
    }
    total, n_guessed, unknown = 0.0, 0, set()
    for name, entry in grid.MODELS.items():
        measured = _seconds_a_fit(collected, name)
        searched = bool(entry.space) and not entry.searches
        n_fits = (full.fits if searched else 1) + full.n_seeds - 1
        for dataset in full.datasets:
            if dataset not in sizes or not measured:
                unknown.add(name if dataset in sizes else dataset)
                continue
            n_guessed += dataset not in measured
            # Of those that were measured, the nearest in size.
            near = min(measured, key=lambda one: abs(math.log(sizes[one] / sizes[dataset])))
            total += n_fits * measured[near] * sizes[dataset] / sizes[near]
    yield from ("## A complete grid", "")
    told = (
        f"{full.fits} fits of every model on every data set and {full.n_seeds} seeds of the random "
        f"split, without a cap, would take about {total / 3600:.0f} hours by the fits above; those "
        "that were cut off count as far as they came; each other protocol takes about as long"
    )
    if n_guessed:
        told += (
            f"; the {n_guessed} pairs of model and data set that have not been measured are put "
            "down by the training interactions of the nearest that has"
        )
    if unknown:
        told += f". Not counted, since nowhere measured: {', '.join(sorted(unknown))}"
    yield from paragraph(told + ".")


def _seconds_a_fit(collected: Collected, model: str) -> dict[str, float]:
    """Data set -> mean seconds of a fit, where the model has been measured on the random split."""
    found = {}
    for (protocol, dataset), models in collected.cells.items():
        if protocol == "random" and model in models:
            fits = next(iter(models[model].values()))["fits"]
            found[dataset] = sum(fit["seconds"] for fit in fits) / len(fits)
    return found
