"""Cost curves: what 10⁵ to 10⁷ interactions cost, and by which power the cost grows."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import command, places
from benchmarks.compare import grid, growth
from benchmarks.compare.cells import ROOT, Results, last_line

SEED = 2020
#: Without the items' Gram matrix, which grows with the square of the items and is shown apart. The
#: search of ALS is twice as long as by default, as it was when the largest sizes were measured.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "tables": {
        "signals": ",".join(s for s in grid.SIGNALS if s != "slim"),
        "signal_search_trials": 16,
    },
    "slim": {"signals": "slim", "completion": False},
}
PHASES = ("load", "encode", "signals", "tune")


def stem_of(variant: str, like: str, size: int) -> str:
    """Of a cell's file."""
    return f"costs-{variant}-{like}-{size}"


def make(args: argparse.Namespace) -> None:
    """Make the cells of all sizes that are not there."""
    results = Results(args.out)
    for size in sorted(args.sizes):
        for variant in VARIANTS:
            there = results.read(stem_of(variant, args.like, size))
            if there is None or ("failed" in there and args.retry_failed):
                facts = measure(args, variant, size)
                results.write(stem_of(variant, args.like, size), facts)
                came = facts.get("failed") or f"{facts['total_seconds']:.0f} s"
                print(f"costs of {size:,} interactions, {variant}: {came}", flush=True)
        shutil.rmtree(_folder(args, size), ignore_errors=True)


def _folder(args: argparse.Namespace, size: int) -> Path:
    return args.work / "grown" / f"{args.like}-{size}"


def measure(args: argparse.Namespace, variant: str, size: int) -> dict[str, Any]:
    """One size in a fresh process, with a cold cache of embeddings."""
    facts = {"costs": variant, "like": args.like, "size": size}
    folder = _folder(args, size)
    if not (folder / f"{folder.name}.inter").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        source = places.source_of(args.like, args.data_path)
        growth.write(growth.Real.read(source), size, SEED, folder)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    values = {"model": grid.OURS, "dataset": folder.name, "data_path": folder.parent}
    values |= {"seed": SEED, "show_progress": False, "state": "WARNING", **VARIANTS[variant]}
    with tempfile.TemporaryDirectory(dir=args.work) as place:
        values |= {"embedding_cache": Path(place) / "cache", "scoring": variant == "tables"}
        start = perf_counter()
        try:
            record = command.run(
                values,
                Path(place),
                ("-m", "benchmarks.compare.cost_fit"),
                environment={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            )
        except (RuntimeError, subprocess.SubprocessError) as error:
            return {**facts, "failed": last_line(str(error)), "seconds": perf_counter() - start}
    return {**facts, **record}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power by which costs grow, fitted by least squares of logarithms; NaN for one size."""
    if len(sizes) < 2 or min(costs) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
