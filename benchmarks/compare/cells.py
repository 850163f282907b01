"""Cells: a model on a data set, a protocol and a seed; one JSON file and its users' values each.

Every fit is a process of its own, so that its memory is its own and the cap can end it; it is
forked from one that has done the imports and nothing else. On the first seed Optuna's TPE proposes
settings, the authors' first; other seeds fit the best of them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
import psutil

from benchmarks.compare import fit_process, grid
from benchmarks.compare.data import Place
from recbole_llm.tuning.spaces import Space, signal_space

#: Of a cell's file, and of how cells are measured: another number, another table.
FORMAT = 2
ROOT = Path(__file__).parents[2]
# A fit that looks at the clock after each epoch ends by itself; others are ended after this.
_GRACE = 120.0
# Of settings before a search gives up to find others than it has had.
_PROPOSALS = 20
_LIBRARIES = ("recbole", "torch", "numpy", "scipy", "implicit", "lightfm-next", "optuna")


class CompareError(Exception):
    """What a user can mend, in one line."""


@dataclass(frozen=True)
class Budget:
    """What a cell may use."""

    fits: int
    minutes: float


@dataclass(frozen=True)
class Cell:
    """A cell by its names."""

    dataset: str
    protocol: str
    seed: int
    model: str

    @property
    def stem(self) -> str:
        """Of its files."""
        name = self.model.lower().replace(" ", "_").replace("(", "").replace(")", "")
        return f"{self.dataset}-{self.protocol}-{self.seed}-{name}"

    def __str__(self) -> str:
        return f"{self.dataset} {self.protocol} {self.seed} {self.model}"


class Results:
    """A folder of cells, of which those of this version count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = importlib.metadata.version("recbole_llm")

    def read(self, stem: str) -> dict[str, Any] | None:
        """A cell, None where it is not there or of another version.

        Raises:
            CompareError: the file cannot be read.
        """
        file = self.folder / f"{stem}.json"
        if not file.is_file():
            return None
        found = read_json(file)
        return found if self.is_ours(found) else None

    def is_ours(self, found: Mapping[str, Any]) -> bool:
        """Whether a cell is of this version of the package and of the format."""
        return (found.get("format"), found.get("version")) == (FORMAT, self.version)

    def write(self, stem: str, facts: Mapping[str, Any], users: Path | None = None) -> None:
        """Keep a cell; one of another version that is in its place is kept under its version."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{stem}.json"
        if file.is_file():
            self._set_aside(file)
        if users is not None:
            shutil.copy(users, file.with_suffix(".npz"))
        record = {
            "format": FORMAT,
            "version": self.version,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": machine(),
            "libraries": _versions(),
            **facts,
        }
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        unfinished.replace(file)

    def _set_aside(self, file: Path) -> None:
        old = read_json(file)
        if self.is_ours(old):
            return
        label = f"v{old.get('version', '')}-format{old.get('format', '')}"
        for part in (file, file.with_suffix(".npz")):
            if part.is_file():
                part.rename(part.with_name(f"{part.stem}.{label}{part.suffix}"))

    def per_user(self, stem: str, part: str) -> tuple[np.ndarray, np.ndarray]:
        """The test users of a slice and their NDCG@10.

        Raises:
            CompareError: the file is not there, or is another one.
        """
        try:
            with np.load(self.folder / f"{stem}.npz") as tables:
                return tables[f"{part}_users"], tables[f"{part}_ndcg"] / 1e4
        except (OSError, KeyError, ValueError) as error:
            raise CompareError(
                f"{stem}.npz, the users' values of a cell, cannot be read; remove {stem}.json and "
                "make it again"
            ) from error


def read_json(file: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        CompareError: it cannot be read.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CompareError(f"{file.name} cannot be read ({error}); remove it") from error
    if not isinstance(found, dict):
        raise CompareError(f"{file.name} is no cell; remove it")
    return found


def _versions() -> dict[str, str]:
    needed = sorted({entry.needs for entry in grid.MODELS.values() if entry.needs})
    peers = [name for name in needed if importlib.util.find_spec(name)]
    return {name: importlib.metadata.version(name) for name in (*_LIBRARIES, *peers)}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    processor = platform.processor()
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        names = [line for line in facts.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "system": platform.system(),
        "python": platform.python_version(),
    }


class FitFailed(Exception):
    """A fit's reason, in one line."""


