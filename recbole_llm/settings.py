"""Settings: one frozen, typed object per model, read from a flat mapping of keys.

Settings are flat, because that is what ``--key=value`` and RecBole's YAML files give. They are
declared where they are used, as the fields of frozen dataclasses ("sections") with
:func:`setting`; this module turns flat keys into those objects and back. A default exists once,
in the class.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from recbole_llm.errors import SettingsError, did_you_mean

Words: TypeAlias = tuple[str, ...]
Section = TypeVar("Section")


@dataclass(frozen=True)
class Search:
    """Where a setting is searched.

    Attributes:
        low, high: a range, inclusive.
        log: whether it is searched by ratios.
        choices: what is chosen from, in place of a range.
        step: what values in the range differ by, None for any.
        in_runs: whether the few trials of a run's own search try it; studies try all.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    step: float | None = None
    in_runs: bool = True


def setting(
    default: Any,
    doc: str,
    *,
    key: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    search: Search | None = None,
) -> Any:
    """Declare a setting as a field of a section.

    Args:
        default: the value where the user gives none.
        doc: one line for the README's table and the YAML files.
        key: the flat key, where it is not the section's prefix and the field's name.
        at_least: smallest value allowed.
        at_most: largest value allowed.
        above: value that must be exceeded.
        choices: the words allowed, of a list each of its words.
        search: the range that a signal search tries, None for a setting that is not searched.

    Returns:
        A dataclass field.
    """
    metadata = {
        "doc": doc,
        "key": key,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "choices": choices,
        "search": search,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """A flat key: where it goes and what it takes."""

    name: str
    section: str
    field: str
    type: Any
    default: Any
    doc: str
    search: Search | None


def section_keys(section: str, cls: type, prefix: str = "") -> Iterator[Key]:
    """The flat keys of a section, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "doc" in field.metadata:
            yield Key(
                name=field.metadata["key"] or prefix + field.name,
                section=section,
                field=field.name,
                type=hints[field.name],
                default=field.default,
                doc=field.metadata["doc"],
                search=field.metadata["search"],
            )


def read_section(cls: type[Section], given: Mapping[str, Any], prefix: str = "") -> Section:
    """Build a section from the keys that the user gave.

    Args:
        cls: a frozen dataclass whose fields are made by :func:`setting`.
        given: flat keys and raw values; keys of other sections are ignored.
        prefix: what stands before a field's name in its key.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # a dataclass, by contract
        if "doc" not in field.metadata:
            continue
        key = field.metadata["key"] or prefix + field.name
        if key in given:
            value = _convert(key, given[key], hints[field.name])
            _check(key, value, field.metadata)
            values[field.name] = value
    return cls(**values)


def _convert(key: str, raw: Any, kind: Any) -> Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options:
        if raw is None or (isinstance(raw, str) and raw.strip().lower() in ("none", "~", "")):
            return None
        options = tuple(option for option in options if option is not type(None))
    target = options[0]
    origin = typing.get_origin(target)
    if target is bool:
        return _to_bool(key, raw)
    if target is int:
        return _to_int(key, raw)
    if target is float:
        return _to_float(key, raw)
    if target is str:
        return str(raw).lower() if isinstance(raw, bool) else str(raw)
    if target == Words:
        return to_words(raw)
    if origin is not None and issubclass(origin, Mapping):
        if typing.get_args(target)[1] is str:
            return _to_names(key, raw)
        return _to_mapping(key, raw)
    raise TypeError(f"setting `{key}` has a type that cannot be read: {kind}")


def _to_bool(key: str, raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in ("true", "false"):
        return word == "true"
    raise SettingsError(f"`{key}` must be true or false, got {raw!r}")


def _to_int(key: str, raw: Any) -> int:
    number = _to_float(key, raw)
    if number != int(number):
        raise SettingsError(f"`{key}` must be a whole number, got {raw!r}")
    return int(number)


def _to_float(key: str, raw: Any) -> float:
    try:
        number = float("nan") if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise SettingsError(f"`{key}` must be a number, got {raw!r}")
    return number


def to_words(raw: Any) -> Words:
    """A list of words as YAML (``[a, b]``) or as the command line (``a,b``, ``[a,b]``) gives it."""
    if isinstance(raw, str):
        raw = raw.strip().removeprefix("[").removesuffix("]").split(",")
    parts = raw if isinstance(raw, Sequence) else [raw]
    words = (str(part).strip().strip("'\"") for part in parts)
    return tuple(dict.fromkeys(word for word in words if word))


def _to_mapping(key: str, raw: Any) -> Mapping[str, float]:
    if isinstance(raw, str):
        body = raw.strip().removeprefix("{").removesuffix("}")
        # The last colon: a signal's own name may hold one (text_map:bert).
        pairs = [part.rpartition(":") for part in body.split(",") if part.strip()]
        if not all(separator for _, separator, _ in pairs):
            raise SettingsError(f"`{key}` must look like click:1,cart:3, got {raw!r}")
        raw = {name.strip().strip("'\""): value for name, _, value in pairs}
    if not isinstance(raw, Mapping):
        raise SettingsError(f"`{key}` must look like click:1,cart:3, got {raw!r}")
    return {str(name): _to_float(f"{key}: {name}", value) for name, value in raw.items()}


def _to_names(key: str, raw: Any) -> Mapping[str, str]:
    names = raw
    if isinstance(raw, str):
        pairs = [part.partition(":") for part in raw.strip().strip("{}").split(",")]
        names = {name.strip(" '\""): value.strip(" '\"") for name, _, value in pairs}
    if not isinstance(names, Mapping) or not all(names.values()):
        raise SettingsError(f"`{key}` must look like name:value,name:value, got {raw!r}")
    return {str(name): str(value) for name, value in names.items()}


def _check(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    low, high, above = metadata["at_least"], metadata["at_most"], metadata["above"]
    for number in value.values() if isinstance(value, Mapping) else [value]:
        if low is not None and number < low:
            raise SettingsError(f"`{key}` must be at least {low}, got {number}")
        if high is not None and number > high:
            raise SettingsError(f"`{key}` must be at most {high}, got {number}")
        if above is not None and number <= above:
            raise SettingsError(f"`{key}` must be above {above}, got {number}")
    choices = metadata["choices"]
    for word in value if isinstance(value, tuple) else [value]:
        if choices is not None and word not in choices:
            raise SettingsError(
                f"`{key}` must be one of {', '.join(choices)}, got {word!r}"
                + did_you_mean(str(word), choices)
            )


@dataclass(frozen=True)
class TaskSettings:
    """What a model predicts."""

    task: str = setting(
        "ranking",
        "What is predicted: ranking (which items a user wants), clicks (the chance of each, see "
        "`threshold` and LABEL_FIELD), or ratings (on the data's own scale).",
        key="task",
        choices=("ranking", "clicks", "ratings"),
    )


@dataclass(frozen=True)
class TextSettings:
    """Which words stand for items and users, and who encodes them."""

    item_text_fields: Words | None = setting(
        None, "Fields of the .item file that make an item's text; none: every text-like field."
    )
    item_attribute_fields: Words | None = setting(
        None,
        "Fields of the .item file, categories (genre, brand) and numbers (year, price), that tell "
        "of cold items beside their text; none: every such field; []: no field.",
    )
    user_text_fields: Words | None = setting(
        None, "Fields of the .user file that make a user's text; none: no user text."
    )
    encoder: Words = setting(
        ("bert", "lexical"),
        "Encoders of the text, each a signal of its own: bert, lexical, or a model's folder or "
        "hub name.",
        search=Search(choices=("bert,lexical", "bert", "lexical"), in_runs=False),
    )
    encoder_batch_size: int = setting(64, "Texts that are encoded at once.", at_least=1)
    encoder_kind: str = setting(
        "auto",
        "What a model's folder or hub name without modules.json holds: sentence (BERT), causal "
        "(GPT), or auto (its config.json tells).",
        choices=("auto", "sentence", "causal"),
    )
    encoder_pooling: str = setting(
        "auto",
        "What makes a text's row of its tokens' rows where a model names no pooling: last, mean, "
        "weighted_mean (later tokens count more), or auto (last for causal, else mean).",
        choices=("auto", "last", "mean", "weighted_mean"),
    )
    encoder_backend: str = setting(
        "torch",
        "What runs a network: torch, or onnx (on the CPU; `pip install recbole_llm[onnx]`).",
        choices=("torch", "onnx"),
    )
    encoder_quantize: str = setting(
        "none",
        "Weights of a network that `encoder_backend: onnx` runs: none (as they are), or int8.",
        choices=("none", "int8"),
    )
    embedding_cache: str | None = setting(
        "default",
        "Folder that keeps encoded texts; default: $XDG_CACHE_HOME/recbole_llm; none: no cache.",
    )


@dataclass(frozen=True)
class HistorySettings:
    """What an interaction counts, in which order they came, and what is known at test time."""

    interaction_weight_field: str | None = setting(
        None,
        "Field of the .inter file that says how much an interaction counts (a rating, a "
        "quantity, a behaviour); none: each counts 1.",
    )
    behaviour_weights: Mapping[str, float] | None = setting(
        None,
        "What each word of a behaviour field counts: click:1,cart:3,purchase:5.",
        at_least=0.0,
    )
    order_field: str | None = setting(
        None,
        "Field of the .inter file that says in which order a user's interactions came; none: "
        "RecBole's TIME_FIELD, else `position`.",
        key="order_field",
    )
    test_history: str = setting(
        "auto",
        "What a user's row is made of when the test part is evaluated: train, train_and_valid, or "
        "auto (train_and_valid for leave-one-out by time, else train).",
        choices=("auto", "train", "train_and_valid"),
        key="test_history",
    )


@dataclass(frozen=True)
class RankingSettings:
    """What a model's own scores say of the items that a user has had.

    RecBole hides these from a general model's rankings, and from a sequential one's it does not.
    """

    exclude_seen: str = setting(
        "auto",
        "Whether items of a user's history are ranked last: true, false, or auto (true where no "
        "history of the training part has an item twice).",
        choices=("auto", "true", "false"),
        key="exclude_seen",
    )


@dataclass(frozen=True)
class SearchSettings:
    """How hard good settings of the signals are searched on the validation split."""

    signal_search_trials: int = setting(
        8,
        "Settings that are tried for each of `searched_signals`, counted in fits; 0: none.",
        at_least=0,
    )
    searched_signals: Words = setting(
        ("als", "slim"), "Signals whose settings are searched: als, lightfm, slim."
    )
    signal_cache: str | None = setting(
        None,
        "Folder that keeps fitted signals, so that a run which changes other settings fits none "
        "of them anew; none: no cache.",
    )


@dataclass(frozen=True)
class FusionSettings:
    """How signals are put together."""

    fusion: str = setting(
        "warmth_gate",
        "Fusion rule: weighted_sum, or warmth_gate (weights of their own for cold items).",
        key="fusion",
    )
    cold_exposure: str = setting(
        "auto",
        "How readily cold items stand beside warm ones: auto (what validates best), a number "
        "(added to a cold item's score), or a share of the top 10, such as 10%.",
        key="cold_exposure",
    )
    new_users: str = setting(
        "auto",
        "By what users without history are served under warmth_gate: signals (their own text, or "
        "a typical row), popularity, or auto, popularity unless the signals validate better.",
        key="new_users",
        choices=("auto", "signals", "popularity"),
    )
    exposure_plot: str | None = setting(
        None,
        "File (.png, .svg, .pdf) that gets the trade-off of all levels of cold_exposure; none: it "
        "is in the log alone.",
        key="exposure_plot",
    )
    fusion_weights: Mapping[str, float] | None = setting(
        None,
        "What each signal counts: als:0.6,text_map:bert:0.4; one that is not named counts 0; none: "
        "weights are tuned.",
        at_least=0.0,
    )
    cold_weights: Mapping[str, float] | None = setting(
        None,
        "What each signal's score of a cold item is multiplied by under warmth_gate, likewise; "
        "none: tuned.",
        at_least=0.0,
    )
    completion: bool = setting(
        True, "Whether a signal's rows of items and users that it has not seen come from text."
    )
    weight_trials: int = setting(
        150, "Fusion weights that Optuna tries; 0: equal weights.", at_least=0
    )
    tuning_memory_gb: float = setting(
        1.0, "Memory for the scores of the validation users while weights are tuned.", above=0.0
    )


@dataclass(frozen=True)
class RunOptions:
    """How this run goes; no part of a result's identity but the seed.

    Attributes:
        device: a torch device's name.
        seed: of everything random.
        progress: whether long steps show a bar.
        n_threads: threads of implicit and of the BLAS, None for all cores.
        signal_cache: folder that keeps fitted signals; None: they are always fitted.
    """

    device: str = "cpu"
    seed: int = 2020
    progress: bool = True
    n_threads: int | None = None
    signal_cache: str | None = None
