"""DropoutNet as a peer: a network that gives items their ALS rows anew, with or without one.

Source: Volkovs, Yu, Poutanen, "DropoutNet: Addressing Cold Start in Recommender Systems", 2017.
The item tower reads an item's ALS row, which is dropped at random, its text and its attributes;
the user tower reads a user's ALS row; both learn to give the ALS scores back.

python benchmarks/dropout_net.py --model=HybridFusion --signals=dropout_net --dataset=...
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.decomposition import TruncatedSVD
from torch import nn

from recbole_llm.factors import Factors
from recbole_llm.settings import Search, Words, setting
from recbole_llm.signals import register
from recbole_llm.signals.als import ALSSignal
from recbole_llm.signals.base import SingleSignal

_BATCH = 256


@dataclass(frozen=True)
class DropoutNetSignal(SingleSignal):
    """Two towers over ALS rows and text, trained to give the ALS scores back."""

    regularization: float = setting(20.0, "Of ALS.", search=Search(1.0, 50.0, log=True))
    alpha: float = setting(2.0, "Of ALS.", search=Search(1.0, 30.0, log=True))
    dropout: float = setting(0.5, "Share of dropped rows.", search=Search(0.2, 0.9))
    hidden: int = setting(256, "Width of the hidden layer.", search=Search(128, 512, log=True))
    steps: int = setting(1000, "Batches.", search=Search(200, 4000, log=True))
    learning_rate: float = setting(1e-3, "Of Adam.", search=Search(3e-4, 1e-2, log=True))
    encoders: Words = ()

    uses_text: ClassVar[bool] = True
    uses_embeddings: ClassVar[bool] = True
    uses_attributes: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    def variants(self, name, encoders):
        """One for all encoders."""
        return {name: dataclasses.replace(self, encoders=tuple(encoders))}

    def fit(self, data, run):
        """Train on the warm items; a cold one's row counts as dropped."""
        learned = self._als().fit(data, run)
        told = [_dense(data.item_embeddings[name], run.seed) for name in self.encoders]
        if data.item_attributes is not None:
            told.append(_dense(data.item_attributes, run.seed))
        text = np.hstack(told)
        torch.manual_seed(run.seed)
        rng = np.random.default_rng(run.seed)
        # The scores are alike in size whatever ALS's penalty.
        scale = np.sqrt(np.abs(learned.users[1:] @ learned.items[learned.known].T).max())
        users, items = (torch.from_numpy(t / scale) for t in (learned.users, learned.items))
        text = torch.from_numpy(text)
        user_tower, item_tower = (
            nn.Sequential(nn.Linear(n, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 128))
            for n in (128, 128 + text.shape[1])
        )
        parameters = [*user_tower.parameters(), *item_tower.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        active = np.flatnonzero(np.diff(data.interactions.indptr))
        warm = np.flatnonzero(learned.known)
        for _ in range(self.steps):
            u = torch.from_numpy(rng.choice(active, _BATCH))
            i = torch.from_numpy(rng.choice(warm, _BATCH))
            kept = torch.from_numpy(rng.random((_BATCH, 1)) >= self.dropout)
            told = item_tower(torch.hstack([items[i] * kept, text[i]]))
            loss = (user_tower(users[u]) @ told.T - users[u] @ items[i].T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            user_rows = user_tower(users).numpy()
            item_rows = item_tower(torch.hstack([items, text])).numpy()
        user_rows[np.diff(data.interactions.indptr) == 0] = 0
        first, _, last = user_tower
        extra = {"als": learned.items, "scale": np.full((1, 1), scale, np.float32)}
        for name, layer in (("first", first), ("last", last)):
            extra[name] = np.vstack([layer.weight.detach().T, layer.bias.detach()[None, :]])
        return Factors.of(user_rows, item_rows, text.numpy().any(axis=1), extra)

    def _als(self):
        return ALSSignal(factors=128, regularization=self.regularization, alpha=self.alpha)

    def sources(self, factors):
        """ALS's item rows."""
        return factors.extra["als"]

    def fold_in(self, factors, liked, history):
        """The user tower of the row that ALS would give."""
        als = dataclasses.replace(factors, items=factors.extra["als"])
        rows = self._als().fold_in(als, liked, history) / factors.extra["scale"]
        for name, bend in (("first", np.tanh), ("last", np.asarray)):
            table = factors.extra[name]
            rows = bend(rows @ table[:-1] + table[-1])
        rows[np.diff(history.weights.indptr) == 0] = 0
        return rows.astype(np.float32)


def _dense(rows, seed):
    if sp.issparse(rows):
        width = min(256, rows.shape[1] - 1)
        rows = TruncatedSVD(width, random_state=seed).fit_transform(rows).astype(np.float32)
    return rows / np.sqrt((rows**2).sum(axis=1).mean())


if __name__ == "__main__":
    from recbole_llm.cli import run_recbole_command

    register("dropout_net", DropoutNetSignal)
    sys.exit(run_recbole_command())
