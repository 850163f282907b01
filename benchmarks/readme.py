"""The README's tables that are made of results: each stands between two marks of its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FILE = Path(__file__).parents[1] / "README.md"


def with_table(text: str, name: str, lines: Iterable[str]) -> str:
    """The README with a new table between its marks.

    Raises:
        SystemExit: it has no marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise SystemExit(f"README.md has no lines {begin} and {end}")
    return f"{before}{begin}\n" + "\n".join(lines).strip() + f"\n{end}{after}"


def write_table(name: str, lines: Iterable[str]) -> None:
    """Put a table between its marks in the README itself."""
    FILE.write_text(with_table(FILE.read_text(), name, lines))
