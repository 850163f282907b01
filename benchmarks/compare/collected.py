"""All cells of one version, and the comparisons among them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.compare import grid, paired
from benchmarks.compare.cells import FORMAT, Cell, CompareError, Results, read_json
from benchmarks.compare.costs import VARIANTS

Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Collected:
    """What a report is made of.

    Attributes:
        results: where the cells are.
        version: of the package that made them.
        cells: (protocol, data set) -> model -> seed -> cell that came to an end.
        failed: those that did not.
        costs: cells of the cost curves, by size.
        others: how many files of other versions there are.
    """

    results: Results
    version: str
    cells: dict[Key, dict[str, dict[int, dict[str, Any]]]]
    failed: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    others: int
    per_user: dict[tuple[str, str], Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Collected:
        """The cells of the running version; where there is none, of the newest.

        Raises:
            CompareError: there is nothing that can be reported.
        """
        results = Results(folder)
        found = [read_json(file) for file in sorted(folder.glob("*.json"))]
        mine = [cell for cell in found if cell.get("format") == FORMAT]
        versions = {str(cell.get("version")) for cell in mine}
        if not versions:
            told = f"; {len(found)} are of another format" if found else ""
            raise CompareError(f"there is no result in {folder.name}{told}")
        version = results.version
        if version not in versions:
            version = max(versions, key=lambda v: [int(n) for n in v.split(".") if n.isdigit()])
        mine = [cell for cell in mine if cell.get("version") == version]
        cells: dict[Key, Any] = defaultdict(lambda: defaultdict(dict))
        failed, costs = [], []
        for cell in mine:
            if "costs" in cell:
                costs.append(cell)
            elif "failed" in cell:
                failed.append(cell)
            else:
                cells[cell["protocol"], cell["dataset"]][cell["model"]][cell["seed"]] = cell
        ordered = {
            (protocol, dataset): {
                name: dict(sorted(cells[protocol, dataset][name].items()))
                for name in (*grid.MODELS, *grid.ABLATIONS)
                if name in cells[protocol, dataset]
            }
            for protocol in grid.PROTOCOLS
            for dataset in _in_order(d for p, d in cells if p == protocol)
        }
        costs.sort(key=lambda cell: ([*VARIANTS].index(cell["costs"]), cell["size"]))
        return cls(results, version, ordered, failed, costs, len(found) - len(mine))

    def models(self, key: Key) -> Mapping[str, Mapping[int, dict[str, Any]]]:
        """The peers of a data set, ablations apart."""
        return {name: runs for name, runs in self.cells[key].items() if name in grid.MODELS}

    def ablations(self, key: Key) -> Mapping[str, Mapping[int, dict[str, Any]]]:
        """The ablations of a data set."""
        return {name: runs for name, runs in self.cells[key].items() if name in grid.ABLATIONS}

    def all_cells(self) -> Iterator[dict[str, Any]]:
        """Every cell that came to an end, and those of the costs."""
        for models in self.cells.values():
            for runs in models.values():
                yield from runs.values()
        yield from self.costs

    @cached_property
    def comparisons(self) -> dict[Key, dict[str, tuple[paired.Difference, float, str]]]:
        """(protocol, data set) -> other model -> difference, corrected p, verdict.

        Peers are corrected over all comparisons of a protocol, ablations by themselves.
        """
        found: dict[Key, dict[str, Any]] = {key: {} for key in self.cells}
        for protocol in grid.PROTOCOLS:
            for table in (grid.MODELS, grid.ABLATIONS):
                family = [
                    (key, name, difference)
                    for key in self.cells
                    if key[0] == protocol
                    for name in self.cells[key]
                    if name in table and name != grid.OURS
                    if (difference := self._difference(key, name)) is not None
                ]
                corrected = paired.holm([difference.p for _, _, difference in family])
                for (key, name, difference), p in zip(family, corrected, strict=True):
                    found[key][name] = (difference, p, paired.verdict(difference, p))
        return found

    def _difference(self, key: Key, name: str) -> paired.Difference | None:
        ours, theirs = (self._values(key, model) for model in (grid.OURS, name))
        if not ours.keys() & theirs.keys():
            return None
        return paired.compare(*paired.differences(ours, theirs))

    def _values(self, key: Key, name: str) -> dict[int, Any]:
        protocol, dataset = key
        part = grid.PROTOCOLS[protocol].slice_name
        stems = {
            seed: Cell(dataset, protocol, seed, name).stem for seed in self.cells[key].get(name, {})
        }
        for stem in stems.values():
            if (stem, part) not in self.per_user:
                self.per_user[stem, part] = self.results.per_user(stem, part)
        return {seed: self.per_user[stem, part] for seed, stem in stems.items()}

    def best_classic(self, key: Key) -> str | None:
        """The classic model with the best test NDCG@10, of those that share seeds with ours."""
        names = [
            name
            for name in self.models(key)
            if grid.MODELS[name].kind == "classic" and name in self.comparisons[key]
        ]
        return max(names, key=lambda name: mean_ndcg(self, key, name), default=None)


def _in_order(datasets: Iterator[str]) -> list[str]:
    there = set(datasets)
    return [d for d in grid.DATASETS if d in there] + sorted(there - grid.DATASETS.keys())


def first_seed(runs: Mapping[int, Any]) -> dict[int, Any]:
    """The seed that was tuned on, alone."""
    return dict(list(runs.items())[:1])


def mean_of(runs: Mapping[int, Mapping[str, Any]], *path: str) -> float:
    """The mean over seeds of a value of the cells; NaN where one does not have it."""
    values = []
    for cell in runs.values():
        value: Any = cell
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        values.append(float("nan") if value is None else float(value))
    return statistics.fmean(values) if values else float("nan")


def mean_ndcg(collected: Collected, key: Key, name: str) -> float:
    """The NDCG@10 of the protocol's slice."""
    part = grid.PROTOCOLS[key[0]].slice_name
    return mean_of(collected.cells[key][name], "test", f"{part}_ndcg@10")
