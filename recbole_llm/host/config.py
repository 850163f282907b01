"""What our models need of RecBole's Config: checks, device, objective."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import Any

import torch

from recbole_llm.errors import SettingsError
from recbole_llm.host.known_keys import check_keys, recbole_keys
from recbole_llm.model_settings import model_keys

# Read by the host for every model; all else belongs to RecBole or to a model.
HOST_KEYS = frozenset({"result_file", "device"})


def given_settings(config: Any) -> Mapping[str, Any]:
    """The keys that the user gave, from files, arguments and the command line."""
    return config.external_config_dict


def prepare(config: Any) -> None:
    """Check the user's keys and put the device and the objective in force; once per Config.

    Raises:
        SettingsError: a key is unknown, or the device is not there.
    """
    if config["recbole_llm_prepared"]:
        return
    given = given_settings(config)
    ours = hasattr(config.model_class, "signal_names")
    known = recbole_keys(config.model_class) | HOST_KEYS
    if ours:
        known |= {key.name for key in model_keys(config.model_class.signal_names)}
    for warning in check_keys(given, known, strict=ours, model=config["model"]):
        getLogger().warning(warning)
    if "device" in given:
        config["device"] = _device(str(given["device"]))
    if ours and "valid_metric" not in given:
        _set_objective(config)
    metrics = {f"{m.lower()}@{k}" for m in config["metrics"] for k in config["topk"]}
    if config["valid_metric"].lower() not in metrics and "@" in config["valid_metric"]:
        raise SettingsError(
            f"`valid_metric` is {config['valid_metric']}, but `metrics` and `topk` report only "
            f"{', '.join(sorted(metrics))}; set one of these as `valid_metric`"
        )
    config["recbole_llm_prepared"] = True


def _device(name: str) -> torch.device:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.partition(":")[0]
    if kind not in available:
        raise SettingsError(f"`device` must be auto, cpu, cuda or mps, got {name!r}")
    if not available[kind]:
        raise SettingsError(f"`device` is {name}, which this machine does not have; use auto")
    return torch.device(name)


def _set_objective(config: Any) -> None:
    names = [name.lower() for name in config["metrics"]]
    name = "NDCG" if "ndcg" in names else config["metrics"][0]
    cutoff = 10 if 10 in config["topk"] else config["topk"][0]
    config["valid_metric"] = f"{name}@{cutoff}"
    getLogger().info(f"valid_metric is not set: tuning on {config['valid_metric']}")
