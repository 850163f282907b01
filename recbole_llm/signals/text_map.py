"""Text map: a map of the items' texts that is learned from who consumed what.

An item's row is ``normalise(W·bert(text) + Pᵀ·tfidf(text) + Qᵀ·attributes)``: a linear map of a
contextual vector plus trained tables of word vectors and of what its categories and numbers say. A
user's row is the normalised sum of her history's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.preprocessing import normalize as normalize_rows
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy, normalize

from recbole_llm.attributes import LEFT_OUT, of_some
from recbole_llm.completion import Features, features_of, is_told
from recbole_llm.evaluation import Validation
from recbole_llm.factors import Factors, Index, Mask, Rows, Table, unit_rows
from recbole_llm.intent import user_intent
from recbole_llm.settings import RunOptions, Words, setting
from recbole_llm.signals.base import (
    SkippedSignal,
    Steps,
    TextSignal,
    decay_setting,
    folded_in,
    held_out_items,
    last,
    last_good_epoch,
    with_settings,
)
from recbole_llm.training_data import TrainingData, entries, with_ones

# Items that a step ranks against each other: fewer are as good, and their square is the cost.
_NEGATIVES = 256
_MOST_EPOCHS = 8
# Among the tables: what the mean item's attributes give.
_USUAL = "usual"
_MOST_INTERACTIONS = 1 << 18
# Rows of weights that are moved at once: what they need stays in the processor's cache.
_CACHED = 512


@dataclass(frozen=True)
class TextMapSignal(TextSignal):
    """The cosine of an item's and a user's learned text rows."""

    dimensions: int = setting(128, "Width of the text map's tables.", at_least=1)
    epochs: int = setting(
        0, "Passes over the interactions; 0: as many as held-out items say, 8 at most.", at_least=0
    )
    temperature: float = setting(
        0.15, "Temperature of the softmax over a batch's items.", above=0.0
    )
    popularity_exponent: float = setting(
        0.5,
        "How far an item's popularity is taken out of the softmax: 0 not, 1 wholly.",
        at_least=0.0,
        at_most=1.0,
    )
    learning_rate: float = setting(0.01, "Step of Adam.", above=0.0)
    batch_size: int = setting(1024, "Interactions of a step.", at_least=2)
    history_sample: int = setting(
        20, "Items of a history, on average, that a step looks at.", at_least=1
    )
    history_decay: float | None = decay_setting()
    user_text_weight: float = setting(
        0.3, "What a user's own text counts beside her history.", at_least=0.0
    )
    together: bool = setting(
        False, "Whether one more map reads all encoders at once, beside the one of each."
    )
    encoders: Words = ()

    seeded: ClassVar[bool] = True
    uses_attributes: ClassVar[bool] = True

    def variants(self, name: str, encoders: Sequence[str]) -> dict[str, TextMapSignal]:
        """One map per encoder, and with ``together`` one of all of them under its own name."""
        found = super().variants(name, encoders)
        if self.together and len(encoders) > 1:
            found[name] = with_settings(self, {"encoders": tuple(encoders)})
        return found

    def settle(self, data: TrainingData, run: RunOptions) -> TextMapSignal:
        """With the number of epochs after which a held-out tenth of the items is ranked best.

        Raises:
            SkippedSignal: an encoder has no texts, or no user has two items with one.
        """
        if self.epochs:
            return self
        features, history = self._learns_from(data)
        held_out = held_out_items(history, run.seed)
        return dataclasses.replace(
            self, epochs=_best_epochs(held_out, features, history, self, run)
        )

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Train on the warm items; every item that is described gets a row.

        Raises:
            SkippedSignal: an encoder has no texts, or no user has two items with one.
        """
        return last(self.fit_in_steps(data, run))

    def fit_in_steps(self, data: TrainingData, run: RunOptions) -> Steps:
        """An epoch more with each step."""
        features, history = self._learns_from(data)
        trainer = _Trainer(features, history, self, run)
        for _ in range(self.settle(data, run).epochs):
            trainer.run_epoch()
            yield lambda: self._tables(trainer.text_map(), features, data)

    def _tables(self, learned: TextMap, features: Features, data: TrainingData) -> Factors:
        extra = dict(zip(_names(len(learned.weights)), learned.weights, strict=True))
        if features.attributes is not None:
            extra[_USUAL] = features.usual(learned.weights[-1])
        return folded_in(self, data, learned.rows(features), features.described, extra)

    def describe(
        self,
        factors: Factors,
        embeddings: Mapping[str, Rows],
        attributes: sp.csr_matrix | None = None,
    ) -> Table:
        """What the map says; the mean item's attributes stand in for those that are missing."""
        texts = {name: embeddings[name] for name in self.encoders}
        text_map = TextMap(tuple(factors.extra[name] for name in _names(len(texts))))
        rows = text_map.rows(features_of(texts), factors.extra.get(_USUAL))
        if attributes is not None and _USUAL in factors.extra:
            told = is_told(attributes)
            text_map = TextMap(tuple(factors.extra[name] for name in _names(len(texts) + 1)))
            rows[told] = text_map.rows(features_of(texts, attributes)[told])
        return rows

    def _learns_from(self, data: TrainingData) -> tuple[Features, sp.csr_matrix]:
        """The items' features, and what each item with a text counts in a user's history."""
        missing = [name for name in self.encoders if name not in data.item_embeddings]
        if missing or not self.encoders:
            raise SkippedSignal("no item has a text, see `item_text_fields`")
        texts = {name: data.item_embeddings[name] for name in self.encoders}
        features = features_of(texts, data.item_attributes)
        # What a text says does not fade: the map learns from whole histories.
        weights = normalize_rows(data.interactions, norm="l1").astype(np.float32)
        history = _columns(weights, features.described)
        if not (np.diff(history.indptr) > 1).any():
            raise SkippedSignal("no user has two items with a text to learn from")
        return features, history


