"""What ``recbole-llm tune`` is asked for, read and checked before the data are loaded."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.evaluator import smaller_metrics
from recbole.utils import ModelType

from recbole_llm.errors import SettingsError, did_you_mean
from recbole_llm.evaluation import Metric
from recbole_llm.host.config import given_settings, prepare, task_of
from recbole_llm.host.known_keys import recbole_keys
from recbole_llm.host.run import begin, check_model, read_config
from recbole_llm.levels import COSTS
from recbole_llm.model_settings import model_keys, read_model_settings
from recbole_llm.settings import Search
from recbole_llm.text import read_feature_table, text_fields
from recbole_llm.tuning.objectives import Objective, Pick, StudyOptions
from recbole_llm.tuning.spaces import (
    Parameter,
    changed,
    key_space,
    nested,
    read_space,
    signal_space,
    weight_space,
)
from recbole_llm.tuning.study import space_facts

# They change no trial's value.
_NOT_IDENTITY = frozenset(
    {
        *("model", "dataset", "data_path", "config_files", "result_file", "checkpoint_dir"),
        *("show_progress", "state", "device", "gpu_id", "use_gpu", "worker", "log_wandb"),
        *("wandb_project", "embedding_cache", "encoder_batch_size", "signal_cache", "saved"),
    }
)


@dataclasses.dataclass(frozen=True, eq=False)
class TuningTask:
    """What the command line asks for, with RecBole's Config.

    Attributes:
        args: the command's options.
        config: RecBole's.
        files: of settings, as given.
        values: settings of the command line.
        given: the user's settings from files and command line alike.
        level: what a trial changes of our models, one of ``LEVELS``; None for RecBole's.
        objectives: the first is the one that decides.
        space: what is searched.
        changes: what ``--space`` says of it.
        pick: which trial of a front is put in force; None: the best of the first objective.
    """

    args: argparse.Namespace
    config: Any
    files: list[str]
    values: dict[str, Any]
    given: dict[str, Any]
    level: str | None
    objectives: tuple[Objective, ...]
    space: dict[str, Parameter]
    changes: dict[str, Parameter | None]
    pick: Pick | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> TuningTask:
        """Read and check all that can be before the data are loaded."""
        check_model(args.model)
        values: dict[str, Any] = dict(args.settings)
        files = values.pop("config_files", "").split()
        config = read_config(args.model, args.dataset, files, values)
        begin(config)
        prepare(config)
        if _is_ours(config.model_class) and task_of(config).is_valued:
            raise SettingsError(
                f"{task_of(config).setting}: a study tunes rankings; leave one of the two out"
            )
        given = {
            key: value
            for key, value in given_settings(config).items()
            if key not in ("model", "dataset", "config_files")
        }
        changes = read_space(args.space) if args.space else {}
        both = sorted(set(changes) & set(given))
        if both:
            raise SettingsError(f"{args.space}: `{both[0]}` is set already; leave out one of them")
        objectives = _objectives(args.objective, config)
        level, space = _level_and_space(args, config, given, changes)
        if not space:
            raise SettingsError(
                f"`space`: nothing of {args.model} is searched; name a file of ranges with --space"
            )
        picks = args.pick not in (None, "best")
        pick = Pick.parse(args.pick, objectives) if picks else None
        return cls(args, config, files, values, given, level, objectives, space, changes, pick)

    @property
    def is_ours(self) -> bool:
        """Whether the model is fitted as tables of signals; any other is trained in each trial."""
        return _is_ours(self.config.model_class)

    @property
    def name(self) -> str:
        """Of the study."""
        parts = (self.args.model, self.args.dataset, self.level or "")
        return self.args.study or "-".join(part for part in parts if part)

    @property
    def folder(self) -> Path:
        """Where what comes out goes."""
        return self.args.out or Path("tuning") / self.name

    @property
    def options(self) -> StudyOptions:
        """Of the study."""
        args = self.args
        seed = self.config["seed"] if args.search_seed is None else args.search_seed
        return StudyOptions(
            name=self.name,
            storage=args.storage or f"journal:{self.folder / 'journal.log'}",
            objectives=self.objectives,
            trials=args.trials,
            timeout=args.timeout,
            sampler=args.sampler,
            pruner=args.pruner,
            seed=seed,
        )

    def identity(self) -> dict[str, Any]:
        """What a trial's value depends on beside the trial's own values."""
        settings = {k: v for k, v in sorted(self.given.items()) if k not in _NOT_IDENTITY}
        return {
            "model": self.args.model,
            "dataset": f"{self.args.dataset} {_fingerprint(self.config)}",
            "level": self.level,
            "settings": json.loads(json.dumps(settings, default=str)),
            "space": space_facts(self.space),
        }


def _is_ours(model_class: Any) -> bool:
    return hasattr(model_class, "signal_names") and model_class.type == ModelType.TRADITIONAL


def _fingerprint(config: Any) -> str:
    """16 hex digits of the data set's files."""
    digest = hashlib.sha256()
    folder = Path(config["data_path"])
    for file in sorted(folder.glob(f"{config['dataset']}.*")):
        if file.suffix not in (".yaml", ".md") and file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _objectives(given: Sequence[str] | None, config: Any) -> tuple[Objective, ...]:
    ours = _is_ours(config.model_class)
    names = [name.strip().lower() for name in given or [config["valid_metric"]]]
    if len(set(names)) < len(names):
        raise SettingsError(f"`objective`: {', '.join(names)}: one is named twice")
    reported = {f"{m.lower()}@{k}" for m in config["metrics"] for k in config["topk"]}
    reported |= {name.lower() for name in config["metrics"]}
    found = []
    for name in names:
        if ours and name in COSTS:
            found.append(Objective(name, maximise=False))
        elif ours:
            try:
                found.append(Objective(str(Metric.parse(name))))
            except SettingsError as error:
                reason = str(error).replace("`valid_metric`", "`objective`")
                raise SettingsError(f"{reason}; costs are {', '.join(COSTS)}") from None
        elif name in reported:
            found.append(Objective(name, name.partition("@")[0] not in smaller_metrics))
        else:
            raise SettingsError(
                f"`objective`: {config['model']} reports no {name}, but "
                f"{', '.join(sorted(reported))}; see `metrics` and `topk`"
                + did_you_mean(name, reported)
            )
    if ours and all(objective.name in COSTS for objective in found):
        raise SettingsError("`objective` names costs alone; name a metric beside them")
    return tuple(found)


