"""The network of sequences: a causal transformer over item rows that start from texts.

Shape: SASRec (Kang, McAuley, "Self-Attentive Sequential Recommendation", 2018), with the
normalisation before each step and GELU, as later transformers have them. Item rows: UniSRec's idea
(Hou et al., "Towards Universal Sequence Representation Learning", 2022), simplified to one linear
map of the text and a row of the item's own that is dropped at random, so that an item of which
nothing is known but its text has a row on the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import (
    cross_entropy,
    embedding,
    embedding_bag,
    gelu,
    normalize,
    scaled_dot_product_attention,
)

from recbole_llm.attributes import LEFT_OUT, of_some
from recbole_llm.completion import Features, is_told
from recbole_llm.errors import SettingsError
from recbole_llm.factors import Index, Mask, Rows, Table, unit_rows
from recbole_llm.settings import setting
from recbole_llm.training_data import History, entries

_INITIAL_SPREAD = 0.02
_MAP = "map"
_ENCODER = "encoder."
# Sequences that go through the encoder at once: more would mostly be padding, or fill the memory.
_TOGETHER = 128


@dataclass(frozen=True)
class SequenceShape:
    """The network's own settings."""

    dimensions: int = setting(64, "Width of the sequence network and its tables.", at_least=1)
    blocks: int = setting(2, "Transformer blocks of the sequence network.", at_least=1)
    heads: int = setting(2, "Attention heads of a block.", at_least=1)
    dropout: float = setting(
        0.2, "Share of the network's values that a step drops.", at_least=0.0, at_most=0.9
    )
    identity_dropout: float = setting(
        0.3,
        "Share of the items whose own row a step drops, so that their text stands in for it.",
        at_least=0.0,
        at_most=1.0,
    )
    temperature: float = setting(0.1, "Temperature of the softmax over the items.", above=0.0)
    candidates: int = setting(
        8192,
        "Items that each next item is ranked against in training: all warm ones where there are "
        "no more, else as many drawn anew in each step.",
        at_least=1,
    )


