"""What a study has found, for people: Optuna's own figures as one HTML file and as PNG files."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from recbole_llm.tuning.objectives import Objective, complete_trials
from recbole_llm.whole_file import whole_file

# What Optuna can draw of them: a figure of importances needs trials that differ.
_FEW = 3


def write_report(
    study: optuna.Study,
    objectives: Sequence[Objective],
    chosen: FrozenTrial,
    settings: str,
    folder: Path,
) -> list[str]:
    """Write ``report.html`` and ``NAME.png`` where plotly and matplotlib are installed.

    Args:
        study: with a trial that has a value.
        objectives: the study's.
        chosen: the trial that is put in force.
        settings: its ``best.yaml``.
        folder: where the files go; it exists.

    Returns:
        A line for each library that is missing.
    """
    missing = []
    with _quiet():
        try:
            import plotly  # noqa: F401
        except ImportError:
            missing.append("report.html needs plotly; run `pip install recbole_llm[tune]`")
        else:
            page = _page(study, objectives, chosen, settings)
            with whole_file(folder / "report.html") as unfinished:
                unfinished.write_text(page, encoding="utf-8")
        try:
            import matplotlib
        except ImportError:
            missing.append("the PNG files need matplotlib; run `pip install recbole_llm[tune]`")
        else:
            matplotlib.use("Agg")
            for name, draw in _figures(study, objectives, optuna.visualization.matplotlib).items():
                _save_png(draw(), folder / f"{name}.png")
    return missing


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's figures are marked experimental, and matplotlib warns of crowded ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _figures(
    study: optuna.Study, objectives: Sequence[Objective], draws: Any
) -> Mapping[str, Callable[[], Any]]:
    """Name -> what draws it, by one of Optuna's two drawing modules."""
    first = objectives[0].name
    several = len(objectives) > 1
    # Of several objectives all figures but the front show the first.
    target: dict[str, Any] = (
        {"target": lambda trial: trial.values[0], "target_name": first}
        if several
        else {"target_name": first}
    )
    finished = complete_trials(study)
    figures: dict[str, Callable[[], Any]] = {
        "history": lambda: draws.plot_optimization_history(study, **target),
        "timeline": lambda: draws.plot_timeline(study),
    }
    varied = {name for trial in finished for name in trial.params} if len(finished) >= _FEW else ()
    if varied and len({trial.values[0] for trial in finished}) > 1:
        figures["importances"] = lambda: draws.plot_param_importances(study, **target)
        figures["slices"] = lambda: draws.plot_slice(study, **target)
    if several and len(objectives) < 4:
        names = [objective.name for objective in objectives]
        figures["pareto"] = lambda: draws.plot_pareto_front(study, target_names=names)
    return figures


def _page(
    study: optuna.Study, objectives: Sequence[Objective], chosen: FrozenTrial, settings: str
) -> str:
    figures = [
        draw().to_html(full_html=False, include_plotlyjs=number == 0)
        for number, draw in enumerate(_figures(study, objectives, optuna.visualization).values())
    ]
    title = html.escape(f"Study {study.study_name}")
    facts = html.escape("\n".join(summary(study, objectives, chosen)))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        "</head>\n<body style='font-family: sans-serif; max-width: 1100px; margin: auto'>"
        f"<h1>{title}</h1>\n<pre>{facts}</pre>\n<h2>best.yaml</h2>\n"
        f"<pre>{html.escape(settings)}</pre>\n" + "\n".join(figures) + "\n</body></html>\n"
    )


def _save_png(axes: Any, file: Path) -> None:
    import matplotlib.pyplot as plt
    import numpy as np

    figure = np.ravel(axes)[0].figure
    figure.set_size_inches(max(8.0, 4.0 * len(figure.axes)) if len(figure.axes) > 2 else 8.0, 5.0)
    figure.savefig(file, dpi=100, bbox_inches="tight")
    plt.close(figure)


def summary(study: optuna.Study, objectives: Sequence[Objective], chosen: FrozenTrial) -> list[str]:
    """A study in a few lines."""
    trials = study.get_trials(deepcopy=False)
    counts = {
        word: sum(trial.state == state for trial in trials)
        for word, state in (
            ("complete", TrialState.COMPLETE),
            ("pruned", TrialState.PRUNED),
            ("failed", TrialState.FAIL),
        )
    }
    lines = [
        f"{study.study_name}: {len(trials)} trials, "
        + ", ".join(f"{count} {word}" for word, count in counts.items() if count),
        f"trial {chosen.number}: "
        + ", ".join(
            f"{objective.name} {value:.6g}"
            for objective, value in zip(objectives, chosen.values, strict=True)
        ),
    ]
    if len(objectives) > 1:
        names = "  ".join(f"{objective.name:>14}" for objective in objectives)
        lines.append(f"Pareto front:\n{'trial':>7}  {names}")
        for trial in sorted(study.best_trials, key=lambda trial: trial.values[0]):
            cells = "  ".join(f"{value:14.6g}" for value in trial.values)
            lines.append(f"{trial.number:7}  {cells}")
    return lines
