"""Attributes: what is said of items by categories and numbers, as sparse rows.

A brand, a genre, a year, a price: words hardly tell that 1994 is near 1995, and a text of many
words drowns the one that names its genre.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from recbole_llm.errors import SettingsError
from recbole_llm.text import FeatureTable, attribute_fields, values_of

#: So often a step of training does without an item's attributes: the text learns to stand in for
#: them, since newcomers may come with a text alone (Volkovs, Yu, Poutanen, "DropoutNet", 2017).
LEFT_OUT = 0.5

_KNOTS = 8
# A field of these is of numbers, though RecBole's bundled data call it a token; other whole numbers
# may be codes.
_YEAR = re.compile(r"(1[89]|20)\d\d")
_NEARLY_ALL = 0.95


@dataclass(frozen=True, eq=False)
class AttributeCode:
    """What the values of a field are as rows; plain arrays and words, fit to be stored.

    A category is a column, and so is each word of a list of categories; what one item alone has is
    left out. A number, or a year, is spread over the two nearest of eight quantiles, so that near
    numbers have near rows.

    Attributes:
        field: its name.
        is_list: whether a value is a list of categories, with blanks between them.
        columns: str (d,), the categories, or float64 (d,), the quantiles; ascending.
    """

    field: str
    is_list: bool
    columns: NDArray[Any]

    @classmethod
    def of(cls, field: str, kind: str, values: Sequence[str]) -> AttributeCode:
        """The code of a field's values.

        Args:
            field: its name.
            kind: its atomic type.
            values: one for each item, "" where there is none.
        """
        if kind == "float" or _are_years(values):
            numbers = np.array([_number(value) for value in values])
            told = numbers[np.isfinite(numbers)]
            knots = np.unique(np.quantile(told, np.linspace(0, 1, _KNOTS))) if len(told) else told
            return cls(field, False, knots if len(knots) > 1 else knots[:0])
        is_list = kind == "token_seq"
        n_items = Counter(name for value in values for name in _categories(value, is_list))
        shared = sorted(name for name, count in n_items.items() if count > 1)
        return cls(field, is_list, np.array(shared, dtype=np.str_))

    def rows(self, values: Sequence[str]) -> sp.csr_matrix:
        """Unit rows CSR float64 (n, d) of n values, zero where nothing is known of one."""
        shape = (len(values), len(self.columns))
        if not len(self.columns):
            return sp.csr_matrix(shape)
        if self.columns.dtype.kind == "f":
            return normalize(self._of_numbers(values))
        place = {name: column for column, name in enumerate(self.columns.tolist())}
        found = [
            (row, place[name])
            for row, value in enumerate(values)
            for name in sorted(_categories(value, self.is_list))
            if name in place
        ]
        rows, columns = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return normalize(sp.csr_matrix((np.ones(len(found)), (rows, columns)), shape=shape))

    def _of_numbers(self, values: Sequence[str]) -> sp.csr_matrix:
        """Linear B-splines with knots at quantiles; what is no number has a zero row.

        So has what is beyond the numbers that were there: next year's film is not like this
        year's, of which few had the time to be seen.
        """
        knots, numbers = self.columns, np.array([_number(value) for value in values])
        told = np.flatnonzero((knots[0] <= numbers) & (numbers <= knots[-1]))
        within = numbers[told]
        above = np.clip(np.searchsorted(knots, within), 1, len(knots) - 1)
        share: NDArray[np.float64] = (within - knots[above - 1]) / np.diff(knots)[above - 1]
        return sp.csr_matrix(
            (np.r_[1 - share, share], (np.r_[told, told], np.r_[above - 1, above])),
            shape=(len(values), len(knots)),
        )


def attribute_codes(
    table: FeatureTable, fields: Sequence[str] | None, ids: Sequence[str]
) -> tuple[AttributeCode, ...]:
    """The codes of the attributes of items, one for each field.

    Args:
        table: an ``.item`` file.
        fields: names of fields; None: all that hold categories or numbers.
        ids: of n items in any order, known or not.

    Raises:
        SettingsError: the table has no such field, or it holds lists of numbers.
    """
    chosen = attribute_fields(table) if fields is None else tuple(fields)
    columns = _columns(table, chosen, ids)
    for field in chosen:
        if table.types[field] == "float_seq":
            raise SettingsError(
                f"`item_attribute_fields`: `{field}` holds lists of numbers; name fields of "
                "categories or single numbers"
            )
    return tuple(
        AttributeCode.of(field, table.types[field], values) for field, values in columns.items()
    )


def attribute_rows(
    codes: Sequence[AttributeCode], values: Mapping[str, Sequence[str]]
) -> sp.csr_matrix | None:
    """Attributes as unit rows, each field that is known counting alike.

    Args:
        codes: of the fields.
        values: field -> n values, "" where there is none.

    Returns:
        CSR float32 (n, d), zero where nothing is known, or None where the codes tell nothing.
    """
    blocks = [code.rows(values[code.field]) for code in codes if len(code.columns)]
    if not blocks:
        return None
    return normalize(sp.hstack(blocks, format="csr")).astype(np.float32)


def of_some(attributes: sp.csr_matrix, kept: NDArray[np.bool_]) -> sp.csr_matrix:
    """The attributes with zeros in the rows that are not kept, bool (n,)."""
    return (sp.diags(kept.astype(np.float32)) @ attributes).tocsr()


def attributes_of(
    table: FeatureTable, codes: Sequence[AttributeCode], ids: Sequence[str]
) -> sp.csr_matrix | None:
    """The attributes of a table's items as :func:`attribute_rows`, in the order of ``ids``."""
    return attribute_rows(codes, _columns(table, [code.field for code in codes], ids))


def _columns(
    table: FeatureTable, fields: Sequence[str], ids: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    rows = values_of(table, fields, ids, setting="item_attribute_fields")
    filled = [row or [""] * len(fields) for row in rows]
    return dict(zip(fields, zip(*filled, strict=True), strict=True))


def _are_years(values: Sequence[str]) -> bool:
    told = [value for value in values if value]
    return sum(bool(_YEAR.fullmatch(value)) for value in told) > _NEARLY_ALL * len(told)


def _categories(value: str, is_list: bool) -> set[str]:
    return set(value.split()) if is_list else {value} - {""}


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return np.nan