@dataclass(frozen=True, eq=False)
class Sequences:
    """Parts of users' histories, oldest item first.

    Attributes:
        items: int64, the histories one after another.
        starts: int64 (n,), where each part begins in ``items``.
        stops: int64 (n,), where it ends; parts may overlap.
    """

    items: Index
    starts: Index
    stops: Index

    @property
    def lengths(self) -> Index:
        """Items of each part, int64 (n,)."""
        return self.stops - self.starts

    def __getitem__(self, chosen: Index | Mask) -> Sequences:
        """Some of the parts."""
        return replace(self, starts=self.starts[chosen], stops=self.stops[chosen])

    def last(self, most: int) -> Sequences:
        """The last ``most`` items of each part."""
        return replace(self, starts=np.maximum(self.starts, self.stops - most))

    def windows(self, most: int) -> Sequences:
        """Parts of at most ``most`` items and the one after them, from the end backwards.

        Every item but a history's first is thus predicted once; histories of one item give none.
        """
        n_windows = -(-(self.lengths - 1) // most)
        owner = np.repeat(np.arange(len(self.stops)), np.maximum(n_windows, 0))
        first = np.r_[0, np.cumsum(n_windows.clip(0))][owner]
        stops = self.stops[owner] - most * (np.arange(len(owner)) - first)
        return replace(self, starts=np.maximum(self.starts[owner], stops - most - 1), stops=stops)

    def padded(self) -> tuple[Index, Mask]:
        """Places in ``items``, (n, longest), padded by 0 on the right, and which are none."""
        steps = np.arange(self.lengths.max(initial=0))
        inside = steps < self.lengths[:, None]
        return np.where(inside, self.starts[:, None] + steps, 0), inside


def sequences(history: History, known: Mask, *, seed: int | None = None) -> Sequences:
    """The histories of all users in order.

    Args:
        history: of n users over m items; without ages all items are of one moment.
        known: bool (m,), the items that have a row; others are left out.
        seed: items of one moment stand in a random order; None: in that of the columns.
    """
    users, items = entries(history.weights)
    age = np.zeros(len(items), np.int32) if history.age is None else history.age
    tie = items if seed is None else np.random.default_rng(seed).random(len(items))
    order = np.lexsort((tie, -age, users))
    order = order[known[items[order]]]
    ends = np.cumsum(np.bincount(users[order], minlength=history.weights.shape[0]))
    return Sequences(items[order], np.r_[0, ends[:-1]], ends)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What next items are ranked against in training.

    Attributes:
        warm: int64, the items with a training interaction.
        share: float64 (n_items,), how often each is the next one, of all.
        most: how many of ``warm`` are drawn for a step.
    """

    warm: Index
    share: NDArray[np.float64]
    most: int

    @classmethod
    def of(cls, wanted: Index, n_items: int, most: int) -> Candidates:
        """Of all the items that are wanted next, int64."""
        counts = np.bincount(wanted, minlength=n_items)
        return cls(np.flatnonzero(counts), counts / max(1, counts.sum()), most)

    def draw(self, n_wanted: int, rng: np.random.Generator) -> tuple[Index, Table | None]:
        """Items for one step, and the logarithms of their chances to be there, (n_items,).

        All, with None, where they are few enough. Else the softmax over those drawn and those
        wanted stands for the one over all where each score is lessened by the logarithm of the
        item's chance to be among them (Bengio, Senécal, 2008): without that, what is often wanted
        is ranked against too often.

        Args:
            n_wanted: next items in the step.
            rng: of what is drawn.
        """
        if len(self.warm) <= self.most:
            return self.warm, None
        drawn = rng.choice(self.warm, self.most, replace=False)
        missed = (1 - self.share) ** n_wanted * (1 - self.most / len(self.warm))
        return drawn, np.log1p(-missed).astype(np.float32)


class _Block(nn.Module):
    """Causal self-attention and a feed-forward step, each added to what comes in."""

    def __init__(self, shape: SequenceShape) -> None:
        super().__init__()
        d = shape.dimensions
        self.heads, self.dropout = shape.heads, nn.Dropout(shape.dropout)
        self.attention_norm, self.step_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.inputs, self.output = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        n, length, d = rows.shape
        parts = self.inputs(self.attention_norm(rows)).view(n, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout.p if self.training else 0.0
        )
        seen = seen.transpose(1, 2).reshape(n, length, d)
        rows = rows + self.dropout(self.output(seen))
        return rows + self.dropout(self.down(gelu(self.up(self.step_norm(rows)))))


class SequenceEncoder(nn.Module):
    """Rows of the items so far to a row of what is wanted next, at every step."""

    def __init__(self, shape: SequenceShape, longest: int) -> None:
        super().__init__()
        d = shape.dimensions
        if d % shape.heads:
            raise SettingsError(
                f"`sequence_dimensions` must be a multiple of `sequence_heads`, got {d} and "
                f"{shape.heads}"
            )
        self.place = nn.Parameter(torch.empty(longest, d).normal_(std=_INITIAL_SPREAD))
        self.input_norm, self.output_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.blocks))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_INITIAL_SPREAD)
                nn.init.zeros_(module.bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Unit rows of what comes next.

        Args:
            rows: float32 (n, length, d), unit rows of the items, oldest first, padded on the
                right by anything: a step sees nothing of what comes after it.

        Returns:
            float32 (n, length, d).
        """
        # Of the size that normalised rows have, so that the places are a small part of it.
        rows = rows * math.sqrt(rows.shape[-1]) + self.place[: rows.shape[1]]
        rows = self.dropout(self.input_norm(rows))
        for block in self.blocks:
            rows = block(rows)
        return normalize(self.output_norm(rows), dim=-1)


class ItemRows(nn.Module):
    """Unit rows of items: a linear map of text and attributes, plus a row of their own.

    Args:
        features: of the items; None: an item is its own row alone.
        n_items: rows, padding included.
        dimensions: width of the rows.
        identity_dropout: share of the items whose own row is dropped in training.
        sparse: whether gradients of words and own rows hold the rows in use alone.
        unit: whether the rows have length 1.

    Attributes:
        variants: features of a multiple of n_items texts, the items' own before other ones; None
            where training reads what evaluation does.
        chosen: int64 (n_items,), which of an item's texts training reads, 0 for its own.
    """

    def __init__(
        self,
        features: Features | None,
        n_items: int,
        dimensions: int,
        identity_dropout: float,
        *,
        sparse: bool = False,
        unit: bool = True,
    ) -> None:
        super().__init__()
        d, self.unit = dimensions, unit
        self.identity_dropout, self.sparse = identity_dropout, sparse
        self.features = features or Features((), np.zeros(n_items, dtype=bool))
        self.variants: Features | None = None
        self.chosen = np.zeros(n_items, dtype=np.int64)
        # A random projection keeps cosines: the map starts from what the texts have in common.
        self.maps = nn.ParameterList(
            torch.randn(table.shape[1], d) / math.sqrt(d) for table in self.features.tables
        )
        # A text begins alone, and an item that is never trained on has nothing beside it.
        has_text = torch.from_numpy(self.features.described)[:, None]
        self.own = nn.Parameter(torch.randn(n_items, d) / math.sqrt(d) * ~has_text)

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Those whose gradients hold the rows in use alone."""
        if not self.sparse:
            return []
        tables = zip(self.features.tables, self.maps, strict=True)
        return [self.own, *(w for table, w in tables if not isinstance(table, np.ndarray))]

    def forward(self, items: Index, vectors: torch.Tensor | None = None) -> torch.Tensor:
        """Rows, float32 (len(items), d), on the parameters' device.

        Args:
            items: int64, each once.
            vectors: float32 (len(items), d_0), what stands for the first block of their features;
                None: that block itself.
        """
        device = self.own.device
        if self.training and self.variants is not None:
            features = self.variants[self.chosen[items] * len(self.chosen) + items]
        else:
            features = self.features[items]
        rows = embedding(torch.from_numpy(items).to(device), self.own, sparse=self.sparse)
        if self.training and self.identity_dropout:
            has_text = torch.from_numpy(features.described).to(device)
            dropped = has_text & (torch.rand(len(items), device=device) < self.identity_dropout)
            rows = rows * ~dropped[:, None]
        for number, (table, weights) in enumerate(zip(features.tables, self.maps, strict=True)):
            if vectors is not None and number == 0:
                rows = rows + vectors @ weights
                continue
            if self.training and table is features.attributes:
                table = of_some(table, (torch.rand(len(items)) >= LEFT_OUT).numpy())
            rows = rows + product(table, weights, sparse=self.sparse)
        return normalize(rows, dim=-1) if self.unit else rows


def product(block: Rows, weights: torch.Tensor, *, sparse: bool = False) -> torch.Tensor:
    """``block @ weights`` on the weights' device.

    Args:
        block: (n, m), dense or CSR.
        weights: float32 (m, d).
        sparse: whether the gradient of a CSR block's weights holds the rows in use alone.
    """
    device = weights.device
    if isinstance(block, np.ndarray):
        return torch.from_numpy(block).to(device) @ weights
    columns = block.indices
    if sparse:
        used, columns = np.unique(columns, return_inverse=True)
        weights = embedding(
            torch.from_numpy(used.astype(np.int64)).to(device), weights, sparse=True
        )
    return embedding_bag(
        torch.from_numpy(columns.astype(np.int64)).to(device),
        weights,
        torch.from_numpy(block.indptr.astype(np.int64)).to(device),
        mode="sum",
        per_sample_weights=torch.from_numpy(block.data).to(device),
        include_last_offset=True,
    )


class SequenceNetwork(nn.Module):
    """Item rows and the encoder of their sequences, trained together.

    Args:
        features: of the items' texts; None: an item is its own row alone.
        n_items: rows, padding included.
        shape: the settings.
        longest: most items of a sequence.
    """

    def __init__(
        self, features: Features | None, n_items: int, shape: SequenceShape, longest: int
    ) -> None:
        super().__init__()
        self.temperature = shape.temperature
        self.items = ItemRows(features, n_items, shape.dimensions, shape.identity_dropout)
        self.encoder = SequenceEncoder(shape, longest)

    def loss(
        self,
        histories: Index,
        wanted: Index,
        predicted: Mask,
        candidates: Index,
        log_chance: Table | None = None,
    ) -> torch.Tensor:
        """Softmax of each next item against the candidates, the mean over all steps.

        Args:
            histories: int64 (n, length), items, oldest first, padded by 0 on the right.
            wanted: int64 (n, length), the item that follows each.
            predicted: bool (n, length), the steps that count; one at least.
            candidates: int64, what the items are ranked against; those wanted are added.
            log_chance: float32 (n_items,), the logarithm of each item's chance to be ranked
                against, which is taken off its score; None: all are, always.
        """
        # Those of about one length go through the encoder together, so that little is padded.
        lengths = (predicted * np.arange(1, predicted.shape[1] + 1)).max(axis=1)
        order = np.argsort(lengths, kind="stable")
        histories, wanted, predicted = histories[order], wanted[order], predicted[order]
        items, place = np.unique(
            np.r_[histories.ravel(), wanted[predicted], candidates], return_inverse=True
        )
        rows = self.items(items)
        device = rows.device
        before, after = np.split(place, [histories.size])
        inputs = torch.from_numpy(before.reshape(histories.shape)).to(device)
        counts = torch.from_numpy(predicted).to(device)
        longest = np.maximum(lengths[order], 1)
        states = torch.cat(
            [
                self.encoder(embedding(inputs[part, :length], rows))[counts[part, :length]]
                for part, length in _of_one_length(longest)
            ]
        )
        ranked, target = np.unique(after, return_inverse=True)
        others = rows[torch.from_numpy(ranked).to(device)]
        logits = (states / self.temperature) @ others.T
        if log_chance is not None:
            logits = logits - torch.from_numpy(log_chance[items[ranked]]).to(device)
        return cross_entropy(logits, torch.from_numpy(target[: len(states)]).to(device))

    @torch.no_grad()
    def item_table(self) -> Table:
        """Unit rows of all items, float32 (n_items, d)."""
        self.eval()
        return self.items(np.arange(len(self.items.own))).cpu().numpy()

    def arrays(self) -> dict[str, Table]:
        """What gives rows to newcomers: the encoder's weights and the maps of the texts."""
        weights = {f"{_ENCODER}{name}": value for name, value in self.encoder.state_dict().items()}
        weights |= {f"{_MAP}{number}": value for number, value in enumerate(self.items.maps)}
        return {name: value.detach().cpu().numpy().copy() for name, value in weights.items()}


def _of_one_length(lengths: Index) -> Iterator[tuple[slice, int]]:
    """Slices of lengths in ascending order, with the longest of each."""
    for start in range(0, len(lengths), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        yield part, int(lengths[part][-1])


def encoder_of(arrays: Mapping[str, Rows], shape: SequenceShape, longest: int) -> SequenceEncoder:
    """The encoder of a network's :meth:`~SequenceNetwork.arrays`."""
    encoder = SequenceEncoder(shape, longest)
    weights = {
        name.removeprefix(_ENCODER): torch.from_numpy(np.array(value))
        for name, value in arrays.items()
        if name.startswith(_ENCODER)
    }
    encoder.load_state_dict(weights)
    return encoder


def has_maps(arrays: Mapping[str, Rows]) -> bool:
    """Whether a network was trained with texts."""
    return f"{_MAP}0" in arrays


def rows_of_texts(
    arrays: Mapping[str, Rows],
    features: Features,
    *,
    usual: Rows | None = None,
    unit: bool = True,
) -> Table:
    """Item rows by a network's :meth:`~SequenceNetwork.arrays`, float32 (n, d), unit or zero.

    Args:
        arrays: of the network.
        features: of n texts, and of their items' attributes where they are known.
        usual: float32 (d,), what stands for attributes that are missing; None: nothing does.
        unit: whether the rows have length 1.
    """
    rows = features.product(
        np.asarray(arrays[f"{_MAP}{number}"]) for number in range(len(features.tables))
    )
    if usual is not None:
        missing = features.described.copy()
        if features.attributes is not None:
            missing &= ~is_told(features.attributes)
        rows[missing] += np.asarray(usual)
    return unit_rows(rows) if unit else rows


@torch.no_grad()
def last_states(encoder: SequenceEncoder, rows: Table, parts: Sequences) -> Table:
    """The encoder's state after the last item of each part, float32 (n, d); zero for none.

    Args:
        encoder: on any device.
        rows: float32 (m, d), unit rows of the items that ``parts`` speak of.
        parts: sequences, of which the last items count that the encoder has places for.
    """
    encoder.eval()
    device = encoder.place.device
    longest, d = encoder.place.shape
    states = np.zeros((len(parts.stops), d), dtype=np.float32)
    table = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
    chosen = np.argsort(parts.lengths, kind="stable")
    chosen = chosen[parts.lengths[chosen] > 0]
    for batch, _ in _of_one_length(parts.lengths[chosen]):
        part = parts[chosen[batch]].last(longest)
        places, _ = part.padded()
        inputs = embedding(torch.from_numpy(part.items[places]).to(device), table)
        ends = torch.from_numpy(part.lengths - 1).to(device)
        found = encoder(inputs)[torch.arange(len(ends), device=device), ends]
        states[chosen[batch]] = found.cpu().numpy()
    return states