@dataclass(frozen=True, eq=False)
class TextMap:
    """A linear map of text features.

    Attributes:
        weights: float32 (d_b, k) for each table of the features.
    """

    weights: tuple[Table, ...]

    def rows(self, features: Features, usual: Table | None = None) -> Table:
        """Unit rows, float32 (n, k), zero where nothing is told.

        Args:
            features: of n texts or items.
            usual: float32 (k,), what every row has beside its own features; None: nothing.
        """
        rows = features.product(self.weights)
        if usual is not None:
            rows[features.described] += usual
        return unit_rows(rows)


def _names(n_blocks: int) -> list[str]:
    """What the map's weights are called among a signal's tables."""
    return [f"map{number}" for number in range(n_blocks)]


def _best_epochs(
    held_out: Mask,
    features: Features,
    history: sp.csr_matrix,
    signal: TextMapSignal,
    run: RunOptions,
) -> int:
    """The last epoch after which held-out items are ranked well for the others' users.

    Args:
        held_out: bool (n_items,), items that are not trained on.
        features: of all items.
        history: CSR float32 (n_users, n_items), what each item of a history counts, > 0; items
            with text alone.
        signal: the settings.
        run: device and seed.

    Returns:
        At least 1; the most, where nothing can be held out.
    """
    rest, wanted = _columns(history, ~held_out), _columns(history, held_out)
    validation = Validation.of(with_ones(rest), with_ones(wanted), "cold")
    trainer = _Trainer(features, rest, signal, run)
    if validation is None or not len(trainer.examples):
        return _MOST_EPOCHS

    def run_epoch() -> Factors:
        trainer.run_epoch()
        items = trainer.text_map().rows(features)
        return Factors.of(user_intent(rest, items), items, features.described)

    return last_good_epoch(run_epoch, validation, run, most=_MOST_EPOCHS)


def _columns(matrix: sp.csr_matrix, kept: Mask) -> sp.csr_matrix:
    """The matrix without the entries of some columns, in its shape."""
    cut = (matrix @ sp.diags(kept.astype(np.float32))).tocsr()
    cut.eliminate_zeros()
    return cut


def _distinct(numbers: Index, most: int) -> tuple[Index, Index]:
    """The numbers that occur, ascending, and each one's place among them; all below ``most``.

    `np.unique` sorts, which many numbers of few kinds do not need.
    """
    occurs = np.zeros(most, dtype=bool)
    occurs[numbers] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[numbers]


class _SparseProduct(torch.autograd.Function):
    """``matrix @ dense`` of a CSR matrix without gradient, by SciPy on the CPU.

    Not every device has sparse products, and some add in an order of their own each time.
    """

    @staticmethod
    def forward(ctx: Any, matrix: sp.csr_matrix, dense: torch.Tensor) -> torch.Tensor:
        ctx.matrix = matrix
        return torch.from_numpy(matrix @ dense.detach().cpu().numpy()).to(dense.device)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        (gradient,) = gradients
        product = ctx.matrix.T @ gradient.cpu().numpy()
        return None, torch.from_numpy(product).to(gradient.device)


