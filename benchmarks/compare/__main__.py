"""``python -m benchmarks.compare --suite quick|full [--datasets …] [--models …] [--seeds …]``.

Makes what is not there yet, and then the report of all that is. `--report` makes the report alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import places
from benchmarks.compare import costs, grid, growth, report
from benchmarks.compare.cells import (
    ROOT,
    Bench,
    Budget,
    Cell,
    CompareError,
    Results,
    fill,
    signal_cache,
)
from benchmarks.compare.data import Place
from recbole_llm.errors import did_you_mean

PARTS = ("models", "ablations", "costs")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; what they leave open is the suite's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare")
    parser.add_argument("--suite", choices=grid.SUITES, help="default: quick; of --report: full")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--datasets", nargs="+", help="names; default: the suite's that are there")
    parser.add_argument("--models", nargs="+", help="of the table, and ablations")
    parser.add_argument("--seeds", type=int, nargs="+", help="the first is tuned on")
    parser.add_argument("--protocols", nargs="+", choices=grid.PROTOCOLS)
    parser.add_argument("--budget", type=int, help="fits of a model on validation")
    parser.add_argument("--minutes", type=float, help="cap of a cell, all its fits together")
    parser.add_argument("--data_path", type=_path, help="folder of data sets; ml-100k is bundled")
    parser.add_argument("--work", type=_path, default=ROOT / "benchmarks" / "work")
    parser.add_argument("--out", type=_path, help="folder of the results")
    parser.add_argument("--sizes", type=float, nargs="+", help="interactions of the cost curves")
    parser.add_argument("--like", default="ml-100k", help="data set that costs are drawn from")
    parser.add_argument("--retry_failed", action="store_true", help="make failed cells again")
    parser.add_argument("--report", action="store_true", help="the report of what is there, alone")
    args = parser.parse_args(arguments)
    args.suite = args.suite or ("full" if args.report else "quick")
    suite = grid.SUITES[args.suite]
    args.out = args.out or ROOT / "benchmarks" / "results" / suite.folder
    args.protocols = args.protocols or suite.protocols
    args.sizes = [int(size) for size in args.sizes or suite.sizes]
    return args


def _path(text: str) -> Path:
    return Path(text).resolve()


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done, before anything is.

    Raises:
        CompareError: says what.
    """
    known = [*grid.MODELS, *grid.ABLATIONS]
    for name in args.models or ():
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise CompareError(f"there is no model `{name}`{hint}")
    if args.data_path and not args.data_path.is_dir():
        raise CompareError(f"`data_path`: there is no folder {args.data_path}")
    place = Place(args.data_path, args.work)
    for name in args.datasets or ():
        if place.missing(name):
            raise CompareError(place.missing(name))
    for name in ("budget", "minutes"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise CompareError(f"`{name}` must be above 0, got {value:g}")
    if "costs" in args.parts and not args.report:
        if place.missing(args.like):
            raise CompareError(f"`like`: {place.missing(args.like)}")
        smallest = len(growth.Real.read(places.source_of(args.like, args.data_path)).users)
        if min(args.sizes) < smallest:
            raise CompareError(
                f"`sizes` must be at least {smallest:,}, which {args.like} has; got "
                f"{min(args.sizes):,}"
            )


def datasets_of(args: argparse.Namespace) -> list[str]:
    """The data sets that were asked for, else those of the suite that are there."""
    if args.datasets:
        return list(args.datasets)
    place = Place(args.data_path, args.work)
    found = []
    for name in grid.SUITES[args.suite].datasets:
        if place.missing(name):
            print(f"{name} is left out: {place.missing(name)}", file=sys.stderr)
        else:
            found.append(name)
    return found


def seeds_of(args: argparse.Namespace, dataset: str) -> list[int]:
    """The seeds of a data set."""
    if args.seeds:
        return list(args.seeds)
    n_seeds = grid.SUITES[args.suite].n_seeds
    return list(grid.SEEDS[: min(n_seeds, 3) if dataset in grid.LARGE else n_seeds])


def models_of(args: argparse.Namespace) -> list[str]:
    """Models, then ablations; HybridFusion comes first, since others go on from it."""
    suite = grid.SUITES[args.suite]
    parts: dict[str, tuple[tuple[str, ...], Iterable[str]]] = {
        "models": (suite.models, grid.MODELS),
        "ablations": (suite.ablations, grid.ABLATIONS),
    }
    return [
        name
        for part, (usual, table) in parts.items()
        if part in args.parts
        for name in table
        if name in (args.models or usual)
    ]


def cells_of(args: argparse.Namespace) -> list[tuple[Cell, int]]:
    """All cells with the seed that they are tuned on; first seeds come first."""
    datasets, models = datasets_of(args), models_of(args)
    rounds = max((len(seeds_of(args, name)) for name in datasets), default=0)
    return [
        (Cell(dataset, protocol, seeds[place], model), seeds[0])
        for place in range(rounds)
        for protocol in args.protocols
        for dataset in datasets
        for seeds in [seeds_of(args, dataset)]
        if place < len(seeds) and not (protocol == "leave_one_out" and dataset in grid.UNORDERED)
        for model in models
        # Ablations show what a part is worth where all is at hand.
        if model not in grid.ABLATIONS or protocol in ("random", "cold_items")
    ]


def make_cells(args: argparse.Namespace, cells: Iterable[tuple[Cell, int]]) -> None:
    """Make the cells that are not there.

    Raises:
        CompareError: a cell that is there had another budget, or cannot be read.
    """
    suite = grid.SUITES[args.suite]
    budget = Budget(args.budget or suite.fits, args.minutes or suite.minutes)
    results = Results(args.out)
    bench = Bench(results, Place(args.data_path, args.work), budget, args.work)
    waiting = []
    for cell, first in cells:
        there = results.read(cell.stem)
        if there is not None and there["budget"] != vars(budget):
            had = there["budget"]
            raise CompareError(
                f"{cell} was made with {had['fits']} fits and {had['minutes']:g} minutes; take "
                "these, remove it, or name another folder by --out"
            )
        if there is None or ("failed" in there and args.retry_failed):
            waiting.append((cell, first))
    for number, (cell, first) in enumerate(waiting, 1):
        following = waiting[number][0] if number < len(waiting) else None
        facts = fill(bench, cell, first)
        came = facts.get("failed")
        if came is None:
            part = grid.PROTOCOLS[cell.protocol].slice_name
            came = f"{part} ndcg@10 {facts['test'].get(f'{part}_ndcg@10', float('nan')):.4f}"
        seconds = facts["wall_seconds"]
        print(f"{number} of {len(waiting)}: {cell}: {came} [{seconds:.0f}s]", flush=True)
        cache = signal_cache(args.work, cell)
        if following is None or signal_cache(args.work, following) != cache:
            shutil.rmtree(cache, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    args = parse(arguments)
    try:
        check(args)
        args.work.mkdir(parents=True, exist_ok=True)
        if not args.report:
            if {"models", "ablations"} & set(args.parts):
                make_cells(args, cells_of(args))
            if "costs" in args.parts:
                costs.make(args)
        for line in report.write(args.out):
            print(line)
    except CompareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # Read by libraries and by Python when they are first loaded, in the processes of fits.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    paths = (str(ROOT), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.exit(main(sys.argv[1:]))