@dataclass(frozen=True, eq=False)
class Bench:
    """Where cells are made."""

    results: Results
    place: Place
    budget: Budget
    work: Path

    def fit(self, cell: Cell, settings: Mapping[str, Any], seconds: float, folder: Path) -> Any:
        """The record of one fit, whose users' values are in the folder.

        Raises:
            FitFailed: says why.
        """
        protocol = grid.PROTOCOLS[cell.protocol]
        name, entry = model_of(cell.model)
        shuffled = cell.model == grid.SHUFFLED
        dataset, where = self.place.of(cell.dataset, cell.protocol, cell.seed, shuffled=shuffled)
        values = {"model": name, "dataset": dataset, "seed": cell.seed, "seconds": seconds}
        values |= {"slices": ",".join(dict.fromkeys(("all", protocol.slice_name)))}
        values |= {"valid_metric": "NDCG@10", "show_progress": False, "state": "WARNING"}
        # RecBole's default ranks for one or two users at a time.
        values |= {"eval_batch_size": 1 << 20, **where}
        if name in ("HybridFusion", "ALS", "LightFM", "TextIntent", "IntentTower"):
            values["test_history"] = "train"
        if name in ("HybridFusion", "TextIntent", "IntentTower"):
            values["embedding_cache"] = self.work / "embeddings"
        if entry.kind == "ablation":
            # They differ in few signals, and their seconds are not reported.
            values["signal_cache"] = signal_cache(self.work, cell)
        # HybridFusion weighs cold items by themselves, whatever it is validated by.
        if protocol.cold and knows_cold(cell.model) and name != grid.OURS:
            values |= {"cold_eval": True, "valid_metric": f"{protocol.slice_name}_NDCG@10"}
        values |= {**entry.fixed, **settings}
        try:
            return fit_process.run(values, folder, seconds + _GRACE)
        except TimeoutError:
            raise FitFailed(f"cut off after {(seconds + _GRACE) / 60:.0f} minutes") from None
        except RuntimeError as error:
            raise FitFailed(last_line(str(error))) from None


def signal_cache(work: Path, cell: Cell) -> Path:
    """Where the ablations of a split share their signals; some of them are wide."""
    return work / "signals" / f"{cell.dataset}-{cell.protocol}-{cell.seed}"


def last_line(text: str) -> str:
    """What a traceback ends with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a word"


def model_of(name: str) -> tuple[str, grid.Peer]:
    """RecBole's name and the entry; an ablation is HybridFusion with other settings."""
    if name in grid.ABLATIONS:
        return grid.OURS, grid.Peer(grid.OURS, grid.ABLATIONS[name], kind="ablation")
    return grid.MODELS[name].model, grid.MODELS[name]


def knows_cold(name: str) -> bool:
    """Whether a model has something to say of items without interactions."""
    return model_of(name)[1].kind != "classic"


def chosen_by(cell: Cell) -> str:
    """The validation metric by which a cell's settings are chosen."""
    protocol = grid.PROTOCOLS[cell.protocol]
    part = protocol.slice_name if knows_cold(cell.model) else protocol.chosen_by
    return f"{part}_ndcg@10"


def n_fits(cell: Cell, budget: Budget) -> int:
    """The fits that a cell of the first seed gets."""
    _, entry = model_of(cell.model)
    if entry.searches:
        return budget.fits
    if not entry.space:
        return 1
    is_slow = entry.is_slow and cell.dataset in grid.LARGE
    return min(budget.fits, grid.FEW_FITS) if is_slow else budget.fits


def fill(bench: Bench, cell: Cell, first_seed: int) -> dict[str, Any]:
    """Make a cell and keep it, whatever comes of it."""
    _, entry = model_of(cell.model)
    start = perf_counter()
    facts: dict[str, Any] = {**vars(cell), "budget": vars(bench.budget), "fits": []}
    users: Path | None = None
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        try:
            if entry.needs and importlib.util.find_spec(entry.needs) is None:
                raise FitFailed(f"not installed: {entry.needs}")
            found, users = _best(bench, cell, first_seed, facts, Path(folder))
            facts |= found
        except (FitFailed, OSError) as error:
            facts["failed"] = last_line(str(error))
        facts["wall_seconds"] = perf_counter() - start
        bench.results.write(cell.stem, facts, users)
    return facts


