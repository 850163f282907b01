"""What a network's frozen lower layers say of fixed texts: they run once, and not in each step.

They stand still and read the same tokens each time. Only what they would drop at random is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_llm.factors import Index

# Of the states that are kept; the layers run in each step where they need more.
_MOST_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class FrozenLayers:
    """The lowest layers of a stack and their last states of all texts.

    Attributes:
        layers: the whole stack.
        n_frozen: how many of its lowest stand still, at least 1.
        states: (n_tokens, d) on the CPU, the last frozen layer's, text after text.
        starts: int64 (n_texts + 1,), where each text's begin.
        as_tuple: whether a layer gives its states as a tuple of one.
    """

    layers: nn.ModuleList
    n_frozen: int
    states: torch.Tensor
    starts: Index
    as_tuple: bool

    @classmethod
    def of(
        cls,
        layers: nn.ModuleList,
        n_frozen: int,
        lengths: Sequence[int],
        batches: Sequence[Index],
        run: Callable[[Index], Any],
    ) -> FrozenLayers | None:
        """Run the layers once for all texts.

        Args:
            layers: the stack.
            n_frozen: how many of its lowest stand still.
            lengths: tokens of each text.
            batches: the texts, each once, in what goes through the network together.
            run: puts a batch through the network; rows are padded on the right.

        Returns:
            None where the states do not fit the memory, or are not all that a layer hands on.
        """
        starts = np.r_[0, np.cumsum(lengths, dtype=np.int64)]
        heard: list[Any] = []
        hook = layers[n_frozen - 1].register_forward_hook(
            lambda module, given, found: heard.append(found)
        )
        states, as_tuple = None, False
        try:
            for texts in batches:
                heard.clear()
                run(texts)
                as_tuple = isinstance(heard[0], tuple)
                if as_tuple and len(heard[0]) > 1:
                    return None
                found = (heard[0][0] if as_tuple else heard[0]).detach()
                if states is None:
                    if starts[-1] * found.shape[-1] * found.element_size() > _MOST_BYTES:
                        return None
                    states = torch.empty(int(starts[-1]), found.shape[-1], dtype=found.dtype)
                for row, text in zip(found.cpu(), texts, strict=True):
                    states[starts[text] : starts[text + 1]] = row[: lengths[text]]
        finally:
            hook.remove()
        return None if states is None else cls(layers, n_frozen, states, starts, as_tuple)

    @contextmanager
    def kept(self, texts: Index, device: torch.device) -> Iterator[None]:
        """Within it the frozen layers hand on what is kept of a batch of texts."""
        parts = [self.states[self.starts[text] : self.starts[text + 1]] for text in texts]
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True).to(device)
        frozen = list(self.layers[: self.n_frozen])
        for number, layer in enumerate(frozen):
            self.layers[number] = _Kept(layer, padded, self.as_tuple)
        try:
            yield
        finally:
            for number, layer in enumerate(frozen):
                self.layers[number] = layer


class _Kept(nn.Module):
    """Stands in the place of a layer, whose attributes it has, and gives the same each time."""

    def __init__(self, layer: nn.Module, states: torch.Tensor, as_tuple: bool) -> None:
        super().__init__()
        self._found = (states,) if as_tuple else states
        # In a list, so that the layer is no part of this module.
        self._stands_for = [layer]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._found

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._stands_for[0], name)
