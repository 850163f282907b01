"""A text encoder as a network that learns: which weights move, and texts as tokens in memory.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022, by `peft`. Rates that
fall from layer to layer: Howard, Ruder, "Universal Language Model Fine-tuning", 2018.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import normalize

from recbole_llm.encoders.base import distinct_texts, transformer_slot
from recbole_llm.errors import SettingsError
from recbole_llm.factors import Index, Table
from recbole_llm.frozen_layers import FrozenLayers
from recbole_llm.settings import Search, Words, setting

logger = logging.getLogger(__name__)

# Texts of about one length that go through the network together: more would mostly be padding.
_TOGETHER = 64
_ENCODED_AT_ONCE = 1024


@dataclass(frozen=True)
class FinetuneSettings:
    """Which of the encoder's weights are trained, how, and from where on."""

    finetune: str = setting(
        "frozen",
        "What of the text encoder is trained: frozen (nothing), last_n (its last layers), lora "
        "(small added matrices; `pip install recbole_llm[finetune]`), or full.",
        choices=("frozen", "last_n", "lora", "full"),
        key="finetune",
    )
    last_n: int = setting(2, "Layers that `finetune: last_n` trains.", at_least=1, key="last_n")
    lora_rank: int = setting(8, "Rank of the matrices that LoRA adds.", at_least=1, key="lora_rank")
    lora_modules: Words = setting(
        ("query", "value"), "The encoder's linear modules that LoRA adds to.", key="lora_modules"
    )
    learning_rate: float = setting(
        3e-5,
        "Step of Adam for the encoder's top layer; LoRA's matrices take greater ones, like 0.001.",
        above=0.0,
        search=Search(5e-6, 2e-3, log=True),
    )
    layer_decay: float = setting(
        0.8, "What a layer's step is of the one above it.", above=0.0, at_most=1.0
    )
    head_epochs: int = setting(
        2, "Epochs in which the encoder stands still, so that the towers come first.", at_least=0
    )
    batch_items: int = setting(
        256, "Items of a step, with all their interactions, while the encoder learns.", at_least=2
    )
    accumulation: int = setting(1, "Steps of gradients that make one of the weights.", at_least=1)
    warm_up: float = setting(
        0.1,
        "Share of an epoch's steps in which the encoder's rate rises.",
        at_least=0.0,
        at_most=1.0,
    )
    weight_decay: float = setting(0.01, "Weight decay of the encoder.", at_least=0.0)
    resume: str | None = setting(
        None,
        "The file NAME.last.pth of a run of the same settings that was stopped: it goes on after "
        "its last epoch; none: from the start.",
        key="resume",
    )
    clip_norm: float = setting(1.0, "Longest gradient of the encoder.", above=0.0)


