"""Search spaces: what a study may change, as typed data.

A model's space is collected from the ``search`` ranges that stand beside the settings themselves;
a file of the user's changes it, in YAML or in the syntax of RecBole's ``hyper.test``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from recbole_llm.errors import SettingsError, did_you_mean, one_line
from recbole_llm.model_settings import model_keys, read_model_settings
from recbole_llm.settings import Key, Search

_HYPER_TEST = ("choice", "uniform", "quniform", "loguniform")
_RANGE = ("low", "high", "log", "step")
# Sections of settings that all signals share, in so far as they say what is learned.
_SHARED = ("text",)


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched.

    Attributes:
        kind: int, float, or str for what is chosen from.
        where: range or choices.
        group: parameters of one group (a signal's) are changed together, groups in turn.
    """

    kind: type
    where: Search
    group: str = ""

    @property
    def distribution(self) -> BaseDistribution:
        """The same in Optuna's terms."""
        where = self.where
        if where.choices:
            return CategoricalDistribution(where.choices)
        if self.kind is int:
            step = int(where.step or 1)
            return IntDistribution(int(where.low), int(where.high), log=where.log, step=step)
        return FloatDistribution(where.low, where.high, log=where.log, step=where.step)

    @property
    def bounds(self) -> tuple[Any, ...]:
        """The values between which all others lie, or all there are."""
        where = self.where
        return where.choices or (self.kind(where.low), self.kind(where.high))


Space: TypeAlias = Mapping[str, Parameter]


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A trial's value of every parameter."""
    values: dict[str, Any] = {}
    for name, parameter in space.items():
        where = parameter.where
        if where.choices:
            values[name] = trial.suggest_categorical(name, where.choices)
        elif parameter.kind is int:
            low, high, step = int(where.low), int(where.high), int(where.step or 1)
            values[name] = trial.suggest_int(name, low, high, log=where.log, step=step)
        else:
            values[name] = trial.suggest_float(
                name, where.low, where.high, log=where.log, step=where.step
            )
    return values


def signal_space(
    signal_names: Sequence[str] | None, given: Mapping[str, Any]
) -> dict[str, Parameter]:
    """What may be searched of a model's signals and texts, without what the user has set.

    Args:
        signal_names: the signals that the model is made of; None where the user chooses them.
        given: the user's flat settings.
    """
    settings = read_model_settings(signal_names, given)
    sections = [*settings.signals, *(_SHARED if settings.uses_embeddings else ())]
    return key_space(
        key
        for key in model_keys(signal_names)
        if key.section in sections
        and key.name not in given
        and key.field not in getattr(settings.signals.get(key.section), "unread", ())
    )


def key_space(keys: Iterable[Key]) -> dict[str, Parameter]:
    """What may be searched of some settings."""
    return {
        key.name: Parameter(_kind(key.type), key.search, key.section) for key in keys if key.search
    }


