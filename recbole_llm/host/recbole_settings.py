"""RecBole's own settings, checked before its code takes them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_llm.errors import SettingsError, did_you_mean
from recbole_llm.host.config import given_settings
from recbole_llm.settings import read_section, section_keys, setting

# What mappings look like.
_MAPPINGS = {
    "load_col": "{inter: [user_id, item_id]}",
    "unload_col": "{inter: [rating]}",
    "val_interval": "{rating: '[3,inf)'}",
    "threshold": "{rating: 4}",
}
_EVAL_ARGS = ("split", "group_by", "order", "mode")


@dataclass(frozen=True)
class Numbers:
    """RecBole's numbers that decide how any model is trained; the defaults are its own."""

    seed: int = setting(2020, "Seed of all that is random.", at_least=0)
    epochs: int = setting(300, "Passes over the training rows.", at_least=0)
    train_batch_size: int = setting(2048, "Rows of a step.", at_least=1)
    eval_batch_size: int = setting(4096, "Scores that are evaluated at once.", at_least=1)
    learning_rate: float = setting(0.001, "Step of the optimizer.", above=0.0)
    weight_decay: float = setting(0.0, "L2 penalty of the optimizer.", at_least=0.0)
    eval_step: int = setting(1, "Epochs from one validation to the next; 0: none.", at_least=0)
    stopping_step: int = setting(10, "Validations without a better one that end it.", at_least=0)
    max_item_list_length: int = setting(
        50, "Items of a sequence.", key="MAX_ITEM_LIST_LENGTH", at_least=1
    )
    metric_decimal_place: int = setting(4, "Digits of a metric.", at_least=0)


def check_recbole_settings(config: Any) -> None:
    """Refuse values by which RecBole would fail later or do something else in silence.

    Args:
        config: RecBole's; numbers that were written as words are numbers in it afterwards.

    Raises:
        SettingsError: names the setting and what it takes.
    """
    given = given_settings(config)
    numbers = read_section(Numbers, given)
    for key in section_keys("recbole", Numbers):
        if key.name in given:
            config[key.name] = getattr(numbers, key.field)
    for name, example in _MAPPINGS.items():
        if config[name] is not None and not isinstance(config[name], Mapping):
            raise SettingsError(f"`{name}` must look like {example}, got {config[name]!r}")
    if not str(config["checkpoint_dir"]).strip():
        raise SettingsError("`checkpoint_dir` is empty; name a folder")
    _check_eval_args(config["eval_args"], given.get("eval_args"))


def _check_eval_args(args: Mapping[str, Any], given: Any) -> None:
    for key in given if isinstance(given, Mapping) else ():
        if key not in _EVAL_ARGS:
            hint = did_you_mean(key, _EVAL_ARGS) or f"; it takes {', '.join(_EVAL_ARGS)}"
            raise SettingsError(f"`eval_args` has no `{key}`{hint}")
    split = args["split"]
    if split is not None and not isinstance(split, Mapping):
        raise SettingsError(f"`eval_args`: `split` must look like {{RS: [8, 1, 1]}}, got {split!r}")
    shares = (split or {}).get("RS")
    if shares is not None and not _are_shares(shares):
        raise SettingsError(
            f"`eval_args`: `split: {{RS: {shares}}}` must have three shares, of training, "
            "validation and test, as in [0.8, 0.1, 0.1]"
        )


def _are_shares(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        and all(isinstance(value, int | float) and value >= 0 for value in values)
        and sum(values) > 0
    )
