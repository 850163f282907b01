"""Data of any size that keep the power laws of a real set, text included.

A user is a copy of a real one, and an item too: as many copies of each as the size asks for. The
copy of a user has copies of the real user's items, which are dealt out evenly among the item's
copies. So activity and popularity are distributed as in the real set, what goes together still
does, and both grow in proportion to the interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.places import read_atomic

# Share of a copy's words that are drawn from all words, so that copies differ.
_OTHER_WORDS = 0.3


@dataclass(frozen=True, eq=False)
class Real:
    """A real set.

    Attributes:
        users, items: int64, each pair once.
        texts: of each item.
    """

    users: np.ndarray
    items: np.ndarray
    texts: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> Real:
        """From RecBole's files; a text is all of an item's fields that are words."""
        rows = read_atomic(folder / f"{folder.name}.inter").drop_duplicates(["user_id", "item_id"])
        described = read_atomic(folder / f"{folder.name}.item").set_index("item_id")
        users, _ = pd.factorize(rows["user_id"])
        items, names = pd.factorize(rows["item_id"])
        texts = described.reindex(names).fillna("").agg(" ".join, axis=1)
        return cls(users, items, [" ".join(text.split()) for text in texts])


def grow(real: Real, n_interactions: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Users and items of about so many interactions, and the items' texts.

    Raises:
        ValueError: there are more in the real set.
    """
    if n_interactions < len(real.users):
        raise ValueError(f"{n_interactions:,} interactions are fewer than the {len(real.users):,}")
    rng = np.random.default_rng(seed)
    factor = n_interactions / len(real.users)
    n_real_users, n_real_items = real.users.max() + 1, real.items.max() + 1
    users = _copies(n_real_users, round(factor * n_real_users), rng)
    items = _copies(n_real_items, round(factor * n_real_items), rng)
    order = np.argsort(real.users, kind="stable")
    begins = np.searchsorted(real.users[order], np.arange(n_real_users + 1))
    lengths = np.diff(begins)[users]
    new_users = np.repeat(np.arange(len(users)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    old_items = real.items[order][np.repeat(begins[users], lengths) + within]
    # The copies of each item stand together in `by_item`.
    by_item = np.argsort(items, kind="stable")
    first = np.searchsorted(items[by_item], np.arange(n_real_items + 1))
    dealt = _dealt(old_items, rng) % np.diff(first)[old_items]
    return new_users, by_item[first[old_items] + dealt], _texts(real.texts, items, rng)


def _dealt(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row's place among those of its group, in a random order."""
    order = np.lexsort((rng.random(len(groups)), groups))
    ordered = groups[order]
    places = np.empty(len(groups), dtype=np.int64)
    places[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return places


def _copies(n_real: int, n_wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Of which real one each is a copy: all equally often, as far as that goes."""
    rounds = -(-n_wanted // n_real)
    return np.concatenate([rng.permutation(n_real) for _ in range(rounds)])[:n_wanted]


def _texts(real: Sequence[str], items: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Each copy's text: the real one's words, some of them drawn from all words."""
    split = [text.split() for text in real]
    words = np.array([word for text in split for word in text] or [""], dtype=object)
    lengths = np.array([len(text) for text in split])[items]
    others = words[rng.integers(len(words), size=lengths.sum())]
    changed = rng.random(len(others)) < _OTHER_WORDS
    texts, place = [], 0
    for item, length in zip(items, lengths, strict=True):
        part = slice(place, place + length)
        own = np.where(changed[part], others[part], np.array(split[item], dtype=object))
        texts.append(" ".join(own))
        place += length
    return texts


def write(real: Real, n_interactions: int, seed: int, folder: Path) -> None:
    """A grown set as RecBole's files."""
    users, items, texts = grow(real, n_interactions, seed)
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"user_id:token": users, "item_id:token": items})
    rows = rows.sample(frac=1, random_state=seed)
    # The last file that is written says that the folder is whole.
    described = pd.DataFrame({"item_id:token": range(len(texts)), "title:token_seq": texts})
    described.to_csv(folder / f"{folder.name}.item", sep="\t", index=False)
    rows.to_csv(folder / f"{folder.name}.inter", sep="\t", index=False)