def _best(
    bench: Bench, cell: Cell, first_seed: int, facts: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], Path]:
    """The record of the fit that validates best, and its users' values.

    Raises:
        FitFailed: no fit came to an end.
    """
    search = _search(bench, cell, first_seed)
    limit, began = 60.0 * bench.budget.minutes, perf_counter()
    best: dict[str, Any] | None = None
    metric = chosen_by(cell)
    while (left := limit - (perf_counter() - began)) > 0:
        settings = search.ask()
        if settings is None:
            break
        place = folder / f"fit-{len(facts['fits'])}"
        place.mkdir()
        fit, record = _fit(bench, cell, settings, left, place, metric)
        facts["fits"].append(fit)
        search.tell(fit.get("valid"))
        if record is not None and (best is None or fit["valid"] > best["valid"][metric]):
            best = {**record, "chosen": settings}
            shutil.copy(place / "record.npz", folder / "best.npz")
        shutil.rmtree(place)
    facts["wanted_fits"] = search.wanted
    facts["tuning_seconds"] = perf_counter() - began
    if best is None:
        reasons = [fit["failed"] for fit in facts["fits"] if "failed" in fit]
        raise FitFailed(reasons[0] if reasons else "the cap left no time for a fit")
    return best, folder / "best.npz"


def _fit(
    bench: Bench, cell: Cell, settings: dict[str, Any], left: float, place: Path, metric: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is kept of a fit, and its record where it came to an end."""
    start = perf_counter()
    fit: dict[str, Any] = {"settings": settings}
    try:
        record = bench.fit(cell, settings, left, place)
        if metric not in record["valid"]:
            raise FitFailed(f"the validation part has no user for {metric}")
    except FitFailed as error:
        return {**fit, "failed": str(error), "seconds": perf_counter() - start}, None
    fit |= {"valid": record["valid"][metric], "seconds": record["wall_seconds"]}
    fit |= {"fit_seconds": record["seconds"]["fit"], "was_cut": record["was_cut"]}
    return fit, record


class Search:
    """Settings to be fitted, one after the other.

    Args:
        space: what is searched.
        starts: settings that come first.
        wanted: how many there are at most; a smaller space ends earlier, and then says so.
        fixed: what all of them have.
    """

    def __init__(
        self,
        space: Space,
        starts: Iterable[Mapping[str, Any]],
        wanted: int,
        fixed: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=max(3, wanted // 4))
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.where = {name: part.distribution for name, part in space.items()}
        self.wanted, self.fixed = wanted, dict(fixed)
        self._told: dict[str, float | None] = {}
        for start in starts:
            self.study.enqueue_trial(dict(start))

    def ask(self) -> dict[str, Any] | None:
        """The next settings; None: there are enough, or no others."""
        if len(self._told) < self.wanted:
            for _ in range(_PROPOSALS):
                self.trial = self.study.ask(self.where)
                self._key = json.dumps(self.trial.params, sort_keys=True)
                if self._key not in self._told:
                    return {**self.fixed, **self.trial.params}
                self._end(self._told[self._key])
        self.wanted = len(self._told)
        return None

    def tell(self, value: float | None) -> None:
        """What came of the settings; None: nothing."""
        self._told[self._key] = value
        self._end(value)

    def _end(self, value: float | None) -> None:
        state = optuna.trial.TrialState.FAIL if value is None else None
        self.study.tell(self.trial, value, state=state)


def _search(bench: Bench, cell: Cell, first_seed: int) -> Search:
    """All of a cell's settings: searched on the first seed, what was found on the others.

    Raises:
        FitFailed: the cell that they come from is not there, or has failed.
    """
    _, entry = model_of(cell.model)
    if cell.model == grid.UNSEARCHED:
        return Search({}, (), 1)
    is_ablation = entry.kind == "ablation"
    if not is_ablation and cell.seed == first_seed:
        wanted = n_fits(cell, bench.budget)
        if not entry.searches:
            return Search(entry.space, entry.starts, wanted)
        return Search({}, (), 1, {"signal_search_trials": grid.search_trials(entry, wanted)})
    source = Cell(cell.dataset, cell.protocol, first_seed, grid.OURS if is_ablation else cell.model)
    found = bench.results.read(source.stem)
    if found is None or "failed" in found:
        why = "has failed" if found else "is not there"
        raise FitFailed(f"its settings come from {source}, which {why}")
    if not model_of(source.model)[1].searches:
        return Search({}, (), 1, found["chosen"])
    return Search({}, (), 1, _found_by_a_run(cell.model, found))


def _found_by_a_run(model: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of signals that a run of HybridFusion has found, where the model has them."""
    searched = grid.MODELS[grid.OURS].searches
    kept = grid.ABLATIONS.get(model, {}).get("signals", ",".join(searched)).split(",")
    fixed: dict[str, Any] = {"signal_search_trials": 0}
    for name in (name for name in searched if name in kept):
        space = signal_space((name,), {})
        settings = found["signal_settings"].get(name, {})
        fixed |= {f"{name}_{k}": v for k, v in settings.items() if f"{name}_{k}" in space}
    return fixed
