"""RecBole's trainer for models that are fitted at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole.trainer import TraditionalTrainer

from recbole_llm.whole_file import whole_file


class TablesTrainer(TraditionalTrainer):
    """One epoch, in which the tables are fitted; saving and evaluating stay RecBole's."""

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As RecBole's, with the validation part at hand for tuning."""
        self._parts = (train_data._dataset, valid_data._dataset if valid_data else None)
        return super().fit(train_data, valid_data, *args, **kwargs)

    def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
        self.model.fit(*self._parts)
        return 0.0

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        target = kwargs.pop("saved_model_file", self.saved_model_file)
        with whole_file(Path(target)) as unfinished:
            super()._save_checkpoint(epoch, False, saved_model_file=unfinished, **kwargs)
        if verbose:
            self.logger.info(f"saved {target}")
