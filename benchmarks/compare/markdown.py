"""Lines of Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def paragraph(text: str, indent: str = "") -> Iterator[str]:
    """Lines of a paragraph, or with an indent of a point of a list."""
    yield from textwrap.wrap(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    if not indent:
        yield ""


def machine_line(facts: Mapping[str, Any]) -> str:
    """What figures depend on, as cells keep it."""
    return (
        f"{facts['processor']}, {facts['cores']} cores (threads a fit: {facts['threads']}), "
        f"{facts['memory_gb']:g} GB, {facts['system']}, Python {facts['python']}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table; numbers are aligned to the right."""
    body = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in ([*head], marks, *body)] + [""]


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; nothing for one that is not there."""
    if value is None or math.isnan(value):
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}"


def seconds(value: float) -> str:
    """A time with three digits."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
