"""The two towers: items from their texts, users from the items that they had to do with.

An item's row is a linear map of its text, by one or several encoders, and of its categories and
numbers, plus a row of its own that starts from ALS and is dropped at random, so that the text
learns to stand in for it (Volkovs et al., "DropoutNet", 2017; Wei et al., "Contrastive Learning for
Cold-Start Recommendation", 2021). A user's row is an attention over the last items of her history
(Lee et al., "Set Transformer", 2019, pooling by a learned query), so that users fold in without
training. Both are unit rows; a score is their scaled product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    embedding_bag,
    logsigmoid,
    mse_loss,
    normalize,
)

from recbole_llm.augmentation import crop
from recbole_llm.completion import Features
from recbole_llm.evaluation import is_positive
from recbole_llm.factors import Index, Mask, Rows, Table
from recbole_llm.scoring import entries_on
from recbole_llm.sequence_network import ItemRows, product
from recbole_llm.settings import Search, setting
from recbole_llm.text_network import TextNetwork
from recbole_llm.training_data import History, entries
from recbole_llm.values import DAMPING, damped_biases

# Items that a step ranks against each other: fewer are as good, and their square is the cost.
_NEGATIVES = 256
# How often a negative that the user knows is drawn anew.
_REDRAWS = 3
# Length of what texts' rows start from, and spread of the items' own, where values are learned.
_TEXT_SHARE, _OWN_SPREAD = 0.3, 0.02
# What the weights are called among the tables: maps of texts by number, the user tower's by name.
_MAP, _USERS = "map", "users."

#: Losses of single values, and not of rankings: what they predict.
VALUED = {"bce": "clicks", "mse": "ratings"}


@dataclass(frozen=True)
class TowerShape:
    """The towers' own settings."""

    loss: str = setting(
        "softmax",
        "What the tower learns: to rank by softmax (against the batch's items) or bpr, clicks by "
        "bce (see `threshold` and LABEL_FIELD), or ratings by mse.",
        choices=("softmax", "bpr", *VALUED),
        key="loss",
    )
    user_tower: str = setting(
        "attention",
        "What a user's row is made of: attention over her history, or its mean.",
        choices=("attention", "mean"),
        key="user_tower",
    )
    dimensions: int = setting(
        128,
        "Width of the towers and their tables.",
        at_least=1,
        search=Search(32, 256, log=True, in_runs=False),
    )
    identities: bool = setting(
        True, "Whether an item has a row of its own, which starts from ALS, beside its text."
    )
    identity_dropout: float = setting(
        0.5,
        "Share of the items whose own row a step drops, so that their text stands in for it.",
        at_least=0.0,
        at_most=1.0,
        search=Search(),
    )
    dropout: float = setting(
        0.0, "Share of a history's items that a step drops.", at_least=0.0, at_most=0.9
    )
    temperature: float = setting(
        0.15,
        "What a score is divided by in the ranking losses.",
        above=0.0,
        search=Search(0.05, 0.5, log=True),
    )
    popularity_exponent: float = setting(
        0.5,
        "How far an item's popularity is taken out of the softmax: 0 not, 1 wholly.",
        at_least=0.0,
        at_most=1.0,
        search=Search(),
    )
    max_history: int = setting(200, "Last moments of a history that count.", at_least=1)
    history_sample: int | None = setting(
        None,
        "Items of a history, on average, that a step looks at; none: 20 for rankings, else 50.",
        at_least=1,
    )
    regularization: float = setting(
        0.05,
        "L2 penalty of rows and biases for bce and mse.",
        at_least=0.0,
        search=Search(0.005, 0.5, log=True),
    )
    user_text_weight: float = setting(
        0.3, "What a user's own text counts beside her history.", at_least=0.0
    )

    @property
    def unread(self) -> frozenset[str]:
        """The settings that its loss does not read, so that no search tries them."""
        of_rankings = ("temperature", "popularity_exponent")
        return frozenset(of_rankings if self.loss in VALUED else ("regularization",))


