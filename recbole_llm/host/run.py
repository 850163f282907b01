"""RecBole's run, with checks before it, one-line errors, and a record after it."""

from __future__ import annotations

import inspect
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.evaluator import Evaluator
from recbole.utils import get_model, get_trainer, init_logger, init_seed

from recbole_llm.errors import DataError, SettingsError, did_you_mean, one_line
from recbole_llm.fitting import FitReport
from recbole_llm.host.config import prepare, settings_in_force, test_history, versions
from recbole_llm.host.known_keys import model_names
from recbole_llm.host.recbole_settings import check_recbole_settings
from recbole_llm.text import parse_head
from recbole_llm.whole_file import whole_file


class UnroundedEvaluator(Evaluator):
    """RecBole's evaluator, which also keeps the metrics before they are rounded."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.results: list[tuple[dict[str, float], dict[str, float]]] = []
        self.places = config["metric_decimal_place"]
        for metric in self.metric_class.values():
            metric.decimal_place = 17

    def evaluate(self, dataobject: Any) -> Any:
        """Rounded as RecBole rounds; the rest is kept in ``results``."""
        unrounded = super().evaluate(dataobject)
        rounded = type(unrounded)((k, round(v, self.places)) for k, v in unrounded.items())
        self.results.append((dict(rounded), {k: float(v) for k, v in unrounded.items()}))
        return rounded

    def unrounded(self, rounded: Mapping[str, float] | None) -> dict[str, float]:
        """The last unrounded metrics that round to these; empty for none."""
        matches = [full for short, full in self.results if rounded and short == dict(rounded)]
        return matches[-1] if matches else {}


def run(
    model: str,
    dataset: str,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    *,
    tested: bool = True,
    after_epoch: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train and test a model, RecBole's or ours, as RecBole's ``run_recbole`` does.

    Args:
        model: its name.
        dataset: the data set's name; its folder's own YAML is read too, with the lowest rank.
        config_file_list: YAML files of settings.
        config_dict: settings; they rank above the files.
        saved: whether to keep a checkpoint, and test its tables.
        tested: whether to look at the test part.
        after_epoch: called with the epoch and its validation score; what it raises ends the run.

    Returns:
        RecBole's result, with ``record``: what ``result_file`` holds.

    Raises:
        SettingsError: a setting, model or file is not there or not allowed.
        DataError: the data cannot be used.
    """
    started = perf_counter()
    check_model(model)
    config = read_config(model, dataset, list(config_file_list or []), dict(config_dict or {}))
    begin(config)
    prepare(config, writes_record=True)
    result_file = config["result_file"] and Path(config["result_file"])
    if result_file:
        make_folder("result_file", result_file.parent)
    make_folder("checkpoint_dir", Path(config["checkpoint_dir"]))
    logger = getLogger()
    train, valid, test = load_parts(config)
    loaded = perf_counter()
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    recommender = get_model(config["model"])(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, recommender)
    trainer.evaluator = UnroundedEvaluator(config)
    show = config["show_progress"]
    # RecBole's trainer of decision trees has no epochs to look at.
    looks = "callback_fn" in inspect.signature(trainer.fit).parameters
    best_score, best_valid = trainer.fit(
        train,
        valid,
        saved=saved,
        show_progress=show,
        **({"callback_fn": after_epoch} if after_epoch and looks else {}),
    )
    fitted = perf_counter()
    result = None
    if tested:
        result = trainer.evaluate(test, load_best_model=saved, show_progress=show)
    ended = perf_counter()
    logger.info(f"best valid: {best_valid}")
    logger.info(f"test result: {result}")
    record = _record(
        config,
        getattr(recommender, "report", None) or FitReport(),
        valid=trainer.evaluator.unrounded(best_valid),
        test=trainer.evaluator.unrounded(result),
        load=loaded - started,
        fit=fitted - loaded,
        evaluate=ended - fitted,
        total=ended - started,
    )
    if result_file:
        with whole_file(result_file) as unfinished:
            unfinished.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        logger.info(f"record: {result_file}")
    return {
        "best_valid_score": best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid,
        "test_result": result,
        "record": record,
    }


