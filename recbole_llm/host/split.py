"""``recbole-llm split``: RecBole loads and filters the data set, its own lines are dealt out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from recbole.data.dataset import Dataset
from recbole.utils import dataset_arguments

from recbole_llm.cold_split import (
    FILTERS,
    Source,
    SplitOptions,
    check_options,
    filters_in,
    write_split,
)
from recbole_llm.errors import DataError, SettingsError, one_line
from recbole_llm.host.config import HOST_KEYS, given_settings
from recbole_llm.host.known_keys import check_keys, properties_folder, recbole_keys
from recbole_llm.host.run import read_config
from recbole_llm.model_settings import model_keys

# Any model will do: no more than the data set is loaded.
_MODEL = "Pop"
# These say where the source is and how it is split; the split has its own.
_PLACE = frozenset({"dataset", "data_path", "benchmark_filename"})


def run(args: argparse.Namespace) -> int:
    """Runs ``recbole-llm split`` and prints its report.

    Args:
        args: what `cold_split.add_arguments`'s parser made, and ``settings``: RecBole's settings
            as a mapping.

    Returns:
        The exit code. Errors that a user can mend are raised: the command prints them.
    """
    names = SplitOptions.__dataclass_fields__
    options = SplitOptions(**{name: getattr(args, name) for name in names})
    place = {"data_path": args.data_path} if args.data_path else {}
    for line in split(options, {**args.settings, **place}):
        print(line)  # noqa: T201 - the report is this command's output
    return 0


def split(options: SplitOptions, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Makes a cold split of a data set after RecBole's filters.

    Args:
        options: what and how.
        settings: the user's settings, RecBole's own ``data_path`` and ``config_files`` (names with
            blanks between them) included.

    Returns:
        The report for people.

    Raises:
        SettingsError: a setting is unknown or not allowed, or the split exists.
        DataError: the data cannot be read, split or written.
    """
    check_options(options)
    return write_split(options, load_source(options.dataset, settings))


def load_source(dataset: str, settings: Mapping[str, Any]) -> Source:
    """Loads a data set and applies its filters and the user's, as RecBole does for a run.

    Args:
        dataset: its name.
        settings: as for `split`.

    Returns:
        What is left, by the number of each interaction in the file.

    Raises:
        SettingsError: a setting is unknown or not allowed.
        DataError: RecBole cannot load the data, or the filters leave nothing.
    """
    values = dict(settings)
    files = values.pop("config_files", "").split()
    known = _data_keys()
    check_keys(values, known | _PLACE, strict=True)
    config = read_config(_MODEL, dataset, files, values)
    # Files of settings may serve a model too; what is near a known name is a slip all the same.
    ours = {key.name for key in model_keys(None)}
    check_keys(
        given_settings(config), known | recbole_keys(_MODEL) | HOST_KEYS | ours, strict=False
    )
    if config["benchmark_filename"]:
        raise SettingsError(f"{dataset} is split already: its `benchmark_filename` is set")
    try:
        data = _FilteredDataset(config)
    except (ValueError, TypeError, AttributeError, LookupError, OSError) as error:
        raise DataError(f"{dataset}: RecBole cannot load it: {one_line(error)}") from error
    feat = data.inter_feat
    timed = data.time_field in feat
    return Source(
        files=_files(Path(config["data_path"]), dataset, config["additional_feat_suffix"] or []),
        n_rows=data.n_rows,
        rows=data.rows,
        users=feat[data.uid_field].to_numpy(dtype=object),
        items=feat[data.iid_field].to_numpy(dtype=object),
        # What is no number is found where times are asked for.
        times=pd.to_numeric(feat[data.time_field], errors="coerce").to_numpy(dtype=np.float64)
        if timed
        else None,
        time_field=data.time_field,
        encoding=config["encoding"] or "utf-8",
        field_separator=config["field_separator"],
        settings=_own_settings(config, dataset, known),
        filters=_filters_in_force(data),
    )


class _FilteredDataset(Dataset):
    """RecBole's data set up to its filters: ids are words still, numbers are the file's.

    Attributes:
        n_rows: interactions before the filters.
        rows: int64 (n_left,), which of them are left, ascending, as ``inter_feat`` holds them.
    """

    n_rows: int
    rows: NDArray[np.int64]

    def _data_processing(self) -> None:
        for setting, field in (
            ("USER_ID_FIELD", self.uid_field),
            ("ITEM_ID_FIELD", self.iid_field),
        ):
            if field not in self.inter_feat:
                raise SettingsError(
                    f"`{setting}`: {self.dataset_name}.inter has no field `{field}` that is "
                    f"loaded; loaded are: {', '.join(self.inter_feat)}"
                )
        self.n_rows = len(self.inter_feat)
        self.feat_name_list = self._build_feat_name_list()
        self._data_filtering()

    def _reset_index(self) -> None:
        # Last look at the file's numbering; removing repeats has sorted the rows by time.
        self.inter_feat.sort_index(inplace=True)
        self.rows = self.inter_feat.index.to_numpy(dtype=np.int64)
        super()._reset_index()

    def _parse_intervals_str(self, intervals_str: Any) -> Any:
        intervals = super()._parse_intervals_str(intervals_str)
        # RecBole warns, and then takes everything.
        if intervals is not None and len(intervals) != str(intervals_str).count(";") + 1:
            raise SettingsError(f"`{intervals_str}` is no interval; write it like [5,inf)")
        return intervals


def _filters_in_force(data: Dataset) -> dict[str, Any]:
    filters = filters_in(data.config.final_config_dict)
    if data.user_feat is None and data.item_feat is None:
        # On by default, and without their features there is nothing to compare with.
        filters.pop("filter_inter_by_user_or_item", None)
    return filters


def _files(folder: Path, dataset: str, additional: list[str]) -> dict[str, Path]:
    files = {
        suffix: folder / f"{dataset}.{suffix}" for suffix in ("inter", "item", "user", *additional)
    }
    return {suffix: file for suffix, file in files.items() if file.is_file()}


def _data_keys() -> frozenset[str]:
    """The settings that say what the files hold, not what is learned from them."""
    ours = {key.name for key in model_keys(None) if key.section in ("text", "history")}
    defaults = _yaml(properties_folder() / "dataset" / "sample.yaml")
    return frozenset({*dataset_arguments, *defaults, *ours, "encoding"})


def _own_settings(config: Any, dataset: str, data_keys: frozenset[str]) -> dict[str, Any]:
    """What the split needs of the source's settings: RecBole's bundled, its own, the user's."""
    folder = properties_folder() / "dataset"
    defaults = _yaml(folder / "sample.yaml")
    bundled = {
        key: value
        for key, value in _yaml(folder / f"{dataset}.yaml").items()
        if defaults.get(key) != value
    }
    own = _yaml(Path(config["data_path"]) / f"{dataset}.yaml")
    given = {
        key: value
        for key, value in given_settings(config).items()
        if key in own or key in data_keys
    }
    dropped = _PLACE | set(FILTERS)
    return {key: value for key, value in (bundled | given).items() if key not in dropped}


def _yaml(file: Path) -> dict[str, Any]:
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