def _level_and_space(
    args: argparse.Namespace,
    config: Any,
    given: Mapping[str, Any],
    changes: Mapping[str, Parameter | None],
) -> tuple[str | None, dict[str, Parameter]]:
    if not _is_ours(config.model_class):
        if args.level:
            raise SettingsError(f"`level` is for models made of signals; {args.model} has one")
        known: Collection[str] = recbole_keys(config.model_class)
        space: dict[str, Parameter] = {}
        if hasattr(config.model_class, "setting_keys"):
            known = {*known, *(key.name for key in config.model_class.setting_keys())}
        if hasattr(config.model_class, "searched_keys"):
            # A run trains all anew: no group of parameters is cheaper to change by itself.
            space = {
                name: dataclasses.replace(part, group="")
                for name, part in key_space(config.model_class.searched_keys(given)).items()
            }
        return None, changed(space, changes, known, args.space)
    names = config.model_class.signal_names
    settings = read_model_settings(names, given)
    labels = list(settings.variants(is_later=True))
    level = args.level or ("weights" if len(labels) > 1 else "signals")
    if level == "weights":
        if settings.fusion.fusion_weights is not None:
            raise SettingsError("`fusion_weights` is set, and level weights tunes it; leave it out")
        space = weight_space(labels)
        # Whether cold items get weights of their own is known when the data are.
        known = {*weight_space(labels, labels)}
    else:
        space = signal_space(names, given)
        if settings.uses_embeddings and "item_text_fields" not in given:
            space |= _text_field_space(config)
        known = {key.name for key in model_keys(names) if key.section != "search"}
    space = changed(space, changes, known, args.space)
    for name, parameter in space.items():
        for value in parameter.bounds:
            try:
                read_model_settings(names, {**given, **nested({name: value})})
            except SettingsError as error:
                if args.space is None:
                    raise
                raise SettingsError(f"{args.space}: {error}") from error
    return level, space


def _text_field_space(config: Any) -> dict[str, Parameter]:
    """All text-like fields of the items together, or one of them alone."""
    file = Path(config["data_path"]) / f"{config['dataset']}.item"
    if not file.is_file():
        return {}
    table = read_feature_table(
        file,
        id_field=config["ITEM_ID_FIELD"],
        field_separator=config["field_separator"],
        encoding=config["encoding"] or "utf-8",
    )
    fields = text_fields(table)
    if len(fields) < 2:
        return {}
    return {"item_text_fields": Parameter(str, Search(choices=(",".join(fields), *fields)), "text")}