class UserTower(nn.Module):
    """Attention over histories; it starts as their weighted mean, which `mean` stays."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.longest, self.own_text_weight = shape.max_history, shape.user_text_weight
        self.is_mean = shape.user_tower == "mean"
        self.query = nn.Parameter(torch.zeros(shape.dimensions))
        self.places = nn.Parameter(torch.zeros(shape.max_history))
        # Of what an item counts (a behaviour, a quantity), as a power.
        self.behaviour = nn.Parameter(torch.ones(()))

    def forward(
        self, rows: torch.Tensor, history: History, own_text: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit rows of users, float32 (n, d); zero for one of whom nothing is known.

        Args:
            rows: float32 (m, d), the items'.
            history: of n users over the m items.
            own_text: float32 (n, d), rows of what the users say of themselves.
        """
        intents = self.pooled(rows, last_moments(history, self.longest))
        if own_text is not None:
            intents = intents + self.own_text_weight * own_text
        return normalize(intents, dim=-1)

    def pooled(self, rows: torch.Tensor, history: History) -> torch.Tensor:
        """The attention alone, float32 (n, d)."""
        device = rows.device
        owners, items = entries_on(device, history.weights)
        counts = torch.from_numpy(history.weights.data).to(device)
        if self.is_mean:
            shares = counts
        else:
            shares = counts.log() * self.behaviour + (rows @ self.query).index_select(0, items)
            if history.age is not None:
                ages = torch.from_numpy(history.age.astype(np.int64)).to(device)
                shares = shares + self.places.index_select(0, ages)
            # The greatest of all stands for each user's: they differ by far less than exp can.
            shares = (shares - shares.max().detach()).exp() if len(shares) else shares
        n_users = history.weights.shape[0]
        totals = torch.zeros(n_users, device=device).index_add(0, owners, shares)
        shares = shares / totals.index_select(0, owners)
        starts = torch.from_numpy(history.weights.indptr.astype(np.int64)).to(device)
        return embedding_bag(
            items, rows, starts, mode="sum", per_sample_weights=shares, include_last_offset=True
        )


def last_moments(history: History, longest: int) -> History:
    """What happened in the last moments of each history; all of it where there is no order."""
    if history.age is None or (history.age < longest).all():
        return history
    return some_entries(history, history.age < longest)


def some_entries(history: History, kept: Mask) -> History:
    """A history of some of its entries, bool (nnz,); ages stay as they are."""
    weights = history.weights
    ends = np.r_[0, np.cumsum(kept)][weights.indptr]
    part = sp.csr_matrix((weights.data[kept], weights.indices[kept], ends), shape=weights.shape)
    age = None if history.age is None else history.age[kept]
    return History(part, age, history.own_texts)


def cropped(history: History, rng: np.random.Generator) -> History:
    """A random part of each history, as if its last moment were now."""
    weights = history.weights
    part = some_entries(history, crop(weights.indptr, history.age, rng))
    if part.age is None:
        return part
    owners, _ = entries(part.weights)
    latest = np.full(weights.shape[0], np.iinfo(np.int32).max, dtype=np.int32)
    np.minimum.at(latest, owners, part.age)
    return replace(part, age=part.age - latest[owners])


