"""What our models need of RecBole's Config: checks, device, objective."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from logging import getLogger
from typing import Any

from recbole.evaluator import smaller_metrics
from recbole.utils import EvaluatorType, ModelType

from recbole_llm.cold_split import check_no_filters
from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import METRIC_NAMES
from recbole_llm.host.cold_evaluation import apply_cold_eval
from recbole_llm.host.known_keys import check_keys, listed_keys, recbole_keys
from recbole_llm.model_settings import model_keys
from recbole_llm.scoring import find_device
from recbole_llm.settings import HistorySettings, RankingSettings, TaskSettings, read_section
from recbole_llm.tower_network import VALUED, TowerShape

# Read by the host for every model; all else belongs to RecBole or to a model.
HOST_KEYS = frozenset({"result_file", "device", "cold_eval"})
# RecBole's metrics that have no cutoff.
_WHOLE = frozenset({"auc", "gauc", "logloss", "mae", "rmse"})
_PACKAGES = (
    "recbole_llm",
    "recbole",
    "torch",
    "numpy",
    "scipy",
    "implicit",
    "lightfm-next",
    "optuna",
)


def given_settings(config: Any) -> Mapping[str, Any]:
    """The keys that the user gave, from files, arguments and the command line."""
    return config.external_config_dict


@dataclass(frozen=True)
class Task:
    """What a model predicts.

    Attributes:
        name: ranking, clicks or ratings.
        setting: what says so, for people.
    """

    name: str
    setting: str

    @property
    def is_valued(self) -> bool:
        """Whether single pairs are measured, and not rankings."""
        return self.name != "ranking"


def task_of(config: Any) -> Task:
    """By the loss where a model is trained by one, else by `task`."""
    given, model = given_settings(config), config.model_class
    if hasattr(model, "host_defaults"):
        loss = read_section(TowerShape, given, "intent_tower_").loss
        return Task(VALUED.get(loss, "ranking"), f"`loss: {loss}`")
    if not hasattr(model, "signal_names"):
        return Task("ranking", "")
    task = read_section(TaskSettings, given).task
    return Task(task, f"`task: {task}`")


def prepare(config: Any, *, writes_record: bool = False) -> None:
    """Check the user's keys and put the device and the objective in force; once per Config.

    Args:
        config: RecBole's.
        writes_record: whether the run ends with the record that `result_file` asks for, which
            RecBole's own functions cannot write.

    Raises:
        SettingsError: a key is unknown, or the device is not there.
    """
    if config["recbole_llm_prepared"]:
        return
    given = given_settings(config)
    ours = hasattr(config.model_class, "setting_keys")
    known = listed_keys() | HOST_KEYS
    if ours:
        known |= {key.name for key in config.model_class.setting_keys()}
        # They describe the data, so a data set's own YAML gives them to every model.
        known |= {key.name for key in model_keys(None) if key.section in ("text", "history")}
    if not known >= given.keys():
        known |= recbole_keys(config.model_class)  # takes half a second
    for warning in check_keys(given, known, strict=ours, model=config["model"]):
        getLogger().warning(warning)
    if config["benchmark_filename"]:
        for warning in check_no_filters(given, strict=ours):
            getLogger().warning(warning)
    if "result_file" in given and not writes_record:
        getLogger().warning(
            "`result_file` is written by the run_recbole command and by recbole_llm.run, not by "
            "RecBole's own run_recbole function"
        )
    if "device" in given:
        config["device"] = find_device(str(given["device"]))
    if hasattr(config.model_class, "host_defaults"):
        for key, value in config.model_class.host_defaults.items():
            if key not in given:
                config[key] = value
        # Known to all models, since RecBole reads it wherever it is set.
        if "loss_type" in given:
            raise SettingsError("`loss_type` is for other models of RecBole; write `loss`")
        if not config["epochs"]:
            raise SettingsError("`epochs` must be at least 1, got 0: no epoch makes no tables")
    _set_task(config)
    if ours and "valid_metric" not in given and not task_of(config).is_valued:
        _set_objective(config)
    apply_cold_eval(config)
    metrics = {
        name
        for metric in map(str.lower, config["metrics"])
        for name in ([metric] if metric in _WHOLE else [f"{metric}@{k}" for k in config["topk"]])
    }
    if config["valid_metric"].lower() not in metrics:
        raise SettingsError(
            f"`valid_metric` is {config['valid_metric']}, but `metrics` and `topk` report only "
            f"{', '.join(sorted(metrics))}; set one of these as `valid_metric`"
        )
    config["recbole_llm_prepared"] = True


def test_history(config: Any) -> str:
    """By what a user is known when the test part is evaluated: `train` or `train_and_valid`.

    RecBole hands a general model the training part alone; a sequential one sees all that came
    before.
    """
    if not hasattr(config.model_class, "signal_names"):
        is_sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        return "train_and_valid" if is_sequential else "train"
    chosen = read_section(HistorySettings, given_settings(config)).test_history
    if chosen != "auto":
        return chosen
    split, order = config["eval_args"]["split"], config["eval_args"]["order"]
    # A fixed split of files is not RecBole's, whatever `eval_args` say.
    leaves_last_out = order == "TO" and "LS" in (split or {}) and not config["benchmark_filename"]
    return "train_and_valid" if leaves_last_out else "train"


def excludes_seen(settings: RankingSettings, *, has_repeats: bool) -> bool:
    """What `exclude_seen` means on some data; said in the log.

    Args:
        settings: the model's.
        has_repeats: whether a history of the training part has an item twice.
    """
    excludes = not has_repeats
    if settings.exclude_seen != "auto":
        excludes = settings.exclude_seen == "true"
    has = "histories have" if has_repeats else "no history has"
    getLogger().info(f"exclude_seen: {excludes}, {has} an item twice")
    return excludes


def settings_in_force(config: Any) -> dict[str, Any]:
    """All settings of a run, as JSON can hold them: of devices and enumerations the names."""
    return json.loads(json.dumps(config.final_config_dict, default=str))


def versions() -> dict[str, str]:
    """The versions of what a result depends on."""
    return {name: version(name) for name in _PACKAGES}


def _set_task(config: Any) -> None:
    """Where single values are learned, measure them, unless the user names metrics."""
    task = task_of(config)
    if not task.is_valued:
        return
    given = given_settings(config)
    names = ["AUC", "LogLoss"] if task.name == "clicks" else ["RMSE", "MAE"]
    if "metrics" not in given:
        config["metrics"], config["eval_type"] = names, EvaluatorType.VALUE
    if config["eval_type"] != EvaluatorType.VALUE:
        raise SettingsError(
            f"{task.setting} is measured by {', '.join(names)}, and `metrics` holds "
            f"{', '.join(config['metrics'])}; leave one of the two out"
        )
    if "valid_metric" not in given:
        config["valid_metric"] = config["metrics"][0]
        config["valid_metric_bigger"] = config["metrics"][0].lower() not in smaller_metrics
    config["eval_args"]["mode"] = {"valid": "labeled", "test": "labeled"}
    none = {"distribution": "none", "sample_num": "none"}
    config["valid_neg_sample_args"], config["test_neg_sample_args"] = none, dict(none)


def _set_objective(config: Any) -> None:
    ranking = [name for name in config["metrics"] if name.lower() in METRIC_NAMES]
    if not ranking:
        raise SettingsError(
            f"`metrics` holds {', '.join(config['metrics'])}, none of which this model can be "
            f"tuned on; add one of {', '.join(METRIC_NAMES)}"
        )
    name = "NDCG" if "ndcg" in map(str.lower, ranking) else ranking[0]
    cutoff = 10 if 10 in config["topk"] else config["topk"][0]
    config["valid_metric"] = f"{name}@{cutoff}"
    getLogger().info(f"valid_metric is not set: tuning on {config['valid_metric']}")