class TextNetwork(nn.Module):
    """A sentence-transformers network over fixed texts; rows have length 1, blank texts' are zero.

    Args:
        network: pretrained; some of its weights will move.
        texts: n texts.
        settings: which.
        variants: other n texts each, of which training reads those that are ``chosen``.

    Attributes:
        chosen: int64 (n,), what is read of each text in training: 0 for itself, or a variant.

    Raises:
        SettingsError: it is no transformer, LoRA does not find its modules, `peft` is missing, or
            there are no layers.
    """

    network: Any

    def __init__(
        self,
        network: Any,
        texts: Sequence[str],
        settings: FinetuneSettings,
        variants: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.network = network
        if transformer_slot(network) is None:
            raise SettingsError(
                f"`finetune: {settings.finetune}` trains a transformer, and the encoder is a "
                f"{type(network[0]).__name__}; use `finetune: frozen`, or another encoder"
            )
        every = [text for part in (texts, *variants) for text in part]
        distinct, places = distinct_texts(every)
        self.places = places.reshape(1 + len(variants), len(texts))
        self.chosen = np.zeros(len(texts), dtype=np.int64)
        limit = network.max_seq_length or network.tokenizer.model_max_length
        tokens = network.tokenizer(distinct, truncation=False, verbose=False)["input_ids"]
        n_long = sum(len(text) > limit for text in tokens)
        if n_long:
            logger.warning(
                f"{n_long:,} of {len(distinct):,} texts are longer than the encoder's {limit} "
                "tokens; it reads their beginnings"
            )
            cut = network.tokenizer(distinct, truncation=True, max_length=limit)
            tokens = cut["input_ids"]
        self.tokens = [np.array(text, dtype=np.int32) for text in tokens]
        self._choose_weights()
        with torch.no_grad():
            self.width = self._through([np.zeros(1, dtype=np.int32)]).shape[1]

    @property
    def n_learned(self) -> tuple[int, int]:
        """Weights of the encoder that move, and all."""
        sizes = [(p.numel(), p.requires_grad) for p in self.network.parameters()]
        return sum(n for n, moves in sizes if moves), sum(n for n, _ in sizes)

    def forward(self, items: Index) -> torch.Tensor:
        """Rows of some texts, float32 (n, d), by batches of like length.

        Args:
            items: int64 (n,), places of the texts, each once.
        """
        device = next(self.network.parameters()).device
        rows = torch.zeros(len(items), self.width, device=device)
        texts = self.places[self.chosen[items] if self.training else 0, items]
        known = np.flatnonzero(texts >= 0)
        parts = [known[part] for part in self._alike(texts[known])]
        found = [self._encode(texts[part]) for part in parts]
        if found:
            at = torch.from_numpy(np.concatenate(parts)).to(device)
            rows = rows.index_copy(0, at, torch.cat(found).float())
        return rows

    @torch.no_grad()
    def rows(self, items: Index) -> Table:
        """The rows as they are now, float32 (n, d), without dropout."""
        self.eval()
        starts = range(0, max(1, len(items)), _ENCODED_AT_ONCE)
        parts = [self(items[start : start + _ENCODED_AT_ONCE]) for start in starts]
        return torch.cat(parts).cpu().numpy()

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The weights that move, for an optimizer: each layer with a rate of its own."""
        layers, decay = list(_layers(self.network)), self.settings.layer_decay
        depth = {
            id(weight): len(layers) - 1 - number
            for number, layer in enumerate(layers)
            for weight in layer.parameters()
        }
        groups: dict[int, list[nn.Parameter]] = {}
        for weight in self.network.parameters():
            if weight.requires_grad:
                groups.setdefault(depth.get(id(weight), len(layers)), []).append(weight)
        decayed = self.settings.weight_decay
        return [
            {"params": weights, "lr": rate * decay**below, "weight_decay": decayed}
            for below, weights in sorted(groups.items())
        ]

    def save(self, folder: Path) -> None:
        """The network as it is, in Hugging Face's layout, with what LoRA added merged in."""
        network = self.network
        if self.settings.finetune == "lora":
            network = deepcopy(network)
            _set_transformer(network, _transformer(network).merge_and_unload())
        network.save(str(folder), create_model_card=False)

    def _alike(self, texts: Index) -> list[Index]:
        """Places of texts, by batches of like length."""
        order = np.argsort([len(self.tokens[text]) for text in texts], kind="stable")
        return [order[start : start + _TOGETHER] for start in range(0, len(order), _TOGETHER)]

    def _encode(self, texts: Index) -> torch.Tensor:
        """Rows of some of the distinct texts, (n, d)."""
        tokens = [self.tokens[text] for text in texts]
        if self._frozen is None:
            return self._through(tokens)
        with self._frozen.kept(texts, next(self.network.parameters()).device):
            return self._through(tokens)

    @cached_property
    def _frozen(self) -> FrozenLayers | None:
        """The layers below those that learn, run for all texts when the first is asked for."""
        if self.settings.finetune != "last_n":
            return None
        layers = _layers(self.network)
        n_frozen = len(layers) - self.settings.last_n
        if n_frozen < 1:
            return None
        is_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            found = FrozenLayers.of(
                layers,
                n_frozen,
                [len(text) for text in self.tokens],
                self._alike(np.arange(len(self.tokens))),
                lambda texts: self._through([self.tokens[text] for text in texts]),
            )
        self.network.train(is_training)
        return found

    def _through(self, tokens: Sequence[NDArray[np.int32]]) -> torch.Tensor:
        """The network's rows of texts, (n, d)."""
        device = next(self.network.parameters()).device
        longest = max(map(len, tokens))
        ids = np.full((len(tokens), longest), self.network.tokenizer.pad_token_id or 0)
        for row, text in zip(ids, tokens, strict=True):
            row[: len(text)] = text
        mask = np.arange(longest) < np.array([len(text) for text in tokens])[:, None]
        features = {
            "input_ids": torch.from_numpy(ids).to(device),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device),
        }
        # bfloat16 needs no scaling of the loss; a CPU without it only gets slower.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return normalize(self.network(features)["sentence_embedding"].float(), dim=-1)

    def _choose_weights(self) -> None:
        kind = self.settings.finetune
        self.network.requires_grad_(kind == "full")
        if kind == "last_n":
            layers = list(_layers(self.network))
            if not layers:
                raise SettingsError(
                    "`finetune: last_n`: the encoder has no layers; choose `finetune: full`"
                )
            for layer in layers[-self.settings.last_n :]:
                layer.requires_grad_(True)
        if kind == "lora":
            _set_transformer(self.network, self._with_lora(_transformer(self.network)))

    def _with_lora(self, transformer: nn.Module) -> nn.Module:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise SettingsError(
                "`finetune: lora` needs `peft`; run `pip install recbole_llm[finetune]`"
            ) from error
        wanted = self.settings.lora_modules
        there = {
            name.rpartition(".")[2]
            for name, module in transformer.named_modules()
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        }
        missing = [name for name in wanted if name not in there]
        if missing:
            raise SettingsError(
                f"`lora_modules`: the encoder has no {', '.join(missing)}; it has "
                f"{', '.join(sorted(there))}"
            )
        kinds = {
            type(module).__name__
            for name, module in transformer.named_modules()
            if name.rpartition(".")[2] in wanted
        }
        config = LoraConfig(
            r=self.settings.lora_rank,
            lora_alpha=2 * self.settings.lora_rank,
            target_modules=list(wanted),
            fan_in_fan_out="Conv1D" in kinds,  # GPT-2 has its matrices the other way round
        )
        return get_peft_model(transformer, config)


def _transformer(network: Any) -> Any:
    return network[0]._modules[transformer_slot(network)]


def _set_transformer(network: Any, transformer: nn.Module) -> None:
    network[0]._modules[transformer_slot(network)] = transformer


def _layers(network: nn.Module) -> nn.ModuleList:
    """The stack of the network's layers, from the lowest to the top: its longest list."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())
