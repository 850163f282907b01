"""The report's part on what sizes cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.compare.collected import Collected
from benchmarks.compare.costs import PHASES, exponent
from benchmarks.compare.markdown import machine_line, paragraph, seconds, table

_VARIANTS = {
    "tables": "HybridFusion without SLIM",
    "slim": "SLIM alone",
}
# Extrapolated from the curves.
_FAR = (10**8, 10**9)


def lines_of(collected: Collected, prefix: str) -> Iterator[str]:
    done = [cell for cell in collected.costs if "failed" not in cell]
    if not done:
        return
    yield from ("## What sizes cost", "")
    yield from paragraph(
        f"Data grown from {done[0]['like']}: copies of its users and items, so that the power laws "
        "stay; seconds of each phase, and its peak memory without the imports' share. Exponents "
        "are fitted to the logarithms. Machine: "
        + "; ".join(sorted({machine_line(cell["machine"]) for cell in done}))
    )
    yield from (f"![]({prefix}-sizes.png)", "")
    for variant in dict.fromkeys(cell["costs"] for cell in done):
        cells = [cell for cell in done if cell["costs"] == variant]
        yield f"### {_VARIANTS[variant]}"
        yield ""
        yield from _sizes(cells)
        if variant == "tables":
            yield from _texts(cells)
            yield from _ranking(cells)
            yield from _far(cells)
            yield from _scoring(cells)


def phase_of(cell: Mapping[str, Any], phase: str, kind: str) -> float:
    """Seconds or MB of a phase of a cell of the cost curves; NaN where it had none."""
    if phase not in cell["seconds"]:
        return float("nan")
    if kind == "seconds":
        return float(cell["seconds"][phase])
    return max(1.0, cell["peak_mb"][phase] - cell["base_mb"])


def _totals(cell: Mapping[str, Any]) -> tuple[float, ...]:
    """Seconds of a cell in all, and without the encoding of texts where there was any."""
    whole = float(cell["total_seconds"])
    encoding = cell["seconds"].get("encode")
    return (whole,) if encoding is None else (whole, whole - encoding)


def _sizes(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    phases = [phase for phase in PHASES if phase in cells[-1]["seconds"]]
    head = ("interactions", "users", "items", *(f"{p} s" for p in phases), "all s")
    head += ("without encoding s",) * ("encode" in phases) + tuple(f"{p} MB" for p in phases)
    rows: list[list[Any]] = [
        [
            f"{cell['n_interactions']:,}",
            int(cell["n_users"]),
            int(cell["n_items"]),
            *(seconds(phase_of(cell, p, "seconds")) for p in phases),
            *map(seconds, _totals(cell)),
            *(f"{phase_of(cell, p, 'memory'):,.0f}" for p in phases),
        ]
        for cell in cells
    ]
    for label, part in _ranges(cells):
        sizes = [cell["n_interactions"] for cell in part]
        powers = [
            [
                _power(exponent(sizes, [phase_of(cell, phase, kind) for cell in part]))
                for phase in phases
            ]
            for kind in ("seconds", "memory")
        ]
        whole = zip(*map(_totals, part), strict=True)
        whole_powers = [_power(exponent(sizes, spent)) for spent in whole]
        rows.append([label, "", "", *powers[0], *whole_powers, *powers[1]])
    yield from table(head, rows)


def _ranges(cells: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """What exponents are fitted to: all sizes, and the larger ones, where no constant helps."""
    yield "exponent", cells
    if len(cells) > 3:
        yield "of the larger half", cells[len(cells) // 2 :]


def _power(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _texts(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    told = [cell for cell in cells if cell["texts"]["encoded"]]
    if not told:
        return
    n_texts = [cell["texts"]["encoded"] for cell in told]
    spent = [phase_of(cell, "encode", "seconds") for cell in told]
    rows = [
        [f"{n:,}", seconds(s), f"{n / s:,.0f}", f"{phase_of(cell, 'encode', 'memory'):,.0f}"]
        for n, s, cell in zip(n_texts, spent, told, strict=True)
    ]
    rows.append(["exponent", _power(exponent(n_texts, spent)), "", ""])
    yield from table(("texts encoded", "s", "texts a second", "peak MB"), rows)


def _ranking(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    each = [cell["ranking"]["seconds"] / cell["ranking"]["users"] for cell in cells]
    rows: list[list[Any]] = [
        [int(cell["n_items"]), int(cell["ranking"]["users"]), f"{1e3 * one:.3f}"]
        for cell, one in zip(cells, each, strict=True)
    ]
    rows.append(["exponent", "", _power(exponent([cell["n_items"] for cell in cells], each))])
    yield from table(("items", "users ranked for", "ms a user"), rows)


def _far(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What larger data would need: the last cell, grown by the fitted powers."""
    if len(cells) < 2:
        return
    last = cells[-1]
    *_, (_, cells) = _ranges(cells)
    sizes = [cell["n_interactions"] for cell in cells]
    rows = []
    for size in _FAR:
        times = size / last["n_interactions"]
        spent, held = 0.0, 0.0
        for phase in PHASES:
            costs = {k: [phase_of(c, phase, k) for c in cells] for k in ("seconds", "memory")}
            powers = {kind: exponent(sizes, values) for kind, values in costs.items()}
            if phase != "encode":
                spent += costs["seconds"][-1] * times ** powers["seconds"]
            held = max(held, costs["memory"][-1] * times ** powers["memory"])
        tables = last["table_bytes"] * times / 2**30
        rows.append([f"{size:,}", f"{spent / 3600:.1f}", f"{held / 2**10:,.0f}", f"{tables:,.0f}"])
    yield from paragraph(
        "Beyond what was measured, by these powers on the same machine (text encoding aside), and "
        "by the plan of the tables, whose rows are users and items. The spread of a word signal's "
        "scores takes users times items, of which the powers know only what it was up to the last "
        "size:"
    )
    yield from table(("interactions", "hours", "peak GB", "of which tables GB"), rows)


def _scoring(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        [
            int(cell["n_items"]),
            int(part["dimensions"]),
            f"{part['ours']:,.0f}",
            f"{part['implicit']:,.0f}",
            f"{part['ours'] / part['implicit']:.2f}",
        ]
        for cell in cells
        for part in cell["scoring"]
    ]
    yield from paragraph(
        "Top 10 with seen items left out, by the same tables in one run, users a second:"
    )
    yield from table(("items", "dimensions", "`recommend` here", "`implicit`'s", "ratio"), rows)