def weight_space(labels: Sequence[str], cold_labels: Sequence[str] = ()) -> dict[str, Parameter]:
    """The fusion's weights, and those of cold items with their level where these are given."""
    space = {f"fusion_weights.{label}": Parameter(float, Search(), "weights") for label in labels}
    for label in cold_labels:
        space[f"cold_weights.{label}"] = Parameter(float, Search(0.0, 2.0), "weights")
    if cold_labels:
        space["cold_exposure"] = Parameter(float, Search(-3.0, 3.0), "weights")
    return space


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values as settings: what has a dot in its name is an entry of a mapping."""
    settings: dict[str, Any] = {}
    for name, value in values.items():
        key, dot, entry = name.partition(".")
        if dot:
            settings.setdefault(key, {})[entry] = value
        else:
            settings[name] = value
    return settings


def changed(
    space: Space, changes: Mapping[str, Parameter | None], known: Collection[str], file: Path
) -> dict[str, Parameter]:
    """A space with a file's ranges in place of its own, and its parameters beside them.

    Args:
        space: the model's own.
        changes: what :func:`read_space` gives; None takes a parameter out.
        known: the names that may be searched.
        file: for messages.

    Raises:
        SettingsError: a name is unknown.
    """
    result = dict(space)
    for name, parameter in changes.items():
        if name not in known and name not in space:
            raise SettingsError(
                f"{file}: unknown parameter `{name}`" + did_you_mean(name, [*known, *space])
            )
        if parameter is None:
            result.pop(name, None)
        elif name in space and not parameter.where.choices:
            result[name] = dataclasses.replace(space[name], where=parameter.where)
        else:
            group = space[name].group if name in space else parameter.group
            result[name] = dataclasses.replace(parameter, group=group)
    return result


def read_space(file: Path) -> dict[str, Parameter | None]:
    """The parameters of a file: YAML (``name: {low, high, log}``, ``name: {choices: […]}``,
    ``name: none`` to leave one out), or lines of RecBole's ``hyper.test``.

    Raises:
        SettingsError: it cannot be read, or a range is empty.
    """  # noqa: D205 - the syntax is the summary
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"`space`: cannot read {file}: {one_line(error)}") from error
    lines = [line.split() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
    if lines and all(len(words) > 2 and words[1] in _HYPER_TEST for words in lines):
        return {
            name: _of_hyper_test(file, name, kind, "".join(words)) for name, kind, *words in lines
        }
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"`space`: {file} is no YAML: {one_line(error)}") from error
    if not isinstance(entries, dict) or not entries:
        raise SettingsError(f"`space`: {file} has no parameter; write name: {{low: 1, high: 9}}")
    return {str(name): _of_yaml(file, str(name), entry) for name, entry in entries.items()}


def _of_yaml(file: Path, name: str, entry: Any) -> Parameter | None:
    if entry is None or entry == "none":
        return None
    if isinstance(entry, list):
        entry = {"choices": entry}
    keys = set(entry) if isinstance(entry, dict) else set()
    if keys == {"choices"} and isinstance(entry["choices"], list):
        return _choices(file, name, entry["choices"])
    if not {"low", "high"} <= keys <= set(_RANGE):
        raise SettingsError(
            f"{file}: `{name}` must look like {{low: 0.1, high: 10, log: true}} or "
            f"{{choices: [a, b]}}, got {entry!r}"
        )
    numbers = {key: value for key, value in entry.items() if key != "log" and value is not None}
    for key, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value)):
            raise SettingsError(f"{file}: `{name}`: {key} must be a number, got {value!r}")
    if not isinstance(entry.get("log", False), bool):
        raise SettingsError(f"{file}: `{name}`: log must be true or false, got {entry['log']!r}")
    return _range(file, name, numbers, log=entry.get("log", False))


def _of_hyper_test(file: Path, name: str, kind: str, text: str) -> Parameter:
    try:
        values = json.loads("[" + text.strip("[]").replace("'", '"') + "]")
    except ValueError:
        # Words without quotes, and lists within the list.
        values = yaml.safe_load(text if text.startswith("[") else f"[{text}]")
    if kind == "choice":
        return _choices(file, name, values)
    wanted = 3 if kind == "quniform" else 2
    if len(values) != wanted or not all(isinstance(value, int | float) for value in values):
        raise SettingsError(f"{file}: `{name} {kind}` takes {wanted} numbers, got {text}")
    if kind == "loguniform":  # hyperopt's bounds are exponents of e
        values = [math.exp(value) for value in values]
    if kind == "uniform":
        values = [float(value) for value in values]
    numbers = dict(zip(("low", "high", "step"), values, strict=False))
    return _range(file, name, numbers, log=kind == "loguniform")


def _choices(file: Path, name: str, values: Sequence[Any]) -> Parameter:
    if not values:
        raise SettingsError(f"{file}: `{name}` has no choices")
    # Optuna's choices are scalars; a list is read again where it is put in force.
    scalars = tuple(
        value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for value in values
    )
    return Parameter(str, Search(choices=scalars))


def _range(file: Path, name: str, numbers: Mapping[str, float], *, log: bool) -> Parameter:
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if low >= high:
        what = "is empty" if low == high else "is inverted"
        raise SettingsError(f"{file}: the range of `{name}` {what}: {low:g} to {high:g}")
    if log and low <= 0:
        raise SettingsError(f"{file}: `{name}` is searched by ratios, so that low must be above 0")
    if step is not None and (log or step <= 0):
        raise SettingsError(f"{file}: `{name}`: step must be above 0 and without log")
    whole = all(isinstance(number, int) for number in numbers.values())
    return Parameter(int if whole else float, Search(low, high, log, step=step))


def describe(space: Space) -> str:
    """A space as the YAML that :func:`read_space` takes."""
    entries = {}
    for name, parameter in space.items():
        where = parameter.where
        entry: dict[str, Any] = dict(zip(("low", "high"), parameter.bounds, strict=False))
        if where.choices:
            entry = {"choices": list(where.choices)}
        elif where.log:
            entry["log"] = True
        if where.step:
            entry["step"] = where.step
        entries[name] = entry
    lines = yaml.safe_dump(entries, sort_keys=False, default_flow_style=None, width=200)
    return lines.rstrip()


def _kind(type_: Any) -> type:
    return type_ if type_ in (int, float) else str
