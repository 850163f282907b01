"""Intent tower: item and user towers that are trained together, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from recbole_llm.completion import BIAS_PENALTY, Features, RidgeMap, bias_map, features_of
from recbole_llm.errors import FitError, SettingsError
from recbole_llm.evaluation import Validation
from recbole_llm.factors import Factors, Rows, Table, stack_rows, unit_rows
from recbole_llm.sequence_network import has_maps, rows_of_texts
from recbole_llm.settings import RunOptions, Search, Words, setting
from recbole_llm.signals.als import ALSSignal
from recbole_llm.signals.base import (
    SingleSignal,
    SkippedSignal,
    folded_in,
    held_out_items,
    last_good_epoch,
    with_settings,
)
from recbole_llm.text_network import TextNetwork
from recbole_llm.tower_network import (
    VALUED,
    Tower,
    TowerShape,
    user_tower_of,
    with_biases,
)
from recbole_llm.tower_training import TowerTraining, random_numbers
from recbole_llm.training_data import History, TrainingData, without_items

_MOST_EPOCHS = 6
# Length of what an item's own row starts from, beside that of a text, which is about 1.
_START = np.float32(0.5)
# What is called how among the tables: what the mean item's attributes give, the weights of the
# ridge from texts and attributes to items' biases, and what it gives the mean item's attributes.
_USUAL, _BIAS, _BIAS_USUAL = "usual", "bias", "bias_usual"


@dataclass(frozen=True)
class IntentTowerSignal(TowerShape, SingleSignal):
    """The cosine of an item's and a user's rows by towers that are trained together."""

    epochs: int = setting(
        0,
        "Passes of the intent tower over the interactions; 0: as many as held-out items say, 6 at "
        "most.",
        at_least=0,
    )
    learning_rate: float = setting(
        0.005, "Step of Adam.", above=0.0, search=Search(0.001, 0.02, log=True)
    )
    batch_size: int = setting(4096, "Interactions of a step.", at_least=2)
    encoders: Words = ()

    uses_text: ClassVar[bool] = True
    uses_embeddings: ClassVar[bool] = True
    uses_attributes: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    def settle(self, data: TrainingData, run: RunOptions) -> IntentTowerSignal:
        """With the number of epochs after which a held-out tenth of the items is ranked best.

        Raises:
            SkippedSignal: no user has two items.
            SettingsError: it learns clicks or ratings, which fusion does by itself.
        """
        if self.loss in VALUED:
            raise SettingsError(
                f"`loss: {self.loss}` is for the model IntentTower; among `signals` the tower "
                f"ranks: write `loss: softmax`, and `task: {VALUED[self.loss]}` for what is fused"
            )
        if self.epochs:
            return self
        held_out = held_out_items(data.interactions, run.seed)
        rest, wanted = without_items(data, held_out), without_items(data, ~held_out)
        validation = Validation.of(rest.binary, wanted.binary, "cold")
        if validation is None or not (np.diff(rest.interactions.indptr) > 1).any():
            return replace(self, epochs=_MOST_EPOCHS)
        trained = self._epochs(rest, run)
        return replace(
            self,
            epochs=last_good_epoch(
                lambda: self.tables(next(trained), rest), validation, run, most=_MOST_EPOCHS
            ),
        )

    def fit(self, data: TrainingData, run: RunOptions) -> Factors:
        """Train on all interactions of users who have two items.

        Raises:
            SkippedSignal: there are none.
            FitError: the steps are so long that the towers are lost.
        """
        epochs = self.settle(data, run).epochs
        tower = next(islice(self._epochs(data, run), epochs - 1, None))
        return self.tables(tower, data)

    def _epochs(self, data: TrainingData, run: RunOptions) -> Iterator[Tower]:
        """The towers after each epoch."""
        tower = self.tower(data, run)
        users, items = tower.examples()
        if not len(users):
            raise SkippedSignal("no user has two items to learn from")
        training = TowerTraining(
            tower, learning_rate=self.learning_rate, batch_size=self.batch_size, seed=run.seed
        )
        for number in count():
            training.run_epoch(number, items, lambda rows: tower.loss(users[rows], items[rows]))
            yield tower

    def tower(
        self,
        data: TrainingData,
        run: RunOptions,
        text: TextNetwork | None = None,
        *,
        crops: bool = False,
    ) -> Tower:
        """The towers before any training: texts by random projection, own rows by ALS.

        Args:
            data: of the training part.
            run: device and seed.
            text: what makes the rows of the first of ``encoders``, and learns with them.
            crops: whether each epoch draws a part of each history.
        """
        features = self._features(data.item_embeddings, data.item_attributes)
        own_texts = self._features(data.user_embeddings)
        variants, start = None, None
        if data.variant_embeddings:
            every = (data.item_embeddings, *data.variant_embeddings)
            attributes = data.item_attributes
            variants = self._features(
                {name: stack_rows([rows[name] for rows in every]) for name in self.encoders},
                None if attributes is None else sp.vstack([attributes] * len(every), "csr"),
            )
        if self.identities and self.loss not in VALUED:
            als = ALSSignal(factors=self.dimensions).fit(data, run)
            start = unit_rows(als.items) * _START
        device = torch.device(run.device)
        with random_numbers(run.seed, device):
            tower = Tower(
                features, data.history, own_texts, self, start, text, variants, crops=crops
            )
        return tower.to(device)

    def tables(self, tower: Tower, data: TrainingData) -> Factors:
        """What the towers say now.

        Raises:
            FitError: it is no number any more.
        """
        items = tower.item_table()
        if not np.isfinite(items).all():
            raise FitError("the intent tower has no finite weights left; lower its learning rate")
        features = tower.items.features
        known, extra = data.warm_items | features.described, tower.arrays()
        if features.attributes is not None:
            extra[_USUAL] = features.usual(tower.items.maps[-1].detach().cpu().numpy())
        if self.loss in VALUED:
            ridge = bias_map(features, items[:, -2], data.item_counts)
            if ridge is not None:
                cold = features.described & ~data.warm_items
                items[cold, -2] = ridge.apply(features[cold])[:, 0]
                extra |= {f"{_BIAS}{number}": table for number, table in enumerate(ridge.weights)}
                extra[_BIAS] = ridge.intercept
                if ridge.usual is not None:
                    extra[_BIAS_USUAL] = ridge.usual
        return folded_in(self, data, items, known, extra)

    def fold_in(self, factors: Factors, liked: Rows, history: History) -> Table:
        """The user tower's row of a history, and of what the users say of themselves."""
        if self.loss in VALUED:
            return self._reactions(factors, liked, history)
        own_text, said = None, self._features(history.own_texts)
        if said is not None and has_maps(factors.extra):
            own_text = rows_of_texts(factors.extra, said)
        tower = user_tower_of(factors.extra, self)
        with torch.no_grad():
            rows = tower(
                torch.from_numpy(np.asarray(liked, dtype=np.float32)),
                history,
                None if own_text is None else torch.from_numpy(own_text),
            )
        return rows.numpy()

    def _reactions(self, factors: Factors, liked: Rows, history: History) -> Table:
        """``[x, 1, b_u]`` of histories; zero for an empty one."""
        tower, d = user_tower_of(factors.extra, self), self.dimensions
        rows = torch.from_numpy(np.asarray(liked, dtype=np.float32))
        with torch.no_grad():
            intents, biases = tower(rows[:, :d], rows[:, d], history)
        known = (np.diff(history.weights.indptr) > 0).astype(np.float32)
        return np.c_[intents.numpy(), known, biases.numpy()].astype(np.float32)

    def describe(
        self,
        factors: Factors,
        embeddings: Mapping[str, Rows],
        attributes: sp.csr_matrix | None = None,
    ) -> Table | None:
        """What the item tower says of texts and attributes; None where it was trained without.

        The mean item's attributes stand for those that are missing.
        """
        extra, usual = factors.extra, factors.extra.get(_USUAL)
        features = self._features(embeddings, None if usual is None else attributes)
        if features is None or not has_maps(extra):
            return None
        rows = rows_of_texts(extra, features, usual=usual, unit=self.loss not in VALUED)
        if self.loss in VALUED:
            weights = [np.asarray(extra[f"{_BIAS}{n}"]) for n in range(len(features.tables))]
            ridge = RidgeMap(
                tuple(weights),
                np.asarray(extra[_BIAS]),
                BIAS_PENALTY,
                usual=None if usual is None else np.asarray(extra[_BIAS_USUAL]),
            )
            rows = with_biases(rows, ridge.apply(features)[:, 0]) * features.described[:, None]
        return rows

    def variants(self, name: str, encoders: Sequence[str]) -> dict[str, IntentTowerSignal]:
        """One signal of all encoders: the towers read them side by side."""
        return {name: with_settings(self, {"encoders": tuple(encoders)})}

    def _features(
        self, embeddings: Mapping[str, Rows], attributes: sp.csr_matrix | None = None
    ) -> Features | None:
        if not self.encoders or any(name not in embeddings for name in self.encoders):
            return None
        return features_of({name: embeddings[name] for name in self.encoders}, attributes)
