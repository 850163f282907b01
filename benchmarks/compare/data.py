"""Where the comparison's data are: the sets as they come, and the copies that protocols need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import places
from benchmarks.compare import grid
from recbole_llm.errors import did_you_mean

_BUNDLED = ("ml-100k",)


@dataclass(frozen=True)
class Place:
    """Where data sets are, and where copies go.

    Attributes:
        data_path: folder of data sets; None: RecBole's bundled one alone.
        work: folder of what is made.
    """

    data_path: Path | None
    work: Path

    def known(self) -> list[str]:
        """The data sets that are there."""
        path = self.data_path
        folders = [p for p in path.iterdir() if p.is_dir()] if path and path.is_dir() else []
        there = {p.name for p in folders if (p / f"{p.name}.inter").is_file()}
        return sorted({*_BUNDLED, *there})

    def missing(self, dataset: str) -> str:
        """What to say of a data set that is not there; nothing for one that is."""
        if dataset in self.known():
            return ""
        hint = did_you_mean(dataset, self.known()) or "; name its folder by --data_path"
        return f"there is no data set `{dataset}`{hint}"

    def of(
        self, dataset: str, protocol: str, seed: int, *, shuffled: bool
    ) -> tuple[str, dict[str, Any]]:
        """The name of the data set under a protocol, and the settings that lead to it."""
        how = grid.PROTOCOLS[protocol]
        own = dict(grid.DATASETS.get(dataset, {}))
        folder: Path | None = None
        path = self.data_path if self.data_path and dataset not in _BUNDLED else None
        if how.cold:
            out = self.work / "splits"
            folder = places.cold_split(dataset, path, out, seed, how.cold, own)
            own = {}
        elif protocol == "leave_one_out":
            source = places.source_of(dataset, path)
            folder = places.ordered(source, self.work / "ordered" / f"{dataset}-ordered")
            own = {}
        if shuffled:
            source = folder or places.source_of(dataset, path)
            folder = self.work / "shuffled" / f"{source.name}-shuffled-{seed}"
            places.shuffled(source, folder, seed)
        name = folder.name if folder else dataset
        path = folder.parent if folder else path
        return name, {**own, **how.settings, **({"data_path": path} if path else {})}
