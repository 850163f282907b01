"""Attributes: what is said of items by categories and numbers, as sparse rows.

A brand, a genre, a year, a price: words hardly tell that 1994 is near 1995, and a text of many
words drowns the one that names its genre.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.preprocessing import MultiLabelBinarizer, normalize

from recbole_llm.errors import SettingsError
from recbole_llm.text import FeatureTable, attribute_fields, values_of

_KNOTS = 8
# A field of these is of numbers, though RecBole's bundled data call it a token; other whole numbers
# may be codes.
_YEAR = re.compile(r"(1[89]|20)\d\d")
_NEARLY_ALL = 0.95


def attribute_rows(
    table: FeatureTable, fields: Sequence[str] | None, ids: Sequence[str]
) -> tuple[sp.csr_matrix | None, tuple[str, ...]]:
    """The attributes of items as unit rows, each field counting alike.

    A category is a column, and so is each word of a list of categories; what one item alone has is
    left out. A number, or a year, is spread over the two nearest of eight quantiles, so that near
    numbers have near rows.

    Args:
        table: an ``.item`` file.
        fields: names of fields; None: all that hold categories or numbers.
        ids: of n items in any order, known or not.

    Returns:
        CSR float32 (n, d), zero where nothing is known, or None where no item shares anything
        with another; and the fields.

    Raises:
        SettingsError: the table has no such field, or it holds lists of numbers.
    """
    chosen = attribute_fields(table) if fields is None else tuple(fields)
    columns = zip(*_values(table, chosen, ids), strict=True)
    blocks = []
    for field, column in zip(chosen, columns, strict=True):
        kind = table.types[field]
        if kind == "float_seq":
            raise SettingsError(
                f"`item_attribute_fields`: `{field}` holds lists of numbers; name fields of "
                "categories or single numbers"
            )
        is_number = kind == "float" or _are_years(column)
        block = _of_numbers(column) if is_number else _of_categories(column, kind)
        if block.nnz:
            blocks.append(normalize(block))
    if not blocks:
        return None, chosen
    return normalize(sp.hstack(blocks, format="csr")).astype(np.float32), chosen


def _values(table: FeatureTable, fields: Sequence[str], ids: Sequence[str]) -> list[list[str]]:
    rows = values_of(table, fields, ids, setting="item_attribute_fields")
    return [row or [""] * len(fields) for row in rows]


def _are_years(column: Sequence[str]) -> bool:
    told = [value for value in column if value]
    return sum(bool(_YEAR.fullmatch(value)) for value in told) > _NEARLY_ALL * len(told)


def _of_categories(column: Sequence[str], kind: str) -> sp.csr_matrix:
    members = [set(value.split()) if kind == "token_seq" else {value} - {""} for value in column]
    rows = MultiLabelBinarizer(sparse_output=True).fit_transform(members).tocsc()
    return rows[:, np.asarray(rows.sum(axis=0)).ravel() > 1].tocsr()


def _of_numbers(column: Sequence[str]) -> sp.csr_matrix:
    """Linear B-splines with knots at quantiles; what is no number has a zero row."""
    values = np.array([_number(value) for value in column])
    told = np.flatnonzero(np.isfinite(values))
    knots = np.unique(np.quantile(values[told], np.linspace(0, 1, _KNOTS))) if len(told) else told
    if len(knots) < 2:
        return sp.csr_matrix((len(values), 0))
    above = np.clip(np.searchsorted(knots, values[told]), 1, len(knots) - 1)
    share: NDArray[np.float64] = (values[told] - knots[above - 1]) / np.diff(knots)[above - 1]
    return sp.csr_matrix(
        (np.r_[1 - share, share], (np.r_[told, told], np.r_[above - 1, above])),
        shape=(len(values), len(knots)),
    )


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return np.nan
