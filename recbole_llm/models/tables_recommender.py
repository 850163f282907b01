"""What our models share: they score by tables, and are fitted by one pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType

from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import Metric, Validation
from recbole_llm.factors import Factors, Index
from recbole_llm.fitting import FitReport, fit_model
from recbole_llm.host.config import excludes_seen, given_settings
from recbole_llm.host.dataset import TablesDataset
from recbole_llm.model_settings import model_keys, read_model_settings
from recbole_llm.newcomers import Newcomers, with_histories
from recbole_llm.scoring import LOWER, Scorer, lower
from recbole_llm.settings import Key, RunOptions
from recbole_llm.training_data import History, TrainingData, with_ones
from recbole_llm.value_fitting import fit_values
from recbole_llm.values import Prediction, ValueTask


class TablesRecommender(GeneralRecommender):
    """A model of RecBole whose scores are products of tables.

    Attributes:
        signal_names: the signals that it is made of; None where the user chooses them.
        blocks: the fused tables, empty before :meth:`fit`.
        report: what happened while it was fitted.
        prediction: what makes clicks or ratings of scores; None where rankings are predicted.
        newcomers: what it takes to give rows to newcomers.
        item_texts: what the encoders got, none where no text is encoded.
    """

    type = ModelType.TRADITIONAL
    input_type = InputType.POINTWISE
    signal_names: ClassVar[tuple[str, ...] | None]

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = read_model_settings(self.signal_names, given_settings(config))
        self.run = RunOptions(
            device=str(self.device),
            seed=config["seed"],
            progress=bool(config["show_progress"]),
            signal_cache=self.settings.search.signal_cache,
        )
        self.valid_metric = config["valid_metric"]
        self.blocks: tuple[Factors, ...] = ()
        self.report = FitReport()
        self.prediction: Prediction | None = None
        self.newcomers = Newcomers((), 0.0, {})
        self.item_texts: tuple[str, ...] = ()
        self._seen = self._had = self._to_exclude(dataset)
        self._grown: tuple[Index, History] | None = None
        self._scorer: Scorer | None = None
        # RecBole builds an optimizer, which needs a parameter.
        self.no_gradient = torch.nn.Parameter(torch.zeros(1))
        self.other_parameter_name = ["blocks", "report", "newcomers", "prediction"]

    @classmethod
    def setting_keys(cls) -> list[Key]:
        """The keys that it takes beside RecBole's."""
        return model_keys(cls.signal_names)

    @property
    def excludes_seen(self) -> bool:
        """Whether it ranks the items of a user's history last."""
        return self._seen is not None

    def _to_exclude(self, train: TablesDataset) -> sp.csr_matrix | None:
        """What each user has had, CSR (n_users, n_items); None where it is ranked as all else."""
        if self.settings.task != "ranking":
            return None
        seen = train.pairs()
        has_repeats = bool((seen.data > 1).any())
        excludes = excludes_seen(self.settings.ranking, has_repeats=has_repeats)
        return with_ones(seen) if excludes else None

    def fit(self, train: TablesDataset, valid: TablesDataset | None) -> None:
        """Fit the tables on the training part; settings and weights on the validation part."""
        data, user_texts = train.training_data(self.settings)
        self.item_texts, self._scorer = data.item_texts, None
        if self.settings.task == "ranking":
            self._fit_ranking(data, user_texts, train, valid)
        else:
            self._fit_values(data, user_texts, train, valid)
        if not self.newcomers.encoders:
            self.item_texts = ()

    def _fit_values(
        self,
        data: TrainingData,
        user_texts: tuple[str, ...],
        train: TablesDataset,
        valid: TablesDataset | None,
    ) -> None:
        labelled = valid and valid.labelled()
        shape = (data.n_users, data.n_items)
        task = ValueTask.of(self.settings.task, train.labelled(), labelled or None, shape)
        assert valid is not None
        validation = _validation(data, train, valid)
        self.blocks, self.report, self.newcomers, self.prediction = fit_values(
            data, validation, task, self.settings, self.run, user_texts=user_texts
        )

    def _fit_ranking(
        self,
        data: TrainingData,
        user_texts: tuple[str, ...],
        train: TablesDataset,
        valid: TablesDataset | None,
    ) -> None:
        metric = Metric.parse(self.valid_metric)
        validation = _validation(data, train, valid, metric.slice_name)
        if valid and validation is None and metric.slice_name:
            raise SettingsError(
                f"`valid_metric` is {metric}, but the validation part has no user for it; "
                "choose another one"
            )
        self.blocks, self.report, self.newcomers = fit_model(
            data, validation, self.settings, metric, self.run, user_texts=user_texts
        )

    def other_parameter(self) -> dict[str, Any]:
        """The tables as tensors: torch writes these as they stand, and arrays by way of copies."""
        blocks = [_tensors(vars(block)) for block in self.blocks]
        return {**super().other_parameter(), "blocks": blocks}

    def load_other_parameter(self, para: dict[str, Any] | None) -> None:
        """Take the tables from a checkpoint."""
        if para is not None:
            blocks = tuple(Factors(**_arrays(block)) for block in para["blocks"])
            super().load_other_parameter({**para, "blocks": blocks})
        self._scorer = None

    @property
    def scorer(self) -> Scorer:
        """The tables on the device."""
        if self._scorer is None:
            blocks = self.blocks
            if self._grown is not None:
                blocks = with_histories(self.newcomers, blocks, *self._grown)
            self._scorer = Scorer(blocks, self.device)
        return self._scorer

    def remember(self, grown: tuple[Index, History] | None) -> None:
        """Score by longer histories than training's; nothing is learned of them.

        Args:
            grown: users, ascending, and what they are known by; None: by training alone.
        """
        if grown is self._grown:
            return
        self._grown, self._scorer = grown, None
        self._had = self._seen
        if self._seen is not None and grown is not None:
            users, history = grown
            longer = (np.ones(len(users), np.float32), (users, np.arange(len(users))))
            rows = sp.csr_matrix(longer, shape=(self._seen.shape[0], len(users)))
            self._had = with_ones((self._seen + rows @ history.weights).tocsr())

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Zero: nothing is learned by gradients."""
        return self.no_gradient.sum() * 0.0

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores, chances or ratings of user-item pairs; zeros before fitting.

        RecBole counts FLOPs then.
        """
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        if not self.blocks:
            return torch.zeros(len(users), device=self.device)
        scores = self.scorer.pairs(users, items)
        if self.prediction is not None:
            found = self.prediction.values(scores.cpu().numpy(), users.cpu().numpy())
            return torch.from_numpy(found).to(self.device)
        if self._had is not None:
            # Copies: SciPy cannot index by arrays that share memory.
            has_had = self._had[np.array(users.cpu()), np.array(items.cpu())]
            scores -= LOWER * torch.from_numpy(np.asarray(has_had).ravel()).to(self.device)
        return scores

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores of users for all items, flat; RecBole writes into the tensor, so it is new.

        Those of items that are excluded (`exclude_seen`) are below all others.
        """
        users = interaction[self.USER_ID]
        scores = self.scorer.scores(users)
        if self._had is not None:
            lower(scores, self._had[users.cpu().numpy()])
        return scores.view(-1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scorer": None, "_grown": None, "_had": self._seen}


def _validation(
    data: TrainingData, train: TablesDataset, valid: TablesDataset | None, slice_name: str = ""
) -> Validation | None:
    """What the validation part judges by; None where it has nobody for it."""
    found = Validation.of(data.binary, valid.training_matrix(), slice_name) if valid else None
    if found is None or valid is None:
        return None
    return dataclasses.replace(found, is_later=valid.comes_after(train))


def _tensors(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: torch.from_numpy(part) if isinstance(part, np.ndarray) else part
        for name, part in parts.items()
    }


def _arrays(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: part.cpu().numpy() if isinstance(part, torch.Tensor) else part
        for name, part in parts.items()
    }
