"""RecBole's Dataset with what its processing loses: raw weights and times, and the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_llm.attributes import AttributeCode, attribute_codes, attributes_of
from recbole_llm.errors import DataError, SettingsError, did_you_mean
from recbole_llm.factors import Index
from recbole_llm.host.config import given_settings, prepare, task_of
from recbole_llm.item_form import ItemForm
from recbole_llm.model_settings import ModelSettings
from recbole_llm.settings import HistorySettings, read_section
from recbole_llm.text import (
    FeatureTable,
    compose,
    read_feature_table,
    text_fields,
    title_field,
    values_of,
)
from recbole_llm.training_data import History, TrainingData, entries, interaction_matrix
from recbole_llm.values import Labelled

# Numbers the rows of the data set, so that a split finds its raw values again. A token field:
# RecBole keeps those as int64, and float32 would lose count at 16.8 million.
_ROW = "recbole_llm_row"
# Scores of a batch of users in full ranking: 64 MB.
_BATCH_SCORES = 1 << 24
# Read as the order where there is no time field.
_POSITION = "position"
# A few users' clocks may be wrong; in a random split few users have their validation rows last.
_NEARLY_ALL = 0.9


class TablesDataset(Dataset):
    """The data set of our models.

    Where clicks or ratings are predicted, a rating is what an interaction counts, and the column
    that RecBole's metrics compare with: on the data's own scale, which RecBole may have changed.

    Attributes:
        raw_weights: float64 (n_rows,), what each interaction counts, from the file's own values.
        raw_times: float64 (n_rows,), or None without an order.
        earlier: the parts that come before this one: none for training, training for validation,
            both for test.
    """

    earlier: tuple[TablesDataset, ...] = ()

    def __init__(self, config: Any) -> None:
        prepare(config)
        self.history = read_section(HistorySettings, given_settings(config))
        self.task = task_of(config)
        if self.task.is_valued:
            _draw_nothing(config)
        if self.task.name == "ratings":
            config["LABEL_FIELD"] = config["RATING_FIELD"]
        super().__init__(config)
        if max(config["topk"]) >= self.item_num:
            raise SettingsError(
                f"`topk` is {max(config['topk'])}, but the data set has {self.item_num - 1} items"
            )
        if "eval_batch_size" not in given_settings(config):
            # RecBole divides it by the number of items: its default ranks two users at a time.
            users = max(1, _BATCH_SCORES // self.item_num)
            config["eval_batch_size"] = users * self.item_num

    def _load_data(self, token: str, dataset_path: str) -> None:
        load = self.config["load_col"]
        fields = [self.history.interaction_weight_field, self.history.order_field]
        if self._is_ordered:
            fields += [self.config["TIME_FIELD"], _POSITION]
        for field in fields:
            if field and load and "inter" in load and field not in load["inter"]:
                load["inter"] = [*load["inter"], field]
        super()._load_data(token, dataset_path)
        # What RecBole sorts by where `eval_args` have `order: TO`, and before it removes repeats.
        self.time_field = self._order_field()
        self._file_rows = np.arange(len(self.inter_feat))

    def _order_field(self) -> str:
        """The field that says in which order a user's interactions came; it may be missing.

        Raises:
            SettingsError: the field that the user named is missing or holds words, or there is
                none and an order is needed.
        """
        field = self.history.order_field
        if field is None:
            if self.time_field in self.inter_feat:
                return self.time_field
            if self._is_number(_POSITION):
                return _POSITION
            if self._is_ordered:
                raise SettingsError(
                    f"{self.dataset_name}.inter has no field `{self.time_field}` (`TIME_FIELD`) to "
                    "order the interactions by; name the one that it has by `order_field`"
                )
            return self.time_field
        if field not in self.inter_feat:
            raise self._no_field("order_field", field)
        if not self._is_number(field):
            raise SettingsError(
                f"`order_field`: `{field}` holds words; name a field of numbers, such as a time"
            )
        return field

    @property
    def _is_ordered(self) -> bool:
        """Whether an order is needed."""
        return bool(self.config["eval_args"]["order"] == "TO")

    def _is_number(self, field: str) -> bool:
        return field in self.inter_feat and self.field2type[field] == FeatureType.FLOAT

    def _no_field(self, setting: str, field: str) -> SettingsError:
        fields = [name for name in self.inter_feat if name != _ROW]
        return SettingsError(
            f"`{setting}`: {self.dataset_name}.inter has no field `{field}`; it has: "
            f"{', '.join(fields)}" + did_you_mean(field, fields)
        )

    def _reset_index(self) -> None:
        # Last look at the file's numbering; removing repeats has sorted the rows by time.
        self._file_rows = self.inter_feat.index.to_numpy()
        super()._reset_index()

    def _fill_nan(self) -> None:
        # Before RecBole fills NaN with the mean and scales every float to 0..1.
        self.raw_weights = self._weights(self.history)
        self.raw_times = None
        if self.time_field in self.inter_feat:
            self.raw_times = self._checked(self.time_field)
            # RecBole sorts by float32, in which Unix seconds are rounded and ranks are not.
            order = np.lexsort((self._file_rows, self.raw_times))
            self.inter_feat[self.time_field] = np.argsort(order).astype(np.float64)
        if self.config["RATING_FIELD"] in self.inter_feat:
            self._raw_ratings = self._checked(self.config["RATING_FIELD"])
        self.inter_feat[_ROW] = np.arange(len(self.inter_feat))
        self.field2type[_ROW] = FeatureType.TOKEN
        self.field2source[_ROW] = FeatureSource.INTERACTION
        self.field2seqlen[_ROW] = 1
        super()._fill_nan()

    def _checked(self, field: str) -> NDArray[np.float64]:
        values = self.inter_feat[field].to_numpy(dtype=np.float64)
        bad = ~np.isfinite(values)
        if bad.any():
            raise DataError(
                f"{self.dataset_name}.inter: `{field}` is no number in {bad.sum():,} rows, the "
                f"first is row {int(np.flatnonzero(bad)[0]) + 1}; mend or drop them"
            )
        return values

    def _normalize(self) -> None:
        if self.task.is_valued and self.label_field not in self.inter_feat:
            is_rating = self.task.name == "ratings"
            what = "RATING_FIELD" if is_rating else "`threshold` (rating: 4, say) or LABEL_FIELD"
            raise SettingsError(
                f"{self.task.setting} needs {'ratings' if is_rating else 'clicks, 0 or 1'}: "
                f"{self.dataset_name}.inter has no field `{self.label_field}` loaded; set {what}, "
                "and `load_col`"
            )
        if self.task.name == "clicks" and not self.inter_feat[self.label_field].isin((0, 1)).all():
            raise SettingsError(
                f"{self.task.setting} learns clicks, 0 or 1, and `{self.label_field}` holds other "
                "values; set `threshold` (rating: 4, say), or learn ratings"
            )
        super()._normalize()
        if self.task.name == "ratings":
            self.inter_feat[self.label_field] = self._raw_ratings

    def labelled(self) -> Labelled:
        """The clicks or ratings of this part."""
        feat = self.inter_feat
        columns = (feat[field] for field in (self.uid_field, self.iid_field, self.label_field))
        users, items, values = (column.numpy() for column in columns)
        return Labelled(users, items, values.astype(np.float64))

    def _weights(self, settings: HistorySettings) -> NDArray[np.float64]:
        field = settings.interaction_weight_field
        if field is None:
            if settings.behaviour_weights:
                raise SettingsError("`behaviour_weights` needs `interaction_weight_field`")
            rating = self.config["RATING_FIELD"]
            if self.task.is_valued and rating in self.inter_feat:
                return self._weights(replace(settings, interaction_weight_field=rating))
            if self.task.name == "clicks" and self.label_field in self.inter_feat:
                return 1 + self._checked(self.label_field)
            return np.ones(len(self.inter_feat))
        if field not in self.inter_feat:
            raise self._no_field("interaction_weight_field", field)
        if settings.behaviour_weights is not None:
            return self._behaviour_weights(field, settings)
        if self.field2type[field] != FeatureType.FLOAT:
            raise SettingsError(
                f"`interaction_weight_field`: `{field}` holds words; say what each counts with "
                "`behaviour_weights`"
            )
        values = self._checked(field)
        if (values < 0).any():
            raise DataError(
                f"{self.dataset_name}.inter: `{field}` is negative in {(values < 0).sum():,} "
                "rows; an interaction cannot count less than nothing"
            )
        return values

    def _behaviour_weights(self, field: str, settings: HistorySettings) -> NDArray[np.float64]:
        assert settings.behaviour_weights is not None
        words = self.inter_feat[field]
        if self.field2type[field] == FeatureType.TOKEN:
            words = self.field2id_token[field][words.to_numpy()]
        unknown = sorted({str(word) for word in words} - set(settings.behaviour_weights))
        if unknown:
            raise SettingsError(
                f"`behaviour_weights` has no weight for: {', '.join(unknown[:5])}; "
                f"field `{field}` holds them"
            )
        return np.array([settings.behaviour_weights[str(word)] for word in words])

    def build(self) -> list[TablesDataset]:
        """RecBole's parts, each with those before it."""
        parts = super().build()
        for number, part in enumerate(parts):
            part.earlier = tuple(parts[:number])
        return parts

    def comes_after(self, known: TablesDataset) -> bool:
        """Whether nearly all users with rows in both parts have those of this one later."""
        if self.raw_times is None:
            return False
        last, first = np.full(self.user_num, -np.inf), np.full(self.user_num, np.inf)
        for part, times, bound in ((known, last, np.maximum), (self, first, np.minimum)):
            feat = part.inter_feat
            bound.at(times, feat[part.uid_field].numpy(), self.raw_times[feat[_ROW].numpy()])
        in_both = np.isfinite(last) & np.isfinite(first)
        return bool(in_both.any() and (first >= last)[in_both].mean() > _NEARLY_ALL)

    def training_matrix(self) -> sp.csr_matrix:
        """The interactions of this part, CSR float32 (n_users, n_items)."""
        return self._matrix()[0]

    def pairs(self) -> sp.csr_matrix:
        """How often each pair of this part occurs, whatever it counts, CSR float32."""
        feat = self.inter_feat
        users, items = feat[self.uid_field].numpy(), feat[self.iid_field].numpy()
        ones = np.ones(len(users), dtype=np.float32)
        return interaction_matrix(users, items, ones, (self.user_num, self.item_num))[0]

    def known_pairs(self) -> tuple[sp.csr_matrix, NDArray[np.int32] | None]:
        """What each pair of this part counts, 1 in the mean, 0s kept, CSR float32; and its age.

        What counts nothing has age 0.
        """
        pairs = self.pairs()
        weights, ages = self._matrix()
        pairs.data = np.asarray(weights[entries(pairs)], dtype=np.float32).ravel()
        if weights.nnz:
            pairs.data /= weights.data.mean(dtype=np.float64).astype(np.float32)
        if ages is None:
            return pairs, None
        age = np.zeros(pairs.nnz, dtype=np.int32)
        age[pairs.data > 0] = ages
        return pairs, age

    @property
    def has_grown(self) -> bool:
        """Whether more is known before this part than training; so before test alone."""
        return any(len(part) for part in self.earlier[1:])

    def grown_histories(self) -> tuple[Index, History] | None:
        """Users who are known better before this part than by training, and all they are known by.

        None where nobody is.
        """
        if not self.has_grown:
            return None
        matrix, age = self._matrix(self.earlier)
        weights = self.earlier[0].training_matrix().data
        if len(weights):  # 1 stays what counts as much as the mean of training
            matrix.data = matrix.data / weights.mean(dtype=np.float64).astype(np.float32)
        users = np.unique(_column(self.earlier[1:], self.uid_field))
        return users, History(matrix, age)[users]

    def _matrix(
        self, parts: Sequence[TablesDataset] = ()
    ) -> tuple[sp.csr_matrix, NDArray[np.int32] | None]:
        """This part's interactions, or several parts', and their ages."""
        parts = parts or (self,)
        rows = _column(parts, _ROW)
        return interaction_matrix(
            _column(parts, self.uid_field),
            _column(parts, self.iid_field),
            self.raw_weights[rows].astype(np.float32),
            (self.user_num, self.item_num),
            None if self.raw_times is None else self.raw_times[rows],
        )

    def training_data(self, settings: ModelSettings) -> tuple[TrainingData, tuple[str, ...]]:
        """This part as plain arrays, and the users' own texts (n_users, or none)."""
        matrix, age = self._matrix()
        texts: tuple[str, ...] = ()
        attributes: sp.csr_matrix | None = None
        user_texts: tuple[str, ...] = ()
        if settings.uses_text:
            table = self._feature_file("item", self.iid_field)
            texts = self._texts_of(table, settings.text.item_text_fields)
            user_texts = self._user_texts(settings)
            if settings.uses_attributes:
                attributes = self._attributes_of(table, settings.text.item_attribute_fields)
        return TrainingData(matrix, age, texts, attributes), user_texts

    def _feature_file(self, suffix: str, field: str) -> FeatureTable | None:
        path = Path(self.dataset_path) / f"{self.dataset_name}.{suffix}"
        if not path.is_file():
            return None
        return read_feature_table(
            path,
            id_field=field,
            field_separator=self.config["field_separator"],
            encoding=self.config["encoding"] or "utf-8",
        )

    def item_texts(self, fields: Sequence[str] | None) -> tuple[str, ...]:
        """The items' texts, n_items, or none at all.

        Args:
            fields: those that make the text; None: every text-like one.
        """
        return self._texts_of(self._feature_file("item", self.iid_field), fields)

    def _texts_of(
        self, table: FeatureTable | None, fields: Sequence[str] | None
    ) -> tuple[str, ...]:
        if table is None:
            self.logger.warning(
                f"no file {self.dataset_name}.item in {self.dataset_path}: no item has a text"
            )
            return ()
        chosen = _fields_of_texts(table, fields)
        ids = self.field2id_token[self.iid_field]
        self.logger.info(f"item text fields: {', '.join(chosen) or 'none is text-like'}")
        return tuple(compose(table, chosen, ids))

    def _attributes_of(
        self, table: FeatureTable | None, fields: Sequence[str] | None
    ) -> sp.csr_matrix | None:
        """The items' categories and numbers as unit rows, (n_items, d)."""
        if table is None:
            if fields:
                raise SettingsError(
                    f"`item_attribute_fields` is set, but there is no file {self.dataset_name}.item"
                )
            return None
        ids = self.field2id_token[self.iid_field]
        codes = attribute_codes(table, fields, ids)
        if codes:
            self.logger.info(f"item attributes: {', '.join(code.field for code in codes)}")
        return attributes_of(table, codes, ids)

    def item_form(self, settings: ModelSettings) -> ItemForm:
        """What a model with these settings reads of a new item's fields."""
        table = self._feature_file("item", self.iid_field) if settings.uses_text else None
        if table is None:
            return ItemForm(self.iid_field)
        codes: tuple[AttributeCode, ...] = ()
        if settings.uses_attributes:
            ids = self.field2id_token[self.iid_field]
            codes = attribute_codes(table, settings.text.item_attribute_fields, ids)
        texts = _fields_of_texts(table, settings.text.item_text_fields)
        return ItemForm(self.iid_field, texts, codes)

    def item_fields(self, fields: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
        """What :meth:`item_texts` are made of: field -> n_items values, "" where there is none."""
        table = self._feature_file("item", self.iid_field)
        if table is None:
            return {}
        chosen = _fields_of_texts(table, fields)
        rows = values_of(table, chosen, self.field2id_token[self.iid_field])
        return {
            field: tuple(row[number] if row else "" for row in rows)
            for number, field in enumerate(chosen)
        }

    def item_titles(self, wished: Sequence[str] | None) -> tuple[str, ...]:
        """A title of each item for people, n_items, "" where there is none.

        Args:
            wished: the fields that make an item's text; None: every text-like one. The title is
                the one of them that is called so, else the first.
        """
        ids = self.field2id_token[self.iid_field]
        try:
            table = self._feature_file("item", self.iid_field)
        except DataError as error:
            # A model that reads no text has been fitted without this file.
            self.logger.warning(f"no titles: {error}")
            table = None
        fields = (
            [] if table is None else [f for f in wished or text_fields(table) if f in table.columns]
        )
        if table is None or not fields:
            return ("",) * len(ids)
        return tuple(compose(table, [title_field(fields)], ids))

    def _user_texts(self, settings: ModelSettings) -> tuple[str, ...]:
        fields = settings.text.user_text_fields
        if not fields:
            return ()
        table = self._feature_file("user", self.uid_field)
        if table is None:
            raise SettingsError(
                f"`user_text_fields` is set, but there is no file {self.dataset_name}.user"
            )
        ids = self.field2id_token[self.uid_field]
        return tuple(compose(table, fields, ids, setting="user_text_fields"))


def _fields_of_texts(table: FeatureTable, wished: Sequence[str] | None) -> tuple[str, ...]:
    """The fields that make an item's text: those wished for, else every text-like one."""
    return text_fields(table) if wished is None else tuple(wished)


def _column(parts: Sequence[TablesDataset], field: str) -> Index:
    """A field of whole numbers of all interactions of some parts."""
    return np.concatenate([part.inter_feat[field].numpy() for part in parts])


def _draw_nothing(config: Any) -> None:
    """Let RecBole draw no negatives: the models know against what they rank by themselves."""
    none = {"distribution": "none", "sample_num": "none", "alpha": "none"}
    config["train_neg_sample_args"] = {**none, "dynamic": False, "candidate_num": 0}


class TowersDataset(TablesDataset):
    """The data set of models that are trained on the interactions as they are."""

    def __init__(self, config: Any) -> None:
        _draw_nothing(config)
        super().__init__(config)


class SequencesDataset(TablesDataset, SequentialDataset):
    """The data set of our sequential models: RecBole's, in the order of the file's own times."""

    def __init__(self, config: Any) -> None:
        _draw_nothing(config)
        super().__init__(config)
        if "eval_batch_size" not in given_settings(config):
            # Here it counts users.
            config["eval_batch_size"] = max(1, _BATCH_SCORES // self.item_num)

    @property
    def _is_ordered(self) -> bool:
        return True

    def _change_feat_format(self) -> None:
        # RecBole keeps a history of every column beside each row; this one nobody reads.
        self._del_col(self.inter_feat, _ROW)
        super()._change_feat_format()
