"""The trade-off of `cold_exposure` as a picture: warm against cold items, level by level."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.errors import SettingsError
from recbole_llm.whole_file import whole_file

_ENDINGS = (".png", ".svg", ".pdf")


def check_plot_file(name: str) -> None:
    """Say what keeps a picture from being written, before anything slow begins.

    Raises:
        SettingsError: the ending is of no picture, the folder cannot be written to, or matplotlib
            is missing.
    """
    file = Path(name).expanduser()
    if file.suffix not in _ENDINGS:
        raise SettingsError(
            f"`exposure_plot` must be a file that ends in {', '.join(_ENDINGS)}, got {name!r}"
        )
    if not os.access(file.parent, os.W_OK):
        raise SettingsError(f"`exposure_plot`: cannot write to the folder {file.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError(
            "`exposure_plot` needs `matplotlib`; run `pip install recbole_llm[tune]`"
        )


def write_exposure_plot(
    curve: Sequence[Mapping[str, float | None]], level: float, metric: str, name: str
) -> None:
    """Write the picture.

    Args:
        curve: see :class:`~recbole_llm.fusion.Fused`.
        level: the one in force.
        metric: what the curve's values are, for the labels.
        name: of the file.
    """
    # By hand and not by pyplot, which would choose a back end for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    colours = draw_exposure(axis, curve, level)
    axis.set_xlabel(f"warm items among all, {metric}")
    axis.set_ylabel(f"cold items among all, {metric}")
    axis.set_title("cold_exposure, on the validation split")
    figure.colorbar(colours, ax=axis, label=f"overall {metric}")
    file = Path(name).expanduser()
    with whole_file(file) as unfinished:
        figure.savefig(unfinished, dpi=120, format=file.suffix[1:])


def draw_exposure(axis: Any, curve: Sequence[Mapping[str, float | None]], level: float) -> Any:
    """Draw a curve onto matplotlib's axes; its colours say the overall metric.

    Args:
        axis: matplotlib's.
        curve: its points without wanted cold or warm items are left out.
        level: the one that gets a ring.

    Returns:
        What a colour bar is made of.
    """
    points = [point for point in curve if None not in point.values()]
    warm, cold, every = (
        [point[name] for point in points] for name in ("warm_in_all", "cold_in_all", "all")
    )
    colours = axis.scatter(warm, cold, c=every, cmap="viridis", s=22, zorder=3)
    axis.plot(warm, cold, color="#bbbbbb", zorder=2)
    if points:
        chosen = min(points, key=lambda point: abs((point["level"] or 0.0) - level))
        axis.scatter(
            chosen["warm_in_all"],
            chosen["cold_in_all"],
            s=130,
            facecolors="none",
            edgecolors="#d1495b",
            linewidths=2,
            label=f"in force: level {level:.2f}, {chosen['cold_share']:.0%} cold",
            zorder=4,
        )
        axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    return colours
