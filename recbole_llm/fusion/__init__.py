"""Fusion rules: how the signals' scores are put together, and what of that is tuned.

Adding a rule is one new file and one line in :data:`FUSIONS`.
"""

from __future__ import annotations

from recbole_llm.fusion.base import Evidence, Fused, Fusion, Judged, Situation
from recbole_llm.fusion.exposure import exposure_table, parse_exposure
from recbole_llm.fusion.exposure_plot import check_plot_file, draw_exposure, write_exposure_plot
from recbole_llm.fusion.warmth_gate import WarmthGate
from recbole_llm.fusion.weighted_sum import WeightedSum

__all__ = [
    "FUSIONS",
    "Evidence",
    "Fused",
    "Fusion",
    "Judged",
    "Situation",
    "check_plot_file",
    "draw_exposure",
    "exposure_table",
    "parse_exposure",
    "write_exposure_plot",
]

FUSIONS: dict[str, Fusion] = {"weighted_sum": WeightedSum(), "warmth_gate": WarmthGate()}
