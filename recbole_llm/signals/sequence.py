"""Sequence: what comes next, by a small causal transformer over item rows made of texts.

A user's row is the network's state after the last item of her history, an item's row the one that
the network reads, so that scores are products of tables as of any signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from tqdm import tqdm

from recbole_llm.completion import Features, features_of, is_told
from recbole_llm.errors import FitError
from recbole_llm.evaluation import Metric, Validation, evaluate
from recbole_llm.factors import Factors, Mask, Rows, Table
from recbole_llm.sequence_network import (
    Candidates,
    SequenceNetwork,
    Sequences,
    SequenceShape,
    encoder_of,
    has_maps,
    last_states,
    rows_of_texts,
    sequences,
)
from recbole_llm.settings import RunOptions, Words, setting
from recbole_llm.signals.base import SingleSignal, SkippedSignal, folded_in, with_settings
from recbole_llm.training_data import History, TrainingData

_FEWEST_STEPS = 50
# Of all steps; each is the last one of some user, so that of long histories little is lost.
_HELD_OUT = 0.1
_MOST_HELD_OUT = 2000
_METRIC = Metric("ndcg", 10)
# Epochs without a better one before training stops.
_PATIENCE = 3


@dataclass(frozen=True)
class SequenceSignal(SequenceShape, SingleSignal):
    """The cosine of an item's row and of what the network expects after a history."""

    max_history: int = setting(
        50, "Last items of a history that the sequence network looks at.", at_least=1
    )
    epochs: int = setting(
        30, "Most passes over the sequences; fewer where held-out items say so.", at_least=1
    )
    learning_rate: float = setting(0.001, "Step of Adam.", above=0.0)
    batch_size: int = setting(1024, "Next items of a step, about.", at_least=1)
    encoders: Words = ()

    uses_text: ClassVar[bool] = True
    uses_embeddings: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Train on every step of the histories; the last one of some users says when to stop.

        Raises:
            SkippedSignal: the data have no order, or too few users have two items.
            FitError: the steps are so long that the network is lost.
        """
        if data.age is None:
            raise SkippedSignal("the interactions have no order (see `order_field`)")
        features = None
        if self.encoders and data.item_embeddings:
            features = self._features(data.item_embeddings)
        known = data.warm_items
        # What is of one moment stands in a random order: that of the item numbers would be
        # learned, and means nothing.
        ordered = sequences(data.history, known, seed=run.seed)
        n_steps = int(np.maximum(ordered.lengths - 1, 0).sum())
        if n_steps < _FEWEST_STEPS:
            raise SkippedSignal(
                f"the histories have {n_steps} steps from one item to the next, and it takes "
                f"{_FEWEST_STEPS}"
            )
        network = _trained(features, ordered, data.n_items, self, run)
        items = network.item_table()
        if not np.isfinite(items).all():
            raise FitError(
                "the sequence network has no finite weights left; lower `sequence_learning_rate`, "
                f"which is {self.learning_rate:g}"
            )
        if features is not None:
            known = known | features.described
        return folded_in(self, data, items, known, network.arrays())

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Table:
        """The network's state after the last item; what the items count does not matter."""
        encoder = encoder_of(factors.extra, self, self.max_history)
        rows = np.asarray(liked, dtype=np.float32)
        return last_states(encoder, rows, sequences(history, is_told(rows)))

    def describe(
        self,
        factors: Factors,
        embeddings: Mapping[str, Rows],
        attributes: sp.csr_matrix | None = None,
    ) -> Table | None:
        """What the network's map says of the texts; None where it was trained without texts."""
        if not has_maps(factors.extra):
            return None
        return rows_of_texts(factors.extra, self._features(embeddings))

    def variants(self, name: str, encoders: Sequence[str]) -> dict[str, SequenceSignal]:
        """One signal of all encoders: a second network would cost as much time again."""
        return {name: with_settings(self, {"encoders": tuple(encoders)})}

    def _features(self, embeddings: Mapping[str, Rows]) -> Features:
        return features_of({name: embeddings[name] for name in self.encoders})


