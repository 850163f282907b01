"""The report's figures, PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.compare import grid
from benchmarks.compare.collected import Collected, Key, first_seed, mean_ndcg, mean_of
from benchmarks.compare.costs import PHASES
from benchmarks.compare.measure import EDGES
from benchmarks.compare.report_costs import phase_of

mpl.use("Agg")
from matplotlib import pyplot as plt

# The same cells give the same files.
plt.rcParams["svg.hashsalt"] = "compare"

COLOURS = {"win": "#1b6ca8", "loss": "#d1495b", "open": "#888888"}
KINDS = {"classic": "#444444", "text": "#edae49", "ours": "#1b6ca8"}
MARKERS = {"classic": "o", "text": "s", "ours": "D"}
PHASE_COLOURS = dict(zip(PHASES, ("#888888", "#edae49", "#1b6ca8", "#d1495b"), strict=True))
#: What the plot by warmth shows, where it is there.
LINES = (grid.OURS, "ALS", "EASE", "LightFM", "LightGCN", "TextIntent", "popularity")
_WIDTH = 4.4
# Pixels that a name takes at most.
_LABEL = (90, 12)


def draw(collected: Collected, folder: Path) -> list[str]:
    """Draw all that there are cells for.

    Returns:
        The names of the figures, which lie beside the folder.
    """
    drawn = []
    for protocol in grid.PROTOCOLS:
        keys = [key for key in collected.cells if key[0] == protocol and collected.models(key)]
        if keys:
            for name, figure in (
                ("forest", forest(collected, keys)),
                ("cost", quality_by_cost(collected, keys)),
                ("warmth", by_warmth(collected, keys)),
            ):
                drawn.append(_save(figure, folder, f"{name}-{protocol}"))
    costs = [cell for cell in collected.costs if "failed" not in cell]
    if costs:
        drawn.append(_save(sizes(costs), folder, "sizes"))
    return drawn


def _save(figure: Any, folder: Path, name: str) -> str:
    target = folder.parent / f"{folder.name}-{name}"
    figure.savefig(target.with_suffix(".png"), dpi=130)
    figure.savefig(target.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
    return target.name


def _panels(n: int, height: float) -> tuple[Any, list[Any]]:
    columns = min(n, 3)
    rows = math.ceil(n / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(_WIDTH * columns + 0.6, height * rows),
        squeeze=False,
        constrained_layout=True,
    )
    flat = list(axes.flat)
    for axis in flat[n:]:
        axis.set_axis_off()
    return figure, flat[:n]


def forest(collected: Collected, keys: list[Key]) -> Any:
    """HybridFusion's differences with their intervals, the hardest opponent first."""
    most = max(len(collected.models(key)) for key in keys)
    figure, axes = _panels(len(keys), 1.2 + 0.26 * most)
    for axis, key in zip(axes, keys, strict=True):
        found = {n: c for n, c in collected.comparisons[key].items() if n in grid.MODELS}
        names = sorted(found, key=lambda name: -found[name][0].mean)
        for row, name in enumerate(names):
            difference, _, word = found[name]
            axis.plot(
                [difference.low, difference.high], [row, row], color=COLOURS[word], linewidth=2
            )
            axis.plot(difference.mean, row, "o", color=COLOURS[word], markersize=5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_title(key[1], fontsize=10)
        axis.set_xlabel("HybridFusion ahead in NDCG@10", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    handles = [mpl.lines.Line2D([], [], color=c, marker="o", label=w) for w, c in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def quality_by_cost(collected: Collected, keys: list[Key]) -> Any:
    """NDCG@10 by the seconds of all fits on validation."""
    figure, axes = _panels(len(keys), 3.9)
    for axis, key in zip(axes, keys, strict=True):
        points = []
        for name, runs in collected.models(key).items():
            spent = mean_of(first_seed(runs), "tuning_seconds")
            value = mean_ndcg(collected, key, name)
            kind = grid.MODELS[name].kind
            axis.plot(spent, value, MARKERS[kind], color=KINDS[kind], markersize=6)
            points.append((spent, value, name))
        axis.set_xscale("log")
        axis.margins(x=0.25, y=0.15)
        _label_points(axis, points)
        axis.set_title(key[1], fontsize=10)
        axis.set_xlabel("seconds of tuning, all fits", fontsize=8)
        axis.set_ylabel("test NDCG@10", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    handles = [
        mpl.lines.Line2D([], [], color=KINDS[k], marker=MARKERS[k], linestyle="", label=label)
        for k, label in (("classic", "interactions alone"), ("text", "with text"), ("ours", "ours"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _label_points(axis: Any, points: list[tuple[float, float, str]]) -> None:
    """Names beside the points, moved up where they would lie on each other."""
    to_pixels = axis.transData
    placed: list[tuple[float, float]] = []
    for spent, value, name in sorted(points, key=lambda point: point[1]):
        x, y = to_pixels.transform((spent, value))
        while any(abs(x - a) < _LABEL[0] and abs(y - b) < _LABEL[1] for a, b in placed):
            y += 1
        placed.append((x, y))
        axis.annotate(
            name,
            (spent, value),
            xytext=to_pixels.inverted().transform((x + 8, y)),
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.5},
        )


def by_warmth(collected: Collected, keys: list[Key]) -> Any:
    """NDCG@10 of items by their training interactions, means over seeds."""
    names = [f"{low}" if low == high else f"{low}-{high}" for low, high in _ranges()]
    figure, axes = _panels(len(keys), 3.6)
    colours = plt.get_cmap("tab10")
    for axis, key in zip(axes, keys, strict=True):
        for place, name in enumerate(LINES):
            runs = collected.models(key).get(name)
            if runs:
                values = np.array([run["by_warmth"] for run in runs.values()], dtype=float)
                there = ~np.isnan(values).all(axis=0)
                mean = np.full(len(EDGES), np.nan)
                mean[there] = np.nanmean(values[:, there], axis=0)
                width = 2.4 if name == grid.OURS else 1.2
                axis.plot(
                    names, mean, marker="o", markersize=3, color=colours(place), label=name,
                    linewidth=width,
                )  # fmt: skip
        axis.set_title(key[1], fontsize=10)
        axis.set_xlabel("training interactions of the item", fontsize=8)
        axis.set_ylabel("test NDCG@10 of such items", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=7)
    return figure


def _ranges() -> list[tuple[Any, Any]]:
    ends = [str(edge - 1) for edge in EDGES[1:]] + ["…"]
    return [(str(low), high) for low, high in zip(EDGES, ends, strict=True)]


def sizes(costs: Sequence[Mapping[str, Any]]) -> Any:
    """Seconds and memory of each phase by the number of interactions."""
    variants = list(dict.fromkeys(cell["costs"] for cell in costs))
    figure, axes = plt.subplots(
        2, len(variants), figsize=(_WIDTH * len(variants) + 0.6, 6.6), squeeze=False,
        constrained_layout=True,
    )  # fmt: skip
    for column, variant in enumerate(variants):
        cells = [cell for cell in costs if cell["costs"] == variant]
        x = np.array([cell["n_interactions"] for cell in cells])
        for axis, kind in zip(axes[:, column], ("seconds", "memory"), strict=True):
            for phase in PHASES:
                y = np.array([phase_of(cell, phase, kind) for cell in cells])
                if not np.isnan(y).all():
                    axis.plot(x, y, marker="o", color=PHASE_COLOURS[phase], label=phase)
                    if phase == "signals":
                        axis.plot(x, y[0] * x / x[0], ":", color="#bbbbbb", label="linear")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel("interactions", fontsize=8)
            axis.set_ylabel("seconds" if kind == "seconds" else "peak MB above imports", fontsize=8)
            axis.tick_params(labelsize=8, which="both")
            axis.grid(alpha=0.3, which="both", linewidth=0.4)
            axis.legend(frameon=False, fontsize=7)
        title = "without SLIM" if variant == "tables" else f"{variant} alone"
        axes[0, column].set_title(title, fontsize=10)
    return figure
