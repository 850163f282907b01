"""What a model reads of an item's fields, so that a new item is read as the known ones were."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import scipy.sparse as sp

from recbole_llm.attributes import AttributeCode, attribute_rows
from recbole_llm.column_values import column_called, plain_name, to_ids, to_texts
from recbole_llm.errors import DataWarning, SettingsError
from recbole_llm.importing import ITEM_NAMES
from recbole_llm.text import clean, join_sentences


@dataclass(frozen=True, eq=False)
class ItemForm:
    """The fields of an ``.item`` file that a model reads.

    Attributes:
        id_field: of the items' ids.
        text_fields: those that make a text, in their order; none where no text is read.
        attributes: codes of the categories and numbers; none where none are read.
    """

    id_field: str
    text_fields: tuple[str, ...] = ()
    attributes: tuple[AttributeCode, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that are read but for the id, each once."""
        return tuple(dict.fromkeys([*self.text_fields, *(c.field for c in self.attributes)]))


@dataclass(frozen=True, eq=False)
class NewItems:
    """Items that came after the fit.

    Attributes:
        ids: one for each item, "" where it has none.
        texts: one for each item, never blank.
        attributes: CSR float32 (n, d) as of the data set's items, zero rows where nothing is
            known; None where nothing is known of any.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    attributes: sp.csr_matrix | None


def read_new_items(form: ItemForm, given: object) -> NewItems:
    """New items as a model reads them.

    Args:
        form: the model's.
        given: a text, or several; or each item's fields as a mapping, or a table of them, by the
            names that the data set's file gives them, in any case and with any signs. The id
            may stand under a name that is well known for one, or be missing.

    Raises:
        SettingsError: an item has no text.
    """
    if isinstance(given, pd.DataFrame):
        said: list[str | None] = [None] * len(given)
        frame = given
    else:
        items = [given] if isinstance(given, (str, Mapping)) else list(given)  # type: ignore[call-overload]
        said = [None if isinstance(item, Mapping) else str(item) for item in items]
        rows = [dict(item) if isinstance(item, Mapping) else {} for item in items]
        frame = pd.DataFrame(rows, index=range(len(rows)), dtype=object)
    if not said:
        return NewItems((), (), None)
    frame = frame.rename(columns=str)
    columns, ids = _matched(form, list(frame.columns))
    untold = [""] * len(said)
    values = dict.fromkeys(form.fields, untold)
    for field, column in columns.items():
        values[field] = [clean(value) for value in to_texts(frame[column])]
    texts = [
        join_sentences([values[field][row] for field in form.text_fields])
        if text is None
        else clean(text)
        for row, text in enumerate(said)
    ]
    if "" in texts:
        raise SettingsError(_blank(form, texts.index(""), said))
    attributes = attribute_rows(form.attributes, values)
    if attributes is not None and not attributes.nnz:
        attributes = None
    return NewItems(tuple(untold if ids is None else to_ids(frame[ids])), tuple(texts), attributes)


def _matched(form: ItemForm, columns: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """Field -> the column that holds it, and the column of the ids.

    What no field is found for is passed over with a word.
    """
    found = {field: column for field in form.fields if (column := _column_of(field, columns))}
    left = [column for column in columns if column not in found.values()]
    ids = _column_of(form.id_field, left) or column_called((*ITEM_NAMES, "id"), left)
    unread = [column for column in left if column != ids]
    if unread:
        warnings.warn(
            f"new items: {', '.join(unread)} passed over; the model reads "
            f"{', '.join(form.fields) or 'no field'}",
            DataWarning,
            stacklevel=2,
        )
    return found, ids


def _column_of(field: str, columns: Sequence[str]) -> str | None:
    return field if field in columns else column_called([plain_name(field)], columns)


def _blank(form: ItemForm, row: int, said: Sequence[str | None]) -> str:
    if said[row] is not None:
        return f"`new_item` {row + 1} is blank; say in words what it is"
    read = ", ".join(f"`{field}`" for field in form.text_fields) or "no field"
    return f"new item {row + 1} has no text: of its fields the model reads {read}"
