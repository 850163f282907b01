"""How the towers are trained: one epoch after another, the same for a signal and for RecBole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from recbole_llm.errors import FitError
from recbole_llm.factors import Index
from recbole_llm.tower_network import Tower


class TowerOptimizer:
    """Adam for what every step moves, and its sparse form for tables of which a step uses few rows.

    It has what RecBole's trainer asks of an optimizer.
    """

    def __init__(self, tower: Tower, learning_rate: float, weight_decay: float = 0.0) -> None:
        sparse = {id(parameter) for parameter in tower.items.sparse_parameters()}
        learned = [parameter for parameter in tower.parameters() if parameter.requires_grad]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [parameter for parameter in learned if id(parameter) not in sparse],
                lr=learning_rate,
                weight_decay=weight_decay,
            )
        ]
        rows = [parameter for parameter in learned if id(parameter) in sparse]
        if rows:
            self.parts.append(torch.optim.SparseAdam(rows, lr=learning_rate))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Move every parameter along its gradient."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The averages of all steps."""
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])


class TowerTraining:
    """Epochs of a tower; each depends on the seed, its number and the weights alone.

    Args:
        tower: it learns.
        learning_rate: step of Adam.
        batch_size: rows of a step.
        seed: of what is drawn.
        weight_decay: of what every step moves.
    """

    def __init__(
        self,
        tower: Tower,
        *,
        learning_rate: float,
        batch_size: int,
        seed: int,
        weight_decay: float = 0.0,
    ) -> None:
        self.tower, self.batch_size, self.seed = tower, batch_size, seed
        self.optimizer = TowerOptimizer(tower, learning_rate, weight_decay)

    def run_epoch(
        self, number: int, n_rows: int, loss_of: Callable[[Index], torch.Tensor]
    ) -> float:
        """One pass over all training rows in a random order.

        Args:
            number: of the epoch, from 0 on.
            n_rows: how many rows there are.
            loss_of: rows of one step, int64, to their mean loss.

        Returns:
            The mean loss.

        Raises:
            FitError: a loss is no number; the weights are those before that step.
        """
        rng = np.random.default_rng([self.seed, number])
        self.tower.train()
        self.tower.start_epoch(rng)
        order, total = rng.permutation(n_rows), 0.0
        with random_numbers(self.seed + number, self.tower.items.own.device):
            for step, start in enumerate(range(0, n_rows, self.batch_size)):
                rows = order[start : start + self.batch_size]
                loss = loss_of(rows)
                if not torch.isfinite(loss):
                    raise FitError(
                        f"the loss is {loss.item()} at step {step} of epoch {number}; lower the "
                        "learning rate"
                    )
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                total += loss.item() * len(rows)
        return total / max(1, n_rows)


@contextmanager
def random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers from a seed, without moving the caller's."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