class _Weights:
    """A table of weights under Adam (Kingma, Ba, 2015); a step moves the rows that it used alone.

    Unlike the paper a row's averages stand still while it is unused: a table of words is large,
    and a step sees few of them.
    """

    def __init__(self, value: torch.Tensor, learning_rate: float) -> None:
        self.value = value
        self.learning_rate = learning_rate
        self.mean, self.square = torch.zeros_like(value), torch.zeros_like(value)
        self.n_steps = 0

    def step(self, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        self.n_steps += 1
        size = self.learning_rate / (1 - 0.9**self.n_steps)
        for part, change in zip(rows.split(_CACHED), gradient.split(_CACHED), strict=True):
            mean = torch.lerp(self.mean[part], change, 0.1)
            square = torch.lerp(self.square[part], change.square(), 0.001)
            self.mean[part], self.square[part] = mean, square
            spread = (square / (1 - 0.999**self.n_steps)).sqrt_().add_(1e-8)
            self.value[part] -= size * mean / spread


class _Trainer:
    """In-batch softmax: each interaction's item against the items of the others.

    A step embeds the items that it needs alone: the positives, and a random part of the histories,
    drawn anew in every epoch. Vectors and their map lie on the device, words on the CPU.
    """

    def __init__(
        self,
        features: Features,
        history: sp.csr_matrix,
        signal: TextMapSignal,
        run: RunOptions,
    ) -> None:
        self.features, self.history, self.signal = features, history, signal
        self.device = torch.device(run.device)
        self.rng = np.random.default_rng(run.seed)
        self.users, self.items = entries(history)
        self.degree = np.diff(history.indptr)[self.users]
        # Without her only item a user says nothing.
        self.examples = np.flatnonzero(self.degree > 1)
        counts = np.bincount(self.items, minlength=history.shape[1])
        share = np.maximum(counts, 1) / max(1, len(self.items))
        correction = (signal.popularity_exponent * np.log(share)).astype(np.float32)
        self.correction = torch.from_numpy(correction).to(self.device)
        self.dense = [
            torch.from_numpy(block).to(self.device) if isinstance(block, np.ndarray) else None
            for block in features.tables
        ]
        self.weights = [self._random_weights(block) for block in features.tables]

    def _random_weights(self, block: Rows) -> _Weights:
        # A random projection keeps cosines: the map starts from what the texts have in common.
        shape = (block.shape[1], self.signal.dimensions)
        value = self.rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[1]))
        device = "cpu" if sp.issparse(block) else self.device
        return _Weights(torch.from_numpy(value).to(device), self.signal.learning_rate)

    def text_map(self) -> TextMap:
        """The map as it is now."""
        return TextMap(tuple(weights.value.cpu().numpy().copy() for weights in self.weights))

    def run_epoch(self) -> None:
        """One pass over the interactions, or over a random part of very many."""
        seen = self.history.copy()
        # A history longer than the sample keeps each item with the same chance.
        seen.data[self.rng.random(seen.nnz) * self.degree > self.signal.history_sample] = 0
        seen.eliminate_zeros()
        order = self.rng.permutation(self.examples)[:_MOST_INTERACTIONS]
        # The steps are small: threads would mostly wait for each other.
        with threadpool_limits(1):
            for start in range(0, len(order), self.signal.batch_size):
                part = order[start : start + self.signal.batch_size]
                self._step(seen[self.users[part]], self.items[part])

    def _step(self, seen: sp.csr_matrix, positives: Index) -> None:
        """Learn from interactions with ``positives`` of users with the histories ``seen``."""
        data = seen.data.copy()
        data[seen.indices == np.repeat(positives, np.diff(seen.indptr))] = 0
        live, place = _distinct(np.r_[seen.indices, positives], self.history.shape[1])
        n_seen = len(seen.indices)
        shape = (len(positives), len(live))
        others = sp.csr_matrix((data, place[:n_seen], seen.indptr), shape=shape)
        rows, used = self._rows(live)
        users = normalize(_SparseProduct.apply(others, rows))
        wanted = rows[torch.from_numpy(place[n_seen:]).to(self.device)]
        items = torch.from_numpy(positives).to(self.device)
        # Each against those of its own part of the batch: the softmax is what costs most.
        loss = torch.stack(
            [
                self._loss(*part)
                for part in zip(
                    users.split(_NEGATIVES),
                    wanted.split(_NEGATIVES),
                    items.split(_NEGATIVES),
                    strict=True,
                )
            ]
        )
        loss.mean().backward()
        for weights, chosen, leaf in used:
            assert leaf.grad is not None
            weights.step(chosen, leaf.grad)

    def _loss(self, users: torch.Tensor, rows: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """The softmax of users' own items, of those rows, against the others'."""
        logits = users @ rows.T / self.signal.temperature - self.correction[items]
        same = (items[:, None] == items).fill_diagonal_(False)
        target = torch.arange(len(items), device=self.device)
        return cross_entropy(logits.masked_fill(same, -torch.inf), target)

    def _rows(
        self, items: Index
    ) -> tuple[torch.Tensor, list[tuple[_Weights, torch.Tensor, torch.Tensor]]]:
        """Unit rows of some items on the device, and the weights that they are made of."""
        total = torch.zeros(len(items), self.signal.dimensions, device=self.device)
        used: list[tuple[_Weights, torch.Tensor, torch.Tensor]] = []
        for block, dense, weights in zip(
            self.features.tables, self.dense, self.weights, strict=True
        ):
            if dense is not None:
                leaf = weights.value.clone().requires_grad_()
                total = total + dense[torch.from_numpy(items).to(self.device)] @ leaf
                used.append((weights, torch.arange(len(leaf), device=self.device), leaf))
                continue
            words: sp.csr_matrix = block[items]
            if block is self.features.attributes:
                words = of_some(words, self.rng.random(len(items)) >= LEFT_OUT)
                words.eliminate_zeros()
            terms, column = _distinct(words.indices, block.shape[1])
            chosen = torch.from_numpy(terms)
            leaf = weights.value[chosen].requires_grad_()
            compact = sp.csr_matrix(
                (words.data, column, words.indptr), shape=(len(items), len(terms))
            )
            total = total + _SparseProduct.apply(compact, leaf).to(self.device)
            used.append((weights, chosen, leaf))
        return normalize(total), used
