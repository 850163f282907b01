"""RecBole's run, with checks before it, one-line errors, and a record after it."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.evaluator import Evaluator
from recbole.utils import get_model, get_trainer, init_logger, init_seed

from recbole_llm.errors import DataError, SettingsError, did_you_mean
from recbole_llm.host.config import prepare
from recbole_llm.host.known_keys import model_names

_VERSIONS = (
    "recbole_llm",
    "recbole",
    "torch",
    "numpy",
    "scipy",
    "implicit",
    "lightfm-next",
    "optuna",
)


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
) -> dict[str, Any]:
    """Train and test a model, RecBole's or ours, as RecBole's ``run_recbole`` does.

    Args:
        model: its name.
        dataset: the data set's name; its folder's own YAML is read too, with the lowest rank.
        config_file_list: YAML files of settings.
        config_dict: settings; they rank above the files.
        saved: whether to keep a checkpoint, and test its tables.

    Returns:
        RecBole's result, with ``record``: what ``result_file`` holds.

    Raises:
        SettingsError: a setting, model or file is not there or not allowed.
        DataError: the data cannot be used.
    """
    started = perf_counter()
    _check_model(model)
    config = _config(model, dataset, list(config_file_list or []), dict(config_dict or {}))
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    prepare(config)
    result_file = _writable(config["result_file"])
    _check_folder(config["checkpoint_dir"])
    logger = getLogger()
    data = create_dataset(config)
    logger.info(data)
    train, valid, test = data_preparation(config, data)
    loaded = perf_counter()
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    recommender = get_model(config["model"])(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, recommender)
    trainer.evaluator = UnroundedEvaluator(config)
    show = config["show_progress"]
    best_score, best_valid = trainer.fit(train, valid, saved=saved, show_progress=show)
    fitted = perf_counter()
    tested = trainer.evaluate(test, load_best_model=saved, show_progress=show)
    ended = perf_counter()
    logger.info(f"best valid: {best_valid}")
    logger.info(f"test result: {tested}")
    report = getattr(recommender, "report", None)
    seconds = {"load": loaded - started, "encode": 0.0, "signals": fitted - loaded, "tune": 0.0}
    if report is not None:
        seconds |= report.seconds
    seconds |= {"evaluate": ended - fitted, "total": ended - started}
    record = {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "settings": {key: _plain(value) for key, value in config.final_config_dict.items()},
        "valid": trainer.evaluator.unrounded(best_valid),
        "test": trainer.evaluator.unrounded(tested),
        "signals": report.signals if report else {},
        "signal_settings": report.settings if report else {},
        "weights": report.weights if report else {},
        "trials_per_second": report.trials_per_second if report else None,
        "seconds": seconds,
        "texts": report.texts if report else {"encoded": 0, "cached": 0},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
        "versions": {name: version(name) for name in _VERSIONS},
    }
    if result_file is not None:
        unfinished = result_file.with_name(f"{result_file.name}.{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        os.replace(unfinished, result_file)
        logger.info(f"record: {result_file}")
    return {
        "best_valid_score": best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid,
        "test_result": tested,
        "record": record,
    }


def _check_model(model: str) -> None:
    from recbole_llm.models import MODELS

    known = {*MODELS, *model_names().values()}
    if model not in known:
        raise SettingsError(f"unknown model `{model}`" + did_you_mean(model, sorted(known)))


def _config(model: str, dataset: str, files: list[str], values: dict[str, Any]) -> Any:
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
        raise SettingsError(" ".join(str(error).split())) from error
    finally:
        sys.argv = arguments
    folder = Path(config["data_path"])
    parts = config["benchmark_filename"]
    names = [f"{dataset}.{part}.inter" for part in parts] if parts else [f"{dataset}.inter"]
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"there is no file {folder / name}; check `dataset` and `data_path`")
    return config


def _check_folder(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"`checkpoint_dir`: cannot write {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"`checkpoint_dir`: cannot write {folder}")


def _writable(path: str | None) -> Path | None:
    if path is None:
        return None
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"`result_file`: cannot write {path}: {error.strerror}") from error
    return target


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
