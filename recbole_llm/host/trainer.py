"""RecBole's trainers for models that score by tables."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from time import perf_counter
from typing import Any

import numpy as np
from recbole.trainer import TraditionalTrainer, Trainer

from recbole_llm.errors import FitError, SettingsError, one_line
from recbole_llm.host.config import given_settings, settings_in_force, test_history, versions
from recbole_llm.saved_tables import SavedTables, tables_folder, write_tables
from recbole_llm.settings import read_section
from recbole_llm.text_network import FinetuneSettings
from recbole_llm.tower_training import TowerTraining
from recbole_llm.whole_file import whole_file

# Ending of the file that a run which is stopped goes on from, and of a tuned encoder's folder.
_LAST = ".last.pth"
_ENCODER = ".encoder"
# RecBole's keys whose place the tower's own ways take.
_UNREAD = ("learner", "clip_grad_norm", "enable_amp", "enable_scaler")


class _TablesKeeper(Trainer):
    """Writes the tables beside each checkpoint; saving and evaluating stay RecBole's."""

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As RecBole's, with the validation part at hand for tuning."""
        self._parts = (train_data._dataset, valid_data._dataset if valid_data else None)
        return super().fit(train_data, valid_data, *args, **kwargs)

    def evaluate(self, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
        """As RecBole's; at test time users are known by what `test_history` says."""
        if eval_data and eval_data._dataset.has_grown:
            known_by = test_history(self.config)
            self.logger.info(f"test_history: users are known by {known_by.replace('_', ' ')}")
            if known_by == "train_and_valid":
                self.model.remember(eval_data._dataset.grown_histories())
        try:
            return super().evaluate(eval_data, *args, **kwargs)
        finally:
            self.model.remember(None)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        target = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        with whole_file(target) as unfinished:
            super()._save_checkpoint(epoch, False, saved_model_file=unfinished, **kwargs)
        saved = [str(target)]
        if self.model.blocks:  # RecBole also saves before fitting, where `epochs` is 0
            folder = tables_folder(target)
            write_tables(folder, self._tables())
            saved.append(str(folder))
        if verbose:
            self.logger.info(f"saved {' and '.join(saved)}")

    def _tables(self) -> SavedTables:
        """The fitted model as it is served: RecBole's own checkpoint is a pickle."""
        train, report = self._parts[0], self.model.report
        known, age = train.known_pairs()
        return SavedTables(
            blocks=self.model.blocks,
            user_ids=tuple(map(str, train.field2id_token[train.uid_field])),
            item_ids=tuple(map(str, train.field2id_token[train.iid_field])),
            item_titles=train.item_titles(self.model.settings.text.item_text_fields),
            item_texts=self.model.item_texts,
            item_form=train.item_form(self.model.settings),
            known=known,
            age=age,
            newcomers=self.model.newcomers,
            facts={
                "model": self.config["model"],
                "dataset": self.config["dataset"],
                "seed": self.config["seed"],
                "settings": settings_in_force(self.config),
                "signal_settings": report.settings,
                "weights": report.weights,
                "versions": versions(),
            },
        )


class _NoOptimizer:
    """What a checkpoint keeps where no gradient is taken: nothing.

    torch's optimizers load its compiler, which takes longer than fitting a small model.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state; older checkpoints have that of an optimizer that never stepped."""


class TablesTrainer(_TablesKeeper, TraditionalTrainer):
    """One epoch, in which the tables are fitted."""

    def _build_optimizer(self, **kwargs: Any) -> _NoOptimizer:
        return _NoOptimizer()

    def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
        self.model.fit(*self._parts)
        return 0.0


class TowerTrainer(_TablesKeeper):
    """Epochs of a tower, after each of which its tables are made."""

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> Any:
        """As RecBole's; after each epoch a file says where a run that is stopped goes on.

        Raises:
            FitError: the loss is no number any more, or the memory is full; says what is kept.
        """
        given = given_settings(self.config)
        unread = [key for key in _UNREAD if given.get(key)]
        if unread:
            self.logger.warning(f"{self.config['model']} does not read {', '.join(unread)}")
        resume = read_section(FinetuneSettings, given, "finetune_").resume
        if resume is not None:
            self.resume_checkpoint(resume)
        best = Path(self.saved_model_file)
        last = best.with_suffix(_LAST)

        def after_epoch(epoch: int, score: float) -> None:
            # RecBole's own file alone: the tables beside the best one stay.
            with whole_file(last) as unfinished:
                Trainer._save_checkpoint(self, epoch, False, saved_model_file=unfinished)
            if callback_fn is not None:
                callback_fn(epoch, score)

        follow = after_epoch if saved else callback_fn
        try:
            found = super().fit(train_data, valid_data, verbose, saved, show_progress, follow)
        except FitError as error:
            if not (saved and best.is_file()):
                raise
            raise FitError(f"{error}; the best epoch before is kept in {best}") from error
        if saved:
            last.unlink(missing_ok=True)
        return found

    def resume_checkpoint(self, resume_file: Any) -> None:
        """As RecBole's, from a file of the last epoch; the best one's stays what it is.

        Raises:
            SettingsError: there is no such file, or it is of a run of other settings.
        """
        if not Path(resume_file).is_file():
            raise SettingsError(f"`resume`: there is no file {resume_file}")
        try:
            super().resume_checkpoint(resume_file)
        # What torch raises for a file of another kind, and for weights of another shape.
        except (RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
            raise SettingsError(
                f"`resume`: {resume_file} is no checkpoint of a run of these settings "
                f"({one_line(error)[:200]})"
            ) from error
        name = str(resume_file)
        self.saved_model_file = f"{name.removesuffix(_LAST).removesuffix('.pth')}.pth"
        tower = self.model.tower
        if tower.text is not None and self.start_epoch > tower.text.settings.head_epochs:
            tower.refresh()

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        target = Path(kwargs.get("saved_model_file", self.saved_model_file))
        self.model.save_encoder(target.absolute().with_suffix(_ENCODER))
        super()._save_checkpoint(epoch, verbose, **kwargs)

    def _build_optimizer(self, **kwargs: Any) -> Any:
        self._training = TowerTraining(
            self.model.tower,
            learning_rate=self.learning_rate,
            batch_size=self.config["train_batch_size"],
            seed=self.config["seed"],
            weight_decay=self.weight_decay,
        )
        return self._training.optimizer

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> float:
        rows = train_data._dataset.inter_feat
        items, start = rows[train_data._dataset.iid_field].numpy(), perf_counter()
        loss = self._training.run_epoch(
            epoch_idx, items, lambda step: self.model.calculate_loss(rows[step])
        )
        seconds = perf_counter() - start
        encoded = (
            f", {len(np.unique(items)) / seconds:,.0f} items" * self.model.tower.encoder_learns
        )
        self.logger.info(f"{len(rows) / seconds:,.0f} interactions{encoded} a second")
        self.model.make_tables()
        valid = self._parts[1]
        if self.model.signal.loss == "bce" and valid is not None and len(valid):
            before, after = self.model.calibrate(valid)
            self.logger.info(
                f"calibration error on the validation part: {before:.4f}, calibrated {after:.4f}"
            )
        return loss