def _trained(
    features: Features | None,
    ordered: Sequences,
    n_items: int,
    signal: SequenceSignal,
    run: RunOptions,
) -> SequenceNetwork:
    """The network after the epoch whose held-out steps are ranked best.

    Args:
        features: of the items' texts, None without any.
        ordered: every user's history.
        n_items: rows, padding included.
        signal: the settings.
        run: device and seed.
    """
    rng = np.random.default_rng(run.seed)
    held = np.flatnonzero(ordered.lengths > 1)
    n_steps = int((ordered.lengths[held] - 1).sum())
    held = rng.permutation(held)[: min(_MOST_HELD_OUT, round(_HELD_OUT * n_steps))]
    validation = _validation(ordered[held], n_items)
    predicted = np.ones(len(ordered.items), dtype=bool)
    predicted[ordered.stops[held] - 1] = False
    before = replace(ordered[held], stops=ordered.stops[held] - 1)
    candidates = Candidates.of(ordered.items, n_items, signal.candidates)
    warm = candidates.share > 0
    device = torch.device(run.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(run.seed)
        network = SequenceNetwork(features, n_items, signal, signal.max_history).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=signal.learning_rate)
        best, best_value, best_epoch = network.state_dict(), -1.0, 0
        for epoch in tqdm(
            range(signal.epochs), desc="Training sequence", disable=not run.progress, leave=False
        ):
            _run_epoch(network, optimizer, ordered, predicted, candidates, signal, rng)
            if validation is None:
                continue
            rows = network.item_table()
            users = last_states(network.encoder, rows, before)
            tables = Factors.of(users, rows, warm)
            value = evaluate([tables], validation, _METRIC, run.device)
            if value > best_value:
                best, best_value, best_epoch = deepcopy(network.state_dict()), value, epoch
            elif epoch - best_epoch >= _PATIENCE:
                break
        network.load_state_dict(best)
    return network


def _validation(held: Sequences, n_items: int) -> Validation | None:
    """The last item of each part against what comes before it."""
    rows = np.repeat(np.arange(len(held.stops)), held.lengths)
    places, inside = held.padded()
    ones = np.ones(len(rows), dtype=np.float32)
    shape = (len(held.stops), n_items)
    every = sp.csr_matrix((ones, (rows, held.items[places[inside]])), shape=shape)
    wanted = sp.csr_matrix(
        (ones[: shape[0]], (np.arange(shape[0]), held.items[held.stops - 1])), shape=shape
    )
    known = (every - wanted).tocsr()
    known.eliminate_zeros()
    return Validation.of(known, wanted)


def _run_epoch(
    network: SequenceNetwork,
    optimizer: torch.optim.Optimizer,
    ordered: Sequences,
    predicted: Mask,
    candidates: Candidates,
    signal: SequenceSignal,
    rng: np.random.Generator,
) -> None:
    """One pass over every step of the histories.

    Args:
        network: it learns.
        optimizer: of its weights.
        ordered: every user's history.
        predicted: bool, aligned with ``ordered.items``: the items to learn from.
        candidates: what those are ranked against.
        signal: the settings.
        rng: of what goes together.
    """
    network.train()
    windows = ordered.windows(signal.max_history)
    order = rng.permutation(len(windows.stops))
    step = np.cumsum(windows.lengths[order] - 1) // signal.batch_size
    for batch in np.split(order, np.flatnonzero(np.diff(step)) + 1):
        part = windows[batch]
        places, inside = part.padded()
        items = np.where(inside, part.items[places], 0)
        counts = (inside & predicted[places])[:, 1:]
        if not counts.any():
            continue
        against = candidates.draw(int(counts.sum()), rng)
        loss = network.loss(items[:, :-1], items[:, 1:], counts, *against)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
