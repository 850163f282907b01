"""How the towers are trained: one epoch after another, the same for a signal and for RecBole.

What an epoch ends with is the mean of the weights over the last steps: each by itself ends beside
the mark at random (Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging",
1992).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_llm.errors import FitError
from recbole_llm.factors import Index
from recbole_llm.tower_network import Tower

# How often an epoch's weights go into the mean, since each time touches all rows of the tables; and
# over how many epochs it is, about.
_TAKEN, _EPOCHS = 10, 2


class MeanWeights:
    """The weights' running mean, whose older parts fade; what is trained stands apart meanwhile.

    Args:
        weights: of a network; they hold the mean but within :meth:`trained`.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        self.apart = [weight.detach().clone() for weight in weights]
        self.n_taken = 0

    @contextmanager
    def trained(self) -> Iterator[None]:
        """Within it the weights are what the steps have made of them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, weight in enumerate(self.weights):
            weight.data, self.apart[number] = self.apart[number], weight.data

    def take(self, n_together: int) -> None:
        """Let the weights as they are now count, within :meth:`trained`.

        Args:
            n_together: of how many the mean is, about.
        """
        self.n_taken += 1
        share = 1 / min(self.n_taken, n_together)
        for mean, weight in zip(self.apart, self.weights, strict=True):
            mean.lerp_(weight.detach(), share)

    def state_dict(self) -> dict[str, Any]:
        """What training goes on from."""
        return {"n_taken": self.n_taken, "trained": self.apart}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.n_taken = state["n_taken"]
        for part, value in zip(self.apart, state["trained"], strict=True):
            part.copy_(value)


class TowerOptimizer:
    """Adam for what every step moves, and its sparse form for tables of which a step uses few rows.

    It has what RecBole's trainer asks of an optimizer. After an epoch the tower has the ``mean``.
    """

    def __init__(self, tower: Tower, learning_rate: float, weight_decay: float = 0.0) -> None:
        text = tower.text
        encoder = [] if text is None else text.groups(text.settings.learning_rate)
        tuned = {id(parameter) for group in encoder for parameter in group["params"]}
        sparse = {id(parameter) for parameter in tower.items.sparse_parameters()}
        learned = [parameter for parameter in tower.parameters() if parameter.requires_grad]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": [p for p in learned if id(p) not in sparse | tuned]},
                    *encoder,
                ],
                lr=learning_rate,
                weight_decay=weight_decay,
            )
        ]
        self.encoder_rates = [group["lr"] for group in encoder]
        rows = [parameter for parameter in learned if id(parameter) in sparse]
        if rows:
            self.parts.append(torch.optim.SparseAdam(rows, lr=learning_rate))
        self.mean = MeanWeights(learned)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Move every parameter along its gradient."""
        for part in self.parts:
            part.step()

    def warm_up(self, share: float) -> None:
        """Set the encoder's rates to a share of what they are."""
        # Asked for anew each time: loading a state makes other groups.
        for group, rate in zip(self.parts[0].param_groups[1:], self.encoder_rates, strict=True):
            group["lr"] = rate * share

    def state_dict(self) -> dict[str, Any]:
        """The averages of all steps, and the weights as the last one left them."""
        parts = {str(number): part.state_dict() for number, part in enumerate(self.parts)}
        return {**parts, "mean": self.mean.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])
        self.mean.load_state_dict(state["mean"])


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
        self, number: int, items: Index, loss_of: Callable[[Index], torch.Tensor]
    ) -> float:
        """One pass over all training rows in a random order; the tower then has the mean weights.

        Args:
            number: of the epoch, from 0 on.
            items: int64 (n,), the item of each row.
            loss_of: rows of one step, int64, to their mean loss.

        Returns:
            The mean loss.

        Raises:
            FitError: a loss is no number (the mean is that of the steps before), or the memory is
                full.
        """
        rng, tower = np.random.default_rng([self.seed, number]), self.tower
        text = tower.text
        tower.encoder_learns = text is not None and number >= text.settings.head_epochs
        tower.train()
        if text is not None and not tower.encoder_learns:
            text.eval()
        tower.start_epoch(rng)
        batches, total = self._batches(items, rng), 0.0
        together = text.settings.accumulation if text is not None and tower.encoder_learns else 1
        mean = self.optimizer.mean
        every = -(-len(batches) // _TAKEN)
        with random_numbers(self.seed + number, tower.items.own.device), _enough_memory():
            with mean.trained():
                for step, rows in enumerate(batches):
                    loss = loss_of(rows)
                    if not torch.isfinite(loss):
                        raise FitError(
                            f"the loss is {loss.item()} at step {step} of epoch {number}; lower "
                            + ("`finetune_learning_rate` or " if tower.encoder_learns else "")
                            + "`learning_rate`"
                        )
                    (loss / together).backward()
                    total += loss.item() * len(rows)
                    if (step + 1) % together == 0 or step + 1 == len(batches):
                        self._move(step, len(batches))
                    if (step + 1) % every == 0:
                        mean.take(_EPOCHS * (len(batches) // every))
            if tower.encoder_learns:
                tower.refresh()
        return total / max(1, len(items))

    def _move(self, step: int, n_steps: int) -> None:
        text = self.tower.text
        if text is not None and self.tower.encoder_learns:
            rising = text.settings.warm_up * n_steps
            self.optimizer.warm_up(min(1.0, (step + 1) / rising) if rising else 1.0)
            nn.utils.clip_grad_norm_(text.parameters(), text.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _batches(self, items: Index, rng: np.random.Generator) -> list[Index]:
        """Rows of each step: some rows; or some items with all their rows, each encoded once."""
        order = rng.permutation(len(items))
        size = self.batch_size
        text = self.tower.text
        if text is None or not self.tower.encoder_learns:
            return [order[start : start + size] for start in range(0, len(order), size)]
        distinct, item = np.unique(items[order], return_inverse=True)
        group = rng.permutation(len(distinct))[item] // text.settings.batch_items
        return [order[group == number] for number in range(int(group.max(initial=-1)) + 1)]


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of a CPU's full memory torch raises a plain RuntimeError.
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_full and "DefaultCPUAllocator" not in str(error):
            raise
        raise FitError(
            "the memory is full; lower `train_batch_size`, or while the encoder learns "
            "`finetune_batch_items` (and raise `finetune_accumulation`), or choose "
            "`finetune: last_n` or `lora`"
        ) from error


@contextmanager
def random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers from a seed, without moving the caller's."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