class ReactionTower(nn.Module):
    """Users' rows from how they reacted: attention that weighs what was liked above expectation.

    What is expected of an item is its bias and the user's; the rest of each reaction is the sign
    and size with which the item counts (Koren, "Factorization Meets the Neighborhood", 2008,
    asymmetric SVD, with one table of items and learned attention). A user has nothing of her own,
    so that all fold in.
    """

    spread: torch.Tensor

    def __init__(self, dimensions: int, spread: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dimensions))
        self.map = nn.Parameter(torch.eye(dimensions))
        # What an item counts that met expectation.
        self.neutral = nn.Parameter(torch.zeros(()))
        # Of what interactions count, 1 in the mean: it makes reactions of them.
        self.register_buffer("spread", torch.tensor(spread))

    def forward(
        self, rows: torch.Tensor, biases: torch.Tensor, history: History
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (n, d) and biases (n,) of users; zero for one without a history.

        Args:
            rows: float32 (m, d), the items'.
            biases: float32 (m,), the items'.
            history: of n users over the m items.
        """
        device = rows.device
        owners, items = entries_on(device, history.weights)
        weights = torch.from_numpy(history.weights.data).to(device)
        rest = (weights - 1) / self.spread - biases.index_select(0, items)
        zeros = torch.zeros(history.weights.shape[0], device=device)
        counts = zeros.index_add(0, owners, torch.ones_like(rest))
        own = zeros.index_add(0, owners, rest) / (counts + DAMPING)
        rest = rest - own.index_select(0, owners)
        shares = (rows @ self.query).index_select(0, items).exp() * (rest + self.neutral)
        starts = torch.from_numpy(history.weights.indptr.astype(np.int64)).to(device)
        sums = embedding_bag(
            items,
            rows @ self.map,
            starts,
            mode="sum",
            per_sample_weights=shares,
            include_last_offset=True,
        )
        return sums / counts.clamp(min=1).sqrt()[:, None], own


class Tower(nn.Module):
    """Both towers and what they are trained on.

    Args:
        features: of the items; None: an item is its own row alone.
        history: of n_users over n_items, each row's training interactions.
        own_texts: features of what the users say of themselves, by the items' encoders; or None.
        shape: the settings.
        start: float32 (n_items, dimensions), what the items' own rows start from; or None.
        text: what makes the first block of ``features`` and learns too; None: nothing does.
        variants: features of the items with their texts and with other ones below, of which each
            epoch draws one per item; None: every epoch reads ``features``.
        crops: whether each epoch draws a part of each history.
    """

    def __init__(
        self,
        features: Features | None,
        history: History,
        own_texts: Features | None,
        shape: TowerShape,
        start: Table | None = None,
        text: TextNetwork | None = None,
        variants: Features | None = None,
        *,
        crops: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.history, self.own_texts = shape, history, own_texts
        self.crops = crops
        n_items = history.weights.shape[1]
        self.is_valued = shape.loss in VALUED
        self.items = ItemRows(
            features,
            n_items,
            shape.dimensions,
            shape.identity_dropout,
            sparse=True,
            unit=not self.is_valued,
        )
        self.items.variants = variants
        if start is not None:
            with torch.no_grad():
                self.items.own.copy_(torch.from_numpy(start))
        self.items.own.requires_grad_(shape.identities or features is None)
        self.users: UserTower | ReactionTower = UserTower(shape)
        if self.is_valued:
            self._start_values()
        counts = np.bincount(history.weights.indices, minlength=n_items)
        share = np.maximum(counts, 1) / max(1, history.weights.nnz)
        self.log_share = torch.from_numpy(np.log(share).astype(np.float32))
        self.warm = np.flatnonzero(np.bincount(history.weights.indices, minlength=n_items))
        self.text, self.encoder_learns = text, False
        self.seen, self.rng = history, np.random.default_rng(0)

    def _start_values(self) -> None:
        weights = self.history.weights
        spread = float(weights.data.std()) or 1.0
        reactions = (weights.data.astype(np.float64) - 1) / spread
        _, biases = damped_biases(*entries(weights), reactions, weights.shape)
        self.users = ReactionTower(self.shape.dimensions, spread)
        self.biases = nn.Parameter(torch.from_numpy(biases.astype(np.float32)))
        # Log odds of a click beside the reaction; nothing for ratings.
        self.base = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            for text_map in self.items.maps:
                text_map *= _TEXT_SHARE
            self.items.own.normal_(std=_OWN_SPREAD)
            self.items.own[torch.from_numpy(np.diff(weights.tocsc().indptr) == 0)] = 0

    def examples(self) -> tuple[Index, Index]:
        """Users and items of all interactions that can be learned from, each int64 (n,).

        Without her only item a user says nothing.
        """
        users, items = entries(self.history.weights)
        several = np.diff(self.history.weights.indptr)[users] > 1
        return users[several], items[several]

    def start_epoch(self, rng: np.random.Generator) -> None:
        """Draw the texts and the parts of the histories that the steps of an epoch look at.

        Args:
            rng: of these and of all that the steps draw.
        """
        self.rng = rng
        if self.items.variants is not None:
            n_items = len(self.items.chosen)
            n_texts = len(self.items.variants.described) // n_items
            self.items.chosen = rng.integers(n_texts, size=n_items)
            if self.text is not None:
                self.text.chosen = self.items.chosen
        history = cropped(self.history, rng) if self.crops else self.history
        weights = history.weights
        lengths = np.diff(weights.indptr)
        sample = self.shape.history_sample or (50 if self.is_valued else 20)
        chance = sample / np.repeat(np.maximum(lengths, 1), lengths)
        chance = np.minimum(chance, 1 - self.shape.dropout)
        self.seen = some_entries(history, rng.random(weights.nnz) < chance)

    def loss(self, users: Index, items: Index) -> torch.Tensor:
        """How far the users' items are from being ranked first.

        Args:
            users: int64 (n,), of n interactions.
            items: int64 (n,), theirs; a history is read without it.
        """
        seen = without(self.seen[users], items)
        n_seen = len(seen.weights.indices)
        asked = items
        if self.shape.loss == "bpr":
            asked = np.r_[items, self._negatives(users)]
        live, place = np.unique(np.r_[seen.weights.indices, asked], return_inverse=True)
        rows = self._rows(live, asked)
        intents = self._intents(rows, seen, place[:n_seen], users)
        device = rows.device
        wanted = rows.index_select(0, torch.from_numpy(place[n_seen:]).to(device))
        if self.shape.loss == "bpr":
            wanted, below = wanted.split(len(items))
            margins = (intents * (wanted - below)).sum(dim=1)
            return -logsigmoid(margins / self.shape.temperature).mean()
        return in_batch_softmax(
            intents / self.shape.temperature,
            wanted,
            torch.from_numpy(items).to(device),
            self.shape.popularity_exponent * self.log_share.to(device),
        )

    def _rows(self, live: Index, asked: Index) -> torch.Tensor:
        """Rows of items; while the encoder learns, it reads those that are asked for anew."""
        if not self.encoder_learns:
            return self.items(live)
        assert self.text is not None
        targets = np.unique(asked)
        block = self.items.features.blocks[0]
        assert isinstance(block, np.ndarray)
        vectors = torch.from_numpy(block[live]).to(self.items.own.device)
        at = torch.from_numpy(np.searchsorted(live, targets)).to(vectors.device)
        return self.items(live, vectors.index_copy(0, at, self.text(targets)))

    def refresh(self) -> None:
        """Let the histories' rows and the tables be those of the encoder as it is now."""
        if self.text is not None:
            features = self.items.features
            rows = self.text.rows(np.arange(len(features.described)))
            self.items.features = replace(features, blocks=(rows, *features.blocks[1:]))

    def value_loss(self, users: Index, items: Index, wanted: torch.Tensor) -> torch.Tensor:
        """How far single scores are from what is known of them, with the L2 penalty.

        Args:
            users: int64 (n,), of n interactions.
            items: int64 (n,), theirs; a history is read without it.
            wanted: float32 (n,), reactions in standard deviations from the mean (`mse`), or
                clicks, 0 or 1 (`bce`).
        """
        assert isinstance(self.users, ReactionTower)
        seen = without(self.seen[users], items)
        n_seen = len(seen.weights.indices)
        live, place = np.unique(np.r_[seen.weights.indices, items], return_inverse=True)
        rows = self._rows(live, items)
        device = rows.device
        biases = self.biases[torch.from_numpy(live).to(device)]
        shape = (len(users), len(live))
        weights = sp.csr_matrix((seen.weights.data, place[:n_seen], seen.weights.indptr), shape)
        intents, of_users = self.users(rows, biases, History(weights, seen.age))
        at = torch.from_numpy(place[n_seen:]).to(device)
        rated, of_items = rows.index_select(0, at), biases.index_select(0, at)
        found = self.base + of_users + of_items + (intents * rated).sum(dim=1)
        measure = mse_loss if self.shape.loss == "mse" else binary_cross_entropy_with_logits
        lengths = intents.square().sum(dim=1) + rated.square().sum(dim=1) + of_items.square()
        return measure(found, wanted) + self.shape.regularization * lengths.mean()

    def _negatives(self, users: Index) -> Index:
        """Warm items, one for each user, that she has nothing to do with; but for rare chances."""
        drawn = self.rng.choice(self.warm, len(users))
        for _ in range(_REDRAWS):
            known = is_positive(self.history.weights, users, drawn[:, None])[:, 0]
            drawn[known] = self.rng.choice(self.warm, int(known.sum()))
        return drawn

    def _intents(
        self, rows: torch.Tensor, seen: History, place: Index, users: Index
    ) -> torch.Tensor:
        """User rows from the rows of the items in use."""
        shape = (len(users), len(rows))
        weights = sp.csr_matrix((seen.weights.data, place, seen.weights.indptr), shape=shape)
        own_text = None
        if self.own_texts is not None:
            own_text = self.text_rows(self.own_texts[users])
        return self.users(rows, History(weights, seen.age), own_text)

    def text_rows(self, features: Features) -> torch.Tensor:
        """Unit rows of texts alone, float32 (n, d); zero where there is none."""
        # The last map is of attributes, where the items have any.
        blocks = zip(features.blocks, self.items.maps, strict=False)
        parts = [product(block, weights, sparse=True) for block, weights in blocks]
        return normalize(torch.stack(parts).sum(dim=0), dim=-1)

    @torch.no_grad()
    def item_table(self) -> Table:
        """Rows of all items, float32 (n_items, d); of values also biases, and a 1 for users'."""
        self.eval()
        rows = self.items(np.arange(self.history.weights.shape[1])).cpu().numpy()
        return with_biases(rows, self.biases.cpu().numpy()) if self.is_valued else rows

    def arrays(self) -> dict[str, Table]:
        """What gives rows to newcomers: the user tower's weights and the maps of the texts."""
        weights = {f"{_USERS}{name}": value for name, value in self.users.state_dict().items()}
        weights |= {f"{_MAP}{number}": value for number, value in enumerate(self.items.maps)}
        return {
            name: np.atleast_1d(value.detach().cpu().numpy()).copy()
            for name, value in weights.items()
        }


def without(history: History, items: Index) -> History:
    """The histories of n users, each without one item, int64 (n,)."""
    weights = history.weights
    return some_entries(history, weights.indices != np.repeat(items, np.diff(weights.indptr)))


def in_batch_softmax(
    users: torch.Tensor, rows: torch.Tensor, items: torch.Tensor, correction: torch.Tensor
) -> torch.Tensor:
    """The mean softmax of each user's own item against those of the others near it in the batch.

    Args:
        users: (n, d), divided by the temperature.
        rows: (n, d), of the users' own items.
        items: int64 (n,), these items.
        correction: (n_items,), what is taken off an item's score.
    """
    losses = []
    for part in zip(
        users.split(_NEGATIVES), rows.split(_NEGATIVES), items.split(_NEGATIVES), strict=True
    ):
        own, others, names = part
        logits = own @ others.T - correction[names]
        same = (names[:, None] == names).fill_diagonal_(False)
        target = torch.arange(len(names), device=names.device)
        losses.append(cross_entropy(logits.masked_fill(same, -torch.inf), target, reduction="sum"))
    return torch.stack(losses).sum() / len(items)


def with_biases(rows: Table, biases: Table) -> Table:
    """Item rows whose products with ``[x, 1, b_u]`` are ``x·v + b_i + b_u``, float32 (n, d + 2)."""
    return np.c_[rows, biases, np.ones_like(biases)].astype(np.float32)


def user_tower_of(arrays: Mapping[str, Rows], shape: TowerShape) -> UserTower | ReactionTower:
    """The user tower of a network's :meth:`~Tower.arrays`."""
    tower: UserTower | ReactionTower = UserTower(shape)
    if shape.loss in VALUED:
        tower = ReactionTower(shape.dimensions, 1.0)
    weights = {
        name: torch.from_numpy(np.array(arrays[f"{_USERS}{name}"])).reshape(value.shape)
        for name, value in tower.state_dict().items()
    }
    tower.load_state_dict(weights)
    return tower.eval()