def load_parts(config: Any) -> tuple[Any, Any, Any]:
    """RecBole's loaders of the three parts; what it cannot load is said in one line."""
    logger = getLogger()
    try:
        data = create_dataset(config)
        logger.info(data)
        train, valid, test = data_preparation(config, data)
    # All that its loading, filtering and splitting raise for data that it cannot use.
    except (ValueError, TypeError, LookupError, NotImplementedError, RuntimeError) as error:
        logger.debug("RecBole's own error:", exc_info=True)
        raise DataError(
            f"RecBole cannot use the data set {config['dataset']}: {one_line(error)}"
        ) from error
    for setting, part in (("validation", valid), ("test", test)):
        if part is None or not len(part._dataset):
            logger.warning(f"no {setting} rows: nothing is measured on them")
    return train, valid, test


def _record(
    config: Any,
    report: FitReport,
    *,
    valid: dict[str, float],
    test: dict[str, float],
    load: float,
    fit: float,
    **seconds: float,
) -> dict[str, Any]:
    """What ``result_file`` holds; a model without phases of its own counts as ``signals``."""
    phases = {"load": load, "encode": 0.0, "signals": fit, "tune": 0.0}
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "settings": settings_in_force(config),
        "test_history": test_history(config),
        "valid": valid,
        "test": test,
        "signals": report.signals,
        "signal_settings": report.settings,
        "weights": report.weights,
        "cold_weights": report.cold_weights,
        "cold_level": report.cold_level,
        "exposure": report.exposure,
        "new_users": report.new_users,
        "trials_per_second": report.trials_per_second,
        "seconds": phases | report.seconds | seconds,
        "texts": report.texts,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
        "versions": versions(),
    }


def check_model(model: str) -> None:
    """Refuse a model that neither RecBole nor this package has."""
    from recbole_llm.models import MODELS

    known = {*MODELS, *model_names().values()}
    if model not in known:
        raise SettingsError(f"unknown model `{model}`" + did_you_mean(model, sorted(known)))


def read_config(model: str, dataset: str, files: list[str], values: dict[str, Any]) -> Any:
    """RecBole's Config of a run, with the data set's own YAML; the command line is not read.

    Raises:
        SettingsError: RecBole refuses a setting, or a file of settings is not there.
        DataError: a file of interactions is not there, or its head line cannot be read.
    """
    for file in files:
        if not Path(file).is_file():
            raise SettingsError(f"`config_files`: there is no file {file}")
    try:
        # RecBole reads the command line by itself; what it says is in `values` already.
        arguments, sys.argv = sys.argv, sys.argv[:1]
        config = Config(model, dataset, files, values)
        own = Path(config["data_path"]) / f"{dataset}.yaml"
        if own.is_file():
            config = Config(model, dataset, [str(own), *files], values)
    except (
        ValueError,
        TypeError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        yaml.YAMLError,
    ) as error:
        raise SettingsError(one_line(error)) from error
    finally:
        sys.argv = arguments
    check_recbole_settings(config)
    folder = Path(config["data_path"])
    parts = config["benchmark_filename"]
    names = [f"{dataset}.{part}.inter" for part in parts] if parts else [f"{dataset}.inter"]
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"there is no file {folder / name}; check `dataset` and `data_path`")
        _check_head(folder / name, config["field_separator"], config["encoding"] or "utf-8")
    return config


def _check_head(file: Path, separator: str, encoding: str) -> None:
    try:
        with file.open(encoding=encoding, errors="replace") as lines:
            head = lines.readline().rstrip("\r\n")
    except LookupError as error:
        raise SettingsError(f"`encoding`: {error}") from error
    parse_head(file, head, separator)


def begin(config: Any) -> None:
    """Seed the run and open RecBole's log."""
    init_seed(config["seed"], config["reproducibility"])
    # RecBole's own way to make it fails where several processes start at once.
    make_folder("log", Path("log", config["model"]))
    init_logger(config)


def make_folder(setting: str, folder: Path) -> None:
    """Make the folder that a setting's files go to, before any work is done for them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"`{setting}`: cannot write {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"`{setting}`: cannot write {folder}")
